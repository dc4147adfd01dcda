"""How questions, answers and conversations become text and tokens: alpaca, chatml, or the tokenizer's own template.

An answer and the text before it are tokenized separately. So a training prompt has exactly the tokens that generation
starts from, whatever the answer begins with. Every answer ends with the tokenizer's end of sequence, where generation
stops.

Texts of a record or of a user are marked (`quoting`), so that they only become ordinary tokens.
"""

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from sealed_experts.data.quoting import TextReader, quoted, unquoted, unquoted_parts
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
        UserError: the template is unknown or cannot express the question, or it is `tokenizer` and the tokenizer has no
            chat template.
    """
    return unquoted(_prompt(template=template, instruction=instruction, input=input, tokenizer=tokenizer))


def encode_prompt(*, template: str, instruction: str, input: str = "", tokenizer: Any) -> list[int]:
    """Return the tokens that generation starts from to answer one question.

    Raises:
        UserError: the template is unknown or cannot express the question, or it is `tokenizer` and the tokenizer has no
            chat template.
    """
    text = _prompt(template=template, instruction=instruction, input=input, tokenizer=tokenizer)
    return _first_ids(text, template=template, tokenizer=tokenizer)


def encode_answer(prompt: Sequence[int], answer: str, *, template: str, tokenizer: Any, max_seq_len: int) -> Encoded:
    """Return prompt, answer and end of sequence, cut to the first `max_seq_len` tokens.

    A cut answer has no end of sequence. If the prompt leaves no room for an answer, there is no position with loss:
    `prompt_length == len(ids)`.
    """
    words = encode_words(answer, template=template, tokenizer=tokenizer)
    ids = (*prompt, *words, tokenizer.eos_token_id)[:max_seq_len]
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
    marked = [turn._replace(content=_marked(turn.content, template, tokenizer)) for turn in turns]
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for place, opening in enumerate(_openings(template=template, turns=marked, tokenizer=tokenizer)):
        ids += (
            _reader(template, tokenizer).ids(opening)
            if ids
            else _first_ids(opening, template=template, tokenizer=tokenizer)
        )
        if place < len(answers):
            start = len(ids)
            ids += [*encode_words(answers[place], template=template, tokenizer=tokenizer), tokenizer.eos_token_id]
            spans.append((start, len(ids)))
    return ids, spans


def encode_words(text: str, *, template: str, tokenizer: Any) -> list[int]:
    """Return the tokens of an answer or a part of it, without an end of sequence."""
    return _reader(template, tokenizer).ids(_marked(text, template, tokenizer))


def encode_text(text: str, *, tokenizer: Any) -> list[int]:
    """Return the tokens of a text without a template, but with the special tokens that the tokenizer adds."""
    return _reader(None, tokenizer).ids(quoted(text), add_special_tokens=True)


def _prompt(*, template: str, instruction: str, input: str, tokenizer: Any) -> str:
    """Return the marked text before the answer to one question."""
    asked, context = (_marked(text, template, tokenizer) if text else "" for text in (instruction, input))
    if context:
        asked = f"{asked}\n\n### Input:\n{context}" if template == "alpaca" else f"{asked}\n\n{context}"
    return _openings(template=template, turns=[Turn(USER, asked)], tokenizer=tokenizer)[0]


def _first_ids(text: str, *, template: str, tokenizer: Any) -> list[int]:
    # A chat template writes its own beginning of sequence.
    ids = _reader(template, tokenizer).ids(text, add_special_tokens=template != "tokenizer")
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids.pop()  # this tokenizer ends every text, but here the answer follows
    return ids


def _openings(*, template: str, turns: Sequence[Turn], tokenizer: Any) -> list[str]:
    """Return for each of the user's turns the text between the previous answer and the next one.

    Args:
        turns: the turns, whose texts are marked.
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
            answer = turn.content.strip()
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
    roles = ", ".join(turn.role for turn in turns)
    try:
        text: str = tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            tokenize=False,
            add_generation_prompt=True,
            date_string=FIXED_DATE,
            strftime_now=lambda _format: FIXED_DATE,
        )
    except Exception as error:  # a template is a program that somebody else wrote: it can raise anything
        reason = next(iter(unquoted(str(error)).splitlines()), type(error).__name__)
        raise UserError(
            f"template: the base's own chat template cannot express a conversation of {roles} ({reason}); write chatml"
            " or alpaca"
        ) from error
    # Earlier turns are compared in `_own_openings`.
    for turn in (turn for turn in turns if turn.role == SYSTEM or turn is turns[-1]):
        if turn.content.strip() not in text:
            raise UserError(
                f"template: the base's own chat template leaves out or changes the text of the {turn.role}'s turn, so"
                " the model would not read it (some templates expect a list of parts, not a text); write chatml or"
                " alpaca"
            )
    return text


def _marked(text: str, template: str, tokenizer: Any) -> str:
    """Return a user's text between marks.

    Where ChatML's markers are no tokens of the base, they are ordinary text, and a text that holds one would end its
    own turn. So a space is put into them.
    """
    if template == "chatml":
        reader = None if tokenizer is None else _reader(template, tokenizer)
        for marker in CHATML_MARKERS:
            if reader is None or not reader.is_control(marker):
                text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return quoted(text)


_READERS: "weakref.WeakKeyDictionary[Any, dict[tuple[str | None, str], TextReader]]" = weakref.WeakKeyDictionary()


def _reader(template: str | None, tokenizer: Any) -> TextReader:
    """Return the reader of a template's text. It is made once, which takes up to a second for a large vocabulary."""
    readers = _READERS.setdefault(tokenizer, {})
    key = (template, str(tokenizer.chat_template) if template == "tokenizer" else "")
    if key not in readers:
        readers[key] = TextReader(tokenizer, template_text=_written(template, tokenizer))
    return readers[key]


def _written(template: str | None, tokenizer: Any) -> str:
    """Return what a template writes around the turns of a conversation."""
    if template != "tokenizer":
        return " ".join(CHATML_MARKERS) if template == "chatml" else ""
    turns = [Turn(role, quoted(role)) for role in (SYSTEM, USER, ASSISTANT, USER)]
    written = []
    for asked in (turns, turns[1:], turns[1:2]):
        try:
            written += [part for part, users in unquoted_parts(_rendered(asked, tokenizer)) if not users]
        except UserError:
            continue  # a template may refuse a system turn, or several turns
    return "\0".join(written)
