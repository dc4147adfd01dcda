"""The user's validation and test sets: no record of them is trained on, and they do not influence training."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.data.held_out import held_out_records
from sealed_experts.data.preparation import prepare, write_prepared
from sealed_experts.data.records import read_records, write_records
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.sources import DATASET
from sealed_experts.data.sources.combined import Combined
from sealed_experts.errors import UserError


def row(question, answer="yes", **more):
    return {"instruction": question, "output": answer, **more}


def words(texts):
    return [len(text.split()) for text in texts]


class Desk:
    """A folder with files and the datasets that are prepared from them."""

    def __init__(self, folder):
        self.folder = folder

    def source(self, train, val=(), test=(), **more):
        sets = {"paths": train, "val_paths": val, "test_paths": test}
        settings_ = {"source": "files", **more}
        for name, rows in sets.items():
            path = self.folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            if rows:
                settings_[name] = [str(path)]
        return DATASET.parse(settings_)

    def prepare(self, *args, name="x", **more):
        return self.kept(prepare(self.source(*args, **more), name=name, seed=1))

    def kept(self, prepared):
        folder = self.folder / prepared.name
        folder.mkdir(exist_ok=True)
        sides = ["train", "val", *(["test"] if prepared.test is not None else [])]
        paths = {side: folder / f"{side}.jsonl" for side in sides}
        write_prepared(prepared, **paths, stats=folder / "stats.json", count_tokens=words)
        return prepared

    def stats(self, name="x"):
        return json.loads((self.folder / name / "stats.json").read_text())


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def questions(records):
    return [record.instruction for record in records]


TRAIN = [row(f"t{n}") for n in range(20)]
VAL = [row(f"v{n}") for n in range(5)]
TEST = [row(f"e{n}") for n in range(4)]


def test_with_validation_files_nothing_else_is_held_out(desk):
    made = desk.prepare(TRAIN, VAL, TEST)
    assert questions(made.train) == [f"t{n}" for n in range(20)]
    assert questions(made.val) == [f"v{n}" for n in range(5)]
    assert questions(made.test) == [f"e{n}" for n in range(4)]
    stats = desk.stats()
    assert {side: stats[side]["records"] for side in ("train", "val", "test")} == {"train": 20, "val": 5, "test": 4}
    assert (stats["dropped_from_val"], stats["dropped_from_test"], stats["duplicates_dropped"]) == (0, 0, 0)


def test_with_a_test_file_alone_the_rest_is_split_as_without_it(desk):
    with_test, without = desk.prepare(TRAIN, (), TEST, val_fraction=0.3), desk.prepare(TRAIN, val_fraction=0.3)
    assert (with_test.train, with_test.val) == (without.train, without.val)
    assert questions(with_test.test) == [f"e{n}" for n in range(4)]
    assert without.test is None


def test_held_out_records_that_are_trained_on_are_dropped_and_counted(desk):
    """The same record, or, if each record is a unit, the same question."""
    val = [*VAL, row("t1"), row("t2", "another answer"), row("v1")]
    made = desk.prepare(TRAIN, val, [*TEST, row("t3")])
    assert len(made.train) == 20
    assert questions(made.val) == [f"v{n}" for n in range(5)]
    stats = desk.stats()
    assert (stats["dropped_from_val"], stats["dropped_from_test"], stats["duplicates_dropped"]) == (2, 1, 1)


def test_customers_may_be_validated_on_later_questions_of_theirs(desk):
    owned = [row(f"t{n}", who=f"c{n % 4}") for n in range(20)]
    later = [row("t1", "another answer", who="c1"), row("new", who="c2"), row("t3", who="c9"), row("t3", who="c3")]
    made = desk.prepare(owned, later, unit="who")
    assert [(record.instruction, record.unit) for record in made.val] == [("t1", "c1"), ("new", "c2")]
    assert made.dropped_from_val == 2  # the record t3, from any customer


@settings(max_examples=40, deadline=None)
@given(
    held_out=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3)), min_size=1, max_size=12),
    owned=st.booleans(),
    as_test=st.booleans(),
)
def test_what_is_trained_on_never_depends_on_held_out_records(tmp_path_factory, held_out, owned, as_test):
    desk = Desk(tmp_path_factory.mktemp("own"))
    rows = [row(f"t{n}", who=f"c{n % 10}") for n in range(20)]
    kept = row("kept", who="x")
    other = [row(f"t{n}", f"answer {a}" if a else "yes", who=f"c{n % 5}") for n, a in held_out]
    more = ({"unit": "who"} if owned else {}) | ({"val_fraction": 0.4} if as_test else {})

    def prepared(held_out_rows):
        sets = ((), held_out_rows) if as_test else (held_out_rows,)
        return prepare(desk.source(rows, *sets, **more), name="x", seed=1)

    alone, made = prepared([kept]), prepared([kept, *other])
    assert made.train == alone.train
    learned = {record.id for record in made.train}
    assert not learned & {record.id for record in (made.test if as_test else made.val)}


def test_bad_rows_of_any_file_are_counted(desk):
    made = prepare(desk.source(TRAIN, [*VAL, {"instruction": "x"}], max_bad_share=0.1), name="x", seed=1)
    (bad,) = made.bad_rows
    assert bad.file.endswith("val_paths.jsonl")


@pytest.mark.parametrize("which", ["val", "test"])
def test_a_set_of_which_nothing_is_left_is_refused(desk, which):
    sets = {"val": VAL, "test": TEST, which: [row("t1")]}
    with pytest.raises(
        UserError, match=rf"on the {which} side.*1 dropped from {which}\): give records for it that are"
    ):
        desk.prepare(TRAIN, sets["val"], sets["test"])


def test_a_dataset_may_hold_everything_out(desk):
    made = desk.prepare(TRAIN, val_fraction=1)
    assert (made.train, len(made.val)) == ([], 20)
    assert desk.stats()["train"] == {"records": 0, "units": 0}
    assert (desk.folder / "x" / "train.jsonl").read_bytes() == b""
    both = prepare(Combined(of=("x",)), name="both", seed=1, parts=[desk.folder / "x"])
    assert (both.train, len(both.val)) == ([], 20)


def test_a_test_set_is_written_where_there_is_one_and_nowhere_else(desk):
    for made, test in ((desk.prepare(TRAIN, VAL), desk.folder / "test.jsonl"), (desk.prepare(TRAIN, VAL, TEST), None)):
        paths = {name: desk.folder / f"{name}.jsonl" for name in ("train", "val")}
        with pytest.raises(UserError, match=r"dataset x has (a|no) separate test set"):
            write_prepared(made, **paths, test=test, stats=desk.folder / "stats.json", count_tokens=words)


def test_a_combination_inherits_test_sets_and_tests_on_nothing_that_a_part_trains_on(desk):
    desk.prepare(TRAIN, VAL, [*TEST, row("u1")], name="one")
    desk.prepare([row(f"u{n}") for n in range(9)], val_fraction=0.4, name="two")
    parts = [desk.folder / "one", desk.folder / "two"]
    both = desk.kept(prepare(Combined(of=("one", "two")), name="both", seed=1, parts=parts))
    assert set(questions(both.test)) in ({f"e{n}" for n in range(4)}, {"u1", *(f"e{n}" for n in range(4))})
    assert not {record.id for record in both.train} & {record.id for record in (*both.val, *both.test)}
    assert desk.stats("both")["test"]["records"] == len(both.test)


# A validation set from another dataset


def prepared_files(tmp_path, train, val):
    """Write the training file of one dataset and the validation file of another."""
    paths = tmp_path / "own" / "train.jsonl", tmp_path / "public" / "val.jsonl"
    for path, records in zip(paths, (train, val), strict=True):
        write_records(path, records)
    return paths


def records(*texts, unit=None):
    return [Instruction.of(instruction=question, output=answer, unit=unit) for question, answer in texts]


def test_another_datasets_records_that_are_trained_on_are_left_out(tmp_path, capsys):
    train, val = prepared_files(
        tmp_path,
        records(("a", "1"), ("b", "1")) + records(("c", "1"), unit="customer"),
        records(("a", "1"), ("b", "2"), ("c", "1"), ("c", "2"), ("d", "1")),
    )
    kept = held_out_records(val, train=[train], private=False)
    assert [(record.instruction, record.output) for record in kept] == [("c", "2"), ("d", "1")]
    assert "3 of 5 records of" in capsys.readouterr().out
    write_records(val, records(("a", "1")))
    with pytest.raises(UserError, match="every record is also in"):
        held_out_records(val, train=[train], private=False)


def test_under_privacy_a_common_record_is_refused(tmp_path):
    """If it were left out, it would be missing in published numbers about public records."""
    train, val = prepared_files(tmp_path, records(("a", "1")), records(("d", "1"), ("a", "1")))
    with pytest.raises(UserError, match=rf"1 of 2 records.*{read_records(train)[0].id}.*remove them from one of the"):
        held_out_records(val, train=[train], private=True)
    write_records(val, records(("d", "1"), ("e", "1")))
    assert held_out_records(val, train=[train], private=True) == read_records(val)


def test_both_sides_of_one_dataset_are_left_as_they_were_prepared(tmp_path):
    """Two customers may have asked the same question."""
    for name, unit in (("train", "c1"), ("val", "c2")):
        write_records(tmp_path / f"{name}.jsonl", records(("a", "1"), unit=unit))
    val = tmp_path / "val.jsonl"
    assert held_out_records(val, train=[tmp_path / "train.jsonl"], private=True) == read_records(val)


def test_what_another_model_learned_is_not_held_out_either(tmp_path):
    records = [Instruction.of(instruction=f"q{n}", output="yes") for n in range(6)]
    for folder, part in (("own", records[:2]), ("models", records[2:4]), ("val", records[3:])):
        (tmp_path / folder).mkdir()
        write_records(tmp_path / folder / "train.jsonl", part)
    files = [tmp_path / name / "train.jsonl" for name in ("own", "models")]
    assert held_out_records(tmp_path / "val/train.jsonl", train=files, private=False) == records[4:]
