"""`sealed-experts run`: run the pipeline, one run at a time in a folder. `make run` calls it."""

import argparse
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from sealed_experts.cli.progress import packages_without_adapters
from sealed_experts.cli.summary import print_summary
from sealed_experts.cli.watch import RUN_LOCK
from sealed_experts.errors import UserError
from sealed_experts.files.locks import folder_lock
from sealed_experts.machine import visible_devices
from sealed_experts.settings.reading import check_files
from sealed_experts.text import printable
from sealed_experts.training.interruption import EXIT_INTERRUPTED
from sealed_experts.training.objectives import STAGES

CONFIG = Path("results/moe/moe_config.json")
DEFAULT_CONFIG = Path("config/config.yaml")
WAIT_SECONDS = 10.0
QUIET_SUMMARY = "--quiet-summary"

_ELSEWHERE = ("--executor", "-e", "--profile", "--workflow-profile")
_CORES = ("--cores", "-c", "--jobs", "-j", *_ELSEWHERE)
_RESOURCES = ("--resources", "--res")
_CONFIG_FILES = ("--configfile", "--configfiles")
_PARTS = ("data", *STAGES, "packages")  # targets that leave the mixture as it is, perhaps from an earlier run
_WHOLES = ("all", "moe", str(CONFIG))
_LIMITED = ("--until", "-U", "--omit-from", "-O")
_CHANGES_NOTHING = re.compile(r"-[pqF]*n[pqF]*|--dry-?run|--version|-v")
_FORWARDED = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}
_STOPPED = "Stopped. Finished files and checkpoints are kept; run the same command again to continue."
_OUT_OF_DATE = (
    "note: {package} is from an earlier training. Its adapter {adapter} is missing: the training failed or was "
    "stopped, or the file was deleted. To make both again, use `make run` without a file's name"
)
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.2


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `run`. Its arguments are for Snakemake, so `main` passes them on unparsed."""
    parser = subparsers.add_parser(
        "run",
        help="run the pipeline in this folder (what `make run` does)",
        usage=f"sealed-experts run [{QUIET_SUMMARY}] [Snakemake's own arguments …]",
        description="Run Snakemake in this folder, one run at a time, with --cores all unless you give another number. "
        "First remove the lock of a run that was killed. After Ctrl-C or SIGTERM the trainers save their progress; run "
        "the same command again to continue.",
    )
    parser.add_argument(QUIET_SUMMARY, action="store_true", help="do not print the summary at the end")
    parser.set_defaults(run=run, arguments=[])


def run(args: argparse.Namespace) -> int:
    """Run Snakemake and print a summary; return its exit code, or 75 if a signal to this process stopped it.

    Raises:
        UserError: this folder has no Snakefile, a configuration file is wrong, or another run here does not end.
    """
    arguments = [argument for argument in args.arguments if argument != QUIET_SUMMARY]
    if not Path("Snakefile").is_file():
        raise UserError(f"{Path.cwd()} has no Snakefile: change to the folder that Sealed Experts was cloned to")
    check_files([path for path in config_files(arguments) if path != DEFAULT_CONFIG or path.is_file()])
    if any(map(_CHANGES_NOTHING.fullmatch, arguments)):
        return run_snakemake(arguments)[0]
    with folder_lock(RUN_LOCK, wait_seconds=WAIT_SECONDS):
        _remove_stale_lock(arguments)
        code, stopped = run_snakemake(arguments)
    if code != 0 and stopped:
        # Snakemake reports every stopped job as failed. If the terminal is gone, only the exit code says it.
        with contextlib.suppress(OSError):
            print(_STOPPED, file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    if code == 0 and any(map(_is_file, arguments)):
        # Snakemake succeeded, even if nobody can read the note.
        with contextlib.suppress(OSError):
            for package, adapter in packages_without_adapters(Path("results")):
                note = _OUT_OF_DATE.format(package=package, adapter=adapter)
                print(printable(note), file=sys.stderr, flush=True)
    if code == 0 and QUIET_SUMMARY not in args.arguments and makes_mixture(arguments) and CONFIG.is_file():
        print_summary(CONFIG)
    return code


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Return the configuration files that Snakemake will read: those of the last --configfile, else the demo's."""
    files = [DEFAULT_CONFIG]
    listed = False
    for argument in arguments:
        if argument == "--":
            break
        name, given, value = argument.partition("=")
        if argument.startswith("-"):
            listed = name in _CONFIG_FILES
            if listed:
                files = [Path(value)] if given else []
        elif listed:
            files.append(Path(argument))
    return files


def makes_mixture(arguments: Sequence[str]) -> bool:
    """Say whether the targets include the mixture: no target is named, or one of them needs it."""
    if "--" in arguments:
        options, named = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    else:
        # Only Snakemake knows which words are targets: `all` may belong to --cores. So look for the names of parts.
        options = arguments
        named = [word for word in arguments if word in _PARTS or word in _WHOLES[1:] or _is_file(word)]
    limited = any(option.split("=")[0] in _LIMITED for option in options)
    return not limited and (not named or not set(_WHOLES).isdisjoint(map(os.path.normpath, named)))


def _is_file(word: str) -> bool:
    return word.startswith("results/")


def _remove_stale_lock(arguments: Sequence[str]) -> None:
    """Remove the lock of a killed Snakemake. The caller holds our own lock of the folder."""
    locks = Path(".snakemake/locks")
    deadline = time.monotonic() + WAIT_SECONDS
    while locks.is_dir() and any(locks.iterdir()):
        # Snakemake's lock does not name its process, and a plain `snakemake` does not take our lock.
        living = next(_snakemakes_here(), None)
        if living is None:
            print("Removing the lock of a run that was killed; finished files and checkpoints are kept.", flush=True)
            if run_snakemake(["--unlock", *arguments])[0] != 0:
                raise UserError(
                    "the lock in .snakemake/locks could not be removed: correct the error above and run again"
                )
            return
        if time.monotonic() >= deadline:
            raise UserError(
                f"Snakemake (process {living}) is running in this folder: wait for it to end, or stop it, and run again"
            )
        time.sleep(_POLL_SECONDS)


def _snakemakes_here() -> Iterator[int]:
    """Yield the ids of the Snakemake processes that run in this folder (found on Linux only)."""
    here = os.stat(".")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            runs_it = any(os.path.basename(word) == b"snakemake" for word in words[:3])
            if runs_it and os.path.samestat(here, os.stat(entry / "cwd")):
                yield int(entry.name)


def run_snakemake(arguments: Sequence[str]) -> tuple[int, bool]:
    """Run Snakemake in a process group of its own, so that a signal reaches it and every job together.

    Return its exit code, and whether a signal was passed on to it.
    """
    # Snakemake alone would wait for its jobs, so a trainer would go on to its last step.
    with (
        subprocess.Popen(
            [sys.executable, "-m", "snakemake", *_default_cores(arguments), *default_gpus(arguments), *arguments],
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with_parent,
        ) as process,
        _forwarding(process) as passed_on,
    ):
        code = process.wait()
    return code if code >= 0 else 128 - code, bool(passed_on)


def _default_cores(arguments: Sequence[str]) -> list[str]:
    before_targets = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    for argument in before_targets:
        name = argument.split("=")[0]
        if name in _CORES or (argument[:2] in ("-c", "-j") and argument[2:].isdigit()):
            return []
    return ["--cores", "all"]


def default_gpus(arguments: Sequence[str]) -> list[str]:
    """Return the option that limits jobs on GPUs to the number of GPUs. More jobs would only wait for one."""
    gpus = len(visible_devices())
    names = {argument.split("=")[0] for argument in arguments}
    # A cluster counts its own GPUs. The `=` keeps Snakemake from reading a target as another resource.
    return [] if not gpus or names & {*_RESOURCES, *_ELSEWHERE} else [f"--resources=gpu={gpus}"]


def _die_with_parent() -> None:
    """Let Linux kill Snakemake when `run` is killed. The trainers then notice that it is gone, and save."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _forwarding(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass signals on to the process and its group; yield the list of the signals passed on so far."""
    passed_on: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        passed_on.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, _FORWARDED[signal.Signals(number)])

    handled = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` ignores one
    before = {number: signal.signal(number, forward) for number in handled}
    try:
        yield passed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
