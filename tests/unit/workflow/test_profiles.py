"""What the profiles promise about retries and GPUs, held against the rules."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
RULES = {path: path.read_text() for path in (ROOT / "rules").glob("*.smk")}


def profile(name):
    return yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())


def rules_with_a_gpu():
    """Names of the rules whose resources hold `gpu`."""
    found = set()
    for text in RULES.values():
        for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", text, flags=re.MULTILINE):
            if re.search(r"^ +gpu=", body, flags=re.MULTILINE):
                found.add(name)
    return found


def test_failed_jobs_are_submitted_again_under_slurm_only():
    assert profile("slurm")["retries"] == 5
    assert profile("default")["retries"] == 0
    # In a rule it would beat the command line, and run again inside the same allocation.
    assert not [path.name for path, text in RULES.items() if re.search(r"^\s+retries:", text, flags=re.MULTILINE)]


def test_the_slurm_profile_gives_a_gpu_to_the_rules_that_use_one_and_to_no_other():
    given = {rule for rule, resources in profile("slurm")["set-resources"].items() if resources.get("gpu")}
    assert given == rules_with_a_gpu() >= {"train_sft", "train_reinforce"}
    assert "gpu" not in profile("slurm")["default-resources"]


def test_nothing_in_the_slurm_profile_limits_the_whole_runs_gpus():
    assert not {"resources", "res", "cores", "max-threads"} & set(profile("slurm"))


def test_the_slurm_profile_warns_what_can_save():
    warned = {rule for rule, asked in profile("slurm")["set-resources"].items() if "--signal=USR1@" in str(asked)}
    assert warned == {rule for rule in rules_with_a_gpu() if rule.startswith("train_")}


def test_the_slurm_profile_says_how_long_and_how_much():
    for asked in (profile("slurm")["default-resources"], *profile("slurm")["set-resources"].values()):
        assert {"mem_mb", "runtime", "slurm_partition"} <= set(asked)
    assert profile("slurm")["latency-wait"] >= 60


def test_the_way_from_a_login_node_to_results_is_ten_lines_that_set_what_the_profile_reads():
    first = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(), flags=re.DOTALL)[1]
    assert len(first.splitlines()) <= 10
    read = set(re.findall(r"environ\.get\('(\w+)'", (ROOT / "profiles" / "slurm" / "config.yaml").read_text()))
    assert set(re.findall(r"^export (\w+)=", first, flags=re.MULTILINE)) == read
    assert "--workflow-profile profiles/slurm" in first
    config = re.search(r"--configfile (\S+)", first)[1]
    assert (ROOT / config).is_file()
