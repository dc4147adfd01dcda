"""A user's files and base folder, release mode, and every kind of mistake, reported before the first job."""

import copy
import csv
import json
import shutil
import stat
from pathlib import Path

import pytest

from tests.workflow.conftest import TINY, Project

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


@pytest.fixture
def own(finished, tmp_path) -> Project:
    """A clean copy of the tree with data files and a base folder of the user's."""
    project = finished.copy(tmp_path / "own")
    base = tmp_path / "my model"
    shutil.copytree(project.folder / "results" / "base" / "demo", base)
    (base / "base.json").unlink()
    shutil.rmtree(project.folder / "results")
    shutil.rmtree(project.folder / ".snakemake")
    data = project.folder / "data"
    data.mkdir()
    # Three loans of the last customers are in both files, so they cannot be test records.
    for name, numbers in (("loans", range(90)), ("loans_test", range(87, 120))):
        with open(data / f"{name}.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["question", "answer", "customer"])
            writer.writeheader()
            for index in numbers:
                row = {"question": f"What is loan {index}?", "answer": f"It is number {index}.", "customer": index // 3}
                writer.writerow(row)
    for name, numbers in (("cases", range(60)), ("public", range(59, 75))):
        lines = [{"question": f"How is case {index} settled?", "answer": f"By rule {index}."} for index in numbers]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    configuration = copy.deepcopy(TINY)
    configuration["base"] = {"name": str(base)}
    fields = {"instruction": "question", "output": "answer"}
    configuration["datasets"] = {
        "loans": {
            "source": "files",
            "paths": ["data/loans.csv"],
            "test_paths": ["data/loans_test.csv"],
            "fields": fields,
            "unit": "customer",
            "val_fraction": 0.3,
        },
        "cases": {"source": "files", "paths": ["data/cases.jsonl"], "fields": fields, "val_fraction": 0.3},
        "public": {
            "source": "files",
            "paths": ["data/public.jsonl"],
            "fields": fields,
            "val_fraction": 1,
            "public_evaluation": True,
        },
    }
    configuration["defaults"]["privacy"] = {"max_grad_norm": 0.5, "delta": 1.0e-3, "target_epsilon": 50.0}
    configuration["defaults"]["sft"]["batch_size"] = 4
    configuration["experts"] = {
        "loans_expert": {"dataset": "loans", "routing": {"keywords": ["loan"]}},
        "cases_expert": {
            "dataset": "cases",
            "validation": "public",
            "privacy": {"enabled": False},
            "template": "chatml",
            "routing": {"always_active": True},
        },
    }
    project.configuration = configuration
    project.configure(configuration)
    return project


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.slow)])
def test_own_files_and_an_own_base_folder_end_in_a_mixture(own, planner, start):
    if start == "cold":
        own.warm = {}
    own.snakemake("all", "report_inputs")
    results = own.folder / "results"
    config = json.loads((results / "moe" / "moe_config.json").read_text())
    assert config["model"] == "my model"
    loans = json.loads((results / "experts/loans_expert/sft/training_metrics.json").read_text())
    assert loans["privacy"]["unit"] == "field:customer"
    assert 15 <= loans["privacy"]["units"] <= 29
    assert 0 < loans["privacy"]["epsilon"] <= 50
    cases = json.loads((results / "experts/cases_expert/sft/training_metrics.json").read_text())
    assert cases["privacy"]["enabled"] is False
    stated = {name: private["epsilon"] for name, private in config["privacy"]["experts"].items()}
    assert stated == {"loans_expert": loans["privacy"]["epsilon"], "cases_expert": None}
    (key,) = (results / "experts/loans_expert/sft/checkpoints").glob("*/key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    answer = own.tool("ask", str(results / "moe/moe_config.json"), "What is loan 7?", "--json", "--max-new-tokens", "4")
    assert json.loads(answer.stdout)["expert"] == "loans_expert"
    private = own.tool("inspect", str(results / "packages/loans_expert.tgsp"))
    assert str(loans["final_val_loss"])[:6] not in private.stdout
    assert str(own.folder) not in private.stdout
    assert (results / "experts/cases_expert/sft/curves.svg").stat().st_size > 1000
    check_held_out_sets(own, results)
    own.snakemake("report_inputs", flags=("--report", "results/report.html"))
    assert (results / "report.html").stat().st_size > 10_000
    # The user's base counts like a data file: by its content.
    config = Path(own.configuration["base"]["name"]) / "config.json"
    config.touch()
    assert planner.plan(own)[0] == {}
    config.write_text(config.read_text() + "\n")
    plan, _ = planner.plan(own)
    assert plan["fetch_base_model"] == {"results/base/my-model/base.json"}
    assert {"prepare_data", "train_sft", "assemble_moe"} <= plan.keys()


def check_held_out_sets(own, results):
    """The loans have a separate test file; the cases are validated on public records, so their package may state it."""

    def lines(name):
        return [json.loads(line) for line in (results / "data" / name).read_text().splitlines()]

    def of(name):
        package = own.tool("inspect", str(results / f"packages/{name}_expert.tgsp"), "--json")
        return json.loads((results / f"experts/{name}_expert/evaluation.json").read_text()), json.loads(package.stdout)

    limit = own.configuration["defaults"]["sft"]["eval_examples"]
    stats, test = json.loads((results / "data/loans/stats.json").read_text()), lines("loans/test.jsonl")
    assert stats["test"]["records"] == len(test) == 33 - stats["dropped_from_test"]
    assert not {line["id"] for line in test} & {line["id"] for line in lines("loans/train.jsonl")}
    evaluation, package = of("loans")
    units = len({line["unit"] for line in test[:limit]})
    assert (evaluation["dataset"], evaluation["records"]["units"]) == ("loans", units)
    assert package["manifest"]["quality"]["published"] is False

    assert not (results / "data/cases/test.jsonl").exists()
    assert lines("public/train.jsonl") == []
    assert len(lines("public/val.jsonl")) == 16
    evaluation, package = of("cases")
    assert (evaluation["dataset"], evaluation["records"]["held_out"]) == ("public", limit)
    assert package["manifest"]["quality"]["published"] is True
    assert package["manifest"]["training"]["datasets"][0].keys() == {"hmac_sha256"}


def test_bad_rows_are_listed_with_file_and_line_and_too_many_stop_the_run(own):
    with open(own.folder / "data" / "cases.jsonl", "a") as stream:
        stream.write('{"question": "half a li\n{"question": "no answer", "answer": ""}\n')
    done = own.snakemake("results/data/cases/stats.json", check=False)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    for place in ("data/cases.jsonl:61", "data/cases.jsonl:62", "max_bad_share"):
        assert place in text
    own.configuration["datasets"]["cases"]["max_bad_share"] = 0.2
    own.configure(own.configuration)
    own.snakemake("results/data/cases/stats.json")
    stats = json.loads((own.folder / "results/data/cases/stats.json").read_text())
    assert stats["bad_rows"]["count"] == 2


def test_mistakes_are_all_told_at_once_before_any_job(own):
    configuration = own.configuration
    configuration["defaults"]["sft"]["learning_rate"] = "1e-4"
    configuration["defaults"]["sft"]["max_step"] = 3
    configuration["experts"]["loans_expert"]["dataset"] = "loan"
    configuration["experts"]["cases_expert"]["adapter"] = {"kind": "lorra", "target_modules": ["q_prj"]}
    own.configure(configuration)
    done = own.snakemake(check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in text
    for told in ("1.0e-4", "`max_steps`", "`loans`", "lora", "`q_proj`"):
        assert told in text, text
    assert not (own.folder / "results").exists()


def test_a_batch_that_the_data_cannot_fill_is_refused_before_any_job(own):
    own.configuration["defaults"]["sft"]["batch_size"] = 5000
    own.configuration["defaults"]["privacy"]["delta"] = 1.0e-5
    own.configure(own.configuration)
    done = own.snakemake(check=False)
    assert "must be smaller than the dataset" in done.stdout + done.stderr
    assert not (own.folder / "results").exists()


def test_a_missing_file_is_named_before_any_job(own):
    own.configuration["datasets"]["loans"]["paths"] = ["data/laons.csv"]
    own.configure(own.configuration)
    done = own.snakemake(check=False)
    assert "data/laons.csv" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_hub_model_without_network_is_said_plainly(own):
    own.warm = {}  # no other test starts this script in a process of its own
    own.configuration["base"] = {"name": "some-org/some-model", "revision": "0" * 40, "model_type": "qwen2"}
    own.configure(own.configuration)
    done = own.snakemake("results/base/some-model/base.json", check=False)
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert "cannot be reached" in text
