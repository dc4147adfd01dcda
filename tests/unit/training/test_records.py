"""Records of every kind in a step, and a stage that learns from conversations."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sealed_experts.data.records import read_records, records_digest, write_records
from sealed_experts.data.records.chat import Chat
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.records.labelled import Labelled
from sealed_experts.data.records.pair import Pair
from sealed_experts.data.templates import Turn
from sealed_experts.errors import UserError
from sealed_experts.files.digests import digest_of, sha256_file
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.attachment import adapter_state, attach_adapter, trainable_parameters
from sealed_experts.models.loading import load_base
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import physical_batches
from sealed_experts.training.dataset import UnitDataset, one_unit_per_record
from sealed_experts.training.samplers import ShuffledSampler
from tests.tiny import QUESTIONS, SENTENCES
from tests.unit.data.test_templates import TOKENIZERS
from tests.unit.training.test_stage import PLAIN, PRIVATE, make_job, train

TOKENIZER = TOKENIZERS["plain"]
STREAM = Stream(bytes(32))


def dataset_of(records):
    return UnitDataset.from_records(records, template="alpaca", tokenizer=TOKENIZER, max_seq_len=200)


def pair(number, unit=None):
    return Pair.of(prompt=f"q {number}", chosen=f"yes {number}", rejected=f"no, not at all {number}", unit=unit)


def test_a_drawn_unit_contributes_both_answers_of_one_pair():
    owned = [pair(n, unit=f"c{n % 3}") for n in range(12)]
    dataset = dataset_of(owned)
    assert (len(dataset), len(dataset.records()), len(dataset.rows())) == (3, 12, 24)
    seen = set()
    for step in range(1, 60):
        rows = dataset.examples(np.array([2, 0]), step=step, stream=STREAM)
        assert [(row.unit, row.part) for row in rows] == [
            (2, "chosen"), (2, "rejected"), (0, "chosen"), (0, "rejected"),
        ]  # fmt: skip
        assert rows[0].prompt == rows[1].prompt
        seen |= {row.prompt for row in rows}
    # Each pair is used in some step; the key decides which.
    assert seen == {f"q {n}" for n in range(12) if n % 3 != 1}
    again = dataset_of(owned)
    assert again.examples(np.array([2]), step=5, stream=STREAM) == dataset.examples(
        np.array([2]), step=5, stream=STREAM
    )


def test_both_answers_of_a_pair_stay_in_one_physical_batch():
    rows = dataset_of([pair(n) for n in range(9)]).rows()
    batches = physical_batches(rows, token_budget=160, pad_id=0, device=torch.device("cpu"))
    assert len(batches) > 1
    for batch in batches:
        for places in batch.rows_by_unit():
            assert [batch.examples[place].part for place in places] == ["chosen", "rejected"]


def test_held_out_records_are_units_of_their_own_and_pairs_are_not_torn_apart():
    dataset = dataset_of([pair(n, unit="c") for n in range(5)])
    held_out = one_unit_per_record(dataset.records()[:3])
    assert [row.unit for row in held_out] == [0, 0, 1, 1, 2, 2]
    assert [row.part for row in held_out] == ["chosen", "rejected"] * 3


def test_the_digest_of_instructions_is_over_tokens_and_prompt_lengths_alone():
    records = [Instruction.of(instruction=f"q{n}", output="yes", unit=f"c{n % 2}") for n in range(5)]
    dataset = dataset_of(records)
    units = [[row for row in dataset.rows() if row.unit == unit] for unit in range(2)]
    assert dataset.digest() == digest_of([[[list(row.ids), row.prompt_length] for row in rows] for rows in units])


def test_the_digest_sees_what_is_learned_and_what_it_is_labelled():
    def chat(train):
        return Chat.of(
            messages=(Turn("user", "a"), Turn("assistant", "b", train), Turn("user", "c"), Turn("assistant", "d"))
        )

    for one, two in (
        (chat(True), chat(False)),
        (Labelled.of(input="a", label="x"), Labelled.of(input="a", label="y")),
        (pair(1), Pair.of(prompt="q 1", chosen="no, not at all 1", rejected="yes 1")),
    ):
        assert dataset_of([one]).digest() != dataset_of([two]).digest()
    assert dataset_of([Labelled.of(input="a", label="x")]).rows()[0].label == "x"


def conversations(folder, *, count=24, metadata=False):
    """Write a dataset of conversations with two exchanges; some turns are not learned."""
    folder.mkdir()
    made = []
    for index in range(count):
        texts = [QUESTIONS[index % 7], SENTENCES[index % 5], f"And number {index}?", SENTENCES[(index + 1) % 5]]
        roles = ("user", "assistant", "user", "assistant")
        turns = [Turn(role, text) for role, text in zip(roles, texts, strict=True)]
        turns[1] = turns[1]._replace(train=index % 3 > 0)
        made.append(Chat.of(messages=tuple(turns), metadata={"page": index} if metadata else {}))
    write_records(folder / "train.jsonl", made[:-4])
    write_records(folder / "val.jsonl", made[-4:])
    (folder / "stats.json").write_text(json.dumps({"unit": "record", "digest": "0" * 64}))
    return folder


def test_a_step_on_conversations_is_pytorchs_own_on_the_assistants_tokens(tmp_path, tiny_base):
    """Computed by hand: tokens of the whole conversation, labels on the assistant's turns, the model's own loss."""
    data, drawn = conversations(tmp_path / "chats"), []
    original = ShuffledSampler.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShuffledSampler, "draw", lambda self, step: drawn.append(original(self, step)) or drawn[-1])
        state = train(make_job(tmp_path, tiny_base, data, privacy=PLAIN, max_steps=1, max_seq_len=128))
    base = load_base(tiny_base.parent, device=torch.device("cpu"))
    model = attach_adapter(base.model, Lora(rank=2, alpha=4), seed=3)
    losses = []
    for record in [read_records(data / "train.jsonl")[index] for index in drawn[0]]:
        ids, labels, between = [], [], ""
        for asked, said in zip(record.messages[::2], record.messages[1::2], strict=True):
            prompt = f"{between}### Instruction:\n{asked.content}\n\n### Response:\n"
            told, answer = (base.tokenizer(text)["input_ids"] for text in (prompt, said.content))
            answer = [*answer, base.tokenizer.eos_token_id]
            ids += told + answer
            labels += [-100] * len(told) + (answer if said.train else [-100] * len(answer))
            between = "\n\n"
        losses.append(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=5e-3, weight_decay=0.01)
    (sum(losses) / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(trainable_parameters(model), 1.0)
    optimizer.step()
    for name, tensor in adapter_state(model).items():
        torch.testing.assert_close(state["model_state_dict"][name], tensor, rtol=1e-3, atol=1e-5)


def test_conversations_are_learned_under_privacy(tmp_path, tiny_base):
    """The check before training compares per-example gradients with those computed one at a time."""
    privacy = PRIVATE.replace(delta=1e-2)
    state = train(make_job(tmp_path, tiny_base, conversations(tmp_path / "chats"), max_seq_len=128, privacy=privacy))
    assert state["privacy"]["units"] == 20
    assert state["privacy"]["epsilon"] > 0


def test_metadata_decide_nothing_and_are_in_no_digest(tmp_path, tiny_base):
    """The fingerprint is the same, so the folder of checkpoints is the same."""
    states, names = [], []
    for metadata in (False, True):
        folder = tmp_path / str(metadata)
        folder.mkdir()
        data = conversations(folder / "chats", metadata=metadata)
        job = make_job(folder, tiny_base, data, privacy=PLAIN, max_seq_len=128, max_steps=2)
        states.append(train(job))
        names.append([path.name for path in job.checkpoints.iterdir() if path.is_dir()])
    plain, rich = states
    assert names[0] == names[1]
    assert plain["subject"] == rich["subject"]
    assert plain["subject"]["train_digest"] == sha256_file(tmp_path / "False" / "chats" / "train.jsonl")
    assert rich["subject"]["train_digest"] != sha256_file(tmp_path / "True" / "chats" / "train.jsonl")
    for name, tensor in plain["model_state_dict"].items():
        assert torch.equal(tensor, rich["model_state_dict"][name])


# A validation set from another dataset


@pytest.fixture
def public(tmp_path, tiny_dataset):
    """Records of another dataset; one of them is also a training record."""
    common = read_records(tiny_dataset / "train.jsonl")[0]
    others = [Instruction.of(instruction=f"What is public fact {n}?", output="It is known.") for n in range(6)]
    (tmp_path / "public").mkdir()
    write_records(tmp_path / "public" / "val.jsonl", [others[0], common, *others[1:]])
    return tmp_path / "public" / "val.jsonl", others


def test_a_stage_is_validated_on_records_of_another_dataset_but_for_those_it_learns(
    tmp_path, tiny_base, tiny_dataset, public
):
    val, others = public
    job = make_job(tmp_path, tiny_base, tiny_dataset, privacy=PLAIN, max_steps=1)
    state = train(dataclasses.replace(job, val=val))
    assert state["subject"]["val_digest"] == records_digest(others)
    own = train(dataclasses.replace(job, output=tmp_path / "own" / "adapter.pt", checkpoints=tmp_path / "own" / "c"))
    first = [next(line["val_loss"] for line in of["history"] if "val_loss" in line) for of in (state, own)]
    assert first[0] != first[1]
    assert state["subject"]["train_digest"] == own["subject"]["train_digest"]


def test_under_privacy_a_common_record_stops_the_stage_before_it_trains(tmp_path, tiny_base, tiny_dataset, public):
    job = make_job(tmp_path, tiny_base, tiny_dataset)
    with pytest.raises(UserError, match="1 of 7 records, or their questions, are in"):
        train(dataclasses.replace(job, val=public[0]))
    assert not list(job.checkpoints.glob("*/*"))
