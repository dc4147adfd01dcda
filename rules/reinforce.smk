rule train_reinforce:
    input:
        base=BASE_MANIFEST,
        train=split_of("train"),
        val=split_of("val"),
        stats=lambda wildcards: f"results/data/{EXPERT[wildcards.expert].dataset}/stats.json",
        start=stage_before("reinforce"),
        # A reward of the user's own is code that decides numbers.
        reward=reward_files,
    output:
        adapter=ensure("results/experts/{expert}/rl/adapter_rl_final.pt", non_empty=True),
    log:
        "results/experts/{expert}/logs/train_reinforce.log",
    benchmark:
        "results/experts/{expert}/benchmarks/train_reinforce.tsv"
    conda:
        "../envs/train.yaml"
    threads: stage_threads("reinforce")
    resources:
        gpu=stage_gpus("reinforce"),
        mem_mb=memory_mb(16000),
        runtime=720,
    params:
        settings=stage_settings("reinforce"),
        operation=stage_operation("reinforce"),
        # Not an output: Snakemake deletes outputs when a job starts and when it fails.
        checkpoints="results/experts/{expert}/rl/checkpoints",
        start=start_flag,
        launcher=launcher("reinforce"),
    shell:
        "exec {params.launcher} python scripts/train_reinforce.py --base {input.base:q} --train {input.train:q}"
        " --val {input.val:q} --stats {input.stats:q} {params.start} --settings {params.settings:q}"
        " --operation {params.operation:q} --checkpoints {params.checkpoints:q} --output {output.adapter:q}"
        " > {log:q} 2>&1"


rule summarize_reinforce:
    input:
        adapter="results/experts/{expert}/rl/adapter_rl_final.pt",
    output:
        metrics=ensure("results/experts/{expert}/rl/rl_metrics.json", non_empty=True),
    log:
        "results/experts/{expert}/logs/summarize_reinforce.log",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(2000),
        runtime=10,
    shell:
        "exec python scripts/summarize_reinforce.py --adapter {input.adapter:q} --output {output.metrics:q}"
        " > {log:q} 2>&1"
