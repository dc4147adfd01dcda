"""What the profiles and the rules promise about retries, GPUs and clusters."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
RULES = {path: path.read_text() for path in (ROOT / "rules").glob("*.smk")}
VARIABLES = re.compile(r"environ\.get\(\s*['\"](\w+)['\"]|['\"](SEALED_EXPERTS_GPU_\w+|SBATCH_\w+)['\"]")


def profile(name):
    return yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())


def test_failed_jobs_are_submitted_again_under_slurm_only():
    assert profile("slurm")["retries"] == 5
    assert profile("default")["retries"] == 0
    # In a rule it would beat the command line, and run again inside the same allocation.
    assert not [path.name for path, text in RULES.items() if re.search(r"^\s+retries:", text, flags=re.MULTILINE)]


def test_nothing_in_the_slurm_profile_limits_the_whole_runs_gpus():
    assert not {"resources", "res", "cores", "max-threads"} & set(profile("slurm"))
    assert "gpu" not in profile("slurm")["default-resources"]


def test_the_slurm_profile_says_how_long_and_how_much():
    assert {"mem_mb", "runtime", "slurm_partition"} <= set(profile("slurm")["default-resources"])
    assert profile("slurm")["latency-wait"] >= 60


def test_every_rule_with_a_gpu_names_its_partition_and_model():
    for text in RULES.values():
        for resources in re.findall(r"resources:\n((?:\s+[\w#].*\n)+)", text):
            if re.search(r"^\s+gpu=", resources, flags=re.MULTILINE):
                assert {"gpu_model=gpu_model", "slurm_partition=gpu_partition"} <= set(
                    re.findall(r"\w+=\w+", resources)
                )


def test_the_way_from_a_login_node_to_results_is_ten_lines_that_set_what_is_read():
    first = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(), flags=re.DOTALL)[1]
    assert len(first.splitlines()) <= 10
    texts = [(ROOT / "profiles" / "slurm" / "config.yaml").read_text(), RULES[ROOT / "rules" / "common.smk"]]
    read = {name for text in texts for found in VARIABLES.findall(text) for name in found if name}
    assert set(re.findall(r"^export (\w+)=", first, flags=re.MULTILINE)) == read - {"SLURM_JOB_ID"}
    assert "--workflow-profile profiles/slurm" in first
    config = re.search(r"--configfile (\S+)", first)[1]
    assert (ROOT / config).is_file()
