"""Read text as tokens so that a user's text only becomes ordinary tokens.

A tokenizer finds its control tokens (`</s>`, `<|im_end|>`) by their text, and cannot know who wrote it. The option
`split_special_tokens` is not enough: it also splits what the template wrote, leaves out control tokens that are not
marked as special, and a Unigram model finds `</s>` in its vocabulary without it. So a user's text is put between two
marks that nobody can guess, and the tokenizer's twin reads it. In the twin every control token has another name, which
only the text outside the marks is given.
"""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

from sealed_experts.errors import UserError

# Random, so that no text can hold a mark. It never reaches a token.
_SECRET = secrets.token_hex(16)
_OPEN, _CLOSE = f"[{_SECRET}<]", f"[{_SECRET}>]"
_QUOTED = re.compile(f"{re.escape(_OPEN)}(.*?){re.escape(_CLOSE)}", re.DOTALL)
_MARK = re.compile(f"{re.escape(_OPEN)}|{re.escape(_CLOSE)}")


def quoted(text: str) -> str:
    """Return a user's text between marks. White space around it stays outside, where a template may remove it."""
    inner = text.strip()
    before, _, after = text.partition(inner) if inner else (text, "", "")
    return f"{before}{_OPEN}{inner}{_CLOSE}{after}"


def unquoted(text: str) -> str:
    """Return a marked text without its marks."""
    return _MARK.sub("", text)


def unquoted_parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a marked text without marks, and whether each is the user's."""
    for place, part in enumerate(_QUOTED.split(text)):
        yield unquoted(part), place % 2 == 1


class TextReader:
    """Turns marked text into tokens: control tokens are read outside the marks only."""

    def __init__(self, tokenizer: Any, *, template_text: str = "") -> None:
        """Make the twin of a tokenizer.

        Args:
            tokenizer: the tokenizer of transformers.
            template_text: what the template writes around the turns. Control tokens are the tokenizer's special tokens,
                and the other added tokens in this text. Not white space: some tokenizers have a token for `\\n\\n`.
        """
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        written = set(tokenizer.get_added_vocab())
        special |= {name for name in written if name in template_text} | set(tokenizer.all_special_tokens)
        names = sorted((name for name in special if name.strip()), key=lambda name: (-len(name), name))
        self._alias = {name: f"[{_SECRET}:{place}]" for place, name in enumerate(names)}
        self._control = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self._ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
        self._tokenizer = tokenizer
        self._twin = _twin(tokenizer, self._alias) if tokenizer.is_fast else None

    def is_control(self, name: str) -> bool:
        """Return whether a text is the name of a control token."""
        return name in self._alias

    def ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the tokens of a marked text.

        Args:
            add_special_tokens: whether to add the special tokens that the tokenizer puts around a text.

        Raises:
            UserError: a tokenizer without a fast form would read a control token in the user's text.
        """
        if self._twin is not None:
            aliased = "".join(
                part if users else self._control.sub(lambda found: self._alias[found[0]], part)
                for part, users in unquoted_parts(text)
            )
            return list(self._twin.encode(aliased, add_special_tokens=add_special_tokens).ids)
        ids: list[int] = [token for piece in self._pieces(text) for token in self._slow_ids(piece)]
        return self._tokenizer.build_inputs_with_special_tokens(ids) if add_special_tokens else ids

    def _pieces(self, text: str) -> Iterator[str | int]:
        """Yield the ids of the template's control tokens, and the text between them."""
        plain = ""
        for part, users in unquoted_parts(text):
            if users:
                plain += part
                continue
            end = 0
            for found in self._control.finditer(part):
                yield plain + part[end : found.start()]
                yield self._ids[found[0]]
                plain, end = "", found.end()
            plain += part[end:]
        yield plain

    def _slow_ids(self, piece: str | int) -> list[int]:
        if isinstance(piece, int):
            return [piece]
        # Only where it must, because it also splits added tokens that are ordinary text.
        split = bool(self._control.search(piece))
        tokenizer = self._tokenizer
        ids: list[int] = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(piece, split_special_tokens=split))
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
        if leaked := set(ids) & set(self._ids.values()) - unknown:
            name = next(name for name, token in self._ids.items() if token in leaked)
            raise UserError(
                f"a text holds {name!r}, which this base's tokenizer can only read as a control token: take it out of"
                " the text, or choose a base with a tokenizer.json"
            )
        return ids


def _twin(tokenizer: Any, alias: dict[str, str]) -> Any:
    """Return the tokenizer's fast form with other names for some tokens. All ids stay as they are.

    The names also leave the model's own vocabulary and its merges, so that the model cannot build such a token from
    text.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    for token in state["added_tokens"]:
        token["content"] = alias.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {alias.get(name, name): token for name, token in model["vocab"].items()}
    else:  # Unigram has the pieces with their scores
        model["vocab"] = [[alias.get(name, name), score] for name, score in model["vocab"]]
    if model.get("merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            (left, right)
            for left, right in model["merges"]
            if alias.keys().isdisjoint((left, right, left + right.removeprefix(prefix)))
        ]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = alias.get(model["unk_token"], model["unk_token"])
    twin = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    for name, other in alias.items():
        assert twin.token_to_id(other) == tokenizer.convert_tokens_to_ids(name), f"the id of {name!r} moved"
    return twin
