"""The checks of a package's content, the same for both containers. They run after the check of the signature."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sealed_experts.files.safetensors_header import Tensor
from sealed_experts.models.adapters import AdapterKind
from sealed_experts.models.bases import base_reference
from sealed_experts.packages.content.linter import CONFIG, WEIGHTS, AdapterFacts, adapter_facts
from sealed_experts.packages.content.manifest import adapter_of
from sealed_experts.packages.content.provenance import PROVENANCE, check_provenance
from sealed_experts.packages.content.receipt import RECEIPT, check_receipt_member
from sealed_experts.packages.content.tensors import TensorCheck
from sealed_experts.packages.content.tokenizer import check_tokenizer
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.source import Buffer
from sealed_experts.training.objectives import STAGES

TEXTS = ("README.md", "LICENSE")  # members that must be UTF-8


@dataclass(frozen=True, kw_only=True)
class Content:
    """Members that passed every check, by name, and the adapter's facts and shapes. Weights only if asked for."""

    members: dict[str, bytes]
    facts: AdapterFacts
    shapes: dict[str, tuple[int, ...]]


def check_content(
    manifest: Mapping[str, Any],
    read: Callable[[str], Iterable[Buffer]],
    *,
    known: Mapping[str, str] | None = None,
    seen: Callable[[TensorCheck], None] | None = None,
    keep_weights: bool = False,
) -> Content:
    """Check the members of a package whose signature and manifest are verified.

    The order is: sizes and digests of all members, then texts, receipt, linter, and the manifest's statements about
    them.

    Args:
        manifest: it passed `check_manifest`, so its set of members and their largest sizes are right.
        read: returns a member's content in blocks. A block is valid until the next one is taken. It is called once for
            each member, in the manifest's order.
        known: digests of members that a signature already covers. They are not computed again.
        seen: passes the weights to their check, instead of `read`. Give it only if the digest of the weights is known
            and the weights are not kept.
        keep_weights: whether the weights are kept in memory and returned.

    Raises:
        PackageError: a check failed; the message names the member and what was expected.
    """
    members: dict[str, bytes] = {}
    weights = _Weights(keep=keep_weights)
    for entry in manifest["members"]:
        path, digest, kept = entry["path"], (known or {}).get(entry["path"]), io.BytesIO()
        take = weights.taker(entry["size"]) if path == WEIGHTS else kept.write
        if path == WEIGHTS and seen is not None:
            assert digest is not None, "it was hashed in the first reading"
            weights.hand_over(seen)
        else:
            digest = _take(_exactly(read(path), entry), take, digest)
        if digest != entry["sha256"]:
            raise PackageError(f"member {path}: its SHA-256 is not {entry['sha256']}, as the manifest states")
        members[path] = kept.getvalue()
    _check_texts(members)
    check_receipt_member(manifest, members[RECEIPT])
    tensors = weights.finish()
    adapter = adapter_of(manifest)
    facts = adapter_facts(members[CONFIG], tensors, kind=type(adapter))
    _check_adapter(manifest, adapter, facts)
    check_provenance(manifest, members[PROVENANCE])
    check_tokenizer(members)
    del members[WEIGHTS]
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Content(members={**members, **weights.content()}, facts=facts, shapes=shapes)


def _take(blocks: Iterable[Buffer], take: Callable[[Buffer], object], known: str | None) -> str:
    """Pass blocks on, and return their digest. It is computed only if it is not known."""
    state = hashlib.sha256()
    for block in blocks:
        take(block)
        if known is None:
            state.update(block)
    return known or state.hexdigest()


class _Weights:
    """The weights while they are read. A mistake in them is raised only after all digests proved right."""

    def __init__(self, *, keep: bool) -> None:
        self._kept = io.BytesIO() if keep else None
        self._check: TensorCheck | None = None
        self._refusal: PackageError | None = None

    def taker(self, size: int) -> Callable[[Buffer], object]:
        self._check = TensorCheck(size=size, member=WEIGHTS)
        return self._take

    def hand_over(self, seen: Callable[[TensorCheck], None]) -> None:
        assert self._check is not None, "the manifest lists the weights"
        try:
            seen(self._check)
        except PackageError as error:
            self._refusal = error

    def _take(self, block: Buffer) -> None:
        assert self._check is not None, "the manifest lists the weights"
        if self._kept is not None:
            self._kept.write(block)
        if self._refusal is None:
            try:
                self._check.feed(block)
            except PackageError as error:
                self._refusal = error

    def finish(self) -> Mapping[str, Tensor]:
        assert self._check is not None, "the manifest lists the weights"
        if self._refusal is not None:
            raise self._refusal
        return self._check.finish()

    def content(self) -> dict[str, bytes]:
        return {} if self._kept is None else {WEIGHTS: self._kept.getvalue()}


def _exactly(blocks: Iterable[Buffer], entry: Mapping[str, Any]) -> Iterator[Buffer]:
    """Pass a member's blocks on, but not more bytes than the manifest states."""
    size = 0
    for block in blocks:
        size += len(block)
        if size > entry["size"]:
            break
        yield block
    if size != entry["size"]:
        problem = "more" if size > entry["size"] else f"{size}"
        raise PackageError(f"member {entry['path']}: it has {problem} bytes where the manifest states {entry['size']}")


def _check_texts(members: Mapping[str, bytes]) -> None:
    for name in TEXTS:
        try:
            members.get(name, b"").decode("utf-8")
        except UnicodeDecodeError as error:
            raise PackageError(f"{name}: it is not UTF-8 text (byte {error.start})") from error


def _check_adapter(manifest: Mapping[str, Any], adapter: AdapterKind, facts: AdapterFacts) -> None:
    """Compare the manifest's statements about the adapter with the adapter's own files."""
    base, stated, found = manifest["base"], adapter.facts(), facts.adapter.facts()
    pairs = {
        **{f"adapter.settings.{name}": (stated[name], found[name]) for name in stated},
        "perf.parameters": (manifest["perf"]["parameters"], facts.parameters),
        "perf.size": (manifest["perf"]["size"], facts.tensor_bytes),
        "base.name": (
            base_reference(name=base["name"], revision=base["revision"], digest=base["digest"]),
            facts.base_name,
        ),
        "base.revision": (base["revision"], facts.base_revision),
    }
    for field, (claimed, actual) in pairs.items():
        if claimed != actual:
            raise PackageError(
                f"manifest: {field} is {ascii(claimed)[:100]}, but the adapter's files say {ascii(actual)[:100]}"
            )
    # A stage that this program does not have may train any class of model.
    stage = STAGES.get(manifest["training"]["selected_stage"])
    if stage is not None and stage.model_class != facts.model_class:
        raise PackageError(
            f"{CONFIG}: task_type is that of a {facts.model_class.noun}, but stage {stage.feature} trains a"
            f" {stage.model_class.noun}"
        )
