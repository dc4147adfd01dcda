from sealed_experts.sealing.own_identity import check_readable


def package_of(expert):
    return EXPERT[expert].package


def recipients_of(wildcards):
    """The files of those who alone shall open the package; found here whether this run itself can."""
    try:
        check_readable({wildcards.expert: package_of(wildcards.expert).recipients})
    except UserError as error:
        raise WorkflowError(str(error))
    return list(package_of(wildcards.expert).recipients)


def licence_of(wildcards):
    """The text that becomes LICENSE, if the configuration gives one."""
    return [path for path in [package_of(wildcards.expert).licence_file] if path]


def published_evaluation(wildcards):
    """What was measured on held-out records, where it may be published."""
    public = SETTINGS.datasets[EXPERT[wildcards.expert].dataset].public_evaluation
    return f"results/experts/{wildcards.expert}/evaluation.json" if public else []


rule seal_package:
    input:
        config="results/experts/{expert}/peft/adapter_config.json",
        weights="results/experts/{expert}/peft/adapter_model.safetensors",
        selection="results/experts/{expert}/selection.json",
        metrics=stage_metrics,
        train=split_of("train"),
        base=BASE_MANIFEST,
        evaluation=published_evaluation,
        licence=licence_of,
        recipients=recipients_of,
    output:
        package=ensure("results/packages/{expert}.tgsp", non_empty=True),
    log:
        "results/experts/{expert}/logs/seal_package.log",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(2000),
        runtime=20,
    params:
        settings=package_settings,
        # The public key's fingerprint: another key seals again. The private key is found by the script itself.
        publisher=lambda wildcards: publisher(),
        peft=lambda wildcards, input: os.path.dirname(input.config),
    shell:
        "exec python scripts/seal_package.py --peft {params.peft:q} --selection {input.selection:q}"
        " --base {input.base:q} --train {input.train:q} --evaluation {input.evaluation:q}"
        " --settings {params.settings:q} --publisher {params.publisher:q} --output {output.package:q} > {log:q} 2>&1"
