"""Kinds of records and held-out records in the configuration: what fits together, and who may choose by what."""

import json
from pathlib import Path

import pytest

from sealed_experts.configuration import extras, jobs
from sealed_experts.configuration.held_out import evaluated_on_test_set, publishes_evaluation, validation_is_public
from sealed_experts.configuration.named_features import named_features
from sealed_experts.configuration.resolution import resolve
from sealed_experts.data.sources import DATASET, Source
from sealed_experts.data.sources.demo import Demo
from sealed_experts.errors import UserError
from sealed_experts.features import Features, check_extras, missing_extras
from sealed_experts.metrics import METRICS
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.rewards.finance import Finance
from sealed_experts.training.objectives.reinforce import Reinforce
from sealed_experts.training.objectives.sft import Sft

OWN = {"source": "files", "paths": ["own.jsonl"]}
OTHER = {"source": "files", "paths": ["other.jsonl"]}
OFF = {"enabled": False}


def document(folder, *, expert=None, **datasets):
    """Return a configuration of one expert, `own` by default, over two files."""
    for name in ("own", "other", "third"):
        (folder / f"{name}.jsonl").write_text("{}\n")
    datasets = {"own": OWN, **datasets}
    return {
        "base": {"name": "demo"},
        "datasets": datasets,
        "experts": {"one": {"dataset": "own", "routing": {"always_active": True}, **(expert or {})}},
    }


def told(folder, **changes):
    try:
        resolve(document(folder, **changes), root=folder)
    except UserError as error:
        return [line.strip() for line in str(error).split("\n")[1:]]
    return []


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (
            {"kind": "chat", "fields": {"prompt": "p"}},
            "datasets.own.fields.prompt: no such setting; known here: `messages`, `conversations`",
        ),
        (
            {"kind": "chat", "fields": {"message": "m"}},
            "datasets.own.fields.message: no such setting; did you mean `messages`?",
        ),
        (
            {"fields": {"messages": "m"}},
            "datasets.own.fields.messages: no such setting; known here: `instruction`, `input`, `output`",
        ),
        (
            {"kind": "pairs", "fields": {"prompt": "p"}},
            'datasets.own.kind: "pairs" is not one of `instruction`, `chat`, `labelled`, `pair`; did you mean `pair`?',
        ),
        (
            {"kind": "chat", "fields": {"messages": ""}},
            'datasets.own.fields.messages: "" is not text that is not empty',
        ),
        ({"metadata": ["a", "a"]}, 'datasets.own.metadata: "a" stands twice in the list; name each once'),
        (
            {"val_paths": ["other.jsonl"], "val_fraction": 0.2},
            "datasets.own.val_fraction: the validation records are given twice; keep val_fraction or val_paths",
        ),
        (
            {"val_paths": ["./own.jsonl"]},
            'datasets.own.val_paths[0]: "./own.jsonl" is the same file as "own.jsonl"; name each once',
        ),
        (
            {"val_paths": ["other.jsonl"], "test_paths": ["third.jsonl", "other.jsonl"]},
            'datasets.own.test_paths[1]: "other.jsonl" is the same file as "other.jsonl"; name each once',
        ),
        (
            {"test_paths": ["none.csv"]},
            'datasets.own.test_paths[0]: "none.csv" is not an existing file; put the data there or correct the path'
            " (relative paths start in the repository's folder)",
        ),
        (
            {"kind": "pair"},
            "experts.one.dataset: stage `sft` cannot learn from records of kind `pair`, which `own` holds; it takes"
            " `instruction`, `chat`: name another dataset, or leave the stage out",
        ),
        (
            {"val_fraction": 1},
            'experts.one.dataset: "own" holds everything out for validation, so there is nothing to learn from; lower'
            " its val_fraction, or name another dataset",
        ),
    ],
)
def test_a_dataset_that_does_not_fit_is_told_in_one_line(tmp_path, own, line):
    assert told(tmp_path, own=OWN | own) == [line]


@pytest.mark.parametrize(
    ("expert", "other", "line"),
    [
        ({"validation": "othr"}, {}, 'experts.one.validation: "othr" is not a dataset; did you mean `other`?'),
        (
            {"sft": {"validation": "x"}},
            {},
            'experts.one.sft.validation: "x" is not a dataset; known here: `own`, `other`',
        ),
        (
            {"validation": "other"},
            {"kind": "labelled"},
            "experts.one.validation: stage `sft` cannot be validated on records of kind `labelled`, which `other`"
            " holds; it takes `instruction`, `chat`: name another dataset, or leave the stage out",
        ),
    ],
)
def test_a_validation_set_that_does_not_fit_is_told_in_one_line(tmp_path, expert, other, line):
    assert told(tmp_path, expert=expert, other=OTHER | other) == [line]


def test_parts_of_different_kinds_are_refused_where_they_are_combined(tmp_path):
    parts = {"own": OWN | {"kind": "chat"}, "other": OTHER | {"kind": "pair"}}
    (line,) = told(tmp_path, **parts, both={"source": "combined", "of": ["own", "other"]}, expert={"dataset": "both"})
    assert line == (
        "datasets.both.of: its parts hold records of different kinds (`own`: chat, `other`: pair), and a stage learns"
        " from one kind; combine datasets of one `kind`"
    )
    parts["other"] = OTHER | {"kind": "chat"}
    assert told(tmp_path, **parts, both={"source": "combined", "of": ["own", "other"]}) == []


def test_a_dataset_that_holds_everything_out_may_be_validated_on(tmp_path):
    assert told(tmp_path, expert={"validation": "other"}, other=OTHER | {"val_fraction": 1}) == []
    both = {"source": "combined", "of": ["own", "other"]}
    assert told(tmp_path, expert={"dataset": "both"}, other=OTHER | {"val_fraction": 1}, both=both) == []


def test_a_validation_file_that_is_read_in_another_way_is_refused_under_privacy(tmp_path):
    """Its records could not be known as those that are trained on."""
    changes = {"expert": {"validation": "other"}, "other": {**OWN, "unit": "customer"}}
    (line,) = told(tmp_path, **changes)
    assert line.startswith("datasets.other.unit: `own` reads")
    changes["expert"]["privacy"] = OFF
    assert told(tmp_path, **changes) == []


# Whose held-out records decide

BEST = {"stages": ["sft", "reinforce"], "select": "best", "select_metric": "loss"}
PUBLIC = OTHER | {"public_evaluation": True}


@pytest.mark.parametrize(
    ("expert", "other", "allowed"),
    [
        ({}, PUBLIC, False),
        ({"validation": "other"}, PUBLIC, True),
        ({"validation": "other"}, OTHER, False),
        ({"sft": {"validation": "other"}}, PUBLIC, False),  # the evaluation still looks at `own`
        ({"validation": "other", "privacy": OFF}, OTHER, True),
    ],
)
def test_the_best_stage_is_chosen_by_public_validation_under_privacy(tmp_path, expert, other, allowed):
    lines = told(tmp_path, expert=BEST | expert, other=other)
    assert [line.partition(":")[0] for line in lines] == ([] if allowed else ["experts.one.select"])
    if not allowed:
        assert f"`{expert.get('validation', 'own')}`, which are private" in lines[0]


def resolved(folder, **changes):
    settings = resolve(document(folder, **changes), root=folder)
    return settings.by_name["one"], settings


def test_a_stages_validation_beats_the_experts_and_that_the_dataset(tmp_path):
    expert = {"stages": ["sft", "reinforce"], "validation": "other", "sft": {"validation": "third"}}
    third = {"source": "files", "paths": ["third.jsonl"]}
    one, settings = resolved(tmp_path, expert=expert, other=PUBLIC, third=third)
    assert [one.validation_of(stage) for stage in ("sft", "reinforce", None)] == ["third", "other", "other"]
    public = [validation_is_public(one, stage, settings.datasets) for stage in ("sft", "reinforce", None)]
    assert public == [False, True, True]
    assert not publishes_evaluation(one, settings.datasets)
    alone, settings = resolved(tmp_path)
    assert [alone.validation_of(stage) for stage in ("sft", None)] == ["own", "own"]


def test_a_package_publishes_by_the_validation_set_and_names_the_data_by_their_own(tmp_path):
    def stated(**changes):
        _, settings = resolved(tmp_path, **changes)
        text = json.loads(jobs.package_settings(settings, "one"))
        return text["public_evaluation"], text["dataset"]

    public = OWN | {"public_evaluation": True}
    assert stated() == (False, None)
    assert stated(own=public) == (True, "own")
    assert stated(other=PUBLIC, expert={"validation": "other"}) == (True, None)
    assert stated(own=public, other=OTHER, expert={"validation": "other"}) == (False, "own")


def test_the_evaluation_takes_the_test_set_unless_it_chooses(tmp_path):
    tested = OWN | {"test_paths": ["third.jsonl"], "public_evaluation": True}
    one, settings = resolved(tmp_path, own=tested)
    assert evaluated_on_test_set(one, settings.datasets)
    one, settings = resolved(tmp_path, own=tested, expert=BEST)
    assert not evaluated_on_test_set(one, settings.datasets)
    one, settings = resolved(tmp_path, own=tested, other=OTHER, expert={"validation": "other"})
    assert not evaluated_on_test_set(one, settings.datasets)
    both = {"source": "combined", "of": ["own", "other"]}
    one, settings = resolved(tmp_path, own=tested, other=OTHER, both=both, expert={"dataset": "both"})
    assert evaluated_on_test_set(one, settings.datasets)


def test_which_dataset_validates_is_no_part_of_what_decides_the_numbers(tmp_path):
    """Its records are: they are an input of the stage, and in its fingerprint."""
    texts = set()
    for validation in (None, "other"):
        expert = {"validation": validation} if validation else {}
        _, settings = resolved(tmp_path, other=PUBLIC, expert={**expert, "sft": dict(expert)})
        texts.add(jobs.stage_settings(settings, "one", "sft"))
    assert len(texts) == 1
    assert "validation" not in json.loads(texts.pop())["training"]


def test_two_spellings_of_a_dataset_are_one_text(tmp_path):
    texts = set()
    for more in ({}, {"kind": "instruction", "fields": {"input": "input"}, "val_paths": [], "metadata": []}):
        _, settings = resolved(tmp_path, own=OWN | more)
        texts.add(jobs.dataset_settings(settings, "own"))
    assert len(texts) == 1
    again = DATASET.parse(json.loads(texts.pop())["dataset"])
    assert again == DATASET.parse(OWN)


# Features that are not whole


class Incomplete(Source):
    """A source that does not say which places it reads."""

    source: str = "incomplete"

    def read(self, *, parts=()):
        """Yield nothing."""
        yield from ()


class Whole(Incomplete):
    """One that does, and needs a package that nobody has."""

    extra = {"no_such_module": "chroma"}  # noqa: RUF012

    def places(self, root):
        """Yield nothing."""
        yield from ()


def test_a_source_that_does_not_say_what_it_reads_cannot_be_used(monkeypatch):
    """Its rows could be read in two ways without a word."""
    with pytest.raises(TypeError, match="places"):
        Incomplete()
    features = Features(Source, noun="source of data")
    monkeypatch.setattr("sealed_experts.data.sources.demo.Demo", Incomplete)
    with pytest.raises(TypeError, match=r"sealed_experts\.data\.sources\.demo: Demo must define places"):
        features["demo"]


def test_every_feature_that_is_named_is_asked_for_its_extra(tmp_path, monkeypatch):
    expert = {"stages": ["sft", "reinforce"]}
    _, settings = resolved(tmp_path, own={"source": "demo"}, expert=expert)
    metrics = {METRICS[name] for name in settings.experts[0].evaluation.metrics}
    assert set(named_features(settings)) == {Demo, Lora, Sft, Reinforce, Finance, *metrics}
    check_extras(named_features(settings))
    for feature in (Demo, Lora, Sft, Finance, METRICS["perplexity"]):
        with monkeypatch.context() as patch:
            patch.setattr(feature, "extra", {"no_such_module": "chroma", "json": "never"})
            assert missing_extras([*named_features(settings)] * 2) == {"chroma": [feature.feature]}
            with pytest.raises(UserError) as caught:
                check_extras(named_features(settings))
        assert str(caught.value) == (
            f"{feature.feature} needs the extra `chroma`, which is not installed:"
            ' run pip install -c requirements.txt -e ".[chroma]"'
        )


def test_make_run_learns_which_extras_a_configuration_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[3])
    extras.main([])
    monkeypatch.setattr(Demo, "extra", {"no_such_module": "chroma"})
    monkeypatch.setattr(Finance, "extra", {"nor_this_one": "words"})
    extras.main([])
    (tmp_path / "wrong.yaml").write_text("sead: 3")
    extras.main([str(tmp_path / "wrong.yaml")])  # the run says what is wrong with it
    assert capsys.readouterr().out == "--editable .[chroma,words]\n"


def test_make_run_learns_which_package_holds_the_base(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[3])
    base = "overrides: {base: {name: package:no_such_model/x.gguf, model_type: llama}}"
    (tmp_path / "x.yaml").write_text(base)
    extras.main(["config/config.yaml", str(tmp_path / "x.yaml")])
    assert capsys.readouterr().out == "--no-deps no-such-model\n"
