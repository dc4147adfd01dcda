"""The whole workflow on a tiny configuration: what it makes, and that it makes everything only once."""

import base64
import json
import re

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.workflow.conftest import TINY, new_project

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

EXPERTS = ("banking_expert", "investment_expert", "shared_attention")


def test_every_artifact_of_the_contract_is_there(finished):
    results = finished.folder / "results"
    expected = ["base/demo/base.json", "base/demo/model.safetensors", "moe/moe_config.json"]
    expected += [
        f"data/{d}/{f}"
        for d in ("banking", "investment", "combined")
        for f in ("train.jsonl", "val.jsonl", "stats.json")
    ]
    for expert in EXPERTS:
        expected += [
            f"experts/{expert}/{name}"
            for name in (
                "sft/adapter_final.pt",
                "sft/training_metrics.json",
                "sft/metrics.jsonl",
                "selection.json",
                "evaluation.json",
                "predictions/base.jsonl",
                "predictions/sft.jsonl",
                "peft/adapter_config.json",
                "peft/adapter_model.safetensors",
            )
        ]
        expected.append(f"packages/{expert}.tgsp")
    expected += [
        f"experts/banking_expert/rl/{name}" for name in ("adapter_rl_final.pt", "rl_metrics.json", "metrics.jsonl")
    ]
    expected += ["experts/banking_expert/predictions/reinforce.jsonl", "moe/composition.json"]
    assert [name for name in expected if not (results / name).stat().st_size] == []


def test_a_second_run_has_nothing_to_do(project):
    done = project.snakemake()
    assert "Nothing to be done" in done.stdout + done.stderr


def test_the_combined_data_keep_every_record_on_its_side(finished):
    def ids(dataset, side):
        path = finished.folder / "results" / "data" / dataset / f"{side}.jsonl"
        return {json.loads(line)["id"] for line in path.read_text().splitlines()}

    for side in ("train", "val"):
        assert ids("combined", side) == ids("banking", side) | ids("investment", side)
    assert not ids("combined", "train") & ids("combined", "val")


def test_the_peft_folder_gives_the_trainers_logits(finished):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from sealed_experts.models.adapters.lora import Lora
    from sealed_experts.models.attachment import attach_adapter, load_adapter_state
    from sealed_experts.models.loading import load_base
    from sealed_experts.training.checkpoints import load_state

    base = finished.folder / "results" / "base" / "demo"
    ids = torch.tensor([[5, 9, 33, 47, 60]])
    for expert in EXPERTS:
        folder = finished.folder / "results" / "experts" / expert
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "peft").eval()
        state = load_state(finished.folder / json.loads((folder / "selection.json").read_text())["adapter"])
        adapter = Lora(**{**state["adapter"], "target_modules": tuple(state["adapter"]["target_modules"])})
        trained = attach_adapter(load_base(base, device=torch.device("cpu")).model, adapter, seed=0)
        load_adapter_state(trained, state["model_state_dict"])
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, trained.eval()(ids).logits, rtol=0, atol=0)
            plain = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        assert float((plain - loaded(ids).logits).abs().max()) > 0


def test_routing_and_answering_from_the_assembled_mixture(finished):
    config = "results/moe/moe_config.json"
    routed = json.loads(finished.tool("route", config, "Should a LOAN be refinanced at the bank?", "--json").stdout)
    assert routed == {"expert": "banking_expert", "matched": ["bank", "loan"]}
    fallback = json.loads(finished.tool("route", config, "What is an asterisk?", "--json").stdout)
    assert fallback == {"expert": "shared_attention", "matched": []}
    answer = json.loads(
        finished.tool("ask", config, "Which stocks suit my portfolio?", "--json", "--max-new-tokens", "5").stdout
    )
    assert answer["expert"] == "investment_expert"
    assert isinstance(answer["answer"], str)


def test_a_tampered_package_is_refused_and_nothing_answers(project):
    package = project.folder / "results" / "packages" / "banking_expert.tgsp"
    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    package.write_bytes(bytes(content))
    for command in (
        ("ask", "results/moe/moe_config.json", "Which stocks suit my portfolio?"),
        ("verify", str(package)),
    ):
        done = project.tool(*command, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert "banking_expert.tgsp" in done.stderr
        assert done.stdout == ""


def test_training_metrics_do_not_hide_that_nothing_is_claimed(finished):
    metrics = json.loads((finished.folder / "results/experts/banking_expert/sft/training_metrics.json").read_text())
    assert metrics["privacy"]["mode"] == "reproducible"
    assert metrics["privacy"]["epsilon"] is None
    config = json.loads((finished.folder / "results/moe/moe_config.json").read_text())
    assert config["privacy"]["epsilon"] is None


def test_nothing_private_is_in_packages_or_mixture(finished):
    """Fingerprints, measured losses and counts stay on the trainer's machine; so does the digest of both splits.

    The demo's records are declared public, so a package may state the digest of its training data.
    """
    results = finished.folder / "results"
    for expert in EXPERTS:
        metrics = json.loads((results / f"experts/{expert}/sft/training_metrics.json").read_text())
        (checkpoints,) = (path for path in (results / f"experts/{expert}/sft/checkpoints").iterdir() if path.is_dir())
        secrets = [checkpoints.name, metrics["data_digest"], str(metrics["final_loss"])]
        for path in (results / f"packages/{expert}.tgsp", results / "moe/moe_config.json"):
            content = path.read_bytes()
            assert [secret for secret in secrets if secret.encode() in content] == []


def spellings(secret: bytes) -> list[bytes]:
    """Return the forms in which a key's bytes could be in a file: raw, hexadecimal, base64."""
    encoded = [encode(secret).rstrip(b"=") for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    # In base64, the last letter depends on the next bytes.
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), *(text[:-1] for text in encoded)]


def private_keys(home) -> list[bytes]:
    """Return all forms of the publisher's private key, and of the key for names of the owner's private data."""
    pem = (home / "keys" / "publisher.pem").read_bytes()
    blocks = re.findall(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n", pem, re.DOTALL)
    lines = [line for line in pem.splitlines() if len(line) > 20 and not line.startswith(b"-----")]
    raw = [load_pem_private_key(block, password=None).private_bytes_raw() for block in blocks]
    owners = bytes.fromhex((home / "owner.key").read_text())
    assert len(blocks) == 2
    assert len(lines) >= 2
    return [*lines, *(form for key in (*raw, owners) for form in spellings(key))]


def holding(folder, secrets: list[bytes]) -> list[str]:
    wanted = re.compile(b"|".join(re.escape(secret) for secret in secrets))
    files = [path for path in folder.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return sorted(path.name for path in files if wanted.search(path.read_bytes()))


def test_no_private_key_is_in_anything_that_a_run_leaves_behind(finished):
    """Parameters, logs, Snakemake's metadata, metrics, packages: every file except the folder of the keys."""
    secrets = private_keys(finished.home)
    assert holding(finished.home, secrets) == ["owner.key", "publisher.pem"]
    assert (finished.folder / ".snakemake").is_dir()
    assert len(list((finished.folder / "results").rglob("*.log"))) > 5
    assert holding(finished.folder, secrets) == []


def test_the_second_stage_is_what_is_sealed_and_every_file_says_so(finished, tmp_path):
    results = finished.folder / "results"
    selection = json.loads((results / "experts/banking_expert/selection.json").read_text())
    assert (selection["stage"], selection["adapter"].endswith("rl/adapter_rl_final.pt")) == ("reinforce", True)
    finished.tool("unpack", "results/packages/banking_expert.tgsp", str(tmp_path / "unpacked"))
    card = (tmp_path / "unpacked" / "README.md").read_text()
    assert "Stages: sft, reinforce. This package holds reinforce" in card
    entry = json.loads((results / "moe/moe_config.json").read_text())["experts"]["banking_expert"]
    assert (entry["stage"], entry["stage_reason"]) == ("reinforce", selection["reason"])
    assert entry["checkpoint_path"].endswith("rl/adapter_rl_final.pt")


def test_the_evaluation_measures_what_the_stages_measured(finished):
    """The same held-out records, prompts and draws: equal to the last bit, although another process measures."""
    folder = finished.folder / "results/experts/banking_expert"
    models = json.loads((folder / "evaluation.json").read_text())["models"]
    rl = json.loads((folder / "rl/rl_metrics.json").read_text())
    sft = json.loads((folder / "sft/training_metrics.json").read_text())
    means = {(model, name): one["mean"] for model, of in models.items() for name, one in of["metrics"].items()}
    assert means["sft", "loss"] == rl["first_val_loss"]
    assert means["reinforce", "loss"] == rl["final_val_loss"]
    assert means["sft", "reward"] == rl["mean_reward_before"]
    assert means["reinforce", "reward"] == rl["mean_reward_after"]
    assert models["reinforce"]["kl"] == pytest.approx(rl["kl_after"])
    assert sft["total_steps"] == 4


def test_every_answer_stands_with_its_record(finished):
    folder = finished.folder / "results/experts/banking_expert"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for model in ("base", "sft", "reinforce"):
        lines = [json.loads(line) for line in (folder / f"predictions/{model}.jsonl").read_text().splitlines()]
        assert len(lines) == evaluation["records"]["held_out"] == 8
        assert all(line["instruction"] and line["gold"] and line["scores"] for line in lines)


def test_a_deleted_file_of_predictions_is_made_again(project, planner):
    for path in ("banking_expert/predictions/reinforce.jsonl", "shared_attention/predictions/base.jsonl"):
        kept = (project.folder / "results/experts" / path).read_bytes()
        (project.folder / "results/experts" / path).unlink()
        plan, _ = planner.plan(project)
        assert f"results/experts/{path}" in plan["evaluate_expert"]
        (project.folder / "results/experts" / path).write_bytes(kept)


def test_every_expert_was_found_to_answer_alone_as_in_the_mixture(finished):
    report = json.loads((finished.folder / "results/moe/composition.json").read_text())
    assert report["ok"] is True
    assert report["experts"].keys() == set(EXPERTS)


def test_a_key_that_cannot_seal_is_refused_before_the_first_job_in_one_line(tmp_path, starts, monkeypatch):
    """A bug: a wrong passphrase was reported only at sealing, after training, and other errors took ten lines."""
    project = new_project(tmp_path / "project", tmp_path / "home", warm=starts.environment)
    project.configure(TINY)
    monkeypatch.setenv("SEALED_EXPERTS_PASSPHRASE", "word")
    project.tool("keys", "create")
    for given, match in (("", "set SEALED_EXPERTS_PASSPHRASE"), ("wrong", "the passphrase does not open")):
        monkeypatch.setenv("SEALED_EXPERTS_PASSPHRASE", given)
        assert project.snakemake(flags=("--dry-run",)).returncode == 0  # needs none
        refused = project.snakemake(check=False)
        assert refused.returncode == 1
        assert [line for line in refused.stderr.splitlines() if match in line and line.startswith("error: ")]
        assert "Exception" not in refused.stderr
        assert not list(project.folder.glob("results/*/*"))
