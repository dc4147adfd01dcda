"""The split, the statistics and the whole preparation of a dataset."""

import hashlib
import hmac
import json
import statistics
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.data.preparation import prepare, write_prepared
from sealed_experts.data.records import read_records, write_records
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.sources.combined import Combined
from sealed_experts.data.sources.files import Files
from sealed_experts.data.split import side_of_group, side_of_unit, split_key
from sealed_experts.data.statistics import describe, lengths
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import write_json
from tests.conftest import ROOT


def words(texts):
    return [len(text.split()) for text in texts]


def source(tmp_path, rows, **kwargs):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return Files(paths=(str(path),), **({"val_fraction": 0.4} | kwargs))


def row(number, **more):
    return {"instruction": f"question {number}", "output": f"answer {number}", **more}


def sides(prepared):
    return {(record.unit, record.id): side for side in ("train", "val") for record in getattr(prepared, side)}


def test_side_is_the_keyed_hash_and_nothing_else():
    key = hashlib.sha256(b"sealed-experts/split/v1\x007").digest()
    assert split_key(7) == key
    for name in map(str, range(200)):
        number = int(hmac.new(key, name.encode(), "sha256").hexdigest()[:16], 16) / 2**64
        assert side_of_group(name, key=key, val_fraction=0.3) == ("val" if number < 0.3 else "train")


def test_share_of_groups_held_out_and_seed():
    groups = [str(number) for number in range(4000)]
    chosen = [
        {group for group in groups if side_of_group(group, key=split_key(seed), val_fraction=0.1) == "val"}
        for seed in (1, 2)
    ]
    assert all(330 < len(held_out) < 470 for held_out in chosen)  # 400 expected, standard deviation 19
    assert len(chosen[0] & chosen[1]) < 80


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=30),
    named=st.booleans(),
    grouped=st.booleans(),
    drop=st.integers(0, 29),
)
def test_removing_a_record_never_moves_another_unit(tmp_path_factory, rows, named, grouped, drop):
    kinds = {"unit": "who" if named else None, "group": "fact" if grouped else None, "max_bad_share": 0}
    data = [row(number, who=f"u{who}", fact=f"g{fact}") for who, fact, number in rows]
    drop %= len(data)

    def split(these):
        fillers = [row(f"filler {number}", who=f"filler {number}", fact=f"filler {number}") for number in range(30)]
        return prepare(source(tmp_path_factory.mktemp("split"), [*these, *fillers], **kinds), name="x", seed=3)

    full, less = split(data), split(data[:drop] + data[drop + 1 :])
    unit_of = {record.id: record.unit for record in full.train + full.val}
    removed = f"u{rows[drop][0]}" if named else unit_of[_id(data[drop])]
    before, after = sides(full), sides(less)
    assert {key: side for key, side in before.items() if key[0] != removed} == {
        key: side for key, side in after.items() if key[0] != removed
    }
    assert len({unit for unit, _ in before}) == len({(unit, side) for (unit, _), side in before.items()})


def _id(data):
    return Instruction.of(instruction=data["instruction"], output=data["output"]).id


def test_a_group_stays_together(tmp_path):
    data = [row(number, fact=f"g{number % 10}") for number in range(60)]
    prepared = prepare(source(tmp_path, data, group="fact"), name="x", seed=1)
    facts = [{int(record.instruction.split()[1]) % 10 for record in side} for side in (prepared.train, prepared.val)]
    assert not facts[0] & facts[1]
    assert facts[0] | facts[1] == set(range(10))


def test_a_unit_in_two_groups_stands_on_one_side():
    key = split_key(0)
    names = [str(number) for number in range(50)]
    on = {
        side: [name for name in names if side_of_group(name, key=key, val_fraction=0.5) == side]
        for side in ("train", "val")
    }
    pair = {on["train"][0], on["val"][0]}
    assert side_of_unit(pair, key=key, val_fraction=0.5) == side_of_group(min(pair), key=key, val_fraction=0.5)


def test_exact_duplicates_drop_within_a_unit_only(tmp_path):
    data = [row(number) for number in range(40)] + [row(1), row(2), row(2)]
    prepared = prepare(source(tmp_path, data), name="x", seed=1)
    assert prepared.duplicates_dropped == 3
    assert len(prepared.train) + len(prepared.val) == 40
    named = [entry | {"who": f"u{index}"} for index, entry in enumerate(data)]
    prepared = prepare(source(tmp_path, [*named, named[0]], unit="who"), name="x", seed=1)
    assert prepared.duplicates_dropped == 1
    assert len(prepared.train) + len(prepared.val) == 43
    assert prepared.unit == "field:who"


def test_a_few_bad_rows_are_logged_and_counted(tmp_path):
    logged = []
    data = [*(row(number) for number in range(30)), "nonsense\n", row(31, output=" ")]
    prepared = prepare(source(tmp_path, data, max_bad_share=0.1), name="x", seed=1, log=logged.append)
    statistics_ = write_prepared(
        prepared,
        train=tmp_path / "train.jsonl",
        val=tmp_path / "val.jsonl",
        stats=tmp_path / "stats.json",
        count_tokens=words,
    )
    assert statistics_["bad_rows"] == {"count": 2, "reasons": {"not JSON": 1, "empty field": 1}}
    assert [line.split(": ")[0].rpartition(":")[2] for line in logged] == ["31", "32"]


def test_too_many_bad_rows_name_the_first_twenty_and_log_all(tmp_path):
    logged = []
    data = [*(row(number) for number in range(30)), *["nonsense\n"] * 25]
    with pytest.raises(UserError) as caught:
        prepare(source(tmp_path, data), name="x", seed=1, log=logged.append)
    message = str(caught.value)
    assert "25 of 55 rows cannot be used, more than max_bad_share 0.01" in message
    assert "rows.jsonl:50: not JSON" in message
    assert "rows.jsonl:51" not in message
    assert "and 5 more" in message
    assert len(logged) == 25


@pytest.mark.parametrize(("fraction", "side"), [(0.999999, "train"), (0.000001, "val")])
def test_an_empty_side_is_refused(tmp_path, fraction, side):
    with pytest.raises(UserError, match=f"dataset x: no record is on the {side} side"):
        prepare(source(tmp_path, [row(number) for number in range(5)], val_fraction=fraction), name="x", seed=1)


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="no row to use"):
        prepare(source(tmp_path, []), name="x", seed=1)


def test_combined_inherits_the_sides_and_never_holds_out_what_it_trains_on(tmp_path):
    common = Instruction.of(instruction="common?", output="yes")
    parts = {
        "one": ([common, _record("1")], [_record("2")]),
        "two": ([_record("3"), _record("1")], [_record("4"), common]),
    }
    for name, (train, val) in parts.items():
        write_json(tmp_path / name / "stats.json", {"unit": "record", "digest": "0"})
        write_records(tmp_path / name / "train.jsonl", train)
        write_records(tmp_path / name / "val.jsonl", val)
    prepared = prepare(Combined(of=("one", "two")), name="both", seed=9, parts=[tmp_path / "one", tmp_path / "two"])
    assert prepared.train == [common, _record("1"), _record("3")]
    assert prepared.val == [_record("2"), _record("4")]
    assert (prepared.duplicates_dropped, prepared.dropped_from_val, prepared.unit) == (1, 1, "record")


def test_combined_drops_held_out_rows_of_a_unit_that_another_part_trains_on(tmp_path):
    for name, sides_ in {"one": (["a"], ["b"]), "two": (["c"], ["d", "e"])}.items():
        write_json(tmp_path / name / "stats.json", {"unit": "field:who", "digest": "0"})
        for side, keys in zip(("train", "val"), sides_, strict=True):
            write_records(
                tmp_path / name / f"{side}.jsonl",
                [_record(key, unit="u1" if key in "ad" else f"u-{key}") for key in keys],
            )
    prepared = prepare(Combined(of=("one", "two")), name="both", seed=9, parts=[tmp_path / "one", tmp_path / "two"])
    assert prepared.dropped_from_val == 1
    assert {record.instruction for record in prepared.val} == {"b", "e"}
    assert {record.instruction for record in prepared.train} == {"a", "c"}


def _record(key, unit=None):
    return Instruction.of(instruction=key, output="yes", unit=unit)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8")),
            st.text(st.characters(codec="utf-8")),
            st.none() | st.text(st.characters(codec="utf-8")),
        )
    )
)
def test_records_survive_their_file(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("records") / "train.jsonl"
    records = [Instruction.of(instruction=ask, output=answer, unit=unit) for ask, answer, unit in texts]
    write_records(path, records)
    assert read_records(path) == records


def test_id_is_the_digest_of_the_text():
    record = Instruction.of(instruction="é", input="", output="b")
    assert record.id == hashlib.sha256('["é","","b"]'.encode()).hexdigest() == record.unit


@pytest.mark.parametrize("field", ["id", "output"])
def test_an_edited_record_is_refused(tmp_path, field):
    path = tmp_path / "train.jsonl"
    write_records(path, [_record("a")])
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: "edited"}) + "\n")
    with pytest.raises(UserError, match=r"train\.jsonl:1: the id does not belong"):
        read_records(tmp_path / "train.jsonl")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1))
def test_lengths_against_the_definition_of_nearest_rank(values):
    found = lengths(values)
    assert found["p50"] == statistics.median_low(values)
    assert (found["max"], found["total"]) == (max(values), sum(values))
    for percent in (5, 95):
        rank = found[f"p{percent}"]
        assert sum(value <= rank for value in values) >= percent / 100 * len(values)
        assert sum(value < rank for value in values) < percent / 100 * len(values)


def test_describe_counts_units_and_all_three_texts():
    records = [Instruction.of(instruction="a b", input="c", output="d e f", unit="u"), _record("a", unit="u")]
    assert describe(records, count_tokens=words) == {
        "records": 2,
        "units": 1,
        "words": {"p5": 2, "p50": 2, "p95": 6, "max": 6, "total": 8},
        "tokens": {"p5": 2, "p50": 2, "p95": 6, "max": 6, "total": 8},
        "tokens_histogram": {"2": 1, "8": 1},
    }


def test_script_prepares_the_demo_alike_every_time(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    demo = {"source": "demo", "domain": "investment", "records": 300, "val_fraction": 0.1, "max_bad_share": 0.01}
    values = {"dataset": demo, "name": "invest", "recipe": 1, "seed": 5}
    written = []
    for turn in ("one", "two"):
        folder = tmp_path / turn
        command = [sys.executable, "scripts/prepare_data.py", "--settings", json.dumps(values)]
        command += ["--base", str(tmp_path / "base.json"), "--parts"]
        command += ["--train", str(folder / "train.jsonl"), "--val", str(folder / "val.jsonl")]
        command += ["--stats", str(folder / "stats.json")]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    stats = json.loads(written[0]["stats.json"])
    assert stats["train"]["records"] + stats["val"]["records"] == 300
    assert stats["train"]["tokens"] == stats["train"]["words"]  # this tokenizer's tokens are words


def test_one_instruction_for_all_rows_is_split_by_the_questions_in_the_input(tmp_path):
    """No record fell on the val side: all rows had one instruction, so they were one group."""
    data = [{"instruction": "Answer the question.", "input": f"Question {n}?", "output": f"a{n}"} for n in range(200)]
    prepared = prepare(source(tmp_path, data, val_fraction=0.1), name="x", seed=1)
    assert 8 <= len(prepared.val) <= 34
    assert prepared.groups == 200


def test_records_with_the_same_question_stay_together(tmp_path):
    data = [{"instruction": "Answer.", "input": f"Question {n % 40}?", "output": f"answer {n}"} for n in range(200)]
    prepared = prepare(source(tmp_path, data), name="x", seed=1)
    assert prepared.groups == 40
    assert not {record.question for record in prepared.train} & {record.question for record in prepared.val}


def test_a_coarse_split_is_reported_with_what_to_set(tmp_path):
    logged = []
    data = [row(number, topic=f"topic {number % 4}") for number in range(100)]
    prepared = prepare(source(tmp_path, data, group="topic"), name="x", seed=1, log=logged.append)
    (warning,) = logged
    assert "it divides 4 groups" in warning
    assert f"held out {len(prepared.val)} of 100 records" in warning
    assert "`val_paths`" in warning
    fine = prepare(source(tmp_path, [row(number) for number in range(100)]), name="x", seed=1, log=logged.append)
    assert fine.groups == 100
    assert len(logged) == 1
