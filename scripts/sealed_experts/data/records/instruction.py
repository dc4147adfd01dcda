"""A question and its answer: instruction, an optional input, output."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sealed_experts.data.records import Columns, Record
from sealed_experts.data.templates import Encoded, encode_answer, encode_prompt
from sealed_experts.data.values import optional_text, text
from sealed_experts.settings.fields import setting


class InstructionColumns(Columns):
    """Which fields of a row hold the instruction, the input and the output."""

    instruction: str = setting("Field of the instruction (the question).", default="instruction", min_length=1)
    input: str | None = setting(
        "Field of the optional input (the context); a row may lack it.", default="input", min_length=1
    )
    output: str = setting("Field of the output (the answer).", default="output", min_length=1)

    def optional(self) -> list[str]:
        """Return the input's column, unless the settings give it another name."""
        return ["input"] if self.input == "input" else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction(Record):
    """A question and its answer."""

    instruction: str
    input: str = ""
    output: str

    columns: ClassVar[type[Columns]] = InstructionColumns
    order: ClassVar[int] = -1

    @classmethod
    def read(cls, values: Mapping[str, Any], columns: InstructionColumns) -> dict[str, Any]:
        """Return instruction, output and input."""
        return {
            "instruction": text(values, columns.instruction),
            "output": text(values, columns.output),
            "input": optional_text(values, columns.input),
        }

    def id_content(self) -> list[str]:
        """Return the three texts."""
        return [self.instruction, self.input, self.output]

    @property
    def question(self) -> str:
        """The instruction, and the input on the next line."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction

    @property
    def asked(self) -> tuple[str, str]:
        """The instruction, and the input."""
        return self.instruction, self.input

    @property
    def answer(self) -> str:
        """The output."""
        return self.output

    def texts(self) -> Sequence[tuple[str, str]]:
        """Return the three texts."""
        return [("instruction", self.instruction), ("input", self.input), ("output", self.output)]

    def encoded(self, *, template: str, tokenizer: Any, max_seq_len: int) -> list[Encoded]:
        """Return one row: prompt, answer and end of sequence."""
        prompt = encode_prompt(template=template, instruction=self.instruction, input=self.input, tokenizer=tokenizer)
        return [encode_answer(prompt, self.output, template=template, tokenizer=tokenizer, max_seq_len=max_seq_len)]
