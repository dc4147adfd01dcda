"""A user's text as ordinary tokens: a control token that stands in it as text never becomes that token.

Otherwise a record could end its own turn. It would also be learned as something else: `</s>` is a tag in HTML, and the
end of the sequence for many tokenizers.
"""

import re
from collections.abc import Iterable
from typing import Any

_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters without a meaning (Unicode's Supplementary Private Use Area-A)


class PlainText:
    """Hides control tokens in texts while a template places these texts, and encodes the result.

    Each control token in a text is replaced by a sign that no text contains. So all control tokens in the rendered text
    are the template's own.
    """

    def __init__(self, texts: Iterable[str], tokenizer: Any) -> None:
        """Take all texts of the user that will be hidden."""
        together = "\0".join(texts)
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        used = set(together)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        self._signs = {token: next(free) for token in self._control if token in together}

    def hide(self, text: str) -> str:
        """Replace the control tokens in a text of the user, the longest ones first."""
        for token, sign in self._signs.items():
            text = text.replace(token, sign)
        return text

    def reveal(self, text: str) -> str:
        """Return a text with its hidden control tokens as they were."""
        for token, sign in self._signs.items():
            text = text.replace(sign, token)
        return text

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text with hidden parts, without those that the tokenizer adds to every text."""
        if not self._signs:
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        found: list[int] = []
        for piece in re.split(f"({'|'.join(map(re.escape, self._control))})", text):
            if piece in self._control:
                found.append(self._tokenizer.convert_tokens_to_ids(piece))
            elif piece:
                plain = self._tokenizer(self.reveal(piece), add_special_tokens=False, split_special_tokens=True)
                found += plain["input_ids"]
        return found

    def complete_ids(self, text: str) -> list[int]:
        """Return the tokens of a text with hidden parts, with those that the tokenizer adds to every text."""
        if not self._signs:
            return list(self._tokenizer(text)["input_ids"])
        bare, whole = (list(self._tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))
        start = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
        return [*whole[:start], *self.ids(text), *whole[start + len(bare) :]]


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the texts of a tokenizer's control tokens, the longest first; none without a tokenizer."""
    if tokenizer is None:
        return ()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted({*tokenizer.all_special_tokens, *added}, key=lambda token: (-len(token), token)))
