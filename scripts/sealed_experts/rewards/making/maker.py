"""Rewards by name: the built-in ones, and functions of the user's."""

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
    """Return the reward of that name: one of the built-in ones, or `module:function`.

    What it returns is checked: a value or axis that is no finite number in [0, 1] raises UserError naming the prompt.

    Raises:
        UserError: the name is unknown, options do not fit it, or a module of the user's cannot be used.
    """
    problems = [f"{dotted(path)}: {text}" if path else text for path, text in reward_problems(name, options or {})]
    if problems:
        raise UserError(f"the reward {name} cannot be made: {'; '.join(problems)}")
    reward = described_reward(name, options or {})
    reward.load()
    return CheckedReward(reward)


def described_reward(name: str, options: Mapping[str, Any]) -> Reward:
    """Return a reward whose options have no mistakes. No code of the user's runs until it scores."""
    function = user_function(name)
    if function is not None:
        given = parse_group(Reward, options)
        return FunctionReward(module=function[0], function=function[1], repetition_penalty=given.repetition_penalty)
    return parse_group(options_of(name), options)


def reward_source(name: str, options: Mapping[str, Any]) -> list[Path]:
    """Return the files of the user's modules that a reward calls, relative to the current folder where they lie in it.

    Nothing is imported. Built-in rewards have none; what such a module imports itself is not followed.
    """
    files = [source_file(module) for module in described_reward(name, options).modules()]
    return list(dict.fromkeys(file for file in files if file is not None))


def reward_code(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Return {module: SHA-256} of the user's modules that are loaded once the reward is made; {} for a built-in one.

    Its own modules and what they import; not what a function imports only when it is called.
    """
    return loaded_code() if described_reward(name, options).modules() else {}
