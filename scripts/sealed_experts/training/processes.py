"""Several processes that train one job: they share each logical batch, add up their results, and keep equal weights.

`launcher` and torchrun set each process's rank in the environment. Small data go through gloo. Sums of gradients go
through the backend of their device: gloo on CPUs, nccl on GPUs.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.training.interruption import Interrupted
from sealed_experts.training.launcher import EXIT_PEER, STORE

Item = TypeVar("Item")

# Values of a sum that are exchanged at once. Each process holds this many values from every process.
_CHUNK = 1 << 22


class PeerError(UserError):
    """This process is healthy, but another process of its job failed."""

    exit_code = EXIT_PEER


class OutOfMemoryTogether(torch.OutOfMemoryError):
    """A process ran out of memory, and all processes know it: their weights are still equal."""


class Processes:
    """A job of one process. For several processes, use `ProcessGroup`."""

    rank = 0
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files: journal, key, checkpoints, metrics, adapter file."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's share. Shares are disjoint, hold all items, and their sizes differ by at most one."""
        return list(items[self.rank :: self.count])

    def exchange(self, value: Any) -> list[Any]:
        """Return the plain data of every process, in the order of ranks. Every process has to call it.

        Raises:
            PeerError: another process ended, or did not answer in time.
        """
        return [value]

    def sum(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the sums over all processes of float64 tensors.

        They are added in the order of ranks, so that every process gets the same bits.

        Raises:
            PeerError: another process ended, or did not answer in time.
        """
        return list(tensors)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """If one process raises in this block, all processes raise at its end, so that none waits for a lost one.

        Nothing else may be exchanged inside the block. If one process is interrupted, all are.

        Raises:
            PeerError: another process failed; its own message says why.
            OutOfMemoryTogether: a process ran out of memory.
        """
        yield

    def agree(self, what: str, value: Any) -> None:
        """Check that all processes have the same plain data.

        Raises:
            UserError: their data differ.
        """
        values = self.exchange(value)
        other = next((rank for rank in range(self.count) if values[rank] != values[0]), None)
        if other is None:
            return
        text = f"{what} of process {other} differ from those of process 0"
        if not self.is_first:
            raise PeerError(f"process {self.rank} of {self.count} stopped: {text}")
        raise UserError(
            f"{text}: the processes of one job must compute the same, on devices of the same kind; the last checkpoint "
            "is kept. If this happens again with the same command, a device or its memory is at fault: train with "
            "processes_per_job: 1, or on another machine"
        )


class ProcessGroup(Processes):
    """A job of several processes, joined."""

    def __init__(self, *, rank: int, count: int) -> None:
        """Only `joined` makes one."""
        self.rank, self.count = rank, count

    def exchange(self, value: Any) -> list[Any]:
        """See `Processes`."""
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [int(length) for length in self._gather(torch.tensor([content.numel()]))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: content.numel()] = content
        parts = self._gather(padded)
        return [json.loads(part[:length].numpy().tobytes()) for part, length in zip(parts, lengths, strict=True)]

    def sum(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `Processes`. It gathers and adds itself, because a library's reduction does not promise an order."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        if flat.dtype != torch.float64:
            raise ValueError(f"sums over processes are float64, not {flat.dtype}")
        for start in range(0, flat.numel(), _CHUNK):
            piece = flat[start : start + _CHUNK]
            first, *others = self._gather(piece)
            for other in others:
                first += other
            piece.copy_(first)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """See `Processes`."""
        own: Exception | None = None
        try:
            yield
        except PeerError:
            raise
        except Exception as error:
            own = error
        kinds = self.exchange(_outcome(own))
        for kind in ("failed", "memory", "interrupted"):
            rank = next((rank for rank in range(self.count) if kinds[rank][0] == kind), None)
            if rank is not None:
                raise self._error_for_all(kind, rank, kinds[rank][1], own) from own

    def _error_for_all(self, kind: str, rank: int, message: str, own: Exception | None) -> Exception:
        if kind == "interrupted":
            return Interrupted(message)
        if kind == "memory":
            return OutOfMemoryTogether(message)
        if rank == self.rank and own is not None:
            return own
        return PeerError(f"process {self.rank} of {self.count} stopped because process {rank} did: {message}")

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        try:
            dist.all_gather(parts, tensor.contiguous())
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise PeerError(
                f"process {self.rank} of {self.count} stopped because another one ended or did not answer in time "
                f"({_first_line(error)}); the last checkpoint is kept, and the same command goes on from there"
            ) from error
        return parts


@contextlib.contextmanager
def joined(*, timeout_minutes: float) -> Iterator[Processes]:
    """Connect the processes of this job in this block, if the environment names several.

    Args:
        timeout_minutes: how long they wait for one another.

    Raises:
        UserError: a process did not join in time, or the environment gives no rank.
    """
    rank, count = _place()
    if count == 1:
        yield Processes()
        return
    timeout = datetime.timedelta(minutes=timeout_minutes)
    place: dict[str, Any] = {"init_method": "env://"}
    if path := os.environ.get(STORE):
        store = dist.FileStore(path, count)
        store.set_timeout(timeout)
        place = {"store": store}
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, rank=rank, world_size=count, timeout=timeout, **place)
    except RuntimeError as error:
        raise PeerError(f"process {rank} of {count} did not find the others: {_first_line(error)}") from error
    try:
        yield ProcessGroup(rank=rank, count=count)
    except Interrupted:  # in every process
        dist.destroy_process_group()
        raise
    # Not after a failure: this call would wait for other processes, which may be gone.
    dist.destroy_process_group()


def _place() -> tuple[int, int]:
    """Return this process's rank, and how many there are."""
    size, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "")
    if not size.isdecimal() or int(size) == 0:
        raise UserError(
            f"the variable WORLD_SIZE is {size!r}, which is not a number of processes: unset it, or start them with "
            "training/launcher.py"
        )
    count = int(size)
    if count > 1 and not (rank.isdecimal() and int(rank) < count):
        raise UserError(
            f"the variable WORLD_SIZE says {count} processes, but RANK does not say which of them this one is: start "
            "them with training/launcher.py, or unset WORLD_SIZE"
        )
    return int(rank) if count > 1 else 0, count


def choose_device(device: torch.device, processes: Processes) -> torch.device:
    """Give each process of a job its own GPU, if the job uses GPUs. Return `device`, which then means that GPU.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if device.type == "cuda" and processes.count > 1:
        place, found = int(os.environ.get("LOCAL_RANK", processes.rank)), torch.cuda.device_count()
        if place >= found:
            raise UserError(
                f"{processes.count} processes need as many GPUs, but PyTorch sees {found}: lower processes_per_job or "
                "gpus, or give the job more GPUs (CUDA_VISIBLE_DEVICES)"
            )
        torch.cuda.set_device(place)
    return device


def _outcome(error: Exception | None) -> tuple[str, str]:
    if error is None:
        return ("ok", "")
    if isinstance(error, Interrupted):
        return ("interrupted", str(error))
    return ("memory" if is_out_of_memory(error) else "failed", _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
