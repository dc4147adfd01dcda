rule select_stage:
    input:
        metrics=chain_metrics,
        # The evaluation is an input only if the stage is chosen by it.
        evaluation=lambda wildcards: (
            f"results/experts/{wildcards.expert}/evaluation.json" if EXPERT[wildcards.expert].select == "best" else []
        ),
    output:
        selection="results/experts/{expert}/selection.json",
    log:
        "results/experts/{expert}/logs/select_stage.log",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(500),
        runtime=10,
    params:
        settings=lambda wildcards: texts.selection_settings(SETTINGS, wildcards.expert),
    shell:
        "exec python scripts/select_stage.py --settings {params.settings:q} --metrics {input.metrics:q}"
        " --evaluation {input.evaluation:q} --output {output.selection:q} > {log:q} 2>&1"


rule export_peft:
    input:
        selection="results/experts/{expert}/selection.json",
        # One of these is the adapter of the chosen stage.
        adapters=chain_adapters,
        base=BASE_MANIFEST,
    output:
        config=ensure("results/experts/{expert}/peft/adapter_config.json", non_empty=True),
        weights=ensure("results/experts/{expert}/peft/adapter_model.safetensors", non_empty=True),
    log:
        "results/experts/{expert}/logs/export_peft.log",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(4000),
        runtime=20,
    shell:
        "exec python scripts/export_peft.py --selection {input.selection:q} --base {input.base:q}"
        " --config {output.config:q} --weights {output.weights:q} > {log:q} 2>&1"
