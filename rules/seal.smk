rule seal_package:
    input:
        config="results/experts/{expert}/peft/adapter_config.json",
        weights="results/experts/{expert}/peft/adapter_model.safetensors",
        selection="results/experts/{expert}/selection.json",
        metrics=chain_metrics,
        train=learned_records,
        base=BASE_MANIFEST,
        evaluation=published_evaluation,
        licence=own(licence_of, made="results/packages/{expert}.tgsp"),
        recipients=own(recipients_of, made="results/packages/{expert}.tgsp"),
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
        digests=digests_of(sealed_files),
        # The public key's fingerprint, so that a new key seals again. The script finds the private key itself.
        publisher=lambda wildcards: publisher(),
        peft=lambda wildcards, input: os.path.dirname(input.config),
    shell:
        "exec python scripts/seal_package.py --peft {params.peft:q} --selection {input.selection:q}"
        " --metrics {input.metrics:q} --base {input.base:q} --train {input.train:q} --evaluation {input.evaluation:q}"
        " --digests {params.digests:q} --settings {params.settings:q} --publisher {params.publisher:q} --output {output.package:q} > {log:q} 2>&1"


# Made from the sealed package: everything that makes the package stale, such as a new key, makes this file stale too.
rule seal_expert:
    input:
        package="results/packages/{expert}.tgsp",
    output:
        package=ensure("results/packages/{expert}.expert", non_empty=True),
    log:
        "results/experts/{expert}/logs/seal_expert.log",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(2000),
        runtime=20,
    shell:
        "exec python scripts/seal_expert.py --package {input.package:q} --output {output.package:q} > {log:q} 2>&1"
