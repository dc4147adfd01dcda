"""DoRA against its paper's formula, and packages of it that nobody may make; the rest is tested for every kind."""

import numpy as np
import pytest
import torch

from sealed_experts.configuration.resolution import resolve
from sealed_experts.errors import UserError
from sealed_experts.models.adapters import ADAPTER
from sealed_experts.models.adapters.dora import Dora
from sealed_experts.models.attachment import attach_adapter, trainable_parameters
from sealed_experts.packages.content.linter import lint_adapter
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.tgsp.package import open_bytes
from tests.attacks import building
from tests.attacks.building import CONFIG, RANK, WEIGHTS, WIDTH, refuse
from tests.kinds import tiny_base

TARGETS = {"qwen2": ("q_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_proj")}


@pytest.mark.parametrize("base", TARGETS)
def test_it_answers_as_the_papers_formula_says(base):
    """Equation 5: m (W + s B A) / ||W + s B A||, the norm over the inputs of each output, put into a plain base."""
    adapter = Dora(rank=3, alpha=6, target_modules=TARGETS[base])
    model, plain = attach_adapter(tiny_base(base).requires_grad_(False), adapter, seed=1), tiny_base(base)
    ids, torch_random = torch.arange(20).reshape(2, 10), torch.Generator().manual_seed(2)
    changed = 0
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch_random))
        for name, layer in model.get_base_model().named_modules():
            if hasattr(layer, "lora_magnitude_vector"):
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                own = plain.get_submodule(name).weight
                weight = own if base == "qwen2" else own.T  # Conv1D stores inputs x outputs
                moved = weight.double() + 2.0 * (b.double() @ a.double())
                magnitude = layer.lora_magnitude_vector["default"].weight.double()
                weight.copy_(magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True))
                changed += 1
        assert changed == 4
        assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)


def test_the_magnitudes_start_as_the_norms_of_the_bases_rows():
    model, plain = attach_adapter(tiny_base("qwen2"), Dora(target_modules=("q_proj",)), seed=1), tiny_base("qwen2")
    found = [weight for name, weight in model.named_parameters() if "magnitude" in name]
    norms = [layer.self_attn.q_proj.weight.norm(dim=1) for layer in plain.model.layers]
    assert all(torch.allclose(one, other) for one, other in zip(found, norms, strict=True))


def test_its_gradients_come_from_vmap_and_recomputation_is_refused(tmp_path):
    assert (Dora().engine({}), Dora().engine({"quantization_config": {"bits": 4}})) == ("vmap", "one_by_one")
    document = {
        "datasets": {"banking": {"source": "demo", "domain": "banking"}},
        "experts": {"banker": {"dataset": "banking", "routing": {"keywords": ["bank"]}, "adapter": {"kind": "dora"}}},
    }
    assert resolve(document, root=tmp_path).by_name["banker"].adapter == ADAPTER.parse({"kind": "dora"})
    with pytest.raises(UserError, match=r"defaults\.sft\.gradient_checkpointing: `on` cannot be kept: .* `dora`"):
        resolve({**document, "defaults": {"sft": {"gradient_checkpointing": "on"}}}, root=tmp_path)


def test_peft_is_told_that_it_is_dora():
    assert Dora().peft_config(task_type="CAUSAL_LM").use_dora is True
    assert ADAPTER.parse({"kind": "lora"}).peft_config(task_type="CAUSAL_LM").use_dora is False


# Packages that a trusted publisher signed


def tensors(**changes) -> dict[str, np.ndarray]:
    """The tensors of a small DoRA adapter; a change of a module's part to `...` removes it."""
    made = building.tensors()
    for module in building.MODULES:
        made[f"base_model.model.{module}.lora_magnitude_vector"] = np.ones(WIDTH, dtype="<f4")
    for part, array in changes.items():
        name = f"base_model.model.{building.MODULES[1]}.{part}"
        made[name] = array
    return {name: array for name, array in made.items() if array is not ...}


def package() -> bytes:
    """An honest DoRA package."""
    return building.package(
        settings=building.run(adapter=Dora(rank=RANK, alpha=4, target_modules=("q_proj", "v_proj"))),
        adapter_config=building.adapter_config(use_dora=True),
        adapter_weights=building.weights(tensors()),
    )


def test_an_honest_package_is_opened():
    manifest = open_bytes(package(), trust=building.trust()).manifest
    assert manifest["adapter"]["kind"] == "dora"
    assert manifest["perf"]["parameters"] == 2 * (2 * RANK * WIDTH + WIDTH)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lora_magnitude_vector": ...}, "v_proj has no lora_magnitude_vector"),
        ({"lora_magnitude_vector": np.ones(WIDTH + 1, dtype="<f4")}, r"has the shape \[5\]; it must be \[4\]"),
        ({"lora_magnitude_vector": np.ones((WIDTH, 1), dtype="<f4")}, r"has the shape \[4, 1\]; it must be \[4\]"),
        ({"lora_magnitude_vector.weight": np.ones(WIDTH, dtype="<f4")}, "is not a tensor of a `dora` adapter"),
        ({"lora_B.weight": ...}, r"v_proj has no lora_B\.weight"),
        ({"lora_A.weight": np.ones((RANK + 1, WIDTH), dtype="<f4")}, r"it must be \[2, inputs\]"),
    ],
)
def test_tensors_that_no_dora_adapter_has(changes, match):
    refuse(building.with_member(WEIGHTS, building.weights(tensors(**changes)), of=package()), match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"use_dora": False}, "use_dora is False; it must be True"),
        ({"use_dora": 1}, "use_dora is 1; it must be True"),
        ({"use_dora": ...}, "the key use_dora is missing"),
        ({"auto_mapping": None}, "'auto_mapping' is not a key"),
        ({"dora_config": {}}, "'dora_config' is not a key"),
        ({"use_rslora": True}, "use_rslora"),
        ({"megatron_core": "os"}, "megatron_core"),
    ],
)
def test_a_config_that_no_dora_adapter_has(changes, match):
    config = building.adapter_config(**{"use_dora": True, **changes})
    refuse(building.with_member(CONFIG, config, of=package()), match)


def test_a_lora_package_with_doras_tensors_or_mark_is_refused():
    refuse(
        building.with_member(WEIGHTS, building.weights(tensors())),
        "magnitude_vector is not a tensor of a `lora` adapter",
    )
    refuse(building.with_member(CONFIG, building.adapter_config(use_dora=True)), "use_dora is True; it must be False")
    dora = building.adapter_config(use_dora=True), building.weights(tensors())
    with pytest.raises(PackageError, match="use_dora is True; it must be False"):
        building.package(adapter_config=dora[0], adapter_weights=dora[1])


def test_a_folder_without_a_manifest_is_taken_for_what_its_config_says():
    config, weights = building.adapter_config(use_dora=True), building.weights(tensors())
    assert isinstance(lint_adapter({CONFIG: config, WEIGHTS: weights}).adapter, Dora)
    with pytest.raises(PackageError, match="q_proj has no lora_magnitude_vector"):
        lint_adapter({CONFIG: config, WEIGHTS: building.weights()})
    with pytest.raises(PackageError, match="is not a tensor of a `lora` adapter"):
        lint_adapter({CONFIG: building.adapter_config(), WEIGHTS: weights})
