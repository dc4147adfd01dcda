"""The kinds of records: what a row must hold, what decides the id, prepared files and statistics."""

import csv
import datetime
import hashlib
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.data.preparation import prepare, write_prepared
from sealed_experts.data.records import RECORDS, read_records, records_digest, write_records
from sealed_experts.data.records.chat import Chat
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.records.labelled import Labelled
from sealed_experts.data.records.pair import Pair
from sealed_experts.data.rows import BadRow
from sealed_experts.data.sources import DATASET
from sealed_experts.data.sources.combined import Combined
from sealed_experts.data.statistics import describe
from sealed_experts.data.templates import Turn
from sealed_experts.errors import UserError

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is a bond?"},
    {"role": "assistant", "content": "A loan.", "train": False},
    {"role": "user", "content": "And a share?"},
    {"role": "assistant", "content": "A part of a company."},
]
ROWS = {
    "instruction": {"instruction": "Why?", "input": "Rain.", "output": "Wet."},
    "chat": {"messages": TURNS},
    "pair": {"prompt": "Why?", "chosen": "Because it rains.", "rejected": "No."},
    "labelled": {"input": "Buy now!", "label": "spam"},
}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=20).filter(str.strip)


def words(texts):
    return [len(text.split()) for text in texts]


def source(path, **more):
    return DATASET.parse({"source": "files", "paths": [str(path)], "max_bad_share": 1, **more})


def in_format(folder, ending, rows):
    """Write rows as a file of a format; CSV and Parquet hold lists in their own way."""
    path = folder / f"rows{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == ".csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()})
        path.write_bytes(stream.getvalue().encode())
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(path, **more):
    return list(source(path, **more).read())


def record(kind):
    """Return the record that a row of `ROWS` becomes."""
    return RECORDS[kind].of(**RECORDS[kind].read(ROWS[kind], RECORDS[kind].columns()))


def test_there_is_a_row_for_every_kind():
    assert ROWS.keys() == set(RECORDS)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", RECORDS)
def test_every_format_carries_every_kind(tmp_path, kind, ending):
    row = ROWS[kind] | {"who": "c1", "topic": "t"}
    (found,) = read(in_format(tmp_path, ending, [row]), kind=kind, unit="who", group="topic")
    assert found.record == RECORDS[kind].of(unit="c1", **RECORDS[kind].read(row, RECORDS[kind].columns()))
    assert (found.record.content(), found.group) == (ROWS[kind], "t")


def test_a_turn_with_weight_0_is_read_but_not_learned(tmp_path):
    """OpenAI's files for fine-tuning mark turns so; they were learned in silence."""
    said = [("user", None), ("assistant", 0), ("user", None), ("assistant", 1)]
    messages = [
        {"role": role, "content": f"turn {place}", **({} if weight is None else {"weight": weight})}
        for place, (role, weight) in enumerate(said)
    ]
    (found,) = read(in_format(tmp_path, ".jsonl", [{"messages": messages}]), kind="chat")
    assert [turn.train for turn in found.record.messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("marks", "detail"),
    [
        ({"weight": 0.5}, "`messages[1].weight` is 0.5, not 0 or 1"),
        ({"weight": True}, "`messages[1].weight` is True, not 0 or 1"),
        ({"weight": 0, "train": True}, "`messages[1]` has train: true and weight: 0; keep one of them"),
    ],
)
def test_a_weight_that_cannot_be_meant_is_refused(tmp_path, marks, detail):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **marks}]
    (found,) = read(in_format(tmp_path, ".jsonl", [{"messages": turns}]), kind="chat")
    assert found.detail == detail


@pytest.mark.parametrize("kind", RECORDS)
def test_columns_may_have_other_names(tmp_path, kind):
    fields = {part: f"my {part}" for part in ROWS[kind]}
    row = {fields[part]: value for part, value in ROWS[kind].items()}
    (found,) = read(in_format(tmp_path, ".jsonl", [row]), kind=kind, fields=fields)
    assert found.record == record(kind)
    path = in_format(tmp_path, ".csv", [{"other": "x"}])
    with pytest.raises(UserError, match=r"has no column 'my .*\(it has 'other'\): correct `fields\."):
        read(path, kind=kind, fields=fields)


def test_the_hub_reads_every_kind(tmp_path):
    for kind, row in ROWS.items():
        folder = tmp_path / kind
        folder.mkdir()
        in_format(folder, ".jsonl", [row]).rename(folder / "train.jsonl")
        hub = {"source": "hub", "path": str(folder), "revision": "0" * 40, "kind": kind}
        (found,) = DATASET.parse(hub).read()
        assert found.record == record(kind)


def turns(*roles, **last):
    made = [{"role": role, "content": f"text {place}"} for place, role in enumerate(roles)]
    return {"messages": [*made[:-1], made[-1] | last]}


@pytest.mark.parametrize(
    ("kind", "row", "reason", "detail"),
    [
        ("pair", {"prompt": "a", "chosen": "b"}, "missing field", "`rejected`"),
        ("pair", {"prompt": " ", "chosen": "b", "rejected": "c"}, "empty field", "`prompt`"),
        ("pair", {"prompt": "a", "chosen": "b", "rejected": "b"}, "equal answers", "`chosen` and `rejected`"),
        ("pair", {"prompt": ["a"], "chosen": "b", "rejected": "c"}, "wrong type", "`prompt` is list"),
        ("labelled", {"input": "a"}, "missing field", "`label`"),
        ("labelled", {"input": "a", "label": 1.5}, "wrong type", "`label` is float"),
        ("labelled", {"input": "a", "label": " "}, "empty field", "`label`"),
        ("labelled", {"input": "", "label": "x"}, "empty field", "`input`"),
        ("chat", {}, "missing field", "`messages`"),
        ("chat", {"messages": "hello"}, "not JSON", "`messages`"),
        ("chat", {"messages": {"role": "user"}}, "wrong type", "not a list"),
        ("chat", {"messages": ["hello"]}, "wrong type", "`messages[0]` is str"),
        ("chat", {"messages": []}, "wrong turns", "is empty"),
        ("chat", turns("user"), "wrong turns", "is user;"),
        ("chat", turns("assistant"), "wrong turns", "is assistant;"),
        ("chat", turns("user", "assistant", "user"), "wrong turns", "the assistant last"),
        ("chat", turns("user", "user", "assistant"), "wrong turns", "in turn"),
        ("chat", turns("user", "assistant", "system"), "wrong turns", "one system turn"),
        ("chat", turns("user", "tool"), "wrong turns", "`messages[1]` has the role 'tool'"),
        ("chat", turns("user", "assistant", train=False), "wrong turns", "is learned"),
        ("chat", turns("user", "assistant", train="no"), "wrong type", "`messages[1].train`"),
        ("chat", turns("user", "assistant", content=" "), "empty field", "`messages[1].content`"),
        ("chat", turns("user", "assistant", content=None), "missing field", "`messages[1].content`"),
        ("chat", turns("user", "assistant", content="\ud800"), "not UTF-8", "`messages[1].content`"),
        ("chat", {"messages": [{"role": "user", "content": "a", "train": True}]}, "wrong turns", "`messages[0]`"),
    ],
)
def test_a_row_that_is_no_such_record_is_reported_with_its_place(tmp_path, kind, row, reason, detail):
    path = in_format(tmp_path, ".jsonl", [ROWS[kind], row, ROWS[kind]])
    first, bad, last = read(path, kind=kind)
    assert isinstance(bad, BadRow)
    assert (bad.file, bad.line, bad.reason) == (str(path), 2, reason)
    assert detail in bad.detail
    assert first.record == last.record == record(kind)


@pytest.mark.parametrize(("label", "expected"), [("spam", "spam"), (" spam\n", "spam"), (3, "3"), (True, "true")])
def test_a_label_is_a_name(tmp_path, label, expected):
    (found,) = read(in_format(tmp_path, ".jsonl", [{"input": "a", "label": label}]), kind="labelled")
    assert found.record.label == expected


def digest(value):
    """The SHA-256 of canonical JSON, for values without numbers."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_id_is_the_digest_of_the_content():
    assert record("instruction").id == digest(["Why?", "Rain.", "Wet."])
    for kind in ("chat", "pair", "labelled"):
        assert record(kind).id == digest(ROWS[kind])
        assert record(kind).unit == record(kind).id


def test_the_same_texts_in_another_kind_are_another_record():
    texts = ("a", "b", "c")
    ids = {
        Instruction.of(instruction="a", input="b", output="c").id,
        Pair.of(prompt="a", chosen="b", rejected="c").id,
        Labelled.of(input="a", label="b").id,
        Chat.of(messages=tuple(Turn(role, text) for role, text in zip(("user", "assistant"), texts, strict=False))).id,
    }
    assert len(ids) == 4


def test_question_and_answer_without_any_template():
    assert [(record(kind).question, record(kind).answer) for kind in ("pair", "labelled", "instruction")] == [
        ("Why?", "Because it rains."),
        ("Buy now!", "spam"),
        ("Why?\nRain.", "Wet."),
    ]
    whole = "system: Be short.\nuser: What is a bond?\nassistant: A loan.\nuser: And a share?"
    assert (record("chat").question, record("chat").answer) == (whole, "A part of a company.")
    short = Chat.of(
        messages=(Turn("user", "Why?"), Turn("assistant", "So."), Turn("user", "Oh"), Turn("assistant", "?", False))
    )
    assert (short.question, short.answer) == ("Why?", "So.")


# Prepared files


def test_a_prepared_line_of_an_instruction_has_five_fields(tmp_path):
    write_records(tmp_path / "train.jsonl", [Instruction.of(instruction="é", output="b", unit="u")])
    identity = digest(["é", "", "b"])
    expected = f'{{"id":"{identity}","input":"","instruction":"é","output":"b","unit":"u"}}\n'
    assert (tmp_path / "train.jsonl").read_bytes() == expected.encode()


@pytest.mark.parametrize("kind", ["chat", "pair", "labelled"])
def test_a_prepared_line_of_another_kind_says_which(tmp_path, kind):
    path = tmp_path / "train.jsonl"
    write_records(path, [RECORDS[kind].of(unit="u", metadata={"page": 3}, **vars_of(record(kind)))])
    assert json.loads(path.read_text()) == {
        **{"id": record(kind).id, "unit": "u", "kind": kind, "metadata": {"page": 3}},
        **ROWS[kind],
    }
    (again,) = read_records(path)
    assert (again, again.metadata) == (RECORDS[kind].of(unit="u", **vars_of(record(kind))), {"page": 3})


def vars_of(made):
    """Return a record's content fields."""
    return {name: value for name, value in vars(made).items() if name not in ("id", "unit", "metadata")}


@settings(max_examples=50, deadline=None)
@given(TEXT, TEXT, TEXT, st.booleans())
def test_records_of_every_kind_survive_their_file(tmp_path_factory, one, two, three, trained):
    path = tmp_path_factory.mktemp("records") / "train.jsonl"
    conversation = (Turn("user", one), Turn("assistant", two, trained), Turn("user", two), Turn("assistant", three))
    made = [
        Pair.of(prompt=one, chosen=two, rejected=f"{three}!"),
        Labelled.of(input=one, label=two, unit=three),
        Chat.of(messages=tuple(turn._replace(content=turn.content.strip()) for turn in conversation)),
    ]
    write_records(path, made)
    assert read_records(path) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": "edited"}, "the id does not belong"),
        ({"kind": "poem"}, "of an unknown kind; known are instruction, chat"),
        ({"kind": ["pair"]}, "of an unknown kind"),
        ({"kind": "labelled"}, "exactly the fields id, unit, input, label"),
        ({"extra": 1}, "exactly the fields id, unit, prompt, chosen, rejected"),
        ({"chosen": 5}, "a field is not text"),
        ({"unit": 5}, "a field is not text"),
        ({"metadata": "x"}, "not a prepared record"),
    ],
)
def test_an_edited_line_is_refused(tmp_path, change, message):
    path = tmp_path / "train.jsonl"
    write_records(path, [record("pair")])
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(UserError, match=rf"train\.jsonl:1: .*{message}.*delete it and run again"):
        read_records(path)


def test_an_edited_turn_is_refused(tmp_path):
    path = tmp_path / "train.jsonl"
    write_records(path, [record("chat")])
    for old, new in (("A loan.", "A loan"), ('"train":false', '"train":true'), ('"user"', '"tool"')):
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(UserError, match=r"train\.jsonl:1: "):
            read_records(path)
        write_records(path, [record("chat")])


# Preparation


def prepared(folder, kind, rows, **more):
    path = in_format(folder, ".jsonl", rows)
    return prepare(source(path, kind=kind, val_fraction=0.4, **more), name="x", seed=1)


def many(kind, count=40):
    """Return rows of a kind, all different."""
    if kind == "chat":
        return [
            {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
            for n in range(count)
        ]
    return [{part: f"{part} {n}" for part in ROWS[kind]} for n in range(count)]


@pytest.mark.parametrize("kind", RECORDS)
def test_duplicates_drop_and_records_of_one_question_stay_together(tmp_path, kind):
    rows = many(kind)
    answers = {"instruction": "output", "pair": "chosen", "labelled": "label"}
    if kind == "chat":
        others = [{"messages": [row["messages"][0], {"role": "assistant", "content": "Another."}]} for row in rows]
    else:
        others = [row | {answers[kind]: "another"} for row in rows]
    made = prepared(tmp_path, kind, [*rows, *others, *rows[:7]])
    assert (made.kind, made.duplicates_dropped) == (kind, 7)
    assert len(made.train) + len(made.val) == 80
    assert made.val
    asked = [{found.related_by for found in side} for side in (made.train, made.val)]
    assert len(asked[0]) + len(asked[1]) == 40
    assert not asked[0] & asked[1]


@pytest.mark.parametrize("kind", RECORDS)
def test_adding_a_unit_never_moves_another(tmp_path, kind):
    rows = many(kind)
    less, full = (
        {found.id: side for side in ("train", "val") for found in getattr(prepared(tmp_path, kind, these), side)}
        for these in (rows[:-1], rows)
    )
    assert less.items() < full.items()


@pytest.mark.parametrize("kind", RECORDS)
def test_a_combination_has_the_kind_of_its_parts(tmp_path, kind):
    parts = []
    for name, rows in (("one", many(kind)[:20]), ("two", many(kind)[20:])):
        folder = tmp_path / name
        folder.mkdir()
        made = prepared(folder, kind, [row | {"page": n} for n, row in enumerate(rows)], metadata=["page"])
        paths = {key: folder / f"{key}.jsonl" for key in ("train", "val")}
        write_prepared(made, **paths, stats=folder / "stats.json", count_tokens=words)
        parts.append(folder)
    both = prepare(Combined(of=("one", "two")), name="both", seed=1, parts=parts)
    assert both.kind == kind
    assert len(both.train) + len(both.val) == 40
    assert {found.metadata["page"] for found in both.train + both.val} == set(range(20))


def test_parts_of_different_kinds_are_refused(tmp_path):
    for kind in ("chat", "pair"):
        folder = tmp_path / kind
        folder.mkdir()
        paths = {key: folder / f"{key}.jsonl" for key in ("train", "val")}
        write_prepared(prepared(folder, kind, many(kind)), **paths, stats=folder / "stats.json", count_tokens=words)
    with pytest.raises(UserError, match=r"dataset both holds records of several kinds \(chat, pair\)"):
        prepare(Combined(of=("chat", "pair")), name="both", seed=1, parts=[tmp_path / "chat", tmp_path / "pair"])


# Statistics


def test_statistics_describe_a_pair_by_its_parts():
    found = describe([record("pair"), Pair.of(prompt="a b c", chosen="d", rejected="e f")], count_tokens=words)
    assert found["words"]["total"] == 1 + 3 + 1 + 3 + 1 + 2
    totals = {part: of["words"]["total"] for part, of in found["parts"].items()}
    assert totals == {"prompt": 4, "chosen": 4, "rejected": 3}
    assert found["parts"]["chosen"]["tokens"] == found["parts"]["chosen"]["words"]


def test_statistics_count_labels_and_turns():
    made = [Labelled.of(input=f"text {n}", label="ham" if n % 3 else "spam") for n in range(9)]
    assert describe(made, count_tokens=words)["labels"] == {"ham": 6, "spam": 3}
    found = describe([record("chat")], count_tokens=words)
    assert found["turns"] == {"p5": 5, "p50": 5, "p95": 5, "max": 5, "total": 5}
    assert {part: of["words"]["total"] for part, of in found["parts"].items()} == {
        "system": 2,
        "user": 7,
        "assistant": 7,
    }


# Metadata


def test_metadata_stay_beside_the_record_and_are_no_part_of_what_names_it(tmp_path):
    row = ROWS["instruction"] | {"page": 7, "scores": {"a": 0.5}, "none": None, "source": "book"}
    (found,) = read(in_format(tmp_path, ".jsonl", [row]), metadata=["page", "scores", "none", "source"])
    assert found.record.metadata == {"page": 7, "scores": {"a": 0.5}, "source": "book"}
    assert found.record == record("instruction")
    write_records(tmp_path / "with.jsonl", [found.record])
    write_records(tmp_path / "without.jsonl", [record("instruction")])
    plain = (tmp_path / "without.jsonl").read_bytes()
    assert plain != (tmp_path / "with.jsonl").read_bytes()
    assert read_records(tmp_path / "with.jsonl")[0].metadata == found.record.metadata
    assert records_digest([found.record]) == hashlib.sha256(plain).hexdigest()


def test_metadata_that_json_cannot_carry_become_text(tmp_path):
    when = datetime.datetime(2024, 1, 2, 3, 4)
    rows = [ROWS["labelled"] | {"when": when, "score": float("nan"), "many": [2**60]}]
    (found,) = read(in_format(tmp_path, ".parquet", rows), kind="labelled", metadata=["when", "score", "many"])
    write_records(tmp_path / "train.jsonl", [found.record])
    (again,) = read_records(tmp_path / "train.jsonl")
    assert again.metadata == {"when": str(when), "score": "nan", "many": [str(2**60)]}


def test_a_table_without_a_column_of_the_metadata_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no column 'page'.*correct `metadata`"):
        read(in_format(tmp_path, ".csv", [ROWS["pair"]]), kind="pair", metadata=["page"])
