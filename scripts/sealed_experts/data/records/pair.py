"""A comparison: one prompt, the better answer and the worse one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sealed_experts.data.records import Columns, Record
from sealed_experts.data.templates import CHOSEN, REJECTED, Encoded, encode_answer, encode_prompt
from sealed_experts.data.values import Unusable, text
from sealed_experts.settings.fields import setting


class PairColumns(Columns):
    """Which fields of a row hold the prompt and its two answers."""

    prompt: str = setting("Field of the prompt.", default="prompt", min_length=1)
    chosen: str = setting("Field of the better answer.", default="chosen", min_length=1)
    rejected: str = setting("Field of the worse answer.", default="rejected", min_length=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(Record):
    """A prompt with the better answer and the worse one."""

    prompt: str
    chosen: str
    rejected: str

    columns: ClassVar[type[Columns]] = PairColumns
    parts: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")

    @classmethod
    def read(cls, values: Mapping[str, Any], columns: PairColumns) -> dict[str, Any]:
        """Return the three texts; the two answers must differ."""
        content = {part: text(values, getattr(columns, part)) for part in cls.parts}
        if content["chosen"] == content["rejected"]:
            raise Unusable("equal answers", f"`{columns.chosen}` and `{columns.rejected}` are the same text")
        return content

    @property
    def question(self) -> str:
        """The prompt."""
        return self.prompt

    @property
    def answer(self) -> str:
        """The better answer."""
        return self.chosen

    def texts(self) -> Sequence[tuple[str, str]]:
        """Return the three texts."""
        return [(part, getattr(self, part)) for part in self.parts]

    def encoded(self, *, template: str, tokenizer: Any, max_seq_len: int) -> list[Encoded]:
        """Return two rows with the same prompt: the better answer, then the worse one."""
        prompt = encode_prompt(template=template, instruction=self.prompt, tokenizer=tokenizer)
        return [
            dataclasses.replace(
                encode_answer(prompt, answer, template=template, tokenizer=tokenizer, max_seq_len=max_seq_len),
                part=part,
            )
            for part, answer in ((CHOSEN, self.chosen), (REJECTED, self.rejected))
        ]
