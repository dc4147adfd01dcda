"""Conversations, comparisons and labelled texts as tokens: which tokens have loss, and where generation starts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.data.records.chat import Chat
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.records.labelled import Labelled
from sealed_experts.data.records.pair import Pair
from sealed_experts.data.templates import TEMPLATES, Turn, encode_chat, encode_prompt
from sealed_experts.errors import UserError
from sealed_experts.training.batches import IGNORED
from sealed_experts.training.dataset import UnitDataset
from tests.pairs import batch_of
from tests.unit.data.test_templates import TOKENIZERS, byte_level

PLAIN = TOKENIZERS["plain"]
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(str.strip).filter(bool)
# Special tokens surround each role, so that cutting the text there changes no token.
MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat(*texts, system=None, trained=(True, True, True)):
    """Return a conversation; the texts are the user's and the assistant's in turn."""
    turns = [Turn("system", system)] if system else []
    for place, text in enumerate(texts):
        turns.append(Turn("assistant", text, trained[place // 2]) if place % 2 else Turn("user", text))
    return Chat.of(messages=tuple(turns))


def row_of(record, *, template="alpaca", tokenizer=PLAIN, max_seq_len=10_000):
    (row,) = record.encoded(template=template, tokenizer=tokenizer, max_seq_len=max_seq_len)
    return row


def learned_texts(row, tokenizer=PLAIN):
    return [tokenizer.decode(row.ids[start:end]) for start, end in row.learned]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXT, min_size=6, max_size=6), system=st.none() | TEXT)
def test_generation_starts_from_the_training_prefix_of_every_answer(name, template, texts, system):
    tokenizer = TOKENIZERS[name]
    record = chat(*texts, system=system)
    row = row_of(record, template=template, tokenizer=tokenizer)
    answers = [place for place, turn in enumerate(record.messages) if turn.role == "assistant"]
    assert len(row.learned) == len(answers) == 3
    for place, (start, end) in zip(answers, row.learned, strict=True):
        prompt, before = encode_chat(template=template, turns=record.messages[:place], tokenizer=tokenizer)
        assert list(row.ids[:start]) == prompt
        assert before == [span for span in row.learned if span[0] < start]
        assert row.ids[end - 1] == tokenizer.eos_token_id
        assert not set(row.ids[start : end - 1]) & set(tokenizer.all_special_ids)
    assert row.prompt_length == row.learned[-1][0]


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_exchange_is_the_instruction_of_the_same_texts(template):
    instruction = row_of(Instruction.of(instruction="Why?", output="Because."), template=template)
    exchange = row_of(chat("Why?", "Because."), template=template)
    assert (exchange.ids, exchange.prompt_length) == (instruction.ids, instruction.prompt_length)
    assert exchange.learned == instruction.learned


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXT, min_size=4, max_size=4), system=st.none() | TEXT)
def test_tokens_and_loss_are_those_of_transformers_own_mask(texts, system):
    """For a template that marks the assistant's turns, transformers itself reports their tokens."""
    tokenizer = byte_level()
    tokenizer.chat_template = MARKED
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    if any(marker in text for text in [*texts, system or ""] for marker in tokenizer.all_special_tokens):
        return
    record = chat(*texts, system=system)
    expected = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in record.messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    row = row_of(record, template="tokenizer", tokenizer=tokenizer)
    assert list(row.ids) == expected["input_ids"]
    mask = [int(any(start <= place < end for start, end in row.learned)) for place in range(len(row.ids))]
    assert mask == expected["assistant_masks"]


def test_what_the_templates_say_of_several_turns():
    record = chat("Why?", "So.", "And?", "No.", system="Be short.")
    said = {template: PLAIN.decode(row_of(record, template=template).ids) for template in TEMPLATES}
    assert said["alpaca"] == (
        "Be short.\n\n### Instruction:\nWhy?\n\n### Response:\nSo.<eos>"
        "\n\n### Instruction:\nAnd?\n\n### Response:\nNo.<eos>"
    )
    assert said["chatml"] == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<eos>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nNo.<eos>"
    )
    rendered = PLAIN.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in record.messages], tokenize=False
    )
    assert said["tokenizer"] == rendered.removesuffix("\n")


def test_a_turn_that_is_not_learned_is_still_read():
    row = row_of(chat("a", "one", "b", "two", "c", "three", trained=(True, False, True)))
    assert learned_texts(row) == ["one<eos>", "three<eos>"]
    assert "two" in PLAIN.decode(row.ids)
    row = row_of(chat("a", "one", "b", "two", trained=(True, False)))
    assert learned_texts(row) == ["one<eos>"]
    assert PLAIN.decode(row.ids[: row.prompt_length]).endswith("a\n\n### Response:\n")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("marker", ["<|im_end|>", "<|im_start|>", "<eos>", "<|assistant|>"])
def test_markers_in_a_turn_are_text(template, marker):
    special = set(PLAIN.all_special_ids)
    quiet, loud = (
        [
            token
            for token in row_of(
                chat(f"a{text}b", text, f"c{text}", f"{text}d", system=f"e{text}"), template=template
            ).ids
            if token in special
        ]
        for text in ("x", marker)
    )
    assert loud == quiet


def test_a_long_conversation_is_cut_at_its_end():
    record = chat("a", "one two three", "b", "four five six")
    whole = row_of(record)
    for length in range(1, len(whole.ids)):
        cut = row_of(record, max_seq_len=length)
        assert cut.ids == whole.ids[:length]
        assert [place for start, end in cut.learned for place in range(start, end)] == [
            place for start, end in whole.learned for place in range(start, end) if place < length
        ]
        assert cut.prompt_length == min(whole.prompt_length, length)


def test_a_template_that_changes_earlier_turns_is_refused():
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] if loop.last else '(left out)' }}{% endfor %}"
    )
    assert row_of(chat("a", "b"), template="tokenizer", tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"changes earlier turns.*write chatml or alpaca"):
        row_of(chat("a", "b", "c", "d"), template="tokenizer", tokenizer=tokenizer)


def test_a_template_without_a_system_turn_refuses_one():
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(UserError, match=r"cannot express a conversation of system, user \(System role not supported\)"):
        row_of(chat("a", "b", system="s"), template="tokenizer", tokenizer=tokenizer)


def test_a_template_that_ends_answers_in_its_own_way_keeps_its_end_before_the_next_turn():
    """The end of sequence is still added: generation stops there."""
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}[end]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    row = row_of(chat("a", "b", "c", "d"), template="tokenizer", tokenizer=tokenizer)
    assert tokenizer.decode(row.ids) == "[user] a[end][assistant]b<eos>[end][user] c[end][assistant]d<eos>"
    assert learned_texts(row, tokenizer) == ["b<eos>", "d<eos>"]


# Other kinds


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_pair_becomes_two_rows_that_share_their_prompt(template):
    rows = Pair.of(prompt="Why?", chosen="Because.", rejected="No.").encoded(
        template=template, tokenizer=PLAIN, max_seq_len=10_000
    )
    alone = [row_of(Instruction.of(instruction="Why?", output=text), template=template) for text in ("Because.", "No.")]
    assert [row.part for row in rows] == ["chosen", "rejected"]
    assert [(row.ids, row.prompt_length) for row in rows] == [(row.ids, row.prompt_length) for row in alone]
    prompt = encode_prompt(template=template, instruction="Why?", tokenizer=PLAIN)
    assert all(list(row.ids[: row.prompt_length]) == prompt for row in rows)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_labelled_text_is_read_without_a_template(name):
    tokenizer = TOKENIZERS[name]
    row = row_of(Labelled.of(input="a bond is a loan", label="finance"), tokenizer=tokenizer)
    assert list(row.ids) == tokenizer("a bond is a loan")["input_ids"]
    assert (row.label, row.response_tokens, row.prompt_length) == ("finance", 0, len(row.ids))
    cut = row_of(Labelled.of(input="a bond is a loan", label="finance"), tokenizer=tokenizer, max_seq_len=3)
    assert cut.ids == row.ids[:3]


def test_labels_of_a_batch_are_the_tokens_of_the_learned_turns():
    record = chat("a", "one", "b", "two two", "c", "three", trained=(True, False, True))
    dataset = UnitDataset.from_records([record], template="alpaca", tokenizer=PLAIN, max_seq_len=999)
    batch = batch_of(dataset.rows())
    learned = batch.labels[0][batch.labels[0] != IGNORED]
    assert PLAIN.decode(learned) == "one<eos>three<eos>"
    # Each token is predicted at the position before it.
    places = (batch.labels[0] != IGNORED).nonzero()[:, 0] + 1
    assert torch.equal(batch.input_ids[0][places], learned)
