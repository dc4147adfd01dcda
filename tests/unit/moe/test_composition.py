"""The composition test passes on a correct mixture, and each of its checks fails on a mixture broken in that way."""

import gc
import weakref

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, save

from sealed_experts.data.templates import prompt_text
from sealed_experts.files.canonical import read_json
from sealed_experts.moe import composition, generation
from sealed_experts.moe.composition import CompositionError, check_composition, questions_for
from sealed_experts.moe.configuration import read_mixture
from sealed_experts.moe.engine import Engine
from sealed_experts.moe.generation import Experts
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.keys.trust import load_trust
from sealed_experts.packages.settings import RoutingSettings
from tests.mixtures import ROUTING, Workshop, adapter_files, edit
from tests.scripts import run_script

EXPERTS = list(ROUTING)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base):
    """An assembled mixture and a trust store. Do not change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEALED_EXPERTS_HOME", str(tmp_path_factory.mktemp("home")))
        workshop = Workshop(tmp_path_factory.mktemp("made"), tiny_base)
        workshop.make_data()
        for seed, name in enumerate(EXPERTS, 1):
            workshop.make_expert(name, seed=seed)
        workshop.assemble()
        return workshop, load_trust()


def check(made):
    workshop, trust = made
    return check_composition(workshop.config, trust=trust, device="cpu")


def mixture_of(folder, base, monkeypatch, routing, **weights):
    """Assemble experts of one dataset with these routings; `weights` replace those of single experts."""
    monkeypatch.setattr("tests.mixtures.ROUTING", routing)
    monkeypatch.setattr("tests.mixtures.DATASETS", dict.fromkeys(routing, "banking"))
    workshop = Workshop(folder, base)
    workshop.make_data()
    for seed, name in enumerate(routing, 1):
        workshop.make_expert(name, seed=seed, weights=weights.get(name))
    workshop.assemble(workshop.run(names=tuple(routing)))
    return workshop, load_trust()


def test_a_sound_mixture_passes_and_the_report_says_what_was_asked(made):
    workshop, trust = made
    content = check(made)
    assert content["ok"] is True
    assert content["base_digest"] == read_json(workshop.base)["digest"]
    assert list(content["experts"]) == EXPERTS
    engine = Engine.load(workshop.config, trust=trust, device="cpu")
    mixture = read_json(workshop.config)
    for name, entry in content["experts"].items():
        assert entry["package_digest"] == mixture["experts"][name]["package_digest"]
        assert entry["finite"] is entry["stable_under_switching"] is entry["alone_equals_mixture"] is True
        assert entry["reached"] is True
        for prompt in entry["prompts"]:
            answer = engine.answer(prompt["prompt"], max_new_tokens=composition.ANSWER_TOKENS)
            assert (answer.expert, answer.text) == (name, prompt["answer"])
            assert (prompt["routed_to"], prompt["matched"]) == (name, list(answer.matched))
    asked = {name: [prompt["prompt"] for prompt in entry["prompts"]] for name, entry in content["experts"].items()}
    assert asked["banking_expert"] == ["What is bank?", "What is deposit?", "What is loan?"]
    assert asked["shared_attention"] == [composition.GENERAL_QUESTIONS[0]]
    assert len({entry["prompts"][0]["answer"] for entry in content["experts"].values()}) == 3


def test_the_same_mixture_gives_the_same_report(made):
    assert check(made) == check(made)


def test_logits_are_those_of_peft_and_transformers_alone(made):
    """The compared values are exactly the model's logits of template, question and answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    workshop, trust = made
    experts = Engine.load(workshop.config, trust=trust, device="cpu").experts
    tokenizer = AutoTokenizer.from_pretrained(workshop.base.parent)
    text = prompt_text(template="alpaca", instruction="What is a loan?") + "It is money lent."
    ids = tokenizer(text, return_tensors="pt").input_ids
    for seed, name in enumerate(EXPERTS, 1):
        folder = workshop.folder / "alone" / name
        folder.mkdir(parents=True)
        config, weights = adapter_files(workshop.base.parent, seed=seed)
        (folder / "adapter_config.json").write_bytes(config)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(workshop.base.parent), folder).eval()
        with torch.no_grad():
            expected = model(input_ids=ids).logits[0]
        assert torch.equal(experts.logits(name, "What is a loan?", answer="It is money lent."), expected)


def test_long_answers_are_cut_at_the_context(made):
    workshop, trust = made
    experts = Engine.load(workshop.config, trust=trust, device="cpu").experts
    assert experts.logits(EXPERTS[0], "What is a loan?", answer="It grows. " * 300).shape[0] == 256


# Which questions are asked


def asked(tmp_path, tiny_base, monkeypatch, routing):
    workshop, _ = mixture_of(tmp_path, tiny_base, monkeypatch, routing)
    mixture = read_mixture(workshop.config)
    router = mixture.router()
    return {member.name: questions_for(member, router=router) for member in mixture.members}


def test_questions_that_go_elsewhere_are_skipped(tmp_path, tiny_base, monkeypatch):
    """Another expert wins the tie for `loan`, and `loan rate` matches two of that expert's keywords."""
    first = RoutingSettings(keywords=("loan", "rate", "fee"))
    second = RoutingSettings(keywords=("loan", "loan rate", "bond", "stock", "ETF", "yield"))
    found = asked(tmp_path, tiny_base, monkeypatch, {"first": first, "second": second})
    assert [question.text for question in found["first"]] == ["What is loan?", "What is rate?", "What is fee?"]
    assert [question.text for question in found["second"]] == ["What is bond?", "What is stock?", "What is ETF?"]
    assert all(question.routed_to == name for name, questions in found.items() for question in questions)


def test_the_fallback_is_asked_what_holds_nobodys_keyword(tmp_path, tiny_base, monkeypatch):
    general = RoutingSettings(keywords=("why",), always_active=True)
    found = asked(
        tmp_path, tiny_base, monkeypatch, {"first": RoutingSettings(keywords=("do", "work")), "general": general}
    )
    # The first expert has keywords in "What should I do first?" and "How does this work?", this in "Why is that so?".
    assert [(question.text, question.matched) for question in found["general"]] == [
        ("What is why?", ("why",)),
        ("Who are you?", ()),
    ]


def test_an_expert_that_is_never_reached_is_still_checked(tmp_path, tiny_base, monkeypatch):
    """The router sends ties to the first expert, so this one is never asked. The mixture is still correct."""
    same = RoutingSettings(keywords=("loan",))
    made = mixture_of(tmp_path, tiny_base, monkeypatch, {"first": same, "second": same})
    experts = check(made)["experts"]
    engine = Engine.load(made[0].config, trust=made[1], device="cpu")
    assert (experts["first"]["reached"], experts["second"]["reached"]) == (True, False)
    (prompt,) = experts["second"]["prompts"]
    assert (prompt["prompt"], prompt["routed_to"]) == ("What is loan?", "first")
    assert prompt["answer"] == engine.experts.generate("second", "What is loan?", max_new_tokens=24)
    assert prompt["answer"] != experts["first"]["prompts"][0]["answer"]


def test_a_fallback_whose_every_question_goes_elsewhere_is_still_checked(tmp_path, tiny_base, monkeypatch):
    greedy = RoutingSettings(keywords=("o",), match="substring")
    found = asked(tmp_path, tiny_base, monkeypatch, {"greedy": greedy, "general": ROUTING["shared_attention"]})
    assert [(question.text, question.routed_to) for question in found["general"]] == [
        (composition.GENERAL_QUESTIONS[0], "greedy")
    ]


@pytest.mark.parametrize("routing", [ROUTING["banking_expert"], ROUTING["shared_attention"]])
def test_a_mixture_of_one_expert_passes(tmp_path, tiny_base, monkeypatch, routing):
    content = check(mixture_of(tmp_path, tiny_base, monkeypatch, {"only": routing}))
    assert content["experts"]["only"]["reached"] is True


def test_a_mixture_without_fallback_passes(tmp_path, tiny_base, monkeypatch):
    routing = {name: ROUTING[name] for name in ("banking_expert", "investment_expert")}
    content = check(mixture_of(tmp_path, tiny_base, monkeypatch, routing))
    assert all(entry["reached"] for entry in content["experts"].values())


def test_an_expert_without_keywords_or_fallback_is_asked_past_the_router(made, tmp_path):
    """Our configurations never make such an expert, but another program may have written the file."""
    config = made[0].config.with_name("edited.json")
    config.write_bytes(made[0].config.read_bytes())
    edit(config, lambda content: content["experts"]["shared_attention"].update(always_active=False))
    entry = check_composition(config, trust=made[1], device="cpu")["experts"]["shared_attention"]
    assert entry["reached"] is False
    assert entry["prompts"][0]["routed_to"] is None


# Each check fails where it must


@pytest.mark.parametrize("broken", EXPERTS)
def test_switching_that_changes_weights_is_found(made, monkeypatch, broken):
    """Switching away from one expert changes one of its weights a little. Its place in the order does not matter."""
    switch = PeftModel.set_adapter
    number = f"sealed{EXPERTS.index(broken):06d}"

    def leaves_a_trace(model, adapter, *args, **kwargs):
        if model.active_adapter == number != adapter:
            weight = next(value for name, value in model.named_parameters() if f"lora_B.{number}." in name)
            weight.view(-1)[0] += 1e-3
        switch(model, adapter, *args, **kwargs)

    monkeypatch.setattr(PeftModel, "set_adapter", leaves_a_trace)
    message = rf"expert {broken}: its logits for the question '.*' changed after other experts had answered"
    with pytest.raises(CompositionError, match=message):
        check(made)


def test_experts_that_always_change_each_others_answers_are_found(made, monkeypatch):
    """All adapters are always active: the answers are stable, but differ from those of each expert alone."""

    one = Experts.model_of

    def all_at_once(experts, expert):
        model = one(experts, expert)
        model.base_model.set_adapter(list(experts.adapters.values()))
        return model

    monkeypatch.setattr(Experts, "model_of", all_at_once)
    message = "expert banking_expert: .*'What is bank\\?' are not those of its package alone on the same base"
    with pytest.raises(CompositionError, match=message):
        check(made)


def test_an_expert_with_anothers_weights_is_found(made, monkeypatch):
    """In the mixture, the last expert has the weights of the first. Alone, it has its own."""
    fill = generation.fill_adapter
    filled = {}

    def mixes_up(model, adapter, tensors):
        filled.setdefault(adapter, tensors)
        fill(model, adapter, filled["sealed000000"] if adapter == "sealed000002" else tensors)

    monkeypatch.setattr(generation, "fill_adapter", mixes_up)
    with pytest.raises(CompositionError, match=r"expert shared_attention: .* are not those of its package alone"):
        check(made)


def test_a_base_that_an_expert_changes_is_found(made, monkeypatch):
    """An expert that was merged into the base changes the answers of all experts."""
    build = generation.with_adapters

    def merges_one(model, packages):
        wrapped = build(model, packages)
        if "sealed000001" in packages:
            wrapped.set_adapter("sealed000001")
            wrapped.merge_adapter()
            for layer in wrapped.modules():
                if hasattr(layer, "merged_adapters"):
                    layer.merged_adapters.clear()
        return wrapped

    monkeypatch.setattr(generation, "with_adapters", merges_one)
    with pytest.raises(CompositionError, match="are not those of its package alone"):
        check(made)


def test_logits_that_are_not_finite_are_found(tmp_path, tiny_base, monkeypatch):
    """The weights are finite, so the linter accepts them, but they are too large to compute with."""
    tensors = load(adapter_files(tiny_base.parent, seed=3)[1])
    huge = save({name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()})
    made = mixture_of(tmp_path, tiny_base, monkeypatch, ROUTING, investment_expert=huge)
    message = r"expert investment_expert: its logits for the question 'What is portfolio\?' are not all finite"
    with pytest.raises(CompositionError, match=message):
        check(made)


def test_a_single_nan_is_found(made, monkeypatch):
    """The linter accepts no NaN, so the test inserts it after the package was verified."""
    read = generation.load_tensors
    others = []

    def with_nan(data):
        tensors = read(data)
        others.append(tensors)
        if len(others) == len(EXPERTS):  # the last expert
            next(iter(tensors.values())).view(-1)[0] = torch.nan
        return tensors

    monkeypatch.setattr(generation, "load_tensors", with_nan)
    with pytest.raises(CompositionError, match=r"expert shared_attention: .* are not all finite"):
        check(made)


def test_an_altered_package_is_refused(made, tmp_path, tiny_base, monkeypatch):
    mixture = mixture_of(tmp_path, tiny_base, monkeypatch, ROUTING)
    path = mixture[0].sources.package("shared_attention")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PackageError, match="shared_attention"):
        check(mixture)


# Its cost


def test_one_base_and_one_package_are_in_memory_at_a_time(made, monkeypatch):
    bases, alone = [], []
    load_base, build = generation.load_base, generation.with_adapters

    def loads(*args, **kwargs):
        gc.collect()
        assert all(base() is None for base in bases)
        loaded = load_base(*args, **kwargs)
        bases.append(weakref.ref(loaded.model))
        return loaded

    def attaches(model, packages):
        gc.collect()
        alone.append(sum(reference() is not None for reference in references))
        references.extend(weakref.ref(package) for package in packages.values())
        return build(model, packages)

    references: list[weakref.ref] = []
    monkeypatch.setattr(generation, "load_base", loads)
    monkeypatch.setattr(generation, "with_adapters", attaches)
    check(made)
    assert len(bases) == 2
    # First the whole mixture, then one package after the other. Each is freed before the next, except the current one.
    assert len(alone) == 1 + len(EXPERTS)
    assert max(alone) <= 1


# The script


def run(made, output):
    arguments = ("--config", made[0].config, "--device", "cpu", "--threads", "1", "--output", output)
    return run_script("check_composition", *arguments)


def test_the_script_writes_its_report(tmp_path, tiny_base, monkeypatch):
    same = RoutingSettings(keywords=("loan",))
    made = mixture_of(tmp_path / "made", tiny_base, monkeypatch, {"first": same, "second": same})
    done = run(made, tmp_path / "composition.json")
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "composition.json") == check(made)
    assert "warning: the router sends every question for second to other experts" in done.stderr
    assert "question for first" not in done.stderr


def test_the_script_fails_and_writes_nothing(tmp_path, tiny_base, monkeypatch):
    tensors = load(adapter_files(tiny_base.parent, seed=1)[1])
    huge = save({name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()})
    made = mixture_of(tmp_path / "made", tiny_base, monkeypatch, ROUTING, banking_expert=huge)
    done = run(made, tmp_path / "composition.json")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: expert banking_expert: its logits for the question")
    assert not (tmp_path / "composition.json").exists()
