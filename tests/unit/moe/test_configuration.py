"""moe_config.json is read strictly, and its schema says the same."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.errors import UserError
from sealed_experts.moe.configuration import parse_mixture, read_mixture
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "config/schemas/moe_config.schema.json").read_text())
DIGEST = "0" * 64
STATEMENT = {"epsilon": 3.5, "delta": 1e-5, "reason": None, "meaning": "…", "public": ["…"]}
EXPERT = {
    "tgsp_path": "../packages/a.tgsp",
    "checkpoint_path": "../experts/a/sft/adapter_final.pt",
    "gate_type": "step",
    "gate_keywords": ["loan"],
    "always_active": False,
    "match": "word",
    "package_digest": DIGEST,
    "publisher": "1" * 64,
    "stage": "sft",
    "stage_reason": "the only stage",
}
CONTENT = {
    "format": "sealed-experts/moe/v1",
    "model": "demo",
    "base": {"name": "demo", "revision": None, "digest": DIGEST, "path": "../base/demo"},
    "experts": {"a": EXPERT, "b": {**EXPERT, "gate_keywords": [], "always_active": True}},
    "routing_order": ["b", "a"],
    "he_config": {
        "scheme": "ckks",
        "poly_modulus_degree": 16384,
        "coeff_modulus_bits": [60, 40, 40, 60],
        "scale_bits": 40,
        "use_column_packing": True,
    },
    "gatelink_config": {"dp_epsilon": 1, "max_epsilon": 10.0, "max_lora_rank": 32},
    "privacy": {
        **STATEMENT,
        "experts": {"a": {"epsilon": 3.5, "delta": 1e-5}, "b": {"epsilon": None, "delta": None}},
        "over_releases": STATEMENT,
    },
}
PATH = Path("/run/results/moe/moe_config.json")


def changed(*path, to):
    """Return valid content with one value replaced, or removed if `to` is None and the key exists."""
    content = copy.deepcopy(CONTENT)
    place = content
    for key in path[:-1]:
        place = place[key]
    if to is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return content


def test_sound_content_is_read_and_fits_the_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(CONTENT, SCHEMA)
    mixture = parse_mixture(CONTENT, path=PATH)
    assert [member.name for member in mixture.members] == ["b", "a"]
    assert mixture.base.folder == Path("/run/results/base/demo")
    assert mixture.members[1].package == Path("/run/results/packages/a.tgsp")
    assert mixture.router().decide("loans").expert == "a"


MISTAKES = [
    (("format",), "v2", "format is 'v2'"),
    (("model",), KeyError, "lacks the key 'model'"),
    (("surprise",), 1, "unknown key 'surprise'"),
    (("experts", "a", "auto_mapping"), {}, r"experts\.a has the unknown key 'auto_mapping'"),
    (("experts", "a", "tgsp_path"), KeyError, r"experts\.a lacks the key 'tgsp_path'"),
    (("experts", "a", "tgsp_path"), "/etc/passwd", "must be a path relative to this file's folder"),
    (("experts", "a", "tgsp_path"), "", "must be a path relative"),
    (("experts", "a", "gate_keywords"), "loan", "gate_keywords must be a list"),
    (("experts", "a", "gate_keywords"), [" "], "texts that are not empty"),
    (("experts", "a", "gate_keywords"), [1], "texts that are not empty"),
    (("experts", "a", "always_active"), 1, "always_active must be true or false"),
    (("experts", "a", "match"), "regex", "must be one of word, substring"),
    (("experts", "a", "gate_type"), "soft", "must be one of step, none"),
    (("experts", "a", "package_digest"), "A" * 64, "SHA-256 in 64 lower-case"),
    (("base", "digest"), "0" * 63, "SHA-256 in 64 lower-case"),
    (("base", "revision"), 1, "revision must be a text or null"),
    (("gatelink_config", "max_lora_rank"), True, "max_lora_rank must be a whole number"),
    (("gatelink_config", "max_lora_rank"), "32", "max_lora_rank must be a whole number"),
    (("he_config",), {}, "he_config lacks the key"),
    (("privacy", "epsilon"), "3", "epsilon must be a number or null"),
    (("privacy", "over_releases"), {}, r"privacy\.over_releases lacks the key"),
    (("privacy", "public"), [1], r"privacy: public must hold texts"),
    (("privacy", "experts", "a"), 3.5, r"privacy: experts\.a must be an object"),
    (("privacy", "experts", "a"), {"epsilon": 3.5}, r"privacy: experts\.a lacks the key 'delta'"),
    (("privacy", "experts", "a", "delta"), "small", r"experts\.a: delta must be a number or null"),
    (("experts", "a", "publisher"), "\x1b[2J", r"publisher must be a SHA-256 in 64 lower-case"),
]

STEERING = ["\x1b[31mred", "a\nb", "\u202eevil", "A", "", "-a", "a" * 101, "a b"]


@pytest.mark.parametrize("name", STEERING)
def test_an_experts_name_is_one_that_a_package_can_have(name):
    """The file is unsigned, and commands once printed its names unchanged, with escape sequences for the terminal."""
    content = copy.deepcopy(CONTENT)
    content["experts"][name] = content["experts"].pop("a")
    content["routing_order"] = ["b", name]
    with pytest.raises(UserError, match="is not an expert's name") as caught:
        parse_mixture(content, path=PATH)
    assert str(caught.value).isprintable()
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(content)


@pytest.mark.parametrize("name", STEERING)
def test_the_privacy_and_the_order_name_experts_of_the_mixture(name):
    for path, to in (
        (("routing_order",), ["b", name]),
        (("privacy", "experts", name), {"epsilon": 1.0, "delta": 1e-5}),
    ):
        with pytest.raises(UserError) as caught:
            parse_mixture(changed(*path, to=to), path=PATH)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(("path", "to", "message"), MISTAKES)
def test_mistake_is_named_and_against_the_schema(path, to, message):
    content = changed(*path, to=to)
    with pytest.raises(UserError, match=message) as caught:
        parse_mixture(content, path=PATH)
    assert str(PATH) in str(caught.value)
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(content)


@pytest.mark.parametrize("order", [["a"], ["a", "b", "b"], ["a", "c"]])
def test_routing_order_lists_each_expert_once(order):
    with pytest.raises(UserError, match="routing_order must list each expert"):
        parse_mixture(changed("routing_order", to=order), path=PATH)


def test_file_is_strict_json(tmp_path):
    file = tmp_path / "moe_config.json"
    with pytest.raises(UserError, match="does not exist"):
        read_mixture(file)
    with pytest.raises(UserError, match="is a folder"):
        read_mixture(tmp_path)
    file.write_text(json.dumps(CONTENT)[:-1] + ', "model": "other"}')
    with pytest.raises(UserError, match="duplicate key 'model'"):
        read_mixture(file)
    file.write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_mixture(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = (
    [(key,) for key in CONTENT] + [("experts", "a", key) for key in EXPERT] + [("base", key) for key in CONTENT["base"]]
)


@settings(max_examples=300)
@given(st.sampled_from(KEYS), JSON)
def test_any_other_value_is_read_or_refused_in_plain_words(path, value):
    try:
        mixture = parse_mixture(changed(*path, to=value), path=PATH)
    except UserError:
        return
    assert mixture.members


@given(JSON)
def test_any_json_is_refused_in_plain_words(value):
    with pytest.raises(UserError):
        parse_mixture(value, path=PATH)
