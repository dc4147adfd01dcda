"""The finished run for the tests of staleness: the configuration in docs/staleness.md."""

import base64
import copy
import json
import shutil
from pathlib import Path

from tests.workflow.conftest import TINY, Project

TOUCHED = ("sft/training_metrics.json", "rl/rl_metrics.json", "evaluation.json", "peft/adapter_config.json")
OWN_REWARD = "def short(prompt, response):\n    return 1 / (1 + len(response))\n"


class Reader(Project):
    """A project with an identity, which can read packages that are encrypted for it."""

    def environment(self, **extra):
        identity = self.home / "recipients" / "reader.pem"
        return super().environment(SEALED_EXPERTS_IDENTITY=str(identity), **extra)


def configuration_of_the_table() -> dict:
    """Return the configuration that the table's edits change."""
    configuration = copy.deepcopy(TINY)
    configuration["datasets"]["letters"] = {"source": "files", "paths": ["data/letters.jsonl"]}
    experts = configuration["experts"]
    experts["investment_expert"]["dataset"] = "letters"
    experts["banking_expert"]["reinforce"] = {"reward": "own_reward:short"}
    experts["banking_expert"]["package"] = {
        "containers": ["tgsp", "expert"],
        "licence": "LicenseRef-own",
        "licence_file": "LICENCE.txt",
    }
    return configuration


def finished_world(finished: Project, tmp_path_factory) -> Project:
    """Make a finished run of that configuration. `--touch` keeps the training of the session's run; other jobs run."""
    folder = finished.copy(tmp_path_factory.mktemp("world") / "a project").folder
    home = tmp_path_factory.mktemp("world_home") / "home"
    shutil.copytree(finished.home, home)
    _own_files(folder)
    Project(folder, home).tool("keys", "create", "--recipient", "--name", "reader")
    shutil.copy2(home / "recipients" / "reader.pub", folder)
    world = Reader(folder, home, warm=finished.warm)
    world.configure(configuration_of_the_table())
    world.snakemake("results/data/letters/stats.json", flags=("--touch", "-R", "prepare_data"))
    made = [path for name in TOUCHED for path in folder.glob(f"results/experts/*/{name}")]
    world.snakemake(*(str(path.relative_to(folder)) for path in made), flags=("--touch",))
    world.snakemake("all", "report_inputs")
    return world


def _own_files(folder: Path) -> None:
    """Write the user's files for that configuration."""
    (folder / "data").mkdir()
    # More than a megabyte: for larger files, Snakemake by default compares only times.
    rows = [
        {"instruction": f"What is letter {number}?", "output": f"It is {number}." + " " * 9000} for number in range(130)
    ]
    for name in ("letters", "more"):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own_reward.py").write_text(OWN_REWARD)
    (folder / "LICENCE.txt").write_text("All rights reserved.\n")
    (folder / "requirements.txt").write_text("torch\n")
    shutil.copytree(folder / "results/base/demo", folder / "my_model")
    shutil.copytree(folder / "results/data/investment", folder / "results/data/letters")


def recorded_jobs(project: Project) -> list[dict]:
    """Return the jobs that Snakemake recorded in a project: their rule, command (`shellcmd`), input, output, log."""
    metadata = project.folder / ".snakemake" / "metadata"
    jobs: dict[str, dict] = {}
    for path in sorted(filter(Path.is_file, metadata.rglob("*"))):
        record = json.loads(path.read_text())
        # The record of a file is named by its path in base64; long names are cut into folders.
        name = "".join(part.removeprefix("@") for part in path.relative_to(metadata).parts)
        job = jobs.setdefault(record["shellcmd"], record | {"output": []})
        job["output"].append(base64.urlsafe_b64decode(name).decode())
    return list(jobs.values())
