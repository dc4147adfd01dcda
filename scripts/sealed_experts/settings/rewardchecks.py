"""What can be told about a stage's reward without running any code of the user's."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealed_experts.settings.fields import declared
from sealed_experts.settings.messages import KeyPath, Mistake, dotted, expected, listed, shown, suggestion
from sealed_experts.settings.rewards import REWARD_OPTIONS, REWARDS, RewardOptions, RewardParameters
from sealed_experts.settings.schema import group_schema

if TYPE_CHECKING:
    from sealed_experts.settings.layers import Layers
    from sealed_experts.settings.types import ReinforceSettings

_OF_EVERY_REWARD = ("reward", "weight", "repetition_penalty")
_INNER = tuple(name for name in REWARDS if name != "composite")
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "enum")


def reward_mistakes(stage: "ReinforceSettings", layers: "Layers", stage_name: str) -> Iterator[Mistake]:
    """Yield every mistake in a stage's reward: its name, its options, a module that cannot be found."""
    name, options = layers.locate(stage_name, "reward"), layers.locate(stage_name, "reward_options")
    inherited = name[:-1] != options[:-1]
    for path, text in reward_problems(stage.reward, stage.reward_options):
        if not path:
            yield Mistake(name, text)
            continue
        if inherited and len(path) == 1 and path[0] in _foreign_keys(stage.reward, stage.reward_options):
            text += f", or give `reward_options: {{}}` beside {shown(dotted(name))}"
        yield Mistake((*options, *path), text, involves=(name,))


def reward_problems(name: str, options: RewardParameters) -> Iterator[tuple[KeyPath, str]]:
    """Yield (place within the options, what is wrong); the place of the reward's name is ()."""
    problem = _name_problem(name)
    if problem is not None:
        yield (), problem
        return
    yield from _foreign_options(name, options)
    yield from _range_problems(options)
    if name == "keyword_contains":
        yield from _keyword_problems(options)
    elif name == "length_penalty" and options.min_words > options.max_words:
        text = f"{options.min_words} is above max_words, which is {options.max_words}; no answer could be right"
        yield ("min_words",), text
    elif name == "composite" and isinstance(options, RewardOptions):
        yield from _part_problems(options)


def user_function(name: str) -> tuple[str, str] | None:
    """Return module and function of a reward that the user wrote, None for a name without a colon."""
    module, colon, function = name.partition(":")
    return (module, function) if colon else None


def find_module(module: str) -> ModuleSpec | None:
    """Return where a module would be imported from, without running it or the packages around it.

    It is looked for where Python does, and last in the current folder. None also for a folder that is no package.
    """
    importlib.invalidate_caches()
    spec: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        if (spec is not None and spec.submodule_search_locations is None) or not part.isidentifier():
            return None
        name = f"{name}.{part}" if name else part
        spec = _find(name, spec.submodule_search_locations if spec is not None else None)
        if spec is None:
            return None
    return spec if spec is not None and spec.origin else None


def _find(name: str, parents: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, parents)
        if spec is not None:
            return spec
    return PathFinder.find_spec(name, [str(Path.cwd())]) if parents is None else None


def _name_problem(name: str) -> str | None:
    function = user_function(name)
    if function is None:
        if name in REWARDS:
            return None
        hint = f"a function of your own is written {shown('module:function')}" if "." in name else ""
        return f"{shown(name)} is no reward; {hint or suggestion(name, REWARDS)}"
    if find_module(function[0]) is None:
        return (
            f"there is no module `{function[0]}` in {Path.cwd()} or among the installed packages; write"
            " `module:function`, where module.py stands in the folder that the command runs in"
        )
    return None


def _foreign_options(name: str, options: RewardParameters) -> Iterator[tuple[KeyPath, str]]:
    for key in _foreign_keys(name, options):
        users = [reward for reward, keys in REWARD_OPTIONS.items() if key in keys]
        text = f"the reward `{name}` does not know this setting; it is for {listed(users)}"
        yield (key,), f"{text}: remove it"


def _foreign_keys(name: str, options: RewardParameters) -> list[str]:
    known = (*REWARD_OPTIONS.get(name, ()), *_OF_EVERY_REWARD)
    fields = declared(type(options))
    return [key for key in fields if key not in known and getattr(options, key) != fields[key][0].default]


def _range_problems(options: RewardParameters) -> Iterator[tuple[KeyPath, str]]:
    """A configuration's ranges are checked by its schema; options may also come from a command or from code."""
    for key, schema in group_schema(type(options))["properties"].items():
        value = getattr(options, key)
        if any(bound in schema for bound in _BOUNDS) and not _within(value, schema):
            yield (key,), f"{shown(value)} is not {expected(schema)}"


def _within(value: Any, schema: dict[str, Any]) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and value < float("inf")
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
    )


def _keyword_problems(options: RewardParameters) -> Iterator[tuple[KeyPath, str]]:
    if not options.keywords:
        yield ("keywords",), "none are given; list at least one word or phrase that an answer should hold"
    for place, keyword in enumerate(options.keywords):
        if not keyword.strip():
            yield ("keywords", place), f"{shown(keyword)} is not text that is not blank"


def _part_problems(options: RewardOptions) -> Iterator[tuple[KeyPath, str]]:
    if not options.parts:
        yield ("parts",), "none are given; list the rewards to combine: {reward: finance, weight: 2}"
    for place, part in enumerate(options.parts):
        if part.reward == "composite":
            yield ("parts", place, "reward"), f"a composite holds no composite; name {listed(_INNER)} or your own"
            continue
        for path, text in reward_problems(part.reward, part):
            yield ("parts", place, *(path or ("reward",))), text
