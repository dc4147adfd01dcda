# What there is to make: the artifacts that targets list. No rules.
import itertools


def per_expert(pattern):
    return expand(pattern, expert=EXPERTS)


def sealed_packages():
    """Every expert's package, in each container that is configured."""
    return [
        f"results/packages/{expert.name}.{container}"
        for expert in SETTINGS.experts
        for container in expert.package.containers
    ]


def having(stage):
    return [expert for expert in EXPERTS if stage in stages_of(expert)]


def stage_artifacts(stage):
    """The adapter and the metrics of a stage, of every expert that has it."""
    return [stage_file(expert, stage, kind) for expert in having(stage) for kind in (0, 1)]


def trained_from(stage):
    """Everything that a stage stands on, of every expert that has it."""
    experts = having(stage)
    starts = itertools.chain.from_iterable(start_of(expert, stage) for expert in experts)
    return [*base_artifacts(), *data_artifacts(experts), *starts] if experts else []


def trained():
    """Every stage of every expert, and what they stand on."""
    stages = itertools.chain.from_iterable(stage_artifacts(stage) for stage in STAGE_FILES)
    return [*base_artifacts(), *data_artifacts(EXPERTS), *stages]


def sealed_from():
    """Everything that the packages stand on."""
    evaluations = [f"results/experts/{expert}/evaluation.json" for expert in EXPERTS if needs_evaluation(expert)]
    files = ["selection.json", "peft/adapter_model.safetensors", "peft/adapter_config.json"]
    return [*trained(), *evaluations, *expand("results/experts/{expert}/{file}", expert=EXPERTS, file=files)]


def base_artifacts():
    names = DEMO_BASE_FILES if SETTINGS.base.name == settings_chain.DEMO else []
    return [BASE_MANIFEST, *(f"results/base/{BASE}/{name}" for name in names)]


def data_artifacts(experts):
    """What is prepared of every dataset that these experts learn from, and of those that it is combined of."""
    names = list(dict.fromkeys(EXPERT[expert].dataset for expert in experts))
    for name in names:  # grows on the way: a combined dataset may hold another one
        names += [part for part in combined_of(name) if part not in names]
    return expand("results/data/{dataset}/{file}", dataset=names, file=DATA_FILES)
