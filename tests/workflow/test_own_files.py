"""The user's files decide by their content, whatever their times say, and a job reads what was planned."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.staleness import YEARS_AGO, subject
from tests.workflow.world import Reader, configuration_of_the_table, recorded_jobs

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

CACHE = Path(".snakemake/digests.json")
STATS = "results/data/letters/stats.json"


@pytest.fixture
def own(world, tmp_path):
    """A copy of the finished run with the user's own files."""
    copy = world.copy(tmp_path / "its copy")
    return Reader(copy.folder, world.home, warm=world.warm)


def replaced(path: Path, content: bytes) -> None:
    """Put an older file in a file's place."""
    path.write_bytes(content)
    os.utime(path, (YEARS_AGO, YEARS_AGO))


def jobs(plan) -> set[tuple[str, str]]:
    return {(rule, subject(output)) for rule, outputs in plan.items() for output in outputs}


def test_an_older_data_file_is_used_once_and_its_backup_once_more(own, planner):
    data = own.folder / "data" / "letters.jsonl"
    lines = data.read_bytes().splitlines(keepends=True)
    for kept in (lines[:-30], lines):
        replaced(data, b"".join(kept))
        assert jobs(planner.plan(own, STATS)[0]) == {("prepare_data", "letters")}
        own.snakemake(STATS)
        assert planner.plan(own, STATS)[0] == {}
        data.touch()
        assert planner.plan(own, STATS)[0] == {}
        made = json.loads((own.folder / STATS).read_text())
        assert made["train"]["records"] + made["val"]["records"] == len(kept)


def test_a_prepared_file_that_another_dataset_reads_brings_it_along_in_the_same_run(own, planner):
    configuration = configuration_of_the_table()
    configuration["datasets"]["again"] = {
        "source": "files",
        "paths": ["results/data/letters/train.jsonl"],
        "val_fraction": 0.5,
    }
    configuration["experts"]["shared_attention"]["dataset"] = "again"
    own.configure(configuration)
    target = "results/data/again/stats.json"
    own.snakemake(target)
    assert planner.plan(own, target)[0] == {}
    data = own.folder / "data" / "letters.jsonl"
    replaced(data, b"".join(data.read_bytes().splitlines(keepends=True)[:-30]))
    assert jobs(planner.plan(own, target)[0]) == {("prepare_data", "letters"), ("prepare_data", "again")}
    own.snakemake(target)
    assert planner.plan(own, target)[0] == {}


def test_a_base_folder_counts_by_content(own, planner):
    own.configure(configuration_of_the_table() | {"base": {"name": "my_model"}})
    target = "results/base/my_model/base.json"
    own.snakemake(target)
    assert planner.plan(own, target)[0] == {}
    weights = own.folder / "my_model" / "model.safetensors"
    weights.touch()
    assert planner.plan(own, target)[0] == {}
    content = weights.read_bytes()
    weights.unlink()  # it is linked to the fetched one
    replaced(weights, content[:-4] + bytes(4))
    plan, _ = planner.plan(own)
    assert plan["fetch_base_model"] == {target}
    assert {"prepare_data", "train_sft", "seal_package", "assemble_moe"} <= plan.keys()


def test_a_recipients_key_counts_by_content(own, planner):
    own.home = shutil.copytree(own.home, own.folder.parent / "home")
    for name in ("colleague", "successor"):
        own.tool("keys", "create", "--recipient", "--name", name)
    key = own.folder / "colleague.pub"
    shutil.copy(own.home / "recipients" / "colleague.pub", key)
    configuration = configuration_of_the_table()
    configuration["experts"]["investment_expert"]["package"] = {"recipients": ["reader.pub", "colleague.pub"]}
    own.configure(configuration)
    package = "results/packages/investment_expert.tgsp"
    own.snakemake(package)
    key.touch()
    assert planner.plan(own, package)[0] == {}
    replaced(key, (own.home / "recipients" / "successor.pub").read_bytes())
    assert jobs(planner.plan(own, package)[0]) == {("seal_package", "investment_expert")}


@pytest.mark.parametrize(
    ("rule", "owner", "file"),
    [
        ("build_demo_base", "", "config/demo/banking/loans.yaml"),
        ("prepare_data", "letters", "data/letters.jsonl"),
        ("train_reinforce", "banking_expert", "own_reward.py"),
        ("evaluate_expert", "banking_expert", "own_reward.py"),
        ("seal_package", "banking_expert", "LICENCE.txt"),
    ],
)
def test_a_job_refuses_a_file_that_changed_after_it_was_planned(own, rule, owner, file):
    """Run the job's recorded command, as Snakemake would with the digests of its plan."""
    job = next(job for job in recorded_jobs(own) if job["rule"] == rule and subject(job["output"][0]) == owner)
    for output in job["output"]:
        (own.folder / output).unlink()  # as Snakemake does
    with open(own.folder / file, "a") as stream:
        stream.write("\n")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", job["shellcmd"]],
        cwd=own.folder,
        env=own.environment(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]), **own.warm),
        check=False,
    )
    log = (own.folder / job["log"][0]).read_text()
    assert done.returncode == 1, log
    assert f"error: {file}: the content changed after this run was planned" in log
    assert "Traceback" not in log
    assert not [output for output in job["output"] if (own.folder / output).exists()]


def test_without_snakemakes_records_a_newer_file_is_still_noticed(own, planner):
    shutil.rmtree(own.folder / ".snakemake")
    assert planner.plan(own)[0] == {}
    (own.folder / "own_reward.py").touch()
    assert ("train_reinforce", "banking_expert") in jobs(planner.plan(own)[0])


def test_a_broken_cache_changes_no_plan(own, planner):
    (own.folder / CACHE).write_text("{")
    assert planner.plan(own)[0] == {}
    assert json.loads((own.folder / CACHE).read_text())["digests"]


@pytest.mark.parametrize("flag", ["--list-rules", "--lint"])
def test_without_a_plan_no_file_is_read_for_its_digest(own, flag):
    (own.folder / CACHE).unlink()
    own.snakemake(flags=(flag,))
    assert not (own.folder / CACHE).exists()


def test_a_missing_licence_is_named_in_plain_words(own):
    (own.folder / "LICENCE.txt").unlink()
    done = own.snakemake(flags=("-n",), check=False)
    assert done.returncode != 0
    assert "LICENCE.txt" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
