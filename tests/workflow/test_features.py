"""A feature is one file: toys of each of the five kinds are dropped into a copy of the tree, and a run uses them all.

The toys are real, if small: alternate lines of text files, IA3, the focal loss, brevity, and a common first word.
"""

import copy
import json

import pytest

from tests.workflow.conftest import TINY

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

TOYS = {
    "data/sources/alternate_lines.py": '''
"""Questions and answers on alternate lines of text files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.rows import BadRow, Row
from sealed_experts.data.sources import SplitSource
from sealed_experts.settings.fields import Distinct, setting


class AlternateLines(SplitSource):
    """Text files with questions and answers on alternate lines."""

    source: Literal["alternate_lines"] = setting("Text files.", default="alternate_lines")
    texts: Distinct[str] = setting("The files.", min_length=1)

    def read(self, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
        """Yield a record for every two lines."""
        for name in self.texts:
            lines = Path(name).read_text().splitlines()
            for place in range(0, len(lines), 2):
                yield Row(name, place + 1, Instruction.of(instruction=lines[place], output=lines[place + 1]))

    def files(self) -> list[str]:
        """Return the files."""
        return list(self.texts)

    def places(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield every file."""
        for name in self.texts:
            yield f"file {(root / name).resolve()}", name
''',
    "models/adapters/scaling.py": '''
"""IA3: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning" (2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from sealed_experts.models.adapters import OUTPUTS, ModuleAdapter
from sealed_experts.settings.fields import setting


class Scaling(ModuleAdapter):
    """A factor for each output of the target modules."""

    kind: Literal["scaling"] = setting("A factor for each output.", default="scaling")

    marks: ClassVar[Mapping[str, Any]] = {"peft_type": "IA3"}
    config_keys: ClassVar[Mapping[str, str]] = {"target_modules": "target_modules"}
    config_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "feedforward_modules": ([],),
        "fan_in_fan_out": (False,),
        "init_ia3_weights": (True,),
        "modules_to_save": (None,),
        "exclude_modules": (None,),
    }

    def peft_config(self, **where: Any) -> Any:
        """Return PEFT's configuration, without feed-forward modules."""
        config = super().peft_config(**where)
        config.feedforward_modules = set()
        return config

    def tensors(self, module: str) -> Mapping[str, tuple[int | str, ...]]:
        """Return the factors."""
        return {"ia3_l": (OUTPUTS, 1)}
''',
    "training/objectives/focal.py": '''
"""The focal loss: Lin et al., "Focal Loss for Dense Object Detection" (2017), on the tokens of answers."""

from typing import Any

from sealed_experts.settings.fields import setting
from sealed_experts.training.objectives import Stage
from sealed_experts.training.objectives.sft import SupervisedFineTuning


class Focal(Stage):
    """Fine-tuning that looks more at unlikely tokens."""

    batch_size: int = setting("Examples a step.", default=8, ge=1)
    max_steps: int = setting("Optimizer steps.", default=10, ge=1)
    gamma: float = setting("Exponent of a token's weight.", default=2.0, ge=0, public=True)

    def objective(self, materials: Any) -> "FocalLoss":
        """Return the loss."""
        return FocalLoss(gamma=self.gamma, max_seq_len=self.max_seq_len)


class FocalLoss(SupervisedFineTuning):
    """The mean over an answer's tokens of (1 - p)^gamma · (-log p)."""

    def __init__(self, *, gamma: float, max_seq_len: int) -> None:
        super().__init__(max_seq_len=max_seq_len)
        self._gamma = gamma

    def per_example_loss(self, model: Any, batch: Any, constants: Any) -> Any:
        """Return each unit's loss."""
        from sealed_experts.training.response import response_logits

        response = response_logits(model, batch)
        losses = response.losses()
        return batch.by_unit(response.row_means((1 - (-losses).exp()) ** self._gamma * losses)), {}
''',
    "rewards/brevity.py": '''
"""Short answers."""

from typing import ClassVar

from sealed_experts.rewards import Reward


class Brevity(Reward):
    """The fewer letters, the better."""

    about: ClassVar[str] = "short answers"

    def measure(self, response: str) -> float:
        """Return 1 for an empty answer, less for a longer one."""
        return 1 / (1 + len(response))
''',
    "metrics/same_start.py": '''
"""Whether an answer begins as it should."""

from typing import ClassVar

from sealed_experts.metrics import Case, Metric


class SameStart(Metric):
    """Share of answers whose first letter is that of the record's own answer."""

    title: ClassVar[str] = "Same first letter"
    unit: ClassVar[str] = "share of answers"

    def measure(self, case: Case) -> float:
        """Return 1 for the same letter, else 0."""
        return float(case.answer[:1] == case.gold[:1])
''',
}


@pytest.fixture(scope="module")
def toys(finished, tmp_path_factory):
    """A finished run with all toys, and with a stage that learns from preferences and from the toy expert."""
    project = finished.copy(tmp_path_factory.mktemp("toys") / "project")
    for name, text in TOYS.items():
        path = project.folder / "scripts/sealed_experts" / name
        assert not path.exists()
        path.write_text(text.lstrip())
    (project.folder / "lines.txt").write_text("".join(f"What is {n}?\nIt is {n}.\n" for n in range(120)))
    pairs = [{"prompt": f"How is {n}?", "chosen": f"{n} is well", "rejected": f"{n} is ill"} for n in range(120)]
    (project.folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    project.configure(configuration())
    project.snakemake("moe", "results/experts/toy_expert/evaluation.json")
    return project


def configuration():
    described = copy.deepcopy(TINY)
    described["datasets"] = {
        "toy": {"source": "alternate_lines", "texts": ["lines.txt"], "val_fraction": 0.1, "public_evaluation": True},
        "pairs": {"source": "files", "kind": "pair", "paths": ["pairs.jsonl"]},
    }
    described["defaults"]["focal"] = {**described["defaults"].pop("sft"), "gamma": 1.5}
    described["defaults"]["reinforce"]["reward"] = "brevity"
    described["defaults"]["dpo"] = {**described["defaults"]["focal"]}
    del described["defaults"]["dpo"]["gamma"]
    described["experts"] = {
        "toy_expert": {
            "dataset": "toy",
            "adapter": {"kind": "scaling", "target_modules": ["q_proj", "v_proj"]},
            "stages": ["focal", "reinforce"],
            "evaluation": {"metrics": ["loss", "reward", "same_start"]},
            "routing": {"always_active": True},
        },
        "preferring": {
            "dataset": "pairs",
            "stages": ["dpo"],
            "dpo": {"reference": {"expert": "toy_expert", "stage": "focal"}},
            "routing": {"keywords": ["how"]},
        },
    }
    described["defaults"]["adapter"] = {}
    described["experts"]["preferring"]["adapter"] = {"rank": 2, "alpha": 4}
    return described


def read(project, name):
    return json.loads((project.folder / "results" / name).read_text())


def test_a_package_made_with_toys_of_every_kind_verifies(toys):
    package = toys.folder / "results/packages/toy_expert.tgsp"
    toys.tool("verify", str(package))
    manifest = json.loads(toys.tool("inspect", "--json", str(package)).stdout)["manifest"]
    assert manifest["adapter"]["kind"] == "scaling"
    assert manifest["training"]["stages"] == ["focal", "reinforce"]
    answered = toys.tool("ask", "results/moe/moe_config.json", "What is 7?").stdout
    assert "toy_expert" in answered


def test_each_toy_was_used(toys):
    metrics = read(toys, "experts/toy_expert/focal/metrics.json")
    assert metrics["settings"]["training"]["gamma"] == 1.5
    assert 90 < read(toys, "data/toy/stats.json")["train"]["records"] < 120
    assert read(toys, "experts/toy_expert/rl/rl_metrics.json")["reward"] == "brevity"
    models = read(toys, "experts/toy_expert/evaluation.json")["models"]
    assert all("same_start" in model["metrics"] for model in models.values())


def test_a_stage_that_learns_from_another_expert_inherits_its_events(toys):
    theirs = read(toys, "experts/toy_expert/focal/metrics.json")["privacy"]["events"]
    own = read(toys, "experts/preferring/dpo/metrics.json")
    assert own["privacy"]["events"][:-1] == theirs
    assert {"accuracy_before", "accuracy_after", "margin_after"} <= own.keys()
    toys.tool("verify", str(toys.folder / "results/packages/preferring.tgsp"))


def test_an_edit_runs_again_what_depends_on_it(toys, planner):
    """Of the toys' files, and of another expert's stage that an expert learns from."""
    assert planner.plan(toys, "moe")[0] == {}
    changed = configuration()
    changed["defaults"]["focal"]["gamma"] = 0.5
    toys.configure(changed, "changed.yaml")
    planned = planner.plan(toys, "moe", config="changed.yaml")[0]
    assert {"train_focal", "train_reinforce", "train_dpo", "seal_package"} <= planned.keys()
    assert "prepare_data" not in planned
