"""A conversation. The model learns the assistant's turns."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sealed_experts.data.records import Columns, Record
from sealed_experts.data.templates import ASSISTANT, SYSTEM, USER, Encoded, Turn, encode_chat
from sealed_experts.data.values import Unusable, present, text
from sealed_experts.files.canonical import strict_json
from sealed_experts.settings.fields import setting

CHAT = "chat"
CHAT_FIELDS = ("messages", "conversations")  # their usual names
_WRONG_TURNS = "wrong turns"
_SHARED_ROLES = {"human": USER, "gpt": ASSISTANT, "user": USER, "assistant": ASSISTANT, "system": SYSTEM}  # ShareGPT's


class ChatColumns(Columns):
    """Which field of a row holds the turns."""

    messages: str = setting(
        "Field of the turns: a list of {role, content}, or its JSON text. The model does not learn an assistant's turn"
        " with `train: false` or `weight: 0`.",
        default="messages",
        min_length=1,
    )
    conversations: str = setting(
        "Field of the turns in the form of ShareGPT, {from, value}; used where `messages` is absent.",
        default="conversations",
        min_length=1,
    )

    def optional(self) -> list[str]:
        """Return both fields, unless the settings give them other names: a row has one of them."""
        return [name for name in (self.messages, self.conversations) if name in CHAT_FIELDS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(Record):
    """A conversation: an optional system turn, then user and assistant in turn, the assistant last."""

    messages: tuple[Turn, ...]

    columns: ClassVar[type[Columns]] = ChatColumns
    parts: ClassVar[tuple[str, ...]] = (SYSTEM, USER, ASSISTANT)

    @classmethod
    def read(cls, values: Mapping[str, Any], columns: ChatColumns) -> dict[str, Any]:
        """Return the turns."""
        name = columns.messages if values.get(columns.messages) is not None else columns.conversations
        messages = present(values, name if values.get(name) is not None else columns.messages)
        if isinstance(messages, str):
            try:
                messages = strict_json(messages)
            except ValueError as error:
                raise Unusable("not JSON", f"`{name}` is a text that is not JSON: {error}") from error
        if not isinstance(messages, list):
            raise Unusable("wrong type", f"`{name}` is {type(messages).__name__}, not a list of turns")
        turns = tuple(_turn(message, f"{name}[{place}]") for place, message in enumerate(messages))
        _check_order(turns, name)
        return {"messages": turns}

    def content(self) -> dict[str, Any]:
        """Return the turns as a list; only turns that are not learned have `train`."""
        return {
            "messages": [
                {"role": turn.role, "content": turn.content, **({} if turn.train else {"train": False})}
                for turn in self.messages
            ]
        }

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the turns."""
        return cls.read(content, ChatColumns())

    @property
    def question(self) -> str:
        """The turns before the last learned turn: the text of a single turn, or several turns with their roles."""
        before = self.messages[: self._last_learned]
        if len(before) == 1:
            return before[0].content
        return "\n".join(f"{turn.role}: {turn.content}" for turn in before)

    @property
    def answer(self) -> str:
        """The last turn that is learned."""
        return self.messages[self._last_learned].content

    @property
    def related_by(self) -> str:
        """The user's first turn: parts of one conversation, and versions with other endings, stay together."""
        return next(turn.content for turn in self.messages if turn.role == USER)

    def texts(self) -> Sequence[tuple[str, str]]:
        """Return every turn."""
        return [(turn.role, turn.content) for turn in self.messages]

    def encoded(self, *, template: str, tokenizer: Any, max_seq_len: int) -> list[Encoded]:
        """Return one row for the whole conversation. Generation starts where the last learned turn starts."""
        ids, answers = encode_chat(template=template, turns=self.messages, tokenizer=tokenizer)
        by_assistant = [turn for turn in self.messages if turn.role == ASSISTANT]
        learned = [span for span, turn in zip(answers, by_assistant, strict=True) if turn.train]
        kept = [(start, min(end, max_seq_len)) for start, end in learned if start < max_seq_len]
        return [
            Encoded(ids=tuple(ids[:max_seq_len]), prompt_length=min(learned[-1][0], max_seq_len), spans=tuple(kept))
        ]

    @classmethod
    def figures(cls, records: Sequence["Chat"]) -> dict[str, Any]:
        """Return the number of turns of each conversation."""
        return {"turns": [len(record.messages) for record in records]}

    @property
    def _last_learned(self) -> int:
        return max(place for place, turn in enumerate(self.messages) if turn.role == ASSISTANT and turn.train)


def _turn(message: Any, name: str) -> Turn:
    """Return one turn, without white space around its text: only some chat templates keep it."""
    if not isinstance(message, Mapping):
        raise Unusable("wrong type", f"`{name}` is {type(message).__name__}, not a turn of role and content")
    shared = "role" not in message and "from" in message
    given, key = (message["from"], "value") if shared else (message.get("role"), "content")
    role = _SHARED_ROLES.get(given, given) if shared and isinstance(given, str) else given
    if role not in (SYSTEM, USER, ASSISTANT):
        *others, last = _SHARED_ROLES if shared else (SYSTEM, USER, ASSISTANT)
        raise Unusable(
            _WRONG_TURNS,
            f"`{name}` has the role {given!r:.60}, not {', '.join(others)} or {last}: correct it, or leave the"
            " conversation out",
        )
    named = {f"{name}.{key}": message.get(key)}
    train = _trained(message, name)
    if train and role != ASSISTANT:
        raise Unusable(_WRONG_TURNS, f"`{name}` is a {role}'s turn with train: true; only the assistant's are learned")
    return Turn(role, text(named, f"{name}.{key}").strip(), train is not False or role != ASSISTANT)


def _trained(message: Mapping[str, Any], name: str) -> bool | None:
    """Return whether a turn says that it is learned: `train`, or `weight` as OpenAI's fine-tuning files have it."""
    train, weight = message.get("train"), message.get("weight")
    if train is not None and not isinstance(train, bool):
        raise Unusable("wrong type", f"`{name}.train` is {type(train).__name__}, not true or false")
    if weight is None:
        return train
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Unusable("wrong type", f"`{name}.weight` is {weight!r:.60}, not 0 or 1")
    if train is not None and train is not bool(weight):
        raise Unusable(_WRONG_TURNS, f"`{name}` has train: {str(train).lower()} and weight: {weight}; keep one of them")
    return bool(weight)


def _check_order(turns: Sequence[Turn], name: str) -> None:
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == [SYSTEM] else roles
    if not spoken or len(spoken) % 2 or spoken != [USER, ASSISTANT] * (len(spoken) // 2):
        raise Unusable(
            _WRONG_TURNS,
            f"`{name}` is {', '.join(roles) or 'empty'}; it must be user and assistant in turn, the assistant last,"
            " optionally after one system turn",
        )
    if not any(turn.train for turn in turns if turn.role == ASSISTANT):
        raise Unusable(_WRONG_TURNS, f"no turn of the assistant in `{name}` is learned")
