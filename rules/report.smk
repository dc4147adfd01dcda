localrules:
    report_inputs,


# The text at the top of the report.
report: "captions/report.rst"


REWARD_FOLDERS = {STAGES[stage].folder(): stage for stage in STAGES if STAGES[stage].scores_answers}
LOSS_FOLDERS = {STAGES[stage].folder(): stage for stage in STAGES if not STAGES[stage].scores_answers}


rule plot_training:
    input:
        metrics=metrics_in(LOSS_FOLDERS),
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
        folder="|".join(LOSS_FOLDERS),
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory_mb(1000),
        runtime=10,
    shell:
        "exec python scripts/plot_training.py --metrics {input.metrics:q} --curves {output.curves:q} > {log:q} 2>&1"


rule plot_rewards:
    input:
        metrics=metrics_in(REWARD_FOLDERS),
        earlier=metrics_before(REWARD_FOLDERS),
    output:
        curves=report(
            "results/experts/{expert}/{folder}/curves.svg",
            caption="captions/rewards.rst",
            category="Reward and privacy",
            labels={"expert": "{expert}", "stage": "{folder}"},
        ),
    log:
        "results/experts/{expert}/logs/plot_rewards_{folder}.log",
    wildcard_constraints:
        folder="|".join(REWARD_FOLDERS),
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory_mb(1000),
        runtime=10,
    shell:
        "exec python scripts/plot_rewards.py --metrics {input.metrics:q} --earlier {input.earlier:q}"
        " --curves {output.curves:q} > {log:q} 2>&1"


rule tabulate_metrics:
    input:
        metrics=[stage_metrics(stage).format(expert=expert) for expert in EXPERTS for stage in stages_of(expert)],
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


rule tabulate_evaluations:
    input:
        evaluations=per_expert("results/experts/{expert}/evaluation.json"),
    output:
        page=report(
            "results/report/evaluation.html",
            caption="captions/evaluation.rst",
            category="Before and after",
            labels={"table": "all experts"},
        ),
    log:
        "results/report/tabulate_evaluations.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory_mb(1000),
        runtime=10,
    shell:
        "exec python scripts/tabulate_evaluations.py --evaluations {input.evaluations:q} --page {output.page:q}"
        " > {log:q} 2>&1"


# Everything that `make report` shows.
rule report_inputs:
    input:
        trained(),
        per_expert("results/experts/{expert}/evaluation.json"),
        [
            f"results/experts/{expert}/{STAGES[stage].folder()}/curves.svg"
            for expert in EXPERTS
            for stage in stages_of(expert)
        ],
        "results/report/metrics.html",
        "results/report/evaluation.html",
