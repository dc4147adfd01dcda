"""The trainable part of an expert: one module an adapter kind, named as in the configuration.

A kind says everything about itself, most of it as data: its settings, what PEFT's `adapter_config.json` holds, its
tensors, how it is differentiated, generated with and served. Whoever needs that asks the kind, and names none.

Nothing here imports torch or PEFT but inside functions: configurations and packages are checked without them.
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
PREFIX = "base_model.model."  # what PEFT puts before a module's name in the name of a tensor
OUTPUTS, INPUTS = "outputs", "inputs"  # in a shape: the sizes of the module that the tensor belongs to
Module = Annotated[str, text(r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", "a module's name", min_length=1, max_length=200)]
_MOST_WORDS = 3  # in the part of a tensor's name behind the module's
Shape = tuple[int, ...]
Sizes = tuple[int, int]  # outputs and inputs of a linear module


class AdapterKind(Feature, Group):
    """An adapter: its fields are its settings. A subclass declares `kind`, a literal of its own name."""

    kind: str

    # Its adapter_config.json, besides what every kind's holds. Other keys and values are refused: some load code.
    marks: ClassVar[Mapping[str, Any]]  # values that tell it from other kinds; a key that is absent counts as False
    config_keys: ClassVar[Mapping[str, str]]  # {setting that a package states: its key there}
    config_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # {key that may be there: its values}

    rank_setting: ClassVar[str | None] = None  # the setting that holds a rank, which a serving engine must allow
    starts_as_base: ClassVar[bool] = True  # whether the base answers as before until the adapter is trained
    merges: ClassVar[bool] = True  # whether it can become part of the base's weights
    converts_to: ClassVar[tuple[str, ...]] = ()  # formats of adapters that can hold the same
    serving: ClassVar[Mapping[str, str]] = {"PEFT": ""}  # {what serves it on its base: on which condition}

    @property
    def lora_rank(self) -> int | None:
        """The rank that a serving engine must allow; None where there is none."""
        return None if self.rank_setting is None else getattr(self, self.rank_setting)

    def facts(self) -> dict[str, Any]:
        """Return the settings that a package states, as plain data in one spelling."""
        return {name: plain(getattr(self, name)) for name in self.config_keys}

    def peft_config(self, *, task_type: str, base_name: str | None = None, revision: str | None = None) -> "PeftConfig":
        """Return PEFT's configuration of this adapter; `task_type` is PEFT's name of what the model does."""
        from peft import get_peft_config

        facts = self.facts()
        content = {**self.marks, **{key: _whole(facts[name]) for name, key in self.config_keys.items()}}
        where = {"base_model_name_or_path": base_name, "revision": revision}
        return get_peft_config({**content, **where, "task_type": task_type})

    def attach(self, base: "PreTrainedModel", *, task_type: str) -> "PeftModel":
        """Return the base with this adapter on it, as it starts.

        Raises:
            UserError: the adapter has no place on this base.
        """
        from peft import get_peft_model

        model: PeftModel = get_peft_model(base, self.peft_config(task_type=task_type))
        return model

    def engine(self, base: Mapping[str, Any]) -> str:
        """Return the name of the cheapest of `privacy.engines` that is exact for it.

        Args:
            base: content of the base's config.json.
        """
        return "one_by_one" if is_quantized(base) else "vmap"

    @classmethod
    def decoding(cls, model: "PeftModel", inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what generates tokens with a cache, and the inputs of its first pass.

        Each later pass takes one token a row, the attention mask of the pass before and a 1 more, and, if the first
        pass had `position_ids`, the next position.

        Args:
            model: the base with this adapter.
            inputs: `input_ids` and `attention_mask` of the prompts, [rows, width], and `position_ids` where the base
                takes them; a kind that puts something before a prompt returns other ones.
        """
        return model, inputs

    def tensor_mistakes(self, shapes: Mapping[str, Shape]) -> Iterator[str]:
        """Yield what is wrong with the tensors of a package, by name, as far as can be told without the base."""
        raise NotImplementedError

    def tensors_on(self, base: Mapping[str, Sizes | None]) -> dict[str, Shape | None]:
        """Return the shape of every tensor that it has on a base, by name.

        Args:
            base: outputs and inputs of each matrix of the base, by its module's name. None where they are not known:
                so is then the shape of a tensor that depends on them.
        """
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

    def tensors(self, module: str) -> Mapping[str, tuple[int | str, ...]]:
        """Return {name behind the module's: shape} of its tensors; OUTPUTS and INPUTS stand for the module's sizes."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return the settings that a package states; the modules are sorted, as PEFT takes them for a set."""
        return super().facts() | {"target_modules": sorted(self.target_modules)}

    def attach(self, base: "PreTrainedModel", *, task_type: str) -> "PeftModel":
        """Return the base with this adapter on its target modules.

        Raises:
            UserError: the base has none of them.
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
        """Yield tensors that are foreign, missing, or of shapes that no module can have."""
        modules: dict[str, dict[str, Shape]] = {}
        for name, shape in shapes.items():
            module, part = self._placed(name)
            if not module:
                yield f"{name} belongs to no module that the adapter targets"
            elif part not in self.tensors(module):
                yield f"{name} is no tensor of a `{self.kind}` adapter"
            else:
                modules.setdefault(module, {})[part] = shape
        for module, parts in modules.items():
            yield from self._module_mistakes(module, parts)
        for target in self.target_modules:
            if not any(_is_target(module, target) for module in modules):
                yield f"no tensor belongs to {target}, which the adapter targets"

    def _placed(self, name: str) -> tuple[str, str]:
        """Return the module that a tensor belongs to, and the rest of its name."""
        words = name.removeprefix(PREFIX).split(".") if name.startswith(PREFIX) else []
        for behind in range(1, min(len(words), _MOST_WORDS + 1)):
            module = ".".join(words[:-behind])
            if any(_is_target(module, target) for target in self.target_modules):
                return module, ".".join(words[-behind:])
        return "", name

    def _module_mistakes(self, module: str, parts: Mapping[str, Shape]) -> Iterator[str]:
        sizes: dict[str, int] = {}  # as the tensors so far have them
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

    def tensors_on(self, base: Mapping[str, Sizes | None]) -> dict[str, Shape | None]:
        """Return the shapes of the tensors of every target module."""
        found: dict[str, Shape | None] = {}
        for module, sizes in base.items():
            if any(_is_target(module, target) for target in self.target_modules):
                known = dict(zip((OUTPUTS, INPUTS), sizes or (), strict=False))
                for part, axes in self.tensors(module).items():
                    shape = tuple(known[axis] if isinstance(axis, str) else axis for axis in axes) if sizes else None
                    found[f"{PREFIX}{module}.{part}"] = shape
        return found


def _is_target(module: str, target: str) -> bool:
    """Apply PEFT's rule: a target is a module's name, or the end of one."""
    return module == target or module.endswith(f".{target}")


def is_quantized(base: Mapping[str, Any]) -> bool:
    """Tell from a base's config.json whether its weights are stored in fewer bits."""
    return bool(base.get("quantization_config"))


def _whole(value: Any) -> Any:
    """Write whole numbers without a point, as PEFT's readers expect a rank or an alpha."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


KINDS = Features(AdapterKind, noun="adapter kind")
ADAPTER = Choice(KINDS, key="kind", default=DEFAULT_KIND)


def kind_of(config: Mapping[str, Any]) -> type[AdapterKind] | None:
    """Return the kind that an adapter_config.json is of; None where this program has none such."""
    for kind in KINDS.values():
        if all(config.get(key, False) == value for key, value in kind.marks.items()):
            return kind
    return None
