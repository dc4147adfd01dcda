"""Make rewards by name: built-in ones, and users' functions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.rewards import Reward
from sealed_experts.rewards.making.checked import CheckedReward
from sealed_experts.rewards.making.checks import options_of, reward_problems
from sealed_experts.rewards.making.functions import FunctionReward, loaded_code, source_file
from sealed_experts.rewards.making.modules import user_function
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.messages import dotted


def make_reward(name: str, options: Mapping[str, Any] | None = None) -> CheckedReward:
    """Return the reward with this name: a built-in one, or `module:function`.

    Its scores are checked: a value or axis that is no finite number in [0, 1] raises a UserError that names the prompt.

    Raises:
        UserError: the name is unknown, the options do not fit it, or one of the user's modules cannot be used.
    """
    problems = [f"{dotted(path)}: {text}" if path else text for path, text in reward_problems(name, options or {})]
    if problems:
        raise UserError(f"the reward {name} cannot be made: {'; '.join(problems)}")
    reward = described_reward(name, options or {})
    reward.load()
    return CheckedReward(reward)


def described_reward(name: str, options: Mapping[str, Any]) -> Reward:
    """Return a reward whose options have no mistakes. The user's code does not run until it scores."""
    function = user_function(name)
    if function is not None:
        given = parse_group(Reward, options)
        return FunctionReward(module=function[0], function=function[1], repetition_penalty=given.repetition_penalty)
    return parse_group(options_of(name), options)


def reward_source(name: str, options: Mapping[str, Any]) -> list[Path]:
    """Return the files of the user's modules that a reward calls; files in the current folder as relative paths.

    Nothing is imported, and imports inside these modules are not followed. Built-in rewards have no such files.
    """
    files = [source_file(module) for module in described_reward(name, options).modules()]
    return list(dict.fromkeys(file for file in files if file is not None))


def reward_code(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Return {module: SHA-256} of the user's modules that a reward loads; {} for a built-in one.

    These are its own modules and all that they import, but not modules that a function imports when it is called.
    """
    return loaded_code() if described_reward(name, options).modules() else {}
