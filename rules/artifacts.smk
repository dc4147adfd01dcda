# The artifacts that targets list. No rules.


def per_expert(pattern):
    return expand(pattern, expert=EXPERTS)


def sealed_packages():
    """Every expert's package, in each container that is configured."""
    return [
        f"results/packages/{expert.name}.{container}"
        for expert in SETTINGS.experts
        for container in expert.package.containers
    ]


def trained(stages=STAGES):
    """The adapters and metrics of these stages, for every expert that has one of them, and what they depend on."""
    having = {expert: [stage for stage in stages if stage in stages_of(expert)] for expert in EXPERTS}
    experts = [expert for expert in EXPERTS if having[expert]]
    files = [
        file
        for expert in experts
        for stage in having[expert]
        for file in (
            *start_of(expert, stage),
            *models_by_setting(expert, stage).values(),
            stage_adapter(stage).format(expert=expert),
            stage_metrics(stage).format(expert=expert),
        )
    ]
    return [*base_artifacts(), *data_artifacts(experts), *files] if experts else []


def evaluated():
    """Every expert's evaluation and predictions."""
    predictions = [file.format(expert=expert) for expert in EXPERTS for file in predictions_of(stages_of(expert))]
    return [*per_expert("results/experts/{expert}/evaluation.json"), *predictions]


def sealed_from():
    """Everything that the packages depend on."""
    evaluations = [f"results/experts/{expert}/evaluation.json" for expert in EXPERTS if needs_evaluation(expert)]
    files = ["selection.json", "peft/adapter_model.safetensors", "peft/adapter_config.json"]
    return [*trained(), *evaluations, *expand("results/experts/{expert}/{file}", expert=EXPERTS, file=files)]


def base_artifacts():
    names = DEMO_BASE_FILES if SETTINGS.base.name == DEMO else []
    return [BASE_MANIFEST, *(f"results/base/{BASE}/{name}" for name in names)]


def data_artifacts(experts):
    """The prepared files of these experts' datasets, and of the parts of combined datasets."""
    names = list(dict.fromkeys(name for expert in experts for name in datasets_of(expert)))
    for name in names:  # the list grows in the loop: a part may be a combined dataset too
        names += [part for part in combined_of(name) if part not in names]
    return [path for name in names for path in data_files(name)]


def datasets_of(expert):
    """The datasets of an expert: for training, validation and evaluation."""
    return [EXPERT[expert].dataset, *map(EXPERT[expert].validation_of, [None, *stages_of(expert)])]
