"""The engine loads a verified mixture or nothing, and its experts answer by their adapters."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sealed_experts.data.templates import prompt_text
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.files.digests import sha256_file
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.moe.configuration import read_mixture
from sealed_experts.moe.engine import Engine, verified_packages
from sealed_experts.packages.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.packages.expert.writer import seal_expert
from sealed_experts.packages.keys.private_keys import create_key, key_path, load_key
from sealed_experts.packages.keys.trust import TrustStore, load_trust, untrust_key
from sealed_experts.packages.tgsp.package import open_package
from tests.mixtures import ROUTING, Workshop, adapter_files, edit

EXPERTS = list(ROUTING)
QUESTIONS = {"banking_expert": "What is a loan?", "investment_expert": "Which bonds?", "shared_attention": "Why?"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base):
    """An assembled mixture and a trust store. Do not change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEALED_EXPERTS_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("made")
        base = Path(shutil.copytree(tiny_base.parent, folder / "base" / "tiny")) / "base.json"
        workshop = Workshop(folder, base)
        workshop.make_data()
        for seed, name in enumerate(EXPERTS, 1):
            workshop.make_expert(name, seed=seed)
        workshop.assemble()
        return workshop, load_trust()


@pytest.fixture(scope="module")
def engine(made):
    workshop, trust = made
    return Engine.load(workshop.config, trust=trust, device="cpu")


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the mixture that a test may change: its folder and its configuration."""
    workshop, _ = made
    folder = Path(shutil.copytree(workshop.folder, tmp_path / "moved results"))
    return folder, folder / "moe" / "moe_config.json"


def refused(config, trust, monkeypatch, kind, message):
    """Load a mixture, and expect a refusal before any part of the model is loaded."""
    import sealed_experts.moe.generation as generation

    def loads(*_args, **_kwargs):
        raise AssertionError("a model was loaded from a mixture that must be refused")

    monkeypatch.setattr(generation, "load_base", loads)
    monkeypatch.setattr(generation, "load_tensors", loads)
    monkeypatch.setattr(torch, "load", loads)
    with pytest.raises(kind, match=message):
        Engine.load(config, trust=trust, device="cpu")


def test_every_expert_answers_its_questions(engine):
    answers = {name: engine.answer(question, max_new_tokens=8) for name, question in QUESTIONS.items()}
    assert {name: answer.expert for name, answer in answers.items()} == {name: name for name in EXPERTS}
    assert answers["banking_expert"].matched == ("loan",)
    assert answers["shared_attention"].matched == ()


def test_a_moved_mixture_loads(copy, made, engine):
    _, trust = made
    moved = Engine.load(copy[1], trust=trust, device="cpu")
    for question in QUESTIONS.values():
        assert moved.answer(question, max_new_tokens=6) == engine.answer(question, max_new_tokens=6)


@pytest.mark.parametrize("ending", ["", " <|eos|> or <|pad|>"])
def test_answer_is_that_of_peft_and_transformers_alone(made, engine, ending):
    """Each expert alone, loaded by PEFT from an unpacked folder, generates the same tokens.

    A question with control tokens was rewritten. Alpaca writes none, so transformers can split those in the prompt.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    workshop, _ = made
    tokenizer = AutoTokenizer.from_pretrained(workshop.base.parent)
    for seed, (name, asked) in enumerate(QUESTIONS.items(), 1):
        question = asked + ending
        folder = workshop.folder / f"alone{len(ending)}" / name
        folder.mkdir(parents=True)
        config, weights = adapter_files(workshop.base.parent, seed=seed)
        (folder / "adapter_config.json").write_bytes(config)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(workshop.base.parent), folder)
        prompt = prompt_text(template="alpaca", instruction=question)
        ids = tokenizer(prompt, return_tensors="pt", split_special_tokens=True).input_ids
        assert tokenizer.decode(ids[0]) == prompt
        output = greedy(model, ids, steps=10, eos=tokenizer.eos_token_id)
        expected = tokenizer.decode(output, skip_special_tokens=True).strip()
        assert engine.answer(question, max_new_tokens=10).text == expected


def greedy(model, ids, *, steps, eos):
    """Return the greedy continuation, token by token, without a cache."""
    tokens = []
    with torch.no_grad():
        while len(tokens) < steps and eos not in tokens:
            token = int(model(input_ids=ids).logits[0, -1].argmax())
            tokens.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return tokens


def test_the_kind_may_give_generation_other_first_inputs(engine, monkeypatch):
    """If the inputs are embeddings, transformers returns only the answer."""
    expected = engine.answer(QUESTIONS["banking_expert"], max_new_tokens=8).text

    def embedded(cls, model, inputs):
        vectors = model.get_input_embeddings()(inputs["input_ids"])
        return model.get_base_model(), {"inputs_embeds": vectors, "attention_mask": inputs["attention_mask"]}

    monkeypatch.setattr(Lora, "decoding", classmethod(embedded))
    assert engine.answer(QUESTIONS["banking_expert"], max_new_tokens=8).text == expected != ""


def test_experts_differ_and_switching_leaves_no_trace(engine):
    before = {name: engine.answer(question, max_new_tokens=12).text for name, question in QUESTIONS.items()}
    assert len(set(before.values())) == 3
    for name in [*EXPERTS, *reversed(EXPERTS)]:
        assert engine.answer(QUESTIONS[name], max_new_tokens=12).text == before[name]


def test_logits_after_switching_are_bit_equal(engine):
    def logits(name):
        return engine.experts.logits(name, "What is a bond?", answer="A loan.")

    first = {name: logits(name) for name in EXPERTS}
    for name in [*reversed(EXPERTS), *EXPERTS]:
        assert torch.equal(logits(name), first[name])
    assert not torch.equal(first[EXPERTS[0]], first[EXPERTS[1]])


def test_names_within_names_do_not_mix_adapters(tmp_path, tiny_base, monkeypatch):
    """PEFT finds adapters by parts of tensor names: `bank`, `bank_2` and `layers` must not get each other's tensors."""
    names = {"bank": 1, "bank_2": 2, "layers": 3, "default": 1}
    monkeypatch.setattr("tests.mixtures.ROUTING", dict.fromkeys(names, ROUTING["shared_attention"]))
    monkeypatch.setattr("tests.mixtures.DATASETS", dict.fromkeys(names, "banking"))
    workshop = Workshop(tmp_path, tiny_base)
    workshop.make_data()
    for name, seed in names.items():
        workshop.make_expert(name, seed=seed)
    workshop.assemble(workshop.run(names=tuple(names)))
    experts = Engine.load(workshop.config, trust=load_trust(), device="cpu").experts
    texts = {name: experts.generate(name, "Why?", max_new_tokens=12) for name in names}
    assert texts["bank"] == texts["default"]
    assert len(set(texts.values())) == 3


def test_temperature_draws_by_seed_and_leaves_the_generator_alone(engine):
    question = QUESTIONS["banking_expert"]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    drawn = [engine.answer(question, max_new_tokens=12, temperature=2.0, seed=seed).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)
    assert engine.answer(question, max_new_tokens=12, seed=1) == engine.answer(question, max_new_tokens=12, seed=2)


def test_answer_ends_within_the_context(engine):
    engine.answer("loan " * 40, max_new_tokens=500)
    with pytest.raises(UserError, match=r"the base reads at most 256: ask a shorter one"):
        engine.answer("loan " * 400, max_new_tokens=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_options_out_of_range_are_refused(engine, options, message):
    with pytest.raises(UserError, match=message):
        engine.answer("loan", **options)


def test_altered_package_is_refused(copy, made, monkeypatch):
    """The altered package is the last one in the order. The packages before it must not be loaded either."""
    folder, config = copy
    path = folder / "packages" / "shared_attention.tgsp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(config, made[1], monkeypatch, PackageError, "shared_attention")


def test_missing_package_is_refused(copy, made, monkeypatch):
    folder, config = copy
    (folder / "packages" / "shared_attention.tgsp").unlink()
    refused(config, made[1], monkeypatch, UserError, "the package of expert shared_attention, does not exist")


def test_untrusted_publisher_is_refused(copy, monkeypatch):
    refused(copy[1], TrustStore([]), monkeypatch, SignatureError, "not trusted")


def test_another_package_of_the_expert_is_refused(copy, made, monkeypatch, tiny_base):
    """It is signed by a trusted key, for the right expert and base, but it is not the assembled package."""
    folder, config = copy
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(folder / "home"))
    other = Workshop(folder, tiny_base)
    other.make_expert("banking_expert", seed=9)
    trust = TrustStore([*made[1], *load_trust()])
    refused(config, trust, monkeypatch, PackageError, r"its digest is .* but the configuration records")


def test_another_publisher_than_recorded_is_refused(copy, made, monkeypatch):
    edit(copy[1], lambda content: content["experts"]["banking_expert"].update(publisher="f" * 64))
    refused(copy[1], made[1], monkeypatch, PackageError, r"its publisher is .* but the configuration records f")


def test_swapped_packages_are_refused(copy, made, monkeypatch):
    """Path and digest were swapped together, so only the signed name shows that the experts were exchanged."""

    def swap(content):
        experts = content["experts"]
        one, two = experts["banking_expert"], experts["investment_expert"]
        for key in ("tgsp_path", "package_digest"):
            one[key], two[key] = two[key], one[key]

    edit(copy[1], swap)
    refused(copy[1], made[1], monkeypatch, IncompatibleError, "holds the expert 'investment_expert'")


def test_base_of_another_digest_is_refused(copy, made, monkeypatch):
    path = copy[0] / "base" / "tiny" / "base.json"
    path.write_text(json.dumps({**read_json(path), "digest": "0" * 64}))
    refused(copy[1], made[1], monkeypatch, UserError, "states the digest 0000.* but the mixture was assembled on")


def test_configuration_with_another_base_is_refused(copy, made, monkeypatch):
    edit(copy[1], lambda content: content["base"].update(digest="0" * 64))
    refused(copy[1], made[1], monkeypatch, IncompatibleError, "was made for the base 'tiny'")


def test_altered_base_file_is_refused(copy, made, monkeypatch):
    from transformers import AutoModelForCausalLM

    path = copy[0] / "base" / "tiny" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    def loads(*_args, **_kwargs):
        raise AssertionError("the altered base was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loads)
    with pytest.raises(UserError, match=r"model\.safetensors \(changed\)"):
        Engine.load(copy[1], trust=made[1], device="cpu")


def test_missing_base_is_refused(copy, made, monkeypatch):
    shutil.rmtree(copy[0] / "base")
    refused(copy[1], made[1], monkeypatch, UserError, r"base\.json does not exist")


def test_rank_above_the_limit_is_refused(copy, made, monkeypatch):
    edit(copy[1], lambda content: content["gatelink_config"].update(max_lora_rank=1))
    refused(copy[1], made[1], monkeypatch, IncompatibleError, "rank 2, above gatelink_config.max_lora_rank = 1")


def test_adapter_of_another_shape_is_refused(copy, made, tmp_path, monkeypatch):
    """Signature and linter are correct, but the adapter was made for a wider model."""
    from safetensors.torch import load, save

    folder, config = copy
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / "own home"))
    workshop = Workshop(folder, folder / "base" / "tiny" / "base.json")
    tensors = load(adapter_files(workshop.base.parent, seed=1)[1])
    wide = {name: tensor.repeat(1, 2) if "lora_A" in name else tensor for name, tensor in tensors.items()}
    for name in EXPERTS:
        workshop.make_expert(name, weights=save(wide) if name == "shared_attention" else None)
    workshop.assemble()
    with pytest.raises(IncompatibleError, match=r"shared_attention does not fit the base: tensor .*lora_A.* \[2, 64\]"):
        Engine.load(config, trust=load_trust(), device="cpu")


def test_key_withdrawn_after_assembly_is_refused(tmp_path, tiny_base, monkeypatch):
    workshop = Workshop(tmp_path, tiny_base)
    create_key(name="second")
    workshop.make_data()
    for name in EXPERTS:
        workshop.make_expert(name, key=load_key(key_path("second")))
    workshop.assemble()
    untrust_key("second")
    refused(workshop.config, load_trust(), monkeypatch, SignatureError, "not trusted")


def test_checkpoint_is_never_read(copy, made):
    """The `.pt` in the configuration is only information: the engine reads no pickle."""
    shutil.rmtree(copy[0] / "experts")
    Engine.load(copy[1], trust=made[1], device="cpu").answer("loan", max_new_tokens=2)


def test_an_expert_archive_answers_as_its_package_does(copy, made, engine):
    """The engine once read only .tgsp, so it could not use an installed .expert."""
    folder, config = copy
    _, trust = made
    path = folder / "packages" / "banking_expert.tgsp"
    opened = open_package(path, trust=trust)
    create_key()
    key, archive = load_key(), path.with_suffix(".expert")
    digest = seal_expert(archive, manifest=opened.manifest, members=opened.members, key=key)
    fields = {
        "tgsp_path": "../packages/banking_expert.expert",
        "package_digest": digest,
        "publisher": key.public.fingerprint,
    }
    edit(config, lambda content: content["experts"]["banking_expert"].update(fields))
    loaded = Engine.load(config, trust=TrustStore([*trust, key.public]), device="cpu")
    question = QUESTIONS["banking_expert"]
    assert loaded.answer(question, max_new_tokens=8) == engine.answer(question, max_new_tokens=8)


def test_packages_are_loaded_by_load_order_and_refused_where_constraints_do_not_hold(tmp_path, tiny_base):
    workshop = Workshop(tmp_path, tiny_base)
    workshop.make_data()
    for order, name in enumerate(reversed(EXPERTS)):
        workshop.make_expert(name, constraints={"load_order": order})
    workshop.assemble()
    mixture = read_mixture(workshop.config)
    assert list(verified_packages(mixture, trust=load_trust())) == EXPERTS[::-1]
    workshop.make_expert("banking_expert", constraints={"incompatible_with": ["investment_expert@*"]})
    digest = sha256_file(workshop.sources.package("banking_expert"))
    edit(workshop.config, lambda content: content["experts"]["banking_expert"].update(package_digest=digest))
    with pytest.raises(IncompatibleError, match="is incompatible with investment_expert"):
        verified_packages(read_mixture(workshop.config), trust=load_trust())
