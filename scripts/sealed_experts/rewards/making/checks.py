"""Check a reward and its options without running the user's code."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sealed_experts.rewards import REWARDS, Reward
from sealed_experts.rewards.making.modules import find_module, user_function
from sealed_experts.settings.checking import mistakes_in, parse_group
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import KeyPath, Mistake, dotted, listed, shown, suggestion


def reward_mistakes(name: str, options: Mapping[str, Any], layers: Layers, stage: str) -> Iterator[Mistake]:
    """Yield every mistake in a stage's reward: in its name or options, or a missing module."""
    of_name, of_options = layers.locate(stage, "reward"), layers.locate(stage, "reward_options")
    inherited = layers.gives(stage, "reward") and of_name[:-1] != of_options[:-1]
    for path, problem in reward_problems(name, options):
        if not path:
            yield Mistake(of_name, problem)
            continue
        if inherited and len(path) == 1 and path[0] not in options_of(name).model_fields:
            problem += f", or give `reward_options: {{}}` beside {shown(dotted(of_name))}"
        yield Mistake((*of_options, *path), problem, involves=(of_name,))


def reward_problems(name: str, options: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield (place within the options, what is wrong). The place of the reward's name is ()."""
    problem = _name_problem(name)
    if problem is not None:
        yield (), problem
        return
    group = options_of(name)
    foreign = [key for key in options if key not in group.model_fields and _who_knows(key)]
    for key in foreign:
        yield (key,), f"the reward `{name}` does not know this setting; it is for {listed(_who_knows(key))}: remove it"
    own = {key: value for key, value in options.items() if key not in foreign}
    mistakes = mistakes_in(group, own)
    for mistake in mistakes:
        yield mistake.path, mistake.text
    if not mistakes:
        yield from parse_group(group, own).problems()


def options_of(name: str) -> type[Reward]:
    """Return the class whose fields are the options; for a user's function, the options of every reward."""
    return Reward if user_function(name) else REWARDS[name]


def _who_knows(key: str) -> list[str]:
    return [name for name, reward in REWARDS.items() if key in reward.model_fields]


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
