"""How questions, answers and conversations become text and tokens: alpaca, chatml, or the tokenizer's own template.

An answer and the text before it are tokenized separately. So a training prompt has exactly the tokens that generation
starts from, whatever the answer begins with. Every answer ends with the tokenizer's end of sequence, where generation
stops.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from sealed_experts.data.plain_text import PlainText
from sealed_experts.errors import UserError

TEMPLATES = ("alpaca", "chatml", "tokenizer")
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
CHOSEN, REJECTED = "chosen", "rejected"
# Some chat templates print today's date, but a prompt must be the same in training and in generation.
FIXED_DATE = "1 January 2025"


class Turn(NamedTuple):
    """One turn of a conversation. For an assistant's turn, `train` says whether the model learns it."""

    role: str
    content: str
    train: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """One row of tokens.

    Attributes:
        ids: the tokens.
        prompt_length: number of tokens of the prompt; generation starts after them.
        spans: the positions with loss, as (start, end); None for all positions after the prompt.
        part: for a row of a comparison, which answer it holds: CHOSEN or REJECTED.
        label: the class of the text, if it has one.
    """

    ids: tuple[int, ...]
    prompt_length: int
    spans: tuple[tuple[int, int], ...] | None = None
    part: str | None = None
    label: str | None = None

    @property
    def learned(self) -> tuple[tuple[int, int], ...]:
        """The positions with loss, as (start, end)."""
        return ((self.prompt_length, len(self.ids)),) if self.spans is None else self.spans

    @property
    def response_tokens(self) -> int:
        """The number of positions with loss."""
        return sum(end - start for start, end in self.learned)


def prompt_text(*, template: str, instruction: str, input: str = "", tokenizer: Any = None) -> str:
    """Return the text that comes before the answer to one question.

    Raises:
        UserError: the template is unknown, leaves out the question, or is `tokenizer` and the tokenizer has no chat
            template.
    """
    plain = PlainText([instruction, input], tokenizer)
    return plain.reveal(_opening(template, instruction, input, tokenizer=tokenizer, plain=plain))


def encode_prompt(*, template: str, instruction: str, input: str = "", tokenizer: Any) -> list[int]:
    """Return the tokens that generation starts from to answer one question.

    Control tokens in the question are ordinary text, so no question can end its own prompt.

    Raises:
        UserError: as for `prompt_text`.
    """
    plain = PlainText([instruction, input], tokenizer)
    opening = _opening(template, instruction, input, tokenizer=tokenizer, plain=plain)
    return _first_ids(opening, template=template, tokenizer=tokenizer, plain=plain)


def _opening(template: str, instruction: str, input: str, *, tokenizer: Any, plain: PlainText) -> str:
    asked, context = plain.hide(instruction), plain.hide(input)
    if context:
        asked = f"{asked}\n\n### Input:\n{context}" if template == "alpaca" else f"{asked}\n\n{context}"
    return _openings(template=template, turns=[Turn(USER, asked)], tokenizer=tokenizer)[0]


def encode_answer(prompt: Sequence[int], answer: str, *, tokenizer: Any, max_seq_len: int) -> Encoded:
    """Return prompt, answer and end of sequence, cut to the first `max_seq_len` tokens.

    A cut answer has no end of sequence. If the prompt leaves no room for an answer, there is no position with loss:
    `prompt_length == len(ids)`.
    """
    ids = tuple([*prompt, *_answer_ids(answer, tokenizer)][:max_seq_len])
    return Encoded(ids=ids, prompt_length=min(len(prompt), len(ids)))


def encode_chat(*, template: str, turns: Sequence[Turn], tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a conversation, and the positions of each answer of the assistant, as (start, end).

    An answer includes its end of sequence. If the last turn is the user's, generation starts from these tokens, and
    every longer conversation begins with them.

    Args:
        turns: an optional system turn, then user and assistant in turn; the texts have no white space around them.

    Raises:
        UserError: the template is unknown or cannot express such a conversation, or it is `tokenizer` and the tokenizer
            has no chat template.
    """
    answers = [turn.content for turn in turns if turn.role == ASSISTANT]
    plain = PlainText([turn.content for turn in turns], tokenizer)
    hidden = [turn._replace(content=plain.hide(turn.content)) for turn in turns]
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for place, opening in enumerate(_openings(template=template, turns=hidden, tokenizer=tokenizer)):
        first = not ids
        ids += _first_ids(opening, template=template, tokenizer=tokenizer, plain=plain) if first else plain.ids(opening)
        if place < len(answers):
            start = len(ids)
            ids += _answer_ids(answers[place], tokenizer)
            spans.append((start, len(ids)))
    return ids, spans


def encode_text(text: str, *, tokenizer: Any) -> list[int]:
    """Return the tokens of a text without a template, but with the special tokens that the tokenizer adds."""
    plain = PlainText([text], tokenizer)
    return plain.complete_ids(plain.hide(text))


def _first_ids(text: str, *, template: str, tokenizer: Any, plain: PlainText) -> list[int]:
    # A chat template writes its own beginning of sequence.
    ids = plain.ids(text) if template == "tokenizer" else plain.complete_ids(text)
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids.pop()  # this tokenizer ends every text, but here the answer follows
    return ids


def _answer_ids(answer: str, tokenizer: Any) -> list[int]:
    plain = PlainText([answer], tokenizer)
    return [*plain.ids(plain.hide(answer)), tokenizer.eos_token_id]


def _openings(*, template: str, turns: Sequence[Turn], tokenizer: Any) -> list[str]:
    """Return for each of the user's turns the text between the previous answer and the next one.

    Args:
        turns: the turns, with their control tokens hidden.
    """
    if template == "tokenizer":
        return _own_openings(turns, tokenizer)
    if template not in TEMPLATES:
        raise UserError(f"template: {template!r} is unknown; write one of {', '.join(TEMPLATES)}")
    system = next((turn.content for turn in turns if turn.role == SYSTEM), None)
    asked = [turn.content for turn in turns if turn.role == USER]
    if template == "alpaca":
        openings = [f"### Instruction:\n{content}\n\n### Response:\n" for content in asked]
        first, between = ("" if system is None else f"{system}\n\n"), "\n\n"
    else:
        # Where the markers of chatml are no control tokens, text could imitate them: put a space into these.
        asked, system = [_without_markers(content) for content in asked], system and _without_markers(system)
        openings = [f"{_chatml(USER, content)}<|im_start|>assistant\n" for content in asked]
        first, between = ("" if system is None else _chatml(SYSTEM, system)), "\n"
    return [(between if place else first) + opening for place, opening in enumerate(openings)]


def _chatml(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def _own_openings(turns: Sequence[Turn], tokenizer: Any) -> list[str]:
    """Return the openings that the tokenizer's own template writes.

    The template renders the conversation up to each of the user's turns. Each text must begin with the previous text
    and its answer; otherwise the answers cannot be located in it.
    """
    openings: list[str] = []
    before, answer = "", ""
    for place, turn in enumerate(turns):
        if turn.role == ASSISTANT:
            answer = turn.content
        if turn.role != USER:
            continue
        text = _rendered(turns[: place + 1], tokenizer)
        rest = text.removeprefix(before).lstrip() if openings else text
        if not text.startswith(before) or not rest.startswith(answer):
            raise UserError(
                "template: the base's own chat template changes earlier turns when later ones follow, so it cannot be"
                " used to learn conversations of several turns; write chatml or alpaca"
            )
        rest, end = rest.removeprefix(answer), tokenizer.eos_token
        # The end of sequence is part of the answer.
        openings.append(rest.lstrip().removeprefix(end) if answer and rest.lstrip().startswith(end) else rest)
        before = text
    return openings


def _rendered(turns: Sequence[Turn], tokenizer: Any) -> str:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "template: `tokenizer` needs a base with a chat template, and this one has none; write alpaca or chatml"
        )
    turns_of_it = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(
            turns_of_it,
            tokenize=False,
            add_generation_prompt=True,
            date_string=FIXED_DATE,
            strftime_now=lambda _format: FIXED_DATE,
        )
    except Exception as error:  # a template is a program: it can fail in any way
        roles = ", ".join(turn.role for turn in turns)
        raise UserError(
            f"template: the base's own chat template cannot express a conversation of {roles} ({error}); write chatml"
            " or alpaca"
        ) from error
    lost = next((turn for turn in turns if turn.role == USER and turn.content.strip() not in text), None)
    if lost is not None:
        raise UserError(
            f"template: the base's own chat template leaves out what the user says ({lost.content.strip()[:60]!r}): it"
            " may expect another form of messages; write chatml or alpaca"
        )
    return text


def _without_markers(text: str) -> str:
    for marker in CHATML_MARKERS:
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text
