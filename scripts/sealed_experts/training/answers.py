"""Answers that a model samples to prompts: as text, and token by token."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Example
from sealed_experts.training.rollouts import Sampling, sample_answers, unchecked_shapes

# Nothing is kept for a backward pass while answers are sampled, so many more tokens fit than in a physical batch.
_SAMPLING_TOKENS = 16
_MOST_ROWS = 128


class AnswerSettings(Protocol):
    """What sampling asks of the settings of a stage or of an evaluation."""

    @property
    def max_seq_len(self) -> int:
        """Longest prompt with its answer, in tokens."""

    @property
    def max_new_tokens(self) -> int:
        """Longest answer in tokens."""

    @property
    def temperature(self) -> float:
        """Divides the logits; 0 takes the likeliest token."""

    @property
    def top_p(self) -> float:
        """Probability of the likeliest tokens that are sampled from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer(Example):
    """A prompt with the answer that was sampled to it: `ids` holds both.

    Attributes:
        nucleus: for each token of the answer, how many of the likeliest it was sampled from.
        log_probs: for each token of the answer, its log-probability among those.
        truncated: whether the answer was cut at its longest length.
        response: the answer as text.
    """

    nucleus: tuple[int, ...]
    log_probs: tuple[float, ...]
    truncated: bool
    response: str


class Answering:
    """Samples one answer to each prompt."""

    def __init__(
        self,
        *,
        settings: AnswerSettings,
        tokenizer: PreTrainedTokenizerBase,
        token_budget: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare to sample.

        Args:
            token_budget: tokens of one physical batch of training.
            check: called before each token; it may raise to give up.
        """
        self._tokenizer, self._check = tokenizer, check
        self.sampling = Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            end=_token(tokenizer.eos_token_id),
            pad=_token(tokenizer.pad_token_id),
            prompt_tokens=settings.max_seq_len - settings.max_new_tokens,
            shapes=unchecked_shapes(min(_MOST_ROWS, _SAMPLING_TOKENS * token_budget // settings.max_seq_len)),
        )

    def has_room(self, example: Example) -> bool:
        """Tell whether a prompt leaves room for an answer."""
        return example.prompt_length <= self.sampling.prompt_tokens

    def answer(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        stream: Stream,
        step: int,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Return an answer to each example's prompt, decided by (stream, step, unit).

        Args:
            sampling: how to sample; by default in passes of up to many rows.
        """
        prompts = [example.ids[: example.prompt_length] for example in examples]
        answers = sample_answers(
            model,
            prompts,
            units=[example.unit for example in examples],
            sampling=sampling or self.sampling,
            stream=stream,
            step=step,
            check=self._check,
        )
        return [
            Answer(
                ids=(*example.ids[: example.prompt_length], *answer.tokens),
                prompt_length=example.prompt_length,
                unit=example.unit,
                prompt=example.prompt,
                nucleus=answer.nucleus,
                log_probs=answer.log_probs,
                truncated=answer.truncated,
                response=str(self._tokenizer.decode(list(answer.tokens), skip_special_tokens=True)).strip(),
            )
            for example, answer in zip(examples, answers, strict=True)
        ]


def _token(value: Any) -> int:
    assert isinstance(value, int), "load_tokenizer makes sure of both tokens"
    return value
