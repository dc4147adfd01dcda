"""What the settings alone tell of the data: whose they are, and whether they can be told apart."""

import copy
import json

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.configuration.resolution import resolve
from sealed_experts.configuration.schema import document_schema
from sealed_experts.data.units import unit_scheme
from sealed_experts.errors import UserError
from sealed_experts.moe.router import normalised
from sealed_experts.packages.content.linter import read_adapter_config
from sealed_experts.packages.content.manifest_schema import MANIFEST_SCHEMA, MEMBERS
from sealed_experts.packages.content.model_card import model_card
from tests.unit.configuration.test_mistakes import changed, mistakes

ROW = {"instruction": "q", "output": "a", "customer": "c"}


@pytest.fixture
def files(tmp_path):
    """A configuration over files: a, b read one file; c another."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROW) + "\n")
    of = {"a": "one.jsonl", "b": "one.jsonl", "c": "two.jsonl"}
    datasets = {name: {"source": "files", "paths": [path]} for name, path in of.items()}
    return {
        "base": {"name": "demo"},
        "datasets": datasets,
        "experts": {name: {"dataset": name, "routing": {"keywords": [name]}} for name in of},
    }


def mistakes_of(document, root):
    try:
        resolve(document, root=root)
    except UserError as error:
        return [line.strip() for line in str(error).split("\n")[1:]]
    return []


# One record under two mappings of its fields (4), and units of mixed kinds (3).


@pytest.mark.parametrize("difference", [{"fields": {"output": "summary"}}, {"unit": "customer"}])
def test_one_file_read_in_two_ways_is_refused_under_privacy(files, tmp_path, difference):
    assert mistakes_of(files, tmp_path) == []
    files["datasets"]["b"] |= difference
    (told,) = mistakes_of(files, tmp_path)
    (key,) = difference
    assert told.startswith(f"datasets.b.{key}: ")
    assert "`a`" in told
    assert "one.jsonl" in told
    for expert in ("a", "b"):
        files["experts"][expert]["privacy"] = {"enabled": False}
    assert mistakes_of(files, tmp_path) == []


def test_one_file_in_two_spellings_is_still_one_file(files, tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "one.jsonl")
    for spelling in ("./one.jsonl", "../" + tmp_path.name + "/one.jsonl", str(tmp_path / "one.jsonl"), "link.jsonl"):
        document = copy.deepcopy(files)
        document["datasets"]["b"] = {"source": "files", "paths": ["two.jsonl", spelling], "unit": "customer"}
        del document["datasets"]["c"], document["experts"]["c"]
        (told,) = mistakes_of(document, tmp_path)
        assert told.startswith("datasets.b.unit: ")


def test_one_file_twice_in_paths_is_refused_in_any_spelling(files, tmp_path):
    files["datasets"]["a"]["paths"] = ["one.jsonl", "two.jsonl", "./one.jsonl"]
    (told,) = mistakes_of(files, tmp_path)
    assert told == 'datasets.a.paths[2]: "./one.jsonl" is the same file as "one.jsonl"; name each once'


def test_one_file_read_in_two_ways_within_a_combination_is_refused(files, tmp_path):
    files["datasets"]["b"]["fields"] = {"output": "summary"}
    files["datasets"]["all"] = {"source": "combined", "of": ["a", "b"]}
    files["experts"] = {"all": {"dataset": "all", "routing": {"keywords": ["x"]}}}
    (told,) = mistakes_of(files, tmp_path)
    assert told.startswith("datasets.b.fields: ")


def test_a_dataset_that_nobody_trains_on_under_privacy_may_read_the_file_in_its_own_way(files, tmp_path):
    files["datasets"]["b"]["unit"] = "customer"
    del files["experts"]["b"]
    assert mistakes_of(files, tmp_path) == []


def test_one_hub_dataset_read_in_two_ways_is_refused(files, tmp_path):
    for name in ("a", "b"):
        files["datasets"][name] = {"source": "hub", "path": "x/y", "revision": "0" * 40}
    assert mistakes_of(files, tmp_path) == []
    files["datasets"]["b"]["unit"] = "customer"
    (told,) = mistakes_of(files, tmp_path)
    assert told.startswith("datasets.b.unit: ")


def test_a_combination_of_parts_with_units_of_different_kinds_is_refused_under_privacy(files, tmp_path):
    files["datasets"]["c"]["unit"] = "customer"
    files["datasets"]["all"] = {"source": "combined", "of": ["a", "c"]}
    assert mistakes_of(files, tmp_path) == []
    files["experts"]["all"] = {"dataset": "all", "routing": {"keywords": ["x"]}}
    (told,) = mistakes_of(files, tmp_path)
    assert told.startswith("datasets.all.of: ")
    assert "`a`: record" in told
    assert "`c`: field:customer" in told
    files["experts"]["all"]["privacy"] = {"enabled": False}
    assert mistakes_of(files, tmp_path) == []


def test_a_combination_within_another_has_the_scheme_of_its_parts(files, tmp_path):
    for name in ("a", "b", "c"):
        files["datasets"][name]["unit"] = "customer"
    files["datasets"]["ab"] = {"source": "combined", "of": ["a", "b"]}
    files["datasets"]["all"] = {"source": "combined", "of": ["ab", "c"]}
    files["experts"]["all"] = {"dataset": "all", "routing": {"keywords": ["x"]}}
    settings = resolve(files, root=tmp_path)
    assert {unit_scheme(name, settings.datasets) for name in settings.datasets} == {"field:customer"}


def test_a_file_name_with_braces_is_refused(files, tmp_path):
    (tmp_path / "a{b}.jsonl").write_text(json.dumps(ROW))
    files["datasets"]["a"]["paths"] = ["a{b}.jsonl"]
    (told,) = mistakes_of(files, tmp_path)
    assert told.startswith("datasets.a.paths[0]: ")
    assert "brace" in told


def test_a_base_folder_that_is_the_pipelines_own_is_refused(tmp_path):
    for inner in ("", "deeper"):
        folder = tmp_path / "results" / "base" / "mymodel" / inner
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "link").symlink_to(tmp_path / "results" / "base" / "mymodel")
    for base in (
        {"name": "results/base/mymodel"},
        {"name": "./results/base/../base/mymodel"},
        {"name": str(tmp_path / "results/base/mymodel")},
        {"name": "results/base/mymodel/deeper", "key": "mymodel"},
        {"name": "link", "key": "mymodel"},
    ):
        (told,) = mistakes(changed({"base": base}), tmp_path)
        assert told.startswith("base.name: ")
        assert "base.key" in told
    assert resolve(changed({"base": {"name": "link", "key": "other"}}), root=tmp_path)


# Limits that a package has (10).


def test_the_limits_of_a_package_are_those_of_the_configuration():
    groups = document_schema()["$defs"]
    manifest = MANIFEST_SCHEMA["properties"]
    routing, adapter = groups["RoutingSettings"]["properties"], groups["Adapter"]["properties"]
    keywords, sealed = routing["keywords"], manifest["routing"]["properties"]["keywords"]
    assert keywords["maxItems"] == sealed["maxItems"]
    assert keywords["items"]["maxLength"] == sealed["items"]["maxLength"]
    stated = manifest["adapter"]["properties"]["settings"]["additionalProperties"]["anyOf"][1]
    assert adapter["target_modules"]["maxItems"] <= stated["maxItems"]
    assert adapter["target_modules"]["items"]["maxLength"] <= stated["items"]["maxLength"]
    expert = groups["ExpertLayer"]["properties"]
    assert expert["version"]["maxLength"] == manifest["version"]["maxLength"]
    assert expert["description"]["maxLength"] == manifest["description"]["maxLength"]
    assert (
        groups["BaseSettings"]["properties"]["name"]["maxLength"] == manifest["base"]["properties"]["name"]["maxLength"]
    )
    unit = manifest["privacy"]["properties"]["unit"]["maxLength"]
    for source in ("source_files", "source_hub"):
        assert groups[source]["properties"]["unit"]["maxLength"] + len("field:") <= unit
    alpha = adapter["alpha"]["maximum"]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "target_modules": ["q"]}
    assert read_adapter_config(json.dumps({**config, "lora_alpha": alpha}).encode())
    with pytest.raises(Exception, match="lora_alpha"):
        read_adapter_config(json.dumps({**config, "lora_alpha": alpha * 1.001}).encode())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"experts.banker.routing.keywords": ["x" * 201]}, "experts.banker.routing.keywords[0]"),
        ({"experts.banker.routing.keywords": [f"k{n}" for n in range(10_001)]}, "experts.banker.routing.keywords"),
        ({"experts.banker.routing.keywords": ["a\x1bb"]}, "experts.banker.routing.keywords[0]"),
        ({"experts.banker.routing.keywords": ["a\x00b"]}, "experts.banker.routing.keywords[0]"),
        ({"experts.banker.routing.keywords": ["ok", "\u200b"]}, "experts.banker.routing.keywords[1]"),
        ({"experts.banker.routing.keywords": ["\u200b \u2060"]}, "experts.banker.routing.keywords[0]"),
        ({"experts.banker.routing.keywords": ["\ud800"]}, "experts.banker.routing.keywords[0]"),
        ({"experts.banker.version": "1.0.0-" + "x" * 200}, "experts.banker.version"),
        ({"experts.banker.description": "a\x07b"}, "experts.banker.description"),
        ({"defaults.adapter": {"alpha": 1.1e6}}, "defaults.adapter.alpha"),
        (
            {"defaults.adapter": {"rank": 4097}, "moe": {"gatelink_config": {"max_lora_rank": 9999}}},
            "defaults.adapter.rank",
        ),
        (
            {"datasets.own": {"source": "hub", "path": "x/y", "revision": "0" * 40, "unit": "u" * 195}},
            "datasets.own.unit",
        ),
        ({"datasets.own": {"source": "hub", "path": "x/y", "revision": "0" * 40, "unit": "a\tb"}}, "datasets.own.unit"),
        ({"base.name": "x" * 1001}, "base.name"),
        ({"defaults.privacy.delta": 0.9, "defaults.sft.batch_size": 1}, "defaults.privacy.delta"),
        ({"defaults.privacy.delta": 0.06}, "defaults.privacy.delta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_sealing_would_refuse_is_refused_before_training(tmp_path, changes, key):
    told = mistakes(changed(changes), tmp_path)
    assert [line.split(": ")[0] for line in told] == [key], told


def test_white_space_in_keywords_is_collapsed_where_they_are_read(tmp_path):
    settings = resolve(
        changed({"experts.banker.routing.keywords": ["interest\trate\n", " two\n words "]}), root=tmp_path
    )
    assert settings.by_name["banker"].routing.keywords == ("interest rate", "two words")
    (told,) = mistakes(changed({"experts.banker.routing.keywords": ["bank", "bank\n"]}), tmp_path)
    assert told.startswith("experts.banker.routing.keywords")
    assert "bank" in told


@hypothesis.settings(deadline=None, max_examples=300)
@given(st.text(st.one_of(st.characters(categories=["Cf", "Zs"]), st.characters()), min_size=1, max_size=4))
def test_a_keyword_is_refused_when_the_router_would_find_nothing_in_it(tmp_path_factory, keyword):
    told = mistakes_of(changed({"experts.banker.routing.keywords": [keyword]}), tmp_path_factory.getbasetemp())
    assert not told or "keywords" in told[0]
    if not normalised(keyword):
        assert told


def test_keywords_that_no_package_can_hold_together_are_refused(tmp_path):
    many = [f"{index:04d} " + "&" * 190 for index in range(600)]
    (told,) = mistakes(changed({"experts.banker.routing.keywords": many}), tmp_path)
    assert told.startswith("experts.banker.routing.keywords: ")
    fewer = [f"{index:04d} " + "&" * 190 for index in range(200)]
    settings = resolve(changed({"experts.banker.routing.keywords": fewer}), root=tmp_path)
    keywords = settings.by_name["banker"].routing.keywords
    card = model_card(
        {
            "name": "n",
            "version": "1.0.0",
            "description": "&" * 1000,
            "author": "&" * 200,
            "licence": "A" * 200,
            "base": {
                "name": "&" * 1000,
                "revision": None,
                "digest": "0" * 64,
                "quantization": {"method": "&" * 100},
                "rope_scaling": {"rope_type": "&" * 100},
            },
            "adapter": {
                "kind": "lora",
                "settings": {"rank": 1, "alpha": 1, "target_modules": [f"q{n:0199d}" for n in range(100)]},
            },
            "perf": {"parameters": 1, "size": 4},
            "template": "alpaca",
            "capabilities": ["c" * 64] * 50,
            "routing": {"keywords": keywords, "exclude": [], "always_active": True},
            "constraints": {"requires": [], "incompatible_with": []},
            "training": {
                "settings": {},
                **{"datasets": [{"hmac_sha256": "0" * 64}], "stages": ["sft"], "selected_stage": "sft"},
                "selection_reason": "&" * 1000,
            },
            "privacy": {"epsilon": None, "delta": None, "unit": None, "reason": "&" * 1000},
            "quality": {"published": False, "reason": "&" * 1000},
        }
    )
    assert len(card.encode()) < MEMBERS["README.md"]


def test_constraints_count_as_keywords_do(tmp_path):
    """A package's card lists both."""
    patterns = [f"p{index:03d}{'_' * 90}@>=1.0.0-{'a' * 80}" for index in range(100)]
    keywords = [f"{index:04d} " + "&" * 190 for index in range(198)]
    document = changed({"experts.banker.routing.keywords": keywords})
    assert resolve(document, root=tmp_path)
    document["experts"]["banker"]["package"] = {"constraints": {"requires": patterns}}
    (told,) = mistakes(document, tmp_path)
    assert "together with excluded words and constraints they take" in told
