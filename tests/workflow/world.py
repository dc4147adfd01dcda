"""The finished run whose edits the tests of staleness make: the configuration that docs/staleness.md describes."""

import base64
import copy
import json
import shutil
from pathlib import Path

from tests.workflow.conftest import TINY, Project

TOUCHED = ("sft/training_metrics.json", "rl/rl_metrics.json", "evaluation.json", "peft/adapter_config.json")
OWN_REWARD = "def short(prompt, response):\n    return 1 / (1 + len(response))\n"


class Reader(Project):
    """A project that can read packages which are encrypted for it."""

    def environment(self, **extra):
        identity = self.home / "recipients" / "reader.pem"
        return super().environment(SEALED_EXPERTS_IDENTITY=str(identity), **extra)


def configuration_of_the_table() -> dict:
    """The configuration whose edits the table shows."""
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
    """Make a finished run of that configuration: `--touch` takes the training from the session's run, the rest runs."""
    folder = finished.copy(tmp_path_factory.mktemp("world") / "a project").folder
    home = tmp_path_factory.mktemp("world_home") / "home"
    shutil.copytree(finished.home, home)
    _own_files(folder)
    Project(folder, home).tool("keys", "create", "--recipient", "--name", "reader")
    shutil.copy2(home / "recipients" / "reader.pub", folder)
    world = Reader(folder, home, warm=finished.warm)
    world.configure(configuration_of_the_table())
    made = [path for name in TOUCHED for path in folder.glob(f"results/experts/*/{name}")]
    world.snakemake(*(str(path.relative_to(folder)) for path in made), flags=("--touch",))
    world.snakemake("all", "report_inputs")
    return world


def _own_files(folder: Path) -> None:
    """Write what the user of that configuration has beside the repository."""
    (folder / "data").mkdir()
    # More than a megabyte: above that, Snakemake left to itself looks at times only.
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
        # A file is recorded under its name in base64, cut into folders where that is long.
        name = "".join(part.removeprefix("@") for part in path.relative_to(metadata).parts)
        job = jobs.setdefault(record["shellcmd"], record | {"output": []})
        job["output"].append(base64.urlsafe_b64decode(name).decode())
    return list(jobs.values())
