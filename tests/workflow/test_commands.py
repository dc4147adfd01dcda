"""Snakemake's own commands on this workflow: targets, -R, --until, --touch, --lint, every shipped configuration."""

import copy
import shutil
import subprocess

import pytest
import yaml

from tests.workflow import staleness
from tests.workflow.conftest import ROOT, TINY, new_project
from tests.workflow.world import configuration_of_the_table

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

BEFORE_STAGES = {"build_demo_base", "prepare_data"}
SFT = {"train_sft", "summarize_sft"}
REINFORCE = {"train_reinforce", "summarize_reinforce"}
SEALED = {"select_stage", "export_peft", "evaluate_expert", "seal_package"}
EVERYTHING = BEFORE_STAGES | SFT | REINFORCE | SEALED | {"seal_expert", "assemble_moe", "check_composition"}
# `demo.yaml` and similar files are overlays; the others are complete configurations.
CONFIGURATIONS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "config").glob("*.yaml"))}
WHOLE = [name for name, configuration in CONFIGURATIONS.items() if "experts" in configuration]
OVERLAYS = [name for name in CONFIGURATIONS if name not in WHOLE]
COMBINATIONS = [
    (name, overlays) for name in WHOLE for overlays in [(), *((overlay,) for overlay in OVERLAYS), tuple(OVERLAYS)]
]


@pytest.mark.parametrize(
    ("target", "rules"),
    [
        ("data", BEFORE_STAGES),
        ("sft", BEFORE_STAGES | SFT),
        ("reinforce", BEFORE_STAGES | REINFORCE | {"train_sft"}),
        ("packages", EVERYTHING - {"assemble_moe", "check_composition"}),
        ("moe", EVERYTHING - {"seal_expert", "check_composition"}),
        ("all", EVERYTHING),
    ],
)
def test_a_target_asks_for_its_artifacts_and_what_they_need(world, planner, target, rules):
    plan, _ = planner.plan(world, target, flags=("--forceall",))
    assert plan.keys() == rules


def test_r_runs_a_rule_again_and_what_follows(world, planner):
    plan, _ = planner.plan(world, flags=("-R", "train_reinforce"))
    follows = REINFORCE | SEALED | {"seal_expert", "assemble_moe", "check_composition"}
    assert plan.keys() == follows
    assert {staleness.subject(output) for rule in REINFORCE | SEALED for output in plan[rule]} == {"banking_expert"}


def test_until_stops_after_a_rule(world, planner):
    edit = (("set", "defaults.sft.max_steps: 3"),)
    world.configure(staleness.changed(configuration_of_the_table(), edit))
    try:
        plan, _ = planner.plan(world, flags=("--until", "train_sft"))
    finally:
        world.configure(configuration_of_the_table())
    assert plan.keys() == {"train_sft"}
    assert len(plan["train_sft"]) == 3


@pytest.mark.parametrize(("name", "overlays"), COMBINATIONS, ids=str)
def test_every_shipped_configuration_plans_a_whole_run(planner, tmp_path, name, overlays):
    project = new_project(tmp_path / "fresh", tmp_path / "home")
    for dataset in CONFIGURATIONS[name]["datasets"].values():
        for path in dataset.get("paths", []):  # the user's files; planning only counts their lines
            (project.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (project.folder / path).write_text("{}\n" * 10_000)
    plan, printed = planner.plan(project, config=name, overlays=overlays)
    experts = CONFIGURATIONS[name]["experts"]
    assert plan["assemble_moe"] == {"results/moe/moe_config.json"}
    assert plan["seal_package"] == {f"results/packages/{expert}.tgsp" for expert in experts}
    base = "build_demo_base" if "build_demo_base" in plan else "fetch_base_model"
    assert plan.keys() | {base} >= EVERYTHING - {"build_demo_base", "seal_expert"}
    assert "Traceback" not in printed
    assert not (project.folder / "results").exists()


def test_the_configurations_are_found():
    assert {"config.yaml", "finance-qwen2.5-1.5b.yaml"} <= set(WHOLE)
    assert {"demo.yaml", "without-privacy.yaml"} <= set(OVERLAYS)


def test_the_linter_has_nothing_to_say(world):
    done = world.snakemake(flags=("--lint",), check=False)
    assert (done.returncode, "Congratulations" in done.stdout + done.stderr) == (0, True), done.stdout + done.stderr


# Commands that change files, on a copy


def contents(project, *patterns):
    paths = [path for pattern in patterns for path in project.folder.glob(pattern)]
    assert paths
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_touch_declares_finished_what_an_edit_made_stale(project, planner):
    configuration = copy.deepcopy(TINY)
    configuration["experts"]["banking_expert"]["sft"] = {"learning_rate": 1.0e-3}
    project.configure(configuration)
    assert "train_sft" in planner.plan(project)[0]
    before = contents(project, "results/**/*.pt", "results/**/*.safetensors", "results/**/*.json*")
    project.snakemake(flags=("--touch",))
    assert planner.plan(project)[0] == {}
    assert {path: path.read_bytes() for path in before} == {path: content for path, (content, _) in before.items()}


def test_a_target_makes_only_what_is_missing(project, planner):
    packages = contents(project, "results/packages/*.tgsp", "results/moe/*.json")
    lost = project.folder / "results/packages/banking_expert.tgsp"
    lost.unlink()
    project.snakemake("packages")
    now = contents(project, "results/packages/*.tgsp", "results/moe/*.json")
    assert {path for path in packages if now[path] != packages[path]} == {lost}
    assert planner.plan(project)[0].keys() <= {"assemble_moe", "check_composition"}


def test_a_prepared_file_that_comes_back_by_name_makes_nothing_after_it_stale(project, planner):
    lost = project.folder / "results/data/investment/stats.json"
    before = lost.read_bytes()
    lost.unlink()
    project.snakemake(str(lost.relative_to(project.folder)))
    assert lost.read_bytes() == before
    assert planner.plan(project)[0] == {}


def test_a_lost_adapter_comes_back_from_its_last_checkpoint(project):
    """Training is not repeated: the checkpoint holds everything."""
    from sealed_experts.training.checkpoints import load_state, tensors_digest

    folder = project.folder / "results/experts/investment_expert"
    lost = folder / "sft/adapter_final.pt"
    before = tensors_digest(load_state(lost)["model_state_dict"])
    lost.unlink()
    project.snakemake("results/experts/investment_expert/sft/adapter_final.pt")
    assert "resumed after step 4 of 4" in (folder / "logs/train_sft.log").read_text()
    assert tensors_digest(load_state(lost)["model_state_dict"]) == before


def test_nothing_is_stale_after_git_checkout(world, planner, tmp_path):
    """Git gives a new time to every file that it writes."""
    project = world.copy(tmp_path / "repository")
    written = ["config", "data", "rules", "scripts", "Snakefile", "own_reward.py", "LICENCE.txt"]

    def git(*words):
        identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
        done = subprocess.run(
            ["git", *identity, *words], cwd=project.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    git("init", "--quiet", "--initial-branch=main")
    git("add", *written)
    git("commit", "--quiet", "--message=one")
    git("checkout", "--quiet", "--orphan", "empty")
    git("rm", "-r", "--quiet", "--force", *written)
    assert not (project.folder / "Snakefile").exists()
    shutil.copy2(ROOT / "LICENSE", project.folder)
    git("add", "LICENSE")
    git("commit", "--quiet", "--message=other")
    made = (project.folder / "results/moe/moe_config.json").stat().st_mtime
    git("checkout", "--quiet", "main")
    assert all((project.folder / name).stat().st_mtime > made for name in ("Snakefile", "data/letters.jsonl"))
    assert planner.plan(project)[0] == {}
