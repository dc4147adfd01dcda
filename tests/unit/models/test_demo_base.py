"""The demo base and base.json: an ordinary model folder, the same every time, refused once it was changed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sealed_experts.configuration import jobs
from sealed_experts.configuration.resolution import resolve
from sealed_experts.data.demo_general import Document, general_text
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.errors import UserError
from sealed_experts.files.digests import digest_of_files, sha256_file
from sealed_experts.models.demo_base import IGNORED, build_demo_base, new_model, pack, pretrain, train_tokenizer
from sealed_experts.models.manifest import verify_base, write_base_manifest
from sealed_experts.models.settings import DemoBaseSettings
from tests.conftest import ROOT
from tests.waiting import wait_for

TINY = DemoBaseSettings(hidden_size=16, layers=2, heads=2, vocab_size=400, context=64, pretrain_steps=4, threads=1)
DOCUMENT = {
    "base": {"name": "demo"},
    "datasets": {"banking": {"source": "demo", "domain": "banking"}},
    "experts": {"one": {"dataset": "banking", "routing": {"always_active": True}}},
}
DOCUMENTS = general_text(folder=ROOT / "config" / "demo")[:300]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "demo"
    lines = []
    build_demo_base(TINY, seed=1, folder=folder, documents=DOCUMENTS, log=lines.append)
    return folder, lines


def test_folder_loads_with_transformers_and_holds_what_its_manifest_says(base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = base
    manifest = verify_base(folder)
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } == set(manifest["files"])
    assert manifest["files"] == {name: sha256_file(folder / name) for name in manifest["files"]}
    assert manifest["digest"] == digest_of_files(manifest["files"])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert manifest["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (manifest["name"], manifest["key"], manifest["revision"], manifest["model_type"]) == (
        "demo",
        "demo",
        None,
        "qwen2",
    )
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    text = "A café’s rate is 4.5%,\nor $1,200."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1234")["input_ids"]) == 4


def test_same_settings_and_seed_give_the_same_bytes(base, tmp_path):
    again = build_demo_base(TINY, seed=1, folder=tmp_path / "again", documents=DOCUMENTS, log=lambda line: None)
    other = build_demo_base(TINY, seed=2, folder=tmp_path / "other", documents=DOCUMENTS, log=lambda line: None)
    assert again == verify_base(base[0])
    assert other["digest"] != again["digest"]


def test_pretraining_learns_the_text():
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=400)
    rows = pack(DOCUMENTS[:40], tokenizer)
    losses = []
    for steps in (1, 60):
        model = new_model(TINY, tokenizer, seed=1)
        pretrain(model, rows, steps=steps, seed=1, log=lambda line: None)
        with torch.no_grad():
            logits = model(input_ids=rows.ids[:, :-1]).logits
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.labels[:, 1:].flatten()).item())
    assert losses[1] < losses[0] - 0.4


@pytest.mark.parametrize("distance", [1, 2])
def test_half_of_the_first_layer_starts_out_looking_back(distance):
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=400)
    settings = DemoBaseSettings(hidden_size=128, layers=1, heads=4, vocab_size=400, threads=1)
    model = new_model(settings, tokenizer, seed=3)
    model.set_attn_implementation("eager")
    ids = torch.randint(2, 400, (1, 60), generator=torch.Generator().manual_seed(0))
    places = torch.arange(distance, 60)

    def looking_back():
        attention = model(input_ids=ids, output_attentions=True).attentions[0][0, distance - 1]
        return attention[places, places - distance]

    assert looking_back().mean().item() > 0.9  # a token's own weights may win at some place
    own = model.model.layers[0].self_attn
    with torch.no_grad():
        own.q_proj.weight.zero_()
        own.k_proj.weight.zero_()
    assert looking_back().min().item() > 0.99


def test_building_replaces_a_folder_of_before(base, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "old.safetensors").write_text("old")
    build_demo_base(TINY, seed=1, folder=tmp_path / "base", documents=DOCUMENTS, log=lambda line: None)
    assert verify_base(tmp_path / "base") == verify_base(base[0])


def test_packed_rows_begin_with_a_document_and_learn_no_prompt():
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=400)
    rows = pack(DOCUMENTS, tokenizer, length=256)
    assert rows.ids.shape == rows.labels.shape == (len(rows.ids), 256)
    learnt = tokenizer.decode(rows.labels[rows.labels != IGNORED])
    assert "### Instruction" not in learnt
    assert learnt.count(tokenizer.eos_token) <= len(DOCUMENTS)
    assert learnt.count(tokenizer.eos_token) > 0.9 * len(DOCUMENTS)
    assert bool((rows.ids[rows.labels != IGNORED] == rows.labels[rows.labels != IGNORED]).all())
    starts = {tokenizer(document.prompt + document.text)["input_ids"][0] for document in DOCUMENTS}
    assert set(rows.ids[:, 0].tolist()) <= starts


def test_pretraining_sees_an_exchange_as_fine_tuning_does():
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=400)
    record = Instruction.of(instruction="What is a bond?", output="A bond is a loan.")
    (encoded,) = record.encoded(template="alpaca", tokenizer=tokenizer, max_seq_len=96)
    tokens = list(encoded.ids)
    prompt = "### Instruction:\nWhat is a bond?\n\n### Response:\n"
    rows = pack([Document(prompt, record.output)], tokenizer, length=96)
    assert rows.ids[0, : len(tokens)].tolist() == tokens
    silent = encoded.prompt_length
    assert rows.labels[0].tolist() == [IGNORED] * silent + tokens[silent:] + [IGNORED] * (96 - len(tokens))


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="hidden_size 24 divided by heads 16"):
        build_demo_base(DemoBaseSettings(hidden_size=24, heads=16), seed=1, folder=tmp_path, documents=DOCUMENTS)
    with pytest.raises(UserError, match="choose a smaller vocabulary"):
        train_tokenizer(DOCUMENTS[:5], vocab_size=5000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), r"config\.json \(changed\)"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json \(missing\)"),
        (lambda folder: (folder / "extra.json").write_text("{}"), r"extra\.json \(not listed in base\.json\)"),
        (lambda folder: (folder / "base.json").unlink(), r"base\.json does not exist"),
        (lambda folder: (folder / "base.json").write_text("[]"), "not a base's manifest"),
        (
            lambda folder: _edit(folder, lambda manifest: manifest["files"].pop("config.json")),
            "`digest` does not belong",
        ),
    ],
)
def test_a_changed_base_is_refused_by_name(base, tmp_path, change, message):
    folder = tmp_path / "copy"
    shutil.copytree(base[0], folder)
    verify_base(folder)
    change(folder)
    with pytest.raises(UserError, match=message):
        verify_base(folder)


def _edit(folder, change):
    manifest = json.loads((folder / "base.json").read_text())
    change(manifest)
    (folder / "base.json").write_text(json.dumps(manifest))


def test_manifest_refuses_weights_that_are_not_safetensors(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="not a safetensors file"):
        write_base_manifest(tmp_path, name="x", revision=None, key="x", modules={})


def test_manifest_is_torch_free():
    import subprocess
    import sys

    code = "import sys; import sealed_experts.models.manifest; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "scripts")


def test_threads_are_those_of_the_settings(base):
    assert torch.get_num_threads() == TINY.threads


def test_a_build_whose_workflow_was_killed_ends(tmp_path):
    """It did not stop, and the next run started a second build at the same time."""
    demo = TINY.model_dump() | {"pretrain_steps": 1_000_000, "context": 512}
    settings = resolve({**DOCUMENT, "base": {"name": "demo", "demo": demo}}, root=tmp_path)
    folder, log = tmp_path / "base", tmp_path / "log"
    command = [
        *(sys.executable, "-u", "scripts/build_demo_base.py", "--output", str(folder / "base.json")),
        *("--settings", jobs.base_settings(settings), "--operation", jobs.base_operation(settings)),
    ]
    # Another process plays the part of Snakemake: it starts the build, prints its process number, and waits.
    snakemake = "import subprocess, sys; log = open(sys.argv[1], 'w'); build = subprocess.Popen(sys.argv[2:],"
    snakemake += " stdout=log, stderr=log); print(build.pid, flush=True); build.wait()"
    with subprocess.Popen(
        [sys.executable, "-c", snakemake, str(log), *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        build = int(parent.stdout.readline())
        wait_for(lambda: "step 1 of" in log.read_text())
        parent.kill()
    wait_for(lambda: "interrupted" in log.read_text())
    assert log.read_text().splitlines()[1:] == [
        "interrupted: the process that started this run is gone; the same command makes the base from the start"
    ]
    wait_for(lambda: not Path(f"/proc/{build}/exe").exists())
    assert not (folder / "base.json").exists()
