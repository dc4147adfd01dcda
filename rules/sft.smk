rule train_sft:
    input:
        base=BASE_MANIFEST,
        train=split_of("train"),
        val=split_of("val"),
        stats=lambda wildcards: f"results/data/{EXPERT[wildcards.expert].dataset}/stats.json",
        start=stage_before("sft"),
    output:
        adapter=ensure("results/experts/{expert}/sft/adapter_final.pt", non_empty=True),
    log:
        "results/experts/{expert}/logs/train_sft.log",
    benchmark:
        "results/experts/{expert}/benchmarks/train_sft.tsv"
    conda:
        "../envs/train.yaml"
    threads: stage_threads("sft")
    resources:
        gpu=stage_gpus("sft"),
        mem_mb=memory_mb(16000),
        runtime=720,
    params:
        settings=stage_settings("sft"),
        operation=stage_operation("sft"),
        # Not an output: Snakemake deletes outputs when a job starts and when it fails.
        checkpoints="results/experts/{expert}/sft/checkpoints",
        start=start_flag,
        launcher=launcher("sft"),
    shell:
        "exec {params.launcher} python scripts/train_sft.py --base {input.base:q} --train {input.train:q}"
        " --val {input.val:q} --stats {input.stats:q} {params.start} --settings {params.settings:q}"
        " --operation {params.operation:q} --checkpoints {params.checkpoints:q} --output {output.adapter:q} > {log:q} 2>&1"


rule summarize_sft:
    input:
        adapter="results/experts/{expert}/sft/adapter_final.pt",
    output:
        metrics=ensure("results/experts/{expert}/sft/training_metrics.json", non_empty=True),
    log:
        "results/experts/{expert}/logs/summarize_sft.log",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(2000),
        runtime=10,
    shell:
        "exec python scripts/summarize_sft.py --adapter {input.adapter:q} --output {output.metrics:q} > {log:q} 2>&1"
