"""Read JSON values one after another from a stream: the objects of one long list, or objects over several lines."""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import STRICT_DECODER

CHUNK = 1 << 20  # characters to read at once; more if a single value needs it
_SPACE = re.compile(r"[ \t\r\n]*")
_CUT = 16  # an error this close to the end of what was read may only mean that the value goes on


def json_values(stream: IO[str], *, name: str, in_list: bool) -> Iterator[tuple[int, Any]]:
    """Yield every value with the line on which it begins. Only one value is in memory at a time.

    In place of a value that is JSON but not strict (a key twice, NaN) it yields the ValueError.

    Args:
        name: the file's name for messages.
        in_list: whether the values are the elements of one list; otherwise only white space is between them.

    Raises:
        UserError: the text is not such JSON; nobody knows where the next value begins.
    """
    text = _Text(stream, name)
    if in_list:
        yield from _elements(text)
    while text.next():
        if in_list:
            raise text.error("there is text after the end of the list")
        yield text.line, text.value()


def _elements(text: "_Text") -> Iterator[tuple[int, Any]]:
    text.skip("[")
    letter = text.next()
    while letter != "]":
        yield text.line, text.value()
        letter = text.next()
        if letter != "]":
            text.skip(",")
            text.next()
    text.skip("]")


class _Text:
    """The part of a stream that is not used yet."""

    def __init__(self, stream: IO[str], name: str) -> None:
        self._stream, self._name = stream, name
        self._buffer, self._place, self._ended = "", 0, False
        self.line = 1

    def next(self) -> str:
        """Skip white space and return the next character; an empty text at the end."""
        while True:
            end = _SPACE.match(self._buffer, self._place).end()  # type: ignore[union-attr]  # it matches everywhere
            self._use(end)
            if end < len(self._buffer) or not self._read():
                return self._buffer[end : end + 1]

    def skip(self, letter: str) -> None:
        """Skip one character, which must be `letter`."""
        found = self.next()
        if found != letter:
            raise self.error(f"{letter!r} is missing" if found else "the list does not end: the file is cut off")
        self._use(self._place + 1)

    def value(self) -> Any:
        """Return the value that begins here."""
        while True:
            try:
                value, end = STRICT_DECODER.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                may_go_on = error.pos > len(self._buffer) - _CUT or error.msg.startswith("Unterminated string")
                if may_go_on and self._read():
                    continue
                self._use(error.pos)
                raise self.error(error.msg) from error
            except RecursionError as error:
                raise self.error("it is nested too deeply") from error
            except ValueError as error:  # not strict: only its end is needed
                value, end = error, json.JSONDecoder().raw_decode(self._buffer, self._place)[1]
            if end == len(self._buffer) and self._read():
                continue  # a number may go on
            self._use(end)
            return value

    def error(self, reason: str) -> UserError:
        """Return the error for what is wrong here."""
        return UserError(
            f"{self._name}:{self.line}: this is not JSON ({reason}); correct it, or write one object on each line"
        )

    def _use(self, end: int) -> None:
        self.line += self._buffer.count("\n", self._place, end)
        self._place = end

    def _read(self) -> bool:
        """Read more, at least as much as there is; return whether there was more."""
        rest = self._buffer[self._place :]
        more = self._stream.read(max(CHUNK, len(rest)))
        self._buffer, self._place = rest + more, 0
        return bool(more)
