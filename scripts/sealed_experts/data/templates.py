"""How instruction, input and answer become text and tokens: alpaca, chatml, or the tokenizer's own chat template.

Prompt and answer are tokenized apart, so that the tokens of a training prompt are exactly those that generation
starts from, whatever the answer begins with.
"""

import dataclasses
from typing import Any

from sealed_experts.data.records import Record
from sealed_experts.errors import UserError

TEMPLATES = ("alpaca", "chatml", "tokenizer")
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
# Some chat templates print today's date: a prompt must be the same when it trains and when it generates.
FIXED_DATE = "1 January 2025"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of prompt + answer + end of sequence. The first `prompt_length` positions carry no loss."""

    ids: list[int]
    prompt_length: int


def prompt_text(*, template: str, instruction: str, input: str = "", tokenizer: Any = None) -> str:
    """Return the text that comes before the answer.

    Markers in the user's text that the template or the tokenizer would read as control tokens are taken apart by a
    space, so that no record can close its own prompt.

    Raises:
        UserError: the template is unknown, or is `tokenizer` and the tokenizer has no chat template.
    """
    instruction, input = _plain(instruction, tokenizer), _plain(input, tokenizer)
    if template == "alpaca":
        context = f"### Input:\n{input}\n\n" if input else ""
        return f"### Instruction:\n{instruction}\n\n{context}### Response:\n"
    message = f"{instruction}\n\n{input}" if input else instruction
    if template == "chatml":
        return f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
    if template == "tokenizer":
        return _chat_prompt(message, tokenizer)
    raise UserError(f"template: {template!r} is unknown; write one of {', '.join(TEMPLATES)}")


def encode_prompt(*, template: str, instruction: str, input: str = "", tokenizer: Any) -> list[int]:
    """Return the tokens that generation starts from: exactly the prompt part of `encode_example`."""
    text = prompt_text(template=template, instruction=instruction, input=input, tokenizer=tokenizer)
    # A chat template writes its own beginning of sequence.
    ids = list(tokenizer(text, add_special_tokens=template != "tokenizer")["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids.pop()  # a tokenizer that ends every text: here the answer follows
    return ids


def encode_example(*, template: str, record: Record, tokenizer: Any, max_seq_len: int) -> Encoded:
    """Tokenize a record as prompt, answer and end of sequence, cut at `max_seq_len` from the answer's end.

    A cut answer has no end of sequence. A prompt that leaves no room has no response position:
    `prompt_length == len(ids)`.
    """
    prompt = encode_prompt(template=template, instruction=record.instruction, input=record.input, tokenizer=tokenizer)
    answer = list(tokenizer(_plain(record.output, tokenizer), add_special_tokens=False)["input_ids"])
    ids = [*prompt, *answer, tokenizer.eos_token_id][:max_seq_len]
    return Encoded(ids=ids, prompt_length=min(len(prompt), len(ids)))


def _chat_prompt(message: str, tokenizer: Any) -> str:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "template: `tokenizer` needs a base with a chat template, and this one has none; write alpaca or chatml"
        )
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": message}],
        tokenize=False,
        add_generation_prompt=True,
        date_string=FIXED_DATE,
        strftime_now=lambda _format: FIXED_DATE,
    )


def _plain(text: str, tokenizer: Any) -> str:
    """Take control markers in a record's text apart, so that they are read as the text they are."""
    special = [] if tokenizer is None else tokenizer.all_special_tokens
    for marker in sorted({*CHATML_MARKERS, *special}, key=lambda marker: (-len(marker), marker)):
        if len(marker) > 1:
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text
