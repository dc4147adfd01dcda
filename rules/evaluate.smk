rule evaluate_expert:
    input:
        base=BASE_MANIFEST,
        val=evaluation_records,
        train=training_records,
        adapters=chain_adapters,
        # A reward of the user's is code that decides numbers.
        reward=chain_files,
    output:
        evaluation=ensure("results/experts/{expert}/evaluation.json", non_empty=True),
    log:
        "results/experts/{expert}/logs/evaluate_expert.log",
    benchmark:
        "results/experts/{expert}/benchmarks/evaluate_expert.tsv"
    conda:
        "../envs/train.yaml"
    # The stage's own number: sums differ by it, and these are to be the stage's to the last bit.
    threads: lambda wildcards: texts.measured_stage(EXPERT[wildcards.expert]).threads
    resources:
        gpu=gpus,
        gpu_model=gpu_model,
        slurm_partition=gpu_partition,
        mem_mb=memory_mb(16000),
        runtime=240,
    params:
        settings=lambda wildcards: texts.evaluation_settings(SETTINGS, wildcards.expert),
        # A function that takes `output` is not tracked: an operational setting makes nothing stale.
        operation=lambda wildcards, output: texts.evaluation_operation(SETTINGS, wildcards.expert),
    shell:
        "exec python scripts/evaluate_expert.py --base {input.base:q} --val {input.val:q}"
        " --train {input.train:q} --adapters {input.adapters:q} --settings {params.settings:q} --operation {params.operation:q}"
        " --output {output.evaluation:q} > {log:q} 2>&1"
