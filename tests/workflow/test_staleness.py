"""What an edit makes stale: check each line of the table in docs/staleness.md by a dry-run after one finished run."""

import collections
import re

import pytest

from tests.workflow import staleness
from tests.workflow.world import configuration_of_the_table, recorded_jobs

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

RULES = staleness.rules_by_column()
LINES = staleness.lines()
ALL = ("all", "report_inputs")
EXPERTS = ("banking_expert", "investment_expert", "shared_attention")


def jobs(plan) -> set[tuple[str, str]]:
    """Return the planned jobs as (rule, owner)."""
    return {(rule, staleness.subject(output)) for rule, outputs in plan.items() for output in outputs}


def expected(line: staleness.Line, configuration: dict) -> set[tuple[str, str]]:
    """Return the jobs that a line of the table promises, as (rule, owner)."""
    experts, datasets = configuration["experts"], configuration["datasets"]
    of = {*experts, *datasets} if line.of == ("all",) else set(line.of)
    assert of <= {*experts, *datasets}, line
    contained = {name: expert.get("package", {}).get("containers", []) for name, expert in experts.items()}
    having = {
        "base": {""},
        "moe": {""},
        "data": datasets.keys() & of,
        "rl": {name for name, expert in experts.items() if "reinforce" in expert.get("stages", [])} & of,
        "expert": {name for name, containers in contained.items() if "expert" in containers} & of,
    }
    base = "build_demo_base" if configuration["base"]["name"] == "demo" else "fetch_base_model"
    return {
        (rule, name)
        for column in line.columns
        for rule in ([base] if column == "base" else RULES[column])
        for name in having.get(column, experts.keys() & of)
    }


def test_a_finished_run_has_nothing_to_do(world, planner):
    assert planner.plan(world, *ALL)[0] == {}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.title)
def test_what_the_line_says_runs_again_and_nothing_else(world, planner, tmp_path, line):
    configuration, home = staleness.changed(configuration_of_the_table(), line.edits), world.home
    world.configure(configuration)
    try:
        with staleness.edited_files(world, line.edits, aside=tmp_path / "aside"):
            world.home = tmp_path / "another home" if ("use another key", "") in line.edits else home
            plan, _ = planner.plan(world)
    finally:
        world.home = home
        world.configure(configuration_of_the_table())
    assert jobs(plan) == expected(line, configuration)


def test_a_raised_revision_makes_its_stages_stale(world, planner, tmp_path):
    stages = "scripts/sealed_experts/training/objectives/sft.py"
    with staleness.edited_files(world, (("edit", stages),), aside=tmp_path / "aside"):
        text = (world.folder / stages).read_text()
        raised, count = re.subn(r"(revision: ClassVar\[int\] =) (\d+)", r"\1 1000", text, count=1)
        (world.folder / stages).write_text(raised)
        plan, _ = planner.plan(world)
    assert count == 1
    assert {name for rule, name in jobs(plan) if rule == "train_sft"} == set(EXPERTS)


def test_a_limit_on_epsilon_that_nothing_could_keep_is_refused_before_any_job(world, planner):
    world.configure(configuration_of_the_table() | {"moe": {"max_epsilon": 50.0}})
    try:
        plan, printed = planner.plan(world, check=False)
    finally:
        world.configure(configuration_of_the_table())
    assert plan == {}
    assert "moe.max_epsilon: 50.0 cannot be kept" in printed
    assert "Traceback" not in printed


# Deleting


def downstream(world) -> dict[str, set[str]]:
    """For every declared output: all outputs of the recorded jobs that make it or are made from it."""
    recorded = recorded_jobs(world)
    users = collections.defaultdict(list)
    for job in recorded:
        for path in job["input"]:
            users[path].append(job)
    found = {}
    for job in recorded:
        waiting, reached = [job], []
        while waiting:
            reached.append(waiting.pop())
            following = [user for path in reached[-1]["output"] for user in users[path]]
            waiting += [user for user in following if user not in reached and user not in waiting]
        for output in job["output"]:
            found[output] = {path for user in reached for path in user["output"]}
    return found


def test_any_deleted_artifact_is_made_again_and_what_is_made_from_it(world, planner, tmp_path):
    needed = downstream(world)
    declared = {path for path in needed if (world.folder / path).exists()}
    assert len(declared) > 45
    for output in sorted(declared):
        with staleness.edited_files(world, (("delete", output),), aside=tmp_path / "aside"):
            plan, _ = planner.plan(world, *ALL)
        assert set().union(*plan.values()) == needed[output], output


@pytest.mark.parametrize(
    ("lost", "target", "rules"),
    [
        ("results/experts/banking_expert/sft/adapter_final.pt", None, {"train_sft"}),
        ("results/data/letters/stats.json", None, {"prepare_data"}),
        ("results/data/letters/stats.json", "data", {"prepare_data"}),
        ("results/base/demo/model.safetensors", "data", {"build_demo_base", "prepare_data"}),
    ],
)
def test_a_lost_artifact_asked_for_by_name_or_as_data_comes_back_alone(world, planner, tmp_path, lost, target, rules):
    with staleness.edited_files(world, (("delete", lost),), aside=tmp_path / "aside"):
        plan, _ = planner.plan(world, target or lost)
    assert plan.keys() == rules
    assert lost in set().union(*plan.values())
