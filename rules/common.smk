# Wildcard constraints, and the functions that give rules their inputs, parameters and resources. No rules.
import functools
import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake.io import IOFile

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from sealed_experts.configuration import jobs as texts
from sealed_experts.configuration.budget_checks import check_dataset_sizes
from sealed_experts.configuration.held_out import evaluated_on_test_set, publishes_evaluation
from sealed_experts.configuration.model_checks import datasets_behind, models_of
from sealed_experts.configuration.named_features import named_features
from sealed_experts.configuration.resolution import load as load_settings
from sealed_experts.data.demo_glossary import demo_files
from sealed_experts.data.parts import has_test_set
from sealed_experts.data.sources import dataset_bounds
from sealed_experts.errors import UserError
from sealed_experts.features import check_extras
from sealed_experts.files.digest_cache import DigestCache
from sealed_experts.files.planned_digests import digests_text
from sealed_experts.machine import has_nvidia_device
from sealed_experts.models.bases import DEMO, base_key, base_kind, check_package, folder_of, gguf_file, model_files
from sealed_experts.training.objectives import STAGES
from sealed_experts.packages.recipients.own_identity import check_readable
from sealed_experts.packages.keys.private_keys import key_path
from sealed_experts.packages.keys.sealing_key import settle_publisher

from sealed_experts.packages.times import check_times

# Jobs call `python`. Put the folder of the running interpreter first: it has the packages even if no environment is
# active. A rule's conda environment still comes before it.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))

# SLURM sends a warning signal to every process of a job before its time limit. A trainer then saves. Snakemake must
# ignore the signal: otherwise it would end, and SLURM would end the trainer with it.
if "SLURM_JOB_ID" in os.environ:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


try:
    SETTINGS = load_settings(
        [Path(path) for path in workflow.configfiles],
        root=Path.cwd(),
        extra=workflow.config_settings.config,
    )
    check_extras(named_features(SETTINGS))
    check_package(SETTINGS.base)
    check_dataset_sizes(SETTINGS, dataset_bounds(SETTINGS.datasets), exact=False)
    check_times({expert.name: expert.package for expert in SETTINGS.experts}, os.environ)
    # Jobs inherit this variable, so all of them sign with the same key. It is made on first use.
    os.environ.update(SEALED_EXPERTS_KEY=str(key_path().absolute()))
except UserError as error:
    sys.exit(f"error: {error}")

EXPERTS = [expert.name for expert in SETTINGS.experts]


class Configured(dict):
    """Settings by name. The name of a requested file can contain an unknown name."""

    def __init__(self, kind, values):
        super().__init__(values)
        self.kind = kind

    def __missing__(self, name):
        # Snakemake would print an exception together with lines about the rule.
        sys.exit(f"error: no {self.kind} is called `{name}`; configured are: {', '.join(self)}")


EXPERT = Configured("expert", {expert.name: expert for expert in SETTINGS.experts})
DATASET = Configured("dataset", SETTINGS.datasets)
BASE = base_key(SETTINGS.base)
BASE_MANIFEST = f"results/base/{BASE}/base.json"
# The files of the demo base are known in advance. For another base, base.json lists them.
DEMO_BASE_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


NAME = r"[a-z0-9][a-z0-9_-]*"


wildcard_constraints:
    expert=NAME,
    dataset=NAME,
    base=r"[a-z0-9][a-z0-9._-]*",


def stages_of(expert):
    return list(EXPERT[expert].stages)


def combined_of(name):
    return list(SETTINGS.datasets[name].parts())


# Datasets with a test set. They have one more file.
TESTED = [name for name in SETTINGS.datasets if has_test_set(name, SETTINGS.datasets)]


def data_files(name):
    """The prepared files of a dataset."""
    names = ["train.jsonl", "val.jsonl", *(["test.jsonl"] if name in TESTED else []), "stats.json"]
    return [f"results/data/{name}/{file}" for file in names]


def stage_adapter(stage):
    return f"results/experts/{{expert}}/{STAGES[stage].folder()}/{STAGES[stage].adapter_file}"


def stage_metrics(stage):
    return f"results/experts/{{expert}}/{STAGES[stage].folder()}/{STAGES[stage].metrics_file}"


# Inputs


def training_records(wildcards):
    return f"results/data/{EXPERT[wildcards.expert].dataset}/train.jsonl"


def learned_records(wildcards):
    """All records that an expert learned from, including those of the other adapters that it learned from."""
    return [f"results/data/{name}/train.jsonl" for name in datasets_behind(SETTINGS, wildcards.expert)]


def seen_records(wildcards):
    """The same, and the records behind adapters that are declared public."""
    return [f"results/data/{name}/train.jsonl" for name in datasets_behind(SETTINGS, wildcards.expert, public=True)]


def validation_records(stage):
    """The held-out records that a stage is validated on."""
    return lambda wildcards: f"results/data/{EXPERT[wildcards.expert].validation_of(stage)}/val.jsonl"


def evaluation_records(wildcards):
    """The held-out records that an expert is evaluated on."""
    expert = EXPERT[wildcards.expert]
    side = "test" if evaluated_on_test_set(expert, SETTINGS.datasets) else "val"
    return f"results/data/{expert.validation_of()}/{side}.jsonl"


def facts(wildcards):
    """The files that the demo's base is made from."""
    return demo_files()


def base_files(wildcards):
    """The user's files of a base. A base from the hub has none: its revision never changes."""
    kind = base_kind(SETTINGS.base, root=Path.cwd())
    if kind == "gguf":
        return [str(gguf_file(SETTINGS.base, root=Path.cwd()))]
    return [str(path) for path in model_files(folder_of(SETTINGS.base, root=Path.cwd()))] if kind == "folder" else []


def dataset_files(wildcards):
    """The files that a dataset is made from."""
    return DATASET[wildcards.dataset].files()


def dataset_parts(wildcards):
    """The prepared files of the datasets in a combined one; their statistics say what a unit is."""
    return [path for part in combined_of(wildcards.dataset) for path in data_files(part)]


def test_flag(wildcards, output):
    return f"--test {shlex.quote(str(output.test))}" if output.get("test") else ""


def dataset_stats(wildcards):
    return f"results/data/{EXPERT[wildcards.expert].dataset}/stats.json"


def chain_metrics(wildcards):
    return [stage_metrics(stage).format(expert=wildcards.expert) for stage in stages_of(wildcards.expert)]


def chain_adapters(wildcards):
    return [stage_adapter(stage).format(expert=wildcards.expert) for stage in stages_of(wildcards.expert)]


# The distinct chains of stages. The chain of the first expert comes first.
CHAINS = list(dict.fromkeys(tuple(stages_of(expert)) for expert in EXPERTS))


def evaluation_rule(chain):
    return "_".join(["evaluate_expert", *(chain if chain != CHAINS[0] else ())])


def evaluated_by(chain):
    """A pattern for the experts with this chain. For the first chain, it also matches unknown names."""
    others = [expert for expert in EXPERTS if (tuple(stages_of(expert)) == chain) == (chain != CHAINS[0])]
    if chain != CHAINS[0]:
        return "|".join(others)
    return rf"(?!(?:{'|'.join(others)})/)[^/]+" if others else "[^/]+"


def predictions_of(chain):
    return [f"results/experts/{{expert}}/predictions/{model}.jsonl" for model in ("base", *chain)]


def metrics_in(folders):
    """The metrics of the stage that a folder belongs to."""
    return lambda wildcards: stage_metrics(folders[wildcards.folder])


def metrics_before(folders):
    """The metrics of the stages before that one. All stages share the records, so the plot shows their joint ε."""

    def files(wildcards):
        chain = stages_of(wildcards.expert)
        return [stage_metrics(stage) for stage in chain[: chain.index(folders[wildcards.folder])]]

    return files


def stage_before(stage):
    return lambda wildcards: start_of(wildcards.expert, stage)


def start_of(expert, stage):
    """The adapter that a stage of an expert starts from; none for the first stage of the chain."""
    stages = stages_of(expert)
    place = stages.index(stage) if stage in stages else 0
    return [stage_adapter(stages[place - 1]).format(expert=expert)] if place else []


def start_flag(wildcards, input, output):
    # Snakemake does not track a parameter whose function takes `output`. The file itself is an input.
    return f"--start {shlex.quote(str(input.start))}" if input.get("start") else ""


def models_by_setting(expert, stage):
    """The other adapters that a stage learns from, by the names of their settings."""
    models = models_of(SETTINGS, (expert, stage))
    return {name: stage_adapter(made_by).format(expert=owner) for name, (owner, made_by) in models.items()}


def stage_models(stage):
    return lambda wildcards: list(models_by_setting(wildcards.expert, stage).values())


def model_flags(stage):
    # Snakemake does not track a parameter whose function takes `output`. The files are inputs, the names are settings.
    return lambda wildcards, output: " ".join(
        f"--model {name} {shlex.quote(path)}" for name, path in models_by_setting(wildcards.expert, stage).items()
    )


def later_stages(stage):
    """The stages that follow in the chain, with their records: what they would refuse must not cost ε first."""

    # Snakemake does not track a parameter whose function takes `output`: a later setting does not make this stage stale.
    def flags(wildcards, output):
        stages = stages_of(wildcards.expert)
        train, stats = training_records(wildcards), dataset_stats(wildcards)
        return " ".join(
            f"--later {shlex.join([stage_settings(each)(wildcards), train, validation_records(each)(wildcards), stats])}"
            for each in stages[stages.index(stage) + 1 :]
        )

    return flags


def stage_files(stage):
    """Files that decide a stage's numbers besides data and base, such as the code of a reward."""
    return lambda wildcards: EXPERT[wildcards.expert].stage(stage).files()


def chain_files(wildcards):
    return [file for stage in EXPERT[wildcards.expert].training.values() for file in stage.files()]


def package_of(expert):
    return EXPERT[expert].package


def recipients_of(wildcards):
    """The public key files of the package's recipients. Also check that this run can open the package."""
    try:
        check_readable({wildcards.expert: package_of(wildcards.expert).recipients})
    except UserError as error:
        sys.exit(f"error: {error}")
    return list(package_of(wildcards.expert).recipients)


def licence_of(wildcards):
    """The file that becomes LICENSE, if the configuration gives one."""
    return [path for path in [package_of(wildcards.expert).licence_file] if path]


def sealed_files(wildcards):
    """The user's files that sealing reads."""
    return [*licence_of(wildcards), *package_of(wildcards.expert).recipients]


def published_evaluation(wildcards):
    """The evaluation, if it may be published."""
    return f"results/experts/{wildcards.expert}/evaluation.json" if publishes(wildcards.expert) else []


def publishes(expert):
    return publishes_evaluation(EXPERT[expert], SETTINGS.datasets)


def needs_evaluation(expert):
    """Whether a package depends on the evaluation: its stage is chosen by it, or the package publishes it."""
    return EXPERT[expert].select == "best" or publishes(expert)


def own(files, *, made):
    """An input of the user's files, given by the function `files`. The rule also needs the parameter `digests_of(files)`.

    With it the content decides, so the times do not: the files are `ancient`. Snakemake compares parameters with its
    record of the last run, so without a record of the output `made` the times must decide. A file in results/ may come
    from another rule: then it counts as the other results do.
    """

    def paths(wildcards):
        recorded = workflow.persistence.metadata(IOFile(made.format(**dict(wildcards.items()))))
        return [ancient(path) if recorded and not path.startswith("results/") else path for path in files(wildcards)]

    return paths


# Parameters: canonical JSON, so that another order of keys or another way to write a number makes no file stale.


@functools.cache
def digest_cache():
    return DigestCache()


def digests_of(files):
    """The digests of the user's files in an input of a rule.

    They are read when Snakemake compares a job with its last run, and not when it reads the rules. `files` is an input
    function, because Snakemake does not track a parameter whose function takes `input`.
    """

    def text(wildcards):
        try:
            return digests_text(files(wildcards), cache=digest_cache())
        except UserError as error:
            sys.exit(f"error: {error}")

    return text


def stage_settings(stage):
    return lambda wildcards: texts.stage_settings(SETTINGS, wildcards.expert, stage)


def stage_operation(stage):
    # Snakemake does not track a parameter whose function takes `output`: an operational setting makes nothing stale.
    return lambda wildcards, output: texts.stage_operation(SETTINGS, wildcards.expert, stage)


def evaluation_settings(wildcards):
    return texts.evaluation_settings(SETTINGS, wildcards.expert)


def evaluation_operation(wildcards, output):
    # Snakemake does not track a parameter whose function takes `output`.
    return texts.evaluation_operation(SETTINGS, wildcards.expert)


def base_settings(wildcards):
    return texts.base_settings(SETTINGS)


def base_tasks(wildcards, output):
    """The tasks for which the stages need the base, by PEFT's names. The base's files do not depend on them."""
    return sorted({stage.model_class.task_type for expert in SETTINGS.experts for stage in expert.training.values()})


def base_targets(wildcards, output):
    """The modules that adapters will change. The base's files do not depend on them."""
    return sorted({target for expert in SETTINGS.experts for target in expert.adapter.targets()})


def base_operation(wildcards, output):
    return texts.base_operation(SETTINGS)


def dataset_settings(wildcards):
    return texts.dataset_settings(SETTINGS, wildcards.dataset)


def package_settings(wildcards):
    return texts.package_settings(SETTINGS, wildcards.expert)


@functools.cache
def publisher():
    """The fingerprint of the key that signs packages. If jobs will run, the key is made on first use and opened."""
    wanted = {expert.name: expert.package.signatures for expert in SETTINGS.experts}
    jobs_follow = workflow.executor_plugin is not None and not workflow.dryrun
    try:
        return settle_publisher(wanted, create=jobs_follow)
    except UserError as error:
        # Snakemake would print any other exception together with lines about the rule.
        sys.exit(f"error: {error}")


def moe_settings(wildcards):
    return texts.moe_settings(SETTINGS)


# Resources. These are functions, because the executor is known only when jobs are planned.


def on_cluster():
    return workflow.executor_plugin is not None and workflow.executor_plugin.common_settings.non_local_exec


def gpus(wildcards):
    """GPUs of a job that may use one. On a cluster, the node that plans the jobs may have none."""
    return {"cpu": 0, "cuda": 1, "auto": int(on_cluster() or has_nvidia_device())}[SETTINGS.device]


def gpu_model(wildcards):
    return os.environ.get("SEALED_EXPERTS_GPU_MODEL", "") if gpus(wildcards) else ""


def gpu_partition(wildcards):
    """The partition of a job that may use a GPU. If it uses none, it goes to the partition of the other jobs."""
    return os.environ.get("SEALED_EXPERTS_GPU_PARTITION" if gpus(wildcards) else "SBATCH_PARTITION", "")


def warning_ahead(wildcards):
    """Ask SLURM for a warning 90 seconds before the time limit. A trainer also asks SLURM for its remaining time."""
    return "'--signal=USR1@90'"


def processes_of(stage, wildcards):
    """How many processes share a job of this stage. If there are GPUs, each process has its own."""
    return EXPERT[wildcards.expert].stage(stage).processes(on_gpus=gpus(wildcards) > 0)


def stage_gpus(stage):
    return lambda wildcards: gpus(wildcards) * processes_of(stage, wildcards)


def stage_threads(stage):
    return lambda wildcards: EXPERT[wildcards.expert].stage(stage).threads * processes_of(stage, wildcards)


def evaluation_threads(wildcards):
    """The stage's number of threads: it changes the order of sums, and the results must equal the stage's exactly."""
    return EXPERT[wildcards.expert].measured.threads


def launcher(stage):
    """The command that starts the script as several processes; empty for one process."""

    def words(wildcards, output):
        # Snakemake does not track a parameter whose function takes `output`: `processes_per_job` makes nothing stale.
        count = processes_of(stage, wildcards)
        return (
            f"python scripts/sealed_experts/training/launcher.py --processes {count} --device {SETTINGS.device} --"
            if count > 1
            else ""
        )

    return words


def memory_mb(first):
    """Megabytes of a job. They grow to two and three times `first` after failures, which may be a lack of memory."""
    return lambda wildcards, attempt: first * min(attempt, 3)
