localrules:
    report_inputs,


STAGE_FOLDERS_OF_EXPERTS = [
    f"results/experts/{expert}/{stage_folder(stage)}" for expert in EXPERTS for stage in stages_of(expert)
]


rule plot_training:
    input:
        metrics="results/experts/{expert}/{folder}/training_metrics.json",
    output:
        curves=report(
            "results/experts/{expert}/{folder}/curves.svg",
            caption="captions/curves.rst",
            category="Loss and privacy",
            labels={"expert": "{expert}", "stage": "{folder}"},
        ),
    log:
        "results/experts/{expert}/logs/plot_training_{folder}.log",
    wildcard_constraints:
        folder=r"[a-z][a-z0-9_]*",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory_mb(1000),
        runtime=10,
    shell:
        "exec python scripts/plot_training.py --metrics {input.metrics:q} --curves {output.curves:q} > {log:q} 2>&1"


rule tabulate_metrics:
    input:
        metrics=[f"{folder}/training_metrics.json" for folder in STAGE_FOLDERS_OF_EXPERTS],
    output:
        page=report(
            "results/report/metrics.html",
            caption="captions/metrics.rst",
            category="Metrics",
            labels={"table": "all experts"},
        ),
    log:
        "results/report/tabulate_metrics.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory_mb(1000),
        runtime=10,
    shell:
        "exec python scripts/tabulate_metrics.py --metrics {input.metrics:q} --page {output.page:q} > {log:q} 2>&1"


# What `make report` shows.
rule report_inputs:
    input:
        [f"{folder}/curves.svg" for folder in STAGE_FOLDERS_OF_EXPERTS],
        "results/report/metrics.html",
