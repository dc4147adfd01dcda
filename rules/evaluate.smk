rule evaluate_expert:
    input:
        base=BASE_MANIFEST,
        val=split_of("val"),
        adapters=chain_adapters,
        # A user's own reward is code that decides the numbers.
        reward=chain_files,
    output:
        evaluation=ensure("results/experts/{expert}/evaluation.json", non_empty=True),
    log:
        "results/experts/{expert}/logs/evaluate_expert.log",
    benchmark:
        "results/experts/{expert}/benchmarks/evaluate_expert.tsv"
    conda:
        "../envs/train.yaml"
    # The number of threads of the stage: it changes the order of sums, and the results must equal the stage's exactly.
    threads: lambda wildcards: texts.measured_stage(EXPERT[wildcards.expert]).threads
    resources:
        gpu=gpus,
        gpu_model=gpu_model,
        slurm_partition=gpu_partition,
        mem_mb=memory_mb(16000),
        runtime=240,
    params:
        settings=lambda wildcards: texts.evaluation_settings(SETTINGS, wildcards.expert),
        # Snakemake does not track a parameter whose function takes `output`: operational settings make nothing stale.
        operation=lambda wildcards, output: texts.evaluation_operation(SETTINGS, wildcards.expert),
    shell:
        "exec python scripts/evaluate_expert.py --base {input.base:q} --val {input.val:q}"
        " --adapters {input.adapters:q} --settings {params.settings:q} --operation {params.operation:q}"
        " --output {output.evaluation:q} > {log:q} 2>&1"
