"""The whole workflow on a tiny configuration: what it makes, and that it makes it once."""

import json

import pytest

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
                "peft/adapter_config.json",
                "peft/adapter_model.safetensors",
            )
        ]
        expected.append(f"packages/{expert}.tgsp")
    expected += [
        f"experts/banking_expert/rl/{name}" for name in ("adapter_rl_final.pt", "rl_metrics.json", "metrics.jsonl")
    ]
    expected.append("moe/composition.json")
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

    from sealed_experts.models.adapters import attach_adapter, load_adapter_state
    from sealed_experts.models.loading import load_base
    from sealed_experts.settings.types import AdapterSettings
    from sealed_experts.training.checkpoints import load_state

    base = finished.folder / "results" / "base" / "demo"
    ids = torch.tensor([[5, 9, 33, 47, 60]])
    for expert in EXPERTS:
        folder = finished.folder / "results" / "experts" / expert
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "peft").eval()
        state = load_state(finished.folder / json.loads((folder / "selection.json").read_text())["adapter"])
        adapter = AdapterSettings(**{**state["adapter"], "target_modules": tuple(state["adapter"]["target_modules"])})
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
    """Fingerprints, plain digests of data, realised losses and counts stay on the trainer's machine."""
    results = finished.folder / "results"
    for expert in EXPERTS:
        metrics = json.loads((results / f"experts/{expert}/sft/training_metrics.json").read_text())
        (checkpoints,) = (path for path in (results / f"experts/{expert}/sft/checkpoints").iterdir() if path.is_dir())
        secrets = [checkpoints.name, metrics["data_digest"], metrics["train_digest"], str(metrics["final_loss"])]
        for path in (results / f"packages/{expert}.tgsp", results / "moe/moe_config.json"):
            content = path.read_bytes()
            assert [secret for secret in secrets if secret.encode() in content] == []


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
    """The same held-out records, prompts and draws: equal to the last bit, although another process measured."""
    folder = finished.folder / "results/experts/banking_expert"
    evaluation = json.loads((folder / "evaluation.json").read_text())["models"]
    rl = json.loads((folder / "rl/rl_metrics.json").read_text())
    sft = json.loads((folder / "sft/training_metrics.json").read_text())
    assert evaluation["sft"]["loss"] == rl["first_val_loss"]
    assert evaluation["reinforce"]["loss"] == rl["final_val_loss"]
    assert evaluation["sft"]["reward"]["mean"] == rl["mean_reward_before"]
    assert evaluation["reinforce"]["reward"]["mean"] == rl["mean_reward_after"]
    assert evaluation["reinforce"]["kl"] == pytest.approx(rl["kl_after"])
    assert sft["total_steps"] == 4


def test_every_expert_was_found_to_answer_alone_as_in_the_mixture(finished):
    report = json.loads((finished.folder / "results/moe/composition.json").read_text())
    assert report["ok"] is True
    assert report["experts"].keys() == set(EXPERTS)
