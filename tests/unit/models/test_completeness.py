"""A base that is not whole is refused when it is fetched, in one line, before any data are read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from sealed_experts.errors import UserError
from sealed_experts.models.adapters import ADAPTER
from sealed_experts.models.attachment import adapter_state, attach_adapter
from sealed_experts.models.classes import CAUSAL, CLASSIFIER
from sealed_experts.models.hub import fetch_base
from sealed_experts.models.loading import load_base
from sealed_experts.models.settings import BaseSettings
from sealed_experts.packages.base_modules import read_base
from sealed_experts.privacy.engines.check import check_unit_gradients
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from tests.kinds import VOCABULARY
from tests.pairs import batch_of, units
from tests.tiny import tiny_qwen2


@pytest.fixture
def model(tiny_base, tmp_path):
    """A folder with a tiny whole model."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_base.parent, folder)
    (folder / "base.json").unlink()
    return folder


def fetch(folder, classes=(CAUSAL,)):
    target = folder.parent / "base"
    fetch_base(BaseSettings(name=str(folder)), key="x", folder=target, classes=classes)
    return target


def refused(folder, match, classes=(CAUSAL,)):
    with pytest.raises(UserError, match=match) as caught:
        fetch(folder, classes)
    message = str(caught.value)
    assert message.startswith("base.")
    assert "\n" not in message
    assert not (folder.parent / "base").exists()


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_whole_model_is_accepted(model):
    assert (fetch(model) / "base.json").exists()


def test_a_folder_that_also_holds_an_adapter_is_refused(model):
    """Its modules were trained too, the budget was spent, and the export could never succeed."""
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    refused(model, r"also holds an adapter \(adapter_config\.json\).*remove it")


def test_a_missing_matrix_is_not_filled_with_random_numbers(model):
    name = "model.layers.1.self_attn.q_proj.weight"
    edit_weights(model, lambda tensors: tensors.pop(name))
    refused(model, f"the weights lack {name}")


def test_a_missing_head_of_an_untied_model_is_refused(model):
    edit_config(model, tie_word_embeddings=False)
    edit_weights(model, lambda tensors: tensors.pop("lm_head.weight", None))
    refused(model, r"the weights lack lm_head\.weight")


def test_a_tied_head_may_be_absent(model):
    torch.manual_seed(0)
    tied = tiny_qwen2(tie_word_embeddings=True, vocab_size=300)
    tied.save_pretrained(model)
    assert "lm_head.weight" not in load_file(model / "model.safetensors")
    fetch(model)


def test_another_shape_than_the_configuration_says_is_refused(model):
    edit_config(model, intermediate_size=128)
    refused(model, "have other shapes than config.json says")


def test_weights_that_were_cut_are_refused(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(model, r"model\.safetensors is cut short or damaged")


@pytest.fixture
def sharded(model):
    whole = tiny_qwen2(vocab_size=300)
    (model / "model.safetensors").unlink()
    whole.save_pretrained(model, max_shard_size="40KB")
    assert len(list(model.glob("*.safetensors"))) > 2
    return model


def test_a_model_in_shards_is_accepted(sharded):
    fetch(sharded)


def test_a_missing_shard_is_named(sharded):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    refused(sharded, f"names {lost.name}, which is missing")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_a_quantised_base_is_refused_with_what_to_use(model, method):
    edit_config(model, quantization_config={"quant_method": method, "bits": 4})
    refused(model, rf"quantised \({method}\).*use the model that it was made from")


def test_a_quantised_base_of_an_unknown_kind_is_refused_too(model):
    edit_config(model, quantization_config=[4])
    refused(model, r"quantised \(an unknown method\)")


def test_a_configuration_with_impossible_values_is_named(model):
    """It was a traceback of transformers."""
    edit_config(model, num_hidden_layers="many")
    refused(model, r"its config\.json cannot be used \(")


def test_an_encoder_with_a_decoder_is_no_causal_model(model):
    """Only its decoder would be trained, on prompts that its encoder never sees."""
    edit_config(model, model_type="bart")
    refused(model, "a bart model is an encoder with a decoder: use a decoder-only language model")


@pytest.mark.parametrize(("model_type", "setting"), [("bert", "is_decoder"), ("xlm", "causal")])
def test_a_model_whose_tokens_see_the_next_ones_is_no_causal_model(model, model_type, setting):
    """Its loss falls to zero, because it sees the answer."""
    edit_config(model, model_type=model_type)
    refused(model, rf"every token sees the tokens behind it \({setting} is false in its config\.json\)")


@pytest.mark.parametrize("decoder", [True, False])
def test_a_bert_serves_as_a_decoder_and_for_classes(model, decoder):
    small = BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=decoder,
    )
    (model / "model.safetensors").unlink()
    BertLMHeadModel(small).save_pretrained(model)
    if decoder:
        fetch(model)
    else:
        fetch(model, classes=(CLASSIFIER,))  # for a class, all tokens may see each other


def test_a_git_lfs_pointer_is_named(model):
    """It was called cut short."""
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(model, "model.safetensors is a Git LFS pointer.*git lfs pull")


def test_more_layers_than_the_configuration_says_are_refused(model):
    """They were left out in silence."""
    edit_config(model, num_hidden_layers=1, layer_types=None)
    refused(model, r"the weights hold model\.layers\.1\..*, which a model of this config\.json does not have")


def test_a_bias_that_the_configuration_leaves_out_is_refused(model):
    edit_weights(model, lambda tensors: tensors.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(16)}))
    refused(model, r"the weights hold model\.layers\.0\.self_attn\.o_proj\.bias, which")


def test_a_tokenizer_without_an_end_of_sequence_is_refused(model):
    """It was refused only in training, after the data were prepared."""
    path = model / "tokenizer_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"eos_token": None}))
    refused(model, "no end-of-sequence token")


def test_weights_of_eight_bits_are_read(model):
    """Whether they are finite could not be asked: a traceback."""
    edit_weights(
        model, lambda tensors: tensors.update({name: one.to(torch.float8_e4m3fn) for name, one in tensors.items()})
    )
    fetch(model)


def test_an_unknown_architecture_is_named(model):
    edit_config(model, model_type="no_such_model")
    refused(model, "does not know the model_type 'no_such_model'")


def test_a_model_with_a_state_is_refused_by_name(model):
    small = MambaConfig(vocab_size=300, hidden_size=16, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(small).save_pretrained(model)
    refused(model, "a mamba model keeps a state")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_weight_that_is_not_finite_is_refused(model, value, dtype):
    """It was found as `layer mixes examples`, or not at all."""

    def damage(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(dtype)
        tensors["model.norm.weight"][3] = value

    edit_weights(model, damage)
    refused(model, r"model\.norm\.weight in model\.safetensors holds NaN or infinity")


def test_a_folder_without_a_tokenizer_is_refused(model):
    for path in model.glob("token*"):
        path.unlink()
    refused(model, "its tokenizer cannot be loaded|it has no tokenizer")


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(model):
    """Chat tokens were added and the model was not resized: an index error in the training."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<|extra {number}|>" for number in range(1 + rows - len(tokenizer))])
    tokenizer.save_pretrained(model)
    refused(model, rf"with the id {rows}, but the model's embedding has only {rows} rows")


def test_bases_stored_without_the_models_prefix_are_whole(model):
    """The hub's gpt2 and bloom are stored so."""
    torch.manual_seed(0)
    small = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    (model / "model.safetensors").unlink()
    GPT2Model(small).save_pretrained(model)
    edit_config(model, architectures=["GPT2LMHeadModel"])
    assert not any(name.startswith("transformer.") for name in load_file(model / "model.safetensors"))
    fetch(model)


def test_a_classifier_needs_no_head_and_no_pooler(model):
    (model / "model.safetensors").unlink()
    small = BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(small, add_pooling_layer=False).save_pretrained(model)
    fetch(model, classes=(CLASSIFIER,))


def test_what_a_model_has_too_much_is_no_fault(model):
    """Some checkpoints carry buffers of older versions."""
    edit_weights(model, lambda tensors: tensors.update({"model.rotary_emb.inv_freq": torch.ones(4)}))
    fetch(model)


def test_other_architectures_are_whole_too(model):
    for made in (
        GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)),
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
            )
        ),
    ):
        (model / "model.safetensors").unlink()
        made.save_pretrained(model)
        fetch(model)


@pytest.mark.parametrize("prefixed", [True, False], ids=["with prefix", "without prefix"])
def test_a_package_for_gpt2_fits_the_base_that_it_was_made_on(model, prefixed):
    """Valid packages were refused: Conv1D stores inputs x outputs, and the hub's gpt2 has no prefix in its names."""
    torch.manual_seed(0)
    small = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    (model / "model.safetensors").unlink()
    (GPT2LMHeadModel(small) if prefixed else GPT2Model(small)).save_pretrained(model)
    edit_config(model, architectures=["GPT2LMHeadModel"])
    folder = fetch(model)
    adapter = ADAPTER.parse({"kind": "lora", "rank": 2, "alpha": 4, "target_modules": ["c_attn", "c_fc"]})
    base = load_base(folder, device=torch.device("cpu"))
    attached = adapter_state(attach_adapter(base.model, adapter, seed=1))
    expected = adapter.tensors_on(read_base(folder).shapes)
    assert {name: tuple(tensor.shape) for name, tensor in attached.items()} == expected


def test_a_module_that_the_base_does_not_have_is_refused_when_it_is_fetched(model):
    """`gate_proj` of a mixture-of-experts base was offered, and refused in training: its experts are no modules."""
    (model / "model.safetensors").unlink()
    small_qwen2_moe().save_pretrained(model)
    target = model.parent / "base"
    settings = BaseSettings(name=str(model))
    with pytest.raises(UserError, match=r"adapter\.target_modules: 'w1' is no linear module of this base"):
        fetch_base(settings, key="x", folder=target, classes=(CAUSAL,), targets=["q_proj", "w1"])
    fetch_base(settings, key="x", folder=target, classes=(CAUSAL,), targets=["q_proj", "self_attn.v_proj"])


def small_opt():
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            word_embed_proj_dim=16,
            dropout=0.0,
        )
    )


def small_qwen2_moe():
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            mlp_only_layers=[],
        )
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    ("make", "targets", "engine"),
    [
        (small_opt, ["q_proj", "v_proj"], "hooks"),
        (small_opt, ["q_proj", "fc1"], "vmap"),
        (small_qwen2_moe, ["q_proj", "v_proj"], "hooks"),
        (small_qwen2_moe, ["q_proj", "gate_proj", "down_proj"], "vmap"),
        (small_qwen2_moe, ["shared_expert_gate"], "vmap"),
    ],
)
def test_modules_whose_rows_hooks_cannot_tell_apart_get_an_exact_engine(make, targets, engine):
    """OPT's fc1 and fc2, and a shared expert's layers, were accepted, and refused in training."""
    base = make().requires_grad_(False)
    adapter = ADAPTER.parse({"kind": "lora", "target_modules": targets, "rank": 2, "alpha": 4})
    assert adapter.engine({"model_type": base.config.model_type}) == engine
    check_unit_gradients(
        engine=engine,
        model=attach_adapter(base, adapter, seed=1),
        objective=SupervisedFineTuning(max_seq_len=64),
        batches=[batch_of(units((1, 1, 1)))],
        stream=Stream(bytes(32)),
        dtype=torch.float32,
    )
