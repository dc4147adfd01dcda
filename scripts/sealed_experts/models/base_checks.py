"""Check the settings of the base model before anything is fetched or trained."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.models.bases import (
    DEMO,
    DEMO_MODEL_TYPE,
    base_key,
    base_kind,
    folder_config,
    folder_of,
    gguf_file,
    is_within,
    missing_package,
    target_modules_of,
)
from sealed_experts.models.settings import BaseSettings
from sealed_experts.settings.messages import Mistake, nearest, shown


@dataclasses.dataclass(frozen=True)
class BaseFacts:
    """Facts about the base that are known without loading it. None means: not known."""

    model_type: str | None
    longest: int | None  # positions, in tokens
    config: Mapping[str, Any] | None  # content of its config.json

    @classmethod
    def of(cls, base: BaseSettings, *, root: Path) -> "BaseFacts":
        """Collect the facts from the settings, or from a folder's config.json."""
        kind = base_kind(base, root=root)
        if kind == "demo":
            return cls(model_type=DEMO_MODEL_TYPE, longest=base.demo.context, config={})
        if kind != "folder":
            return cls(model_type=base.model_type, longest=None, config=None)
        try:
            config = folder_config(base, root=root)
        except UserError:
            return cls(model_type=base.model_type, longest=None, config=None)  # base_mistakes reports it
        longest = config.get("max_position_embeddings", config.get("n_positions"))
        return cls(
            model_type=config.get("model_type") if base.model_type is None else base.model_type,
            longest=longest if isinstance(longest, int) else None,
            config=config,
        )

    @property
    def modules(self) -> tuple[str, ...] | None:
        """The linear modules of its architecture; None if they are not known."""
        return target_modules_of(self.model_type)


def base_mistakes(base: BaseSettings, *, root: Path) -> Iterator[Mistake]:
    """Yield the mistakes in the base's settings."""
    kind = base_kind(base, root=root)
    if kind == "demo":
        yield from _demo_mistakes(base)
    elif kind == "folder":
        yield from _folder_mistakes(base, root)
    elif kind == "gguf":
        yield from _gguf_mistakes(base, root)
    elif kind == "hub":
        if base.revision is None:
            yield Mistake(
                ("base", "revision"),
                f"it is missing: {shown(base.name)} is no folder here, so it is a hub id, and needs the commit to use"
                " (40 hexadecimal digits, shown on the model's page under its files)",
            )
    else:
        near = nearest(base.name, [DEMO])
        yield Mistake(
            ("base", "name"),
            f"{shown(base.name)} is neither `demo`, nor an existing folder, nor a hub id such as `Qwen/Qwen2.5-1.5B`"
            + (f"; did you mean `{near}`?" if near else ""),
        )
    yield from _key_mistakes(base, kind, root)


def _demo_mistakes(base: BaseSettings) -> Iterator[Mistake]:
    if base.revision is not None:
        yield Mistake(("base", "revision"), "the demo base has no revision; remove it, or name a hub model")
    demo = base.demo
    if demo.hidden_size % demo.heads or (demo.hidden_size // demo.heads) % 2:
        yield Mistake(
            ("base", "demo", "heads"),
            f"{demo.heads} heads do not cut hidden_size, which is {demo.hidden_size}, into heads of an even width",
            involves=(("base", "demo", "hidden_size"),),
        )


def _gguf_mistakes(base: BaseSettings, root: Path) -> Iterator[Mistake]:
    if base.revision is not None:
        yield Mistake(("base", "revision"), "a GGUF file has no revision; remove it")
    if missing_package(base):
        return  # reported with the other packages to install
    try:
        gguf_file(base, root=root)
    except UserError as error:
        yield Mistake(("base", "name"), f"{shown(base.name)} cannot be used: {error}")


def _folder_mistakes(base: BaseSettings, root: Path) -> Iterator[Mistake]:
    if base.revision is not None:
        yield Mistake(
            ("base", "revision"),
            f"{shown(base.name)} is a folder, and a folder has no revision; remove it, or rename the folder if the hub"
            " model of that name is meant",
        )
    try:
        config = folder_config(base, root=root)
    except UserError as error:
        yield Mistake(("base", "name"), f"{shown(base.name)} is not a model folder: {error}")
        return
    if base.model_type is not None and base.model_type != config.get("model_type"):
        yield Mistake(
            ("base", "model_type"),
            f"{shown(base.model_type)} is not what the folder's config.json says, which is"
            f" {shown(config.get('model_type'))}; a folder needs no model_type here",
        )


def _key_mistakes(base: BaseSettings, kind: str | None, root: Path) -> Iterator[Mistake]:
    try:
        key = base_key(base)
    except UserError as error:
        yield Mistake(("base", "key"), str(error).partition(": ")[2])
        return
    if key == DEMO and kind != "demo":
        yield Mistake(("base", "key"), "`demo` is kept for the demo base; give another key")
    if kind == "folder" and is_within(folder_of(base, root=root), root / "results" / "base" / key):
        yield Mistake(
            ("base", "name"),
            f"{shown(base.name)} lies in results/base/{key}, which the pipeline makes and replaces; move the model out"
            " of `results`, or give it another `base.key`",
            involves=(("base", "key"),),
        )
