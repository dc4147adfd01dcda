# Wildcard constraints and the functions that rules ask for their inputs, parameters and resources. No rules.
import functools
import glob
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from snakemake.exceptions import WorkflowError

from sealed_experts.data.sources import dataset_bounds
from sealed_experts.errors import UserError
from sealed_experts.machine import has_nvidia_device
from sealed_experts.progress import stage_folder
from sealed_experts.sealing.keys import ensure_publisher_key

# Plain names such as `chain` are those of Snakemake itself, whose module these files share.
from sealed_experts.settings import chain as settings_chain
from sealed_experts.settings.crosschecks import check_dataset_sizes
from sealed_experts.settings.reading import load as load_settings

# Jobs call plain `python`: with the running interpreter's folder first, that is the one that has the packages, also
# when no environment is activated. A conda environment of a rule still comes before it.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))


try:
    SETTINGS = load_settings(
        [Path(path) for path in workflow.configfiles],
        root=Path.cwd(),
        extra=workflow.config_settings.config,
    )
    check_dataset_sizes(SETTINGS, dataset_bounds(SETTINGS.datasets), exact=False)
except UserError as error:
    sys.exit(f"error: {error}")

EXPERTS = [expert.name for expert in SETTINGS.experts]
EXPERT = {expert.name: expert for expert in SETTINGS.experts}
BASE = settings_chain.base_key(SETTINGS.base)
BASE_MANIFEST = f"results/base/{BASE}/base.json"


wildcard_constraints:
    expert=r"[a-z0-9][a-z0-9_-]*",
    dataset=r"[a-z0-9][a-z0-9_-]*",
    base=r"[a-z0-9][a-z0-9._-]*",


def stages_of(expert):
    return list(EXPERT[expert].stages)


def per_expert(pattern):
    return expand(pattern, expert=EXPERTS)


def stage_artifacts(stage):
    """The adapter and the metrics of a stage, of every expert that has it."""
    having = [expert for expert in EXPERTS if stage in stages_of(expert)]
    folder = stage_folder(stage)
    return expand(
        f"results/experts/{{expert}}/{folder}/{{file}}",
        expert=having,
        file=STAGE_FILES[stage],
    )


STAGE_FILES = {"sft": ["adapter_final.pt", "training_metrics.json"]}


# Inputs


def split_of(name):
    """An expert's training or validation records."""
    return lambda wildcards: f"results/data/{EXPERT[wildcards.expert].dataset}/{name}.jsonl"


def dataset_files(wildcards):
    """What a dataset is made from: its files, or the demo's facts."""
    settings = SETTINGS.datasets[wildcards.dataset]
    if settings.source == "demo":
        return DEMO_FACTS
    return list(settings.paths) if settings.source == "files" else []


def dataset_parts(wildcards):
    """The prepared files of the datasets that a combined one holds."""
    settings = SETTINGS.datasets[wildcards.dataset]
    names = settings.of if settings.source == "combined" else []
    return expand("results/data/{part}/{file}.jsonl", part=names, file=["train", "val"])


DEMO_FACTS = sorted(path for path in glob.glob("config/demo/**", recursive=True) if Path(path).is_file())


def stage_metrics(wildcards):
    return [
        f"results/experts/{wildcards.expert}/{stage_folder(stage)}/training_metrics.json"
        for stage in stages_of(wildcards.expert)
    ]


# Parameters: canonical JSON, so that neither the order of keys nor the spelling of a number makes a file stale.


def stage_settings(stage):
    return lambda wildcards: settings_chain.stage_settings(SETTINGS, wildcards.expert, stage)


def stage_operation(stage):
    # A function that takes `output` is not tracked: an operational setting makes nothing stale.
    return lambda wildcards, output: settings_chain.stage_operation(SETTINGS, wildcards.expert, stage)


def base_settings(wildcards):
    return settings_chain.base_settings(SETTINGS)


def base_operation(wildcards, output):
    return settings_chain.base_operation(SETTINGS)


def dataset_settings(wildcards):
    return settings_chain.dataset_settings(SETTINGS, wildcards.dataset)


def package_settings(wildcards):
    return settings_chain.package_settings(SETTINGS, wildcards.expert)


@functools.cache
def publisher():
    """The fingerprint of the key that seals; made on first use, but not by a dry-run."""
    try:
        return ensure_publisher_key(create=not workflow.dryrun)
    except UserError as error:
        raise WorkflowError(str(error))


def moe_settings(wildcards):
    return settings_chain.moe_settings(SETTINGS)


# Resources


GPUS = {"cpu": 0, "cuda": 1, "auto": int(has_nvidia_device())}[SETTINGS.device]


def gpus(wildcards):
    return GPUS


def memory_mb(first):
    """Megabytes of a job: `first`, and as much again for every attempt after a failure."""
    return lambda wildcards, attempt: first * attempt
