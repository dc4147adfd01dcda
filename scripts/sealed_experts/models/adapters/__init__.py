"""The trainable part of an expert: one module for each adapter kind, named as in the configuration.

A kind describes itself, mostly as data: its settings, the content of PEFT's `adapter_config.json`, its tensors, and how
to differentiate, generate with and serve it. Other code asks the kind and never tests for a kind by name. torch and
PEFT are imported only inside functions: configurations and packages are checked without them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sealed_experts.errors import UserError
from sealed_experts.features import Feature, Features
from sealed_experts.settings.choices import Choice
from sealed_experts.settings.fields import Distinct, Group, plain, setting, text
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake, shown, suggestion

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

DEFAULT_KIND = "lora"
PREFIX = "base_model.model."  # PEFT writes this before a module's name in the name of a tensor
OUTPUTS, INPUTS = "outputs", "inputs"  # in a shape: the sizes of the tensor's module
Module = Annotated[str, text(r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", "a module's name", min_length=1, max_length=200)]
_MOST_WORDS = 3  # in a tensor's name, after the module's name
Shape = tuple[int, ...]
Sizes = tuple[int, int]  # outputs and inputs of a linear module


class AdapterKind(Feature, Group):
    """An adapter: its fields are its settings. A subclass declares `kind`, a literal of its own name."""

    kind: str

    # The kind's part of adapter_config.json. Other keys and values are refused: some load code.
    marks: ClassVar[Mapping[str, Any]]  # values that identify this kind; a missing key counts as False
    config_keys: ClassVar[Mapping[str, str]]  # {setting that a package states: its key in adapter_config.json}
    config_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # {other allowed key: its allowed values}

    rank_setting: ClassVar[str | None] = None  # the setting of the rank that a serving engine must allow
    starts_as_base: ClassVar[bool] = True  # whether an untrained adapter leaves the base's answers unchanged
    merges: ClassVar[bool] = True  # whether it can be merged into the base's weights
    converts_to: ClassVar[tuple[str, ...]] = ()  # adapter formats into which it can be converted
    serving: ClassVar[Mapping[str, str]] = {"PEFT": ""}  # {engine that can serve it: condition}

    @property
    def lora_rank(self) -> int | None:
        """The rank that a serving engine must allow; None if the kind has no rank."""
        return None if self.rank_setting is None else getattr(self, self.rank_setting)

    def facts(self) -> dict[str, Any]:
        """Return the settings that a package states, as plain data in canonical form."""
        return {name: plain(getattr(self, name)) for name in self.config_keys}

    def peft_config(self, *, task_type: str, base_name: str | None = None, revision: str | None = None) -> "PeftConfig":
        """Return PEFT's configuration of this adapter; `task_type` is PEFT's name for the model's task."""
        from peft import get_peft_config

        facts = self.facts()
        content = {**self.marks, **{key: _whole(facts[name]) for name, key in self.config_keys.items()}}
        where = {"base_model_name_or_path": base_name, "revision": revision}
        return get_peft_config({**content, **where, "task_type": task_type})

    def attach(self, base: "PreTrainedModel", *, task_type: str) -> "PeftModel":
        """Return the base with this adapter attached, untrained.

        Raises:
            UserError: the adapter cannot be attached to this base.
        """
        from peft import get_peft_model

        model: PeftModel = get_peft_model(base, self.peft_config(task_type=task_type))
        return model

    def engine(self, base: Mapping[str, Any]) -> str:
        """Return the name of the cheapest engine in `privacy.engines` that is exact for this adapter.

        Args:
            base: content of the base's config.json.
        """
        return "one_by_one" if is_quantized(base) else "vmap"

    @classmethod
    def decoding(cls, model: "PeftModel", inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the model to generate tokens with, using a cache, and the inputs of its first pass.

        Each later pass takes one token per row, the previous attention mask with one more 1, and, if the first pass had
        `position_ids`, the next position.

        Args:
            model: the base with this adapter.
            inputs: `input_ids` and `attention_mask` of the prompts, [rows, width], and `position_ids` if the base takes
                them. A kind that puts something before the prompt returns changed inputs.
        """
        return model, inputs

    def targets(self) -> tuple[str, ...]:
        """Return the modules of the base that it changes, by their names or the ends of their names."""
        return ()

    def tensor_mistakes(self, shapes: Mapping[str, Shape]) -> Iterator[str]:
        """Yield the mistakes in the tensors of a package, as far as they show without the base."""
        raise NotImplementedError

    def tensors_on(self, base: Mapping[str, Sizes]) -> dict[str, Shape]:
        """Return the shape of every tensor that this adapter has on a base, by name.

        Args:
            base: (outputs, inputs) of each linear module of the base, by its name.
        """
        raise NotImplementedError

    def mistakes(self, layers: Layers, *, model_type: str | None, modules: Sequence[str] | None) -> Iterator[Mistake]:
        """Yield settings that ask for something that the base does not have.

        Args:
            model_type: the base's architecture; None if it is not known yet.
            modules: the linear modules of that architecture; None if they are not known.
        """
        yield from ()


class ModuleAdapter(AdapterKind):
    """The base class of kinds that change linear modules of the base."""

    target_modules: Distinct[Module] = setting(
        "The base's linear modules that get an adapter.",
        default=("q_proj", "k_proj", "v_proj", "o_proj"),
        min_length=1,
        max_length=100,
    )

    def targets(self) -> tuple[str, ...]:
        """`target_modules`."""
        return self.target_modules

    def tensors(self, module: str) -> Mapping[str, tuple[int | str, ...]]:
        """Return {end of a tensor's name, after the module's: shape}; OUTPUTS and INPUTS mean the module's sizes."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return the settings that a package states. The modules are sorted, because PEFT reads them as a set."""
        return super().facts() | {"target_modules": sorted(self.target_modules)}

    def attach(self, base: "PreTrainedModel", *, task_type: str) -> "PeftModel":
        """Return the base with this adapter on its target modules.

        Raises:
            UserError: the base has none of these modules.
        """
        try:
            return super().attach(base, task_type=task_type)
        except ValueError as error:
            raise UserError(f"adapter.target_modules: {error}") from error

    def mistakes(self, layers: Layers, *, model_type: str | None, modules: Sequence[str] | None) -> Iterator[Mistake]:
        """Yield target modules that the base does not have."""
        for place, module in enumerate(self.target_modules):
            if modules is not None and module not in modules:
                yield Mistake(
                    (*layers.locate("adapter", "target_modules"), place),
                    f"{shown(module)} is not a linear module of {model_type}; {suggestion(module, modules)}",
                    involves=(("base", "model_type"), ("base", "name")),
                )

    def tensor_mistakes(self, shapes: Mapping[str, Shape]) -> Iterator[str]:
        """Yield tensors that are foreign or missing, or whose shapes no module can have."""
        modules: dict[str, dict[str, Shape]] = {}
        for name, shape in shapes.items():
            module, part = self._placed(name)
            if not module:
                yield f"{name} belongs to no module that the adapter targets"
            elif part not in self.tensors(module):
                yield f"{name} is not a tensor of a `{self.kind}` adapter"
            else:
                modules.setdefault(module, {})[part] = shape
        for module, parts in modules.items():
            yield from self._module_mistakes(module, parts)
        for target in self.target_modules:
            if not any(is_target(module, target) for module in modules):
                yield f"no tensor belongs to {target}, which the adapter targets"

    def _placed(self, name: str) -> tuple[str, str]:
        """Return the module of a tensor, and the rest of the tensor's name."""
        words = name.removeprefix(PREFIX).split(".") if name.startswith(PREFIX) else []
        for behind in range(1, min(len(words), _MOST_WORDS + 1)):
            module = ".".join(words[:-behind])
            if any(is_target(module, target) for target in self.target_modules):
                return module, ".".join(words[-behind:])
        return "", name

    def _module_mistakes(self, module: str, parts: Mapping[str, Shape]) -> Iterator[str]:
        sizes: dict[str, int] = {}  # as seen in the tensors so far
        for part, axes in self.tensors(module).items():
            if part not in parts:
                yield f"{module} has no {part}"
                continue
            wanted = [sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in axes]
            shape = parts[part]
            if len(shape) != len(wanted) or any(
                isinstance(axis, int) and axis != size for axis, size in zip(wanted, shape, strict=True)
            ):
                yield f"{module}.{part} has the shape {list(shape)}; it must be [{', '.join(map(str, wanted))}]"
            sizes |= {axis: size for axis, size in zip(axes, shape, strict=False) if isinstance(axis, str)}

    def tensors_on(self, base: Mapping[str, Sizes]) -> dict[str, Shape]:
        """Return the shapes of the tensors of every target module."""
        found: dict[str, Shape] = {}
        for module, sizes in base.items():
            if any(is_target(module, target) for target in self.target_modules):
                known = dict(zip((OUTPUTS, INPUTS), sizes, strict=True))
                for part, axes in self.tensors(module).items():
                    shape = tuple(known[axis] if isinstance(axis, str) else axis for axis in axes)
                    found[f"{PREFIX}{module}.{part}"] = shape
        return found


def is_target(module: str, target: str) -> bool:
    """Apply PEFT's rule: a target is a module's name, or the end of a module's name."""
    return module == target or module.endswith(f".{target}")


def is_quantized(base: Mapping[str, Any]) -> bool:
    """Say, from a base's config.json, whether its weights are stored in fewer bits."""
    return bool(base.get("quantization_config"))


def _whole(value: Any) -> Any:
    """Write whole numbers without a point, as PEFT's readers expect a rank or an alpha."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


KINDS = Features(AdapterKind, noun="adapter kind")
ADAPTER = Choice(KINDS, key="kind", default=DEFAULT_KIND)


def kind_of(config: Mapping[str, Any]) -> type[AdapterKind] | None:
    """Return the kind of an adapter_config.json; None if this program does not have it."""
    for kind in KINDS.values():
        if all(config.get(key, False) == value for key, value in kind.marks.items()):
            return kind
    return None
