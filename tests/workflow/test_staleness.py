"""What an edit of the configuration makes stale: the table of the README, line by line."""

import copy

import pytest
from tests.workflow.conftest import TINY

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

EVALUATED = {"evaluate_expert", "select_stage", "export_peft", "seal_package"}
REFINED = {"train_reinforce", "summarize_reinforce"} | EVALUATED
TRAINED = {"train_sft", "summarize_sft"} | REFINED
ASSEMBLED = {"assemble_moe", "check_composition"}


def edited(change):
    configuration = copy.deepcopy(TINY)
    change(configuration)
    return configuration


def stale(project, change):
    """Return the experts each stale rule touches, by rule, without the target rules."""
    project.configure(edited(change))
    experts = ("banking_expert", "investment_expert", "shared_attention")
    return {
        rule: {expert for expert in experts if any(expert in output for output in outputs)}
        for rule, outputs in project.planned().items()
        if rule != "all"
    }


def test_a_training_setting_of_one_expert_makes_its_chain_stale(project):
    planned = stale(project, lambda c: c["experts"]["banking_expert"].update(sft={"learning_rate": 1.0e-3}))
    assert planned.keys() == TRAINED | ASSEMBLED
    assert all(planned[rule] == {"banking_expert"} for rule in TRAINED)


def test_a_setting_of_the_second_stage_leaves_the_first_one_alone(project):
    planned = stale(project, lambda c: c["experts"]["banking_expert"].update(reinforce={"kl_coef": 0.5}))
    assert planned.keys() == REFINED | ASSEMBLED
    assert all(planned[rule] == {"banking_expert"} for rule in REFINED)


def test_how_a_stage_is_selected_seals_again_and_trains_nothing(project):
    """The tiny data may be published, or a choice by held-out records would be refused under privacy."""
    planned = stale(project, lambda c: c["experts"]["banking_expert"].update(select="best"))
    assert planned.keys() == {"select_stage", "export_peft", "seal_package"} | ASSEMBLED
    assert planned["select_stage"] == {"banking_expert"}


def test_a_reward_of_ones_own_is_trained_with_again_when_its_code_changes(project):
    own = project.folder / "own_reward.py"
    own.write_text("def short(prompt, response):\n    return 1 / (1 + len(response))\n")
    project.configure(edited(lambda c: c["experts"]["banking_expert"].update(reinforce={"reward": "own_reward:short"})))
    project.snakemake()
    assert {rule for rule in project.planned() if rule != "all"} == set()
    own.write_text(own.read_text().replace("1 +", "2 +"))
    planned = {rule for rule in project.planned() if rule != "all"}
    assert planned == REFINED | ASSEMBLED


def test_a_limit_on_epsilon_that_nothing_could_keep_is_refused_before_any_job(project):
    project.configure(edited(lambda c: c.update(moe={"max_epsilon": 50.0})))
    done = project.snakemake(flags=("-n",), check=False)
    assert done.returncode != 0
    assert "moe.max_epsilon: 50.0 cannot be kept" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_privacy_setting_of_one_expert_makes_its_chain_stale(project):
    planned = stale(project, lambda c: c["experts"]["shared_attention"].update(privacy={"noise_multiplier": 1.5}))
    assert planned["train_sft"] == {"shared_attention"}


def test_keywords_make_the_package_and_the_assembly_stale(project):
    planned = stale(project, lambda c: c["experts"]["banking_expert"]["routing"].update(keywords=["bank", "cheque"]))
    assert planned == {"seal_package": {"banking_expert"}, **{key: set() for key in ASSEMBLED}}


def test_the_order_of_experts_makes_the_assembly_stale(project):
    def reverse(configuration):
        configuration["experts"] = dict(reversed(configuration["experts"].items()))

    assert stale(project, reverse) == {key: set() for key in ASSEMBLED}


def test_he_config_makes_the_assembly_stale(project):
    planned = stale(project, lambda c: c.update(moe={"he_config": {"scale_bits": 38}}))
    assert planned == {key: set() for key in ASSEMBLED}


@pytest.mark.parametrize(
    "change",
    [
        {"log_steps": 3},
        {"checkpoint_steps": 2},
        {"keep_checkpoints": 5},
        {"checkpoint_minutes": 1.0},
        {"threads": 2},
        {"token_budget": 2048},
    ],
    ids=str,
)
@pytest.mark.parametrize("stage", ["sft", "reinforce"])
def test_operational_settings_make_nothing_stale(project, change, stage):
    assert stale(project, lambda c: c["defaults"][stage].update(change)) == {}


def test_the_order_of_keys_and_the_spelling_of_numbers_make_nothing_stale(project):
    def respell(configuration):
        sft = configuration["defaults"]["sft"]
        configuration["defaults"]["sft"] = dict(reversed(sft.items())) | {"learning_rate": 0.005}
        configuration["defaults"]["adapter"] = {"alpha": 4.0, "rank": 2}
        del configuration["defaults"]["sft"]["batch_size"]
        configuration["defaults"]["sft"].update(micro_batch_size=2, gradient_accumulation=4)
        configuration.update({key: configuration.pop(key) for key in reversed(list(configuration))})

    assert stale(project, respell) == {}


def test_comments_make_nothing_stale(project):
    path = project.folder / "config" / "test.yaml"
    path.write_text("# A remark.\n" + path.read_text())
    assert {rule for rule in project.planned() if rule != "all"} == set()


def test_swapped_numbers_are_noticed(project):
    """Snakemake compares parameters as a set of values: two settings that trade theirs would look unchanged."""
    planned = stale(project, lambda c: c["defaults"]["sft"].update(max_steps=8, batch_size=4))
    assert len(planned["train_sft"]) == 3


def test_a_data_setting_makes_its_dataset_and_what_is_trained_on_it_stale(project):
    planned = stale(project, lambda c: c["datasets"]["banking"].update(val_fraction=0.2))
    assert planned["train_sft"] == {"banking_expert", "shared_attention"}
    assert "build_demo_base" not in planned


def test_another_publisher_key_seals_again_and_trains_nothing(project, tmp_path):
    project.home = tmp_path / "another home"
    planned = {rule for rule in project.planned() if rule != "all"}
    assert planned == {"seal_package"} | ASSEMBLED


def test_touched_configuration_files_make_nothing_stale(project):
    for path in (project.folder / "config").rglob("*"):
        path.touch()
    for path in (project.folder / "scripts").rglob("*.py"):
        path.touch()
    assert {rule for rule in project.planned() if rule != "all"} == set()
