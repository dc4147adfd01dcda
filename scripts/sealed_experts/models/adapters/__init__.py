"""The trainable part of an expert: one module an adapter kind, named as in the configuration.

Nothing here imports torch or PEFT but inside functions: configurations and packages are checked without them.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from sealed_experts.features import Feature, Features
from sealed_experts.settings.choices import Choice
from sealed_experts.settings.fields import Distinct, Group, setting, text
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake, shown, suggestion

if TYPE_CHECKING:
    from peft import PeftConfig

DEFAULT_KIND = "lora"
Module = Annotated[str, text(r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", "a module's name", min_length=1, max_length=200)]


class AdapterKind(Feature, Group):
    """An adapter: its fields are its settings. A subclass declares `kind`, a literal of its own name."""

    kind: str

    @property
    def lora_rank(self) -> int | None:
        """The rank that a serving engine must allow; None where there is none."""
        return None

    def peft_config(self, *, base_name: str | None = None, revision: str | None = None) -> "PeftConfig":
        """Return PEFT's configuration of this adapter."""
        raise NotImplementedError

    def mistakes(self, layers: Layers, *, model_type: str | None, modules: Sequence[str] | None) -> Iterator[Mistake]:
        """Yield what the base does not have.

        Args:
            model_type: the base's architecture; None where it is not known yet.
            modules: the linear modules of that architecture; None where they are not known.
        """
        yield from ()


class ModuleAdapter(AdapterKind):
    """What the kinds share that change linear modules of the base."""

    target_modules: Distinct[Module] = setting(
        "The base's linear modules that get an adapter.",
        default=("q_proj", "k_proj", "v_proj", "o_proj"),
        min_length=1,
        max_length=100,
    )

    def mistakes(self, layers: Layers, *, model_type: str | None, modules: Sequence[str] | None) -> Iterator[Mistake]:
        """Yield target modules that the base does not have."""
        for place, module in enumerate(self.target_modules):
            if modules is not None and module not in modules:
                yield Mistake(
                    (*layers.locate("adapter", "target_modules"), place),
                    f"{shown(module)} is not a linear module of {model_type}; {suggestion(module, modules)}",
                    involves=(("base", "model_type"), ("base", "name")),
                )


KINDS = Features(AdapterKind, noun="adapter kind")
ADAPTER = Choice(KINDS, key="kind", default=DEFAULT_KIND)
