"""Rewards by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.rewards.checked import CheckedReward
from sealed_experts.rewards.composite import Composite
from sealed_experts.rewards.finance import Finance
from sealed_experts.rewards.functions import FunctionReward, loaded_code, source_file
from sealed_experts.rewards.measures import FormatCompliance, KeywordContains, LengthPenalty
from sealed_experts.rewards.reward import Reward
from sealed_experts.settings.messages import dotted
from sealed_experts.settings.rewardchecks import reward_problems, user_function
from sealed_experts.settings.rewards import RewardOptions, RewardParameters

_MAKERS: Mapping[str, Callable[[RewardParameters], Reward]] = {
    "finance": lambda _: Finance(),
    "keyword_contains": lambda options: KeywordContains(keywords=options.keywords),
    "length_penalty": lambda options: LengthPenalty(min_words=options.min_words, max_words=options.max_words),
    "format_compliance": lambda options: FormatCompliance(format=options.format),
}
# One line each, for people.
DESCRIPTIONS: Mapping[str, str] = {
    "finance": "form, terminology, relevance and safety of an answer about money",
    "keyword_contains": "share of `keywords` that the answer holds",
    "length_penalty": "1 from `min_words` to `max_words` words, falling to 0 at none and at twice as many",
    "format_compliance": "whether the answer keeps its `format`: json or numbered_list",
    "composite": "weighted mean of other rewards, its `parts`",
    "module:function": "a function of your own, f(prompt, response)",
}


def make_reward(name: str, options: RewardOptions) -> Reward:
    """Return the reward of that name: one of the built-in ones, or `module:function`.

    What it returns is checked: a value or axis that is no finite number in [0, 1] raises UserError naming the prompt.

    Raises:
        UserError: the name is unknown, options do not fit it, or a module of the user's cannot be used.
    """
    problems = [f"{dotted(path)}: {text}" if path else text for path, text in reward_problems(name, options)]
    if problems:
        raise UserError(f"the reward {name} cannot be made: {'; '.join(problems)}")
    if name == "composite":
        parts = [(CheckedReward(_single(part.reward, part)), part.weight) for part in options.parts]
        return CheckedReward(Composite(parts), repetition_penalty=options.repetition_penalty)
    return CheckedReward(_single(name, options), repetition_penalty=options.repetition_penalty)


def reward_source(name: str, options: RewardOptions) -> list[Path]:
    """Return the files of the user's modules that a reward calls, relative to the current folder where they lie in it.

    Nothing is imported. Built-in rewards have none; what such a module imports itself is not followed.
    """
    files = [source_file(module) for module, _ in _user_functions(name, options)]
    return list(dict.fromkeys(file for file in files if file is not None))


def reward_code(name: str, options: RewardOptions) -> dict[str, str]:
    """Return {module: SHA-256} of the user's modules that are loaded once the reward is made; {} for a built-in one.

    Its own modules and what they import; not what a function imports only when it is called.
    """
    return loaded_code() if _user_functions(name, options) else {}


def _user_functions(name: str, options: RewardOptions) -> list[tuple[str, str]]:
    names = [name, *(part.reward for part in options.parts)] if name == "composite" else [name]
    return [function for name in names if (function := user_function(name))]


def _single(name: str, options: RewardParameters) -> Reward:
    function = user_function(name)
    if function is not None:
        return FunctionReward(module=function[0], function=function[1])
    return _MAKERS[name](options)
