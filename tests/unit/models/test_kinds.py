"""Every adapter kind against PEFT itself: its configuration, its tensors, its start, its gradients, its export."""

from pathlib import Path

import pytest
import torch

from sealed_experts.configuration.reference import with_tables
from sealed_experts.models.adapters import ADAPTER, KINDS
from sealed_experts.models.attachment import adapter_state, as_base, attach_adapter, decoding, trainable_parameters
from sealed_experts.models.loading import load_base
from sealed_experts.packages.base_modules import read_base
from sealed_experts.packages.content.linter import read_adapter_config
from sealed_experts.privacy.engines.check import check_unit_gradients
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.peft_folder import adapter_config_bytes
from tests.kinds import tiny_base as plain_base
from tests.pairs import batch_of, units
from tests.tiny import build_tiny_base

DOCUMENT = Path(__file__).parents[3] / "docs" / "adapters.md"
TARGETS = {"qwen2": ("q_proj", "v_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_proj")}  # linear layers, and Conv1D
CASES = [(kind, base) for kind in KINDS for base in TARGETS]


def made(kind, base="qwen2"):
    """An adapter of a kind for a base; settings of rank and of modules only where the kind has them."""
    wished = {"rank": 3, "alpha": 6, "target_modules": TARGETS[base]}
    own = {name: value for name, value in wished.items() if name in KINDS[kind].model_fields}
    return ADAPTER.parse({"kind": kind, **own})


def adapted(kind, base="qwen2"):
    return attach_adapter(plain_base(base).requires_grad_(False), made(kind, base), seed=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each base."""
    parent = tmp_path_factory.mktemp("bases")
    return {name: build_tiny_base(parent / name, model=plain_base(name)).parent for name in TARGETS}


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in adapter_state(model).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_writes_is_allowed_and_read_back(kind):
    adapter = made(kind)
    content = adapter_config_bytes(adapter, base_name="tiny", revision=None, task_type="CAUSAL_LM")
    read = read_adapter_config(content, kind=type(adapter))
    assert read.adapter.facts() == adapter.facts()
    assert (read.base_name, read.base_revision) == ("tiny", None)
    assert read_adapter_config(content).adapter.facts() == adapter.facts(), "found by its marks"


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_its_tensors_are_those_that_peft_makes(kind, base, folders):
    found = shapes_of(adapted(kind, base))
    modules = read_base(folders[base]).shapes
    assert modules is not None
    assert made(kind, base).tensors_on(modules) == found
    assert list(made(kind, base).tensor_mistakes(found)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_less_or_more_or_of_another_shape_is_a_mistake(kind):
    adapter, right = made(kind), shapes_of(adapted(kind))
    for name, shape in right.items():
        less = {other: its for other, its in right.items() if other != name}
        assert list(adapter.tensor_mistakes(less))
        for other in ((*shape, 1), tuple(size + 1 for size in shape), shape[1:]):
            assert list(adapter.tensor_mistakes({**right, name: other})), (name, other)
        assert list(adapter.tensor_mistakes({**right, f"{name}.more": shape}))
    assert list(adapter.tensor_mistakes({**right, "base_model.model.lm_head.weight": (2, 2)}))
    assert list(adapter.tensor_mistakes({}))


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_it_starts_as_it_says_and_the_base_stays_within_reach(kind, base):
    model, ids = adapted(kind, base), torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        alone = plain_base(base)(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits[:, -10:], alone) is KINDS[kind].starts_as_base
        for parameter in trainable_parameters(model):
            parameter.add_(0.1)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        moved = model(input_ids=ids).logits[:, -10:]
        assert not torch.allclose(moved, alone, atol=1e-3)
        with as_base(model) as inner:
            assert torch.equal(inner(input_ids=ids).logits, alone)
            assert decoding(inner, {"input_ids": ids}) == (inner, {"input_ids": ids})
        assert torch.equal(model(input_ids=ids).logits[:, -10:], moved)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == names


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_its_engine_is_exact(kind, base):
    """Against one unit at a time; the check moves the weights away from their start."""
    rows = units((1,) * 6)
    worst = check_unit_gradients(
        engine=made(kind, base).engine({"model_type": base}),
        model=adapted(kind, base),
        objective=SupervisedFineTuning(max_seq_len=64),
        batches=[batch_of([row for row in rows if row.unit % 2 == half]) for half in (0, 1)],
        stream=Stream(bytes(32)),
        dtype=torch.float32,
    )
    assert 0 < worst < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_no_engine_differentiates_packed_weights_by_vmap(kind):
    """PyTorch's vmap has no rule for the products of packed weights."""
    packed = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    assert made(kind).engine(packed) in ("hooks", "one_by_one")


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_generation_with_a_cache_is_that_without(kind, base, folders):
    """Token by token through the inputs that the kind gives, against whole passes of PEFT's own model."""
    model = adapted(kind, base).eval()
    ids = torch.arange(5, 17).reshape(2, 6)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(0.05)
        decoder, inputs = decoding(model, {"input_ids": ids, "attention_mask": mask})
        output, whole = decoder(**inputs, use_cache=True), ids
        for _ in range(4):
            assert torch.allclose(output.logits[:, -1], model(input_ids=whole).logits[:, -1], atol=1e-5)
            token = output.logits[:, -1:].argmax(-1)
            whole, mask = torch.cat([whole, token], 1), torch.cat([inputs["attention_mask"], mask[:, :1]], 1)
            inputs = {"input_ids": token, "attention_mask": mask}
            output = decoder(**inputs, past_key_values=output.past_key_values, use_cache=True)


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_plain_peft_loads_it_with_the_same_logits(kind, base, folders, tmp_path):
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = attach_adapter(load_base(folders[base], device=torch.device("cpu")).model, made(kind, base), seed=1)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(0.05 * torch.randn_like(parameter))
    (tmp_path / "adapter_config.json").write_bytes(
        adapter_config_bytes(made(kind, base), base_name="", revision=None, task_type="CAUSAL_LM")
    )
    save_file(adapter_state(model), tmp_path / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[base]), tmp_path)
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize(("kind", "base"), CASES)
def test_merged_into_the_base_it_answers_the_same_if_it_says_so(kind, base):
    if not KINDS[kind].merges:
        return
    model, ids = adapted(kind, base).eval(), torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = model(input_ids=ids).logits
        assert torch.allclose(model.merge_and_unload()(input_ids=ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_its_default_settings_are_those_of_a_package(kind):
    adapter = ADAPTER.parse({"kind": kind})
    assert adapter.kind == kind
    assert adapter.peft_config(task_type="CAUSAL_LM").peft_type == KINDS[kind].marks["peft_type"]
    assert set(KINDS[kind].config_keys) <= set(KINDS[kind].model_fields)
    assert adapter.lora_rank is None or adapter.lora_rank >= 1


def test_the_document_holds_the_generated_table():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: python -m sealed_experts.configuration.reference docs/adapters.md"
    assert all(f"| `{kind}` |" in text for kind in KINDS)
