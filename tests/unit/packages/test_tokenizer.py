"""The base's tokenizer in a package: the base's files, which transformers can load, and nothing that loads code."""

import json

import pytest

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.packages.content.tokenizer import tokenizer_members
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.tgsp.package import open_bytes
from tests.attacks import building, expert_building
from tests.tiny import build_tiny_base

TOKENIZER = {"tokenizer.json": b'{"model": {}}', "tokenizer_config.json": b'{"tokenizer_class": "TokenizersBackend"}'}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny").parent


@pytest.mark.parametrize("container", ["tgsp", "expert"])
def test_transformers_loads_the_tokenizer_from_the_unpacked_folder(base, tmp_path, container):
    from transformers import AutoTokenizer

    sealed = building.package(tokenizer=tokenizer_members(base, base=read_json(base / "base.json")))
    building.unpack(sealed if container == "tgsp" else expert_building.sealed(sealed), tmp_path / "adapter")
    for name in TOKENIZER:
        assert (tmp_path / "adapter" / name).read_bytes() == (base / name).read_bytes()
    text = "What is a bond? It pays a coupon."
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter")(text) == AutoTokenizer.from_pretrained(base)(text)


def test_only_the_file_that_base_json_describes_is_sealed(base, tmp_path):
    described = read_json(base / "base.json")
    (tmp_path / "tokenizer_config.json").write_bytes((base / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not the file that base\.json describes"):
        tokenizer_members(tmp_path, base=described)
    del described["files"]["tokenizer.json"]
    with pytest.raises(UserError, match=r"has no tokenizer\.json, so `package\.tokenizer` cannot be true"):
        tokenizer_members(tmp_path, base=described)


@pytest.mark.parametrize(
    ("member", "content", "match"),
    [
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', "'auto_map' can load code"),
        ("tokenizer_config.json", b'{"vocab_file": "/etc/passwd"}', "'vocab_file' can load code or other files"),
        ("tokenizer_config.json", b'{"tokenizer_class": "../x"}', "must be a class's name"),
        ("tokenizer_config.json", b'{"a": 1, "a": 2}', "not strict JSON"),
        ("tokenizer.json", b'{"model": NaN}', "not strict JSON"),
        ("tokenizer.json", b"[" * 100_000, "not strict JSON"),
        ("tokenizer.json", b"[]", "must be a JSON object"),
        ("tokenizer.json", b"\xff\xfe", "not UTF-8"),
        ("special_tokens_map.json", b"pickle", "not strict JSON"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
    ],
)
def test_a_member_that_is_not_a_plain_tokenizer_is_refused(member, content, match):
    with pytest.raises(PackageError, match=match):
        building.package(tokenizer={**TOKENIZER, member: content})  # sealing verifies what it wrote
    manifest, members = building.parts()
    added = {**TOKENIZER, member: content}
    names = sorted([*members, *added], key=lambda name: (name != building.WEIGHTS, name))
    members = {name: {**members, **added}[name] for name in names}
    manifest["members"] = [building.entry(name, members[name]) for name in names]
    building.refuse(building.signed(manifest, members), match)


@pytest.mark.parametrize("absent", sorted(TOKENIZER))
def test_half_a_tokenizer_is_refused(absent):
    present = {name: content for name, content in TOKENIZER.items() if name != absent}
    with pytest.raises(PackageError, match=f"the package lacks {absent}"):
        building.package(tokenizer=present)


def test_numbers_that_real_tokenizers_state_are_no_obstacle():
    config = {"model_max_length": 1000000000000000019884624838656, "tokenizer_class": "LlamaTokenizerFast"}
    added = {**TOKENIZER, "tokenizer_config.json": json.dumps(config).encode()}
    assert open_bytes(building.package(tokenizer=added), trust=building.trust()).members.keys() >= TOKENIZER.keys()
