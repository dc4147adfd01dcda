# A rule to train each stage, and one to summarize it. Every value that depends on the stage comes from a function that
# gets the stage as an argument: a lambda written here would use the last stage of the loop.
for stage in STAGES:

    rule:
        name:
            f"train_{stage}"
        input:
            base=BASE_MANIFEST,
            train=training_records,
            val=validation_records(stage),
            stats=dataset_stats,
            start=stage_before(stage),
            models=stage_models(stage),
            files=own(stage_files(stage), made=stage_adapter(stage)),
        output:
            adapter=ensure(stage_adapter(stage), non_empty=True),
        log:
            f"results/experts/{{expert}}/logs/train_{stage}.log",
        benchmark:
            f"results/experts/{{expert}}/benchmarks/train_{stage}.tsv"
        conda:
            "../envs/train.yaml"
        threads: stage_threads(stage)
        resources:
            gpu=stage_gpus(stage),
            gpu_model=gpu_model,
            slurm_partition=gpu_partition,
            slurm_extra=warning_ahead,
            mem_mb=memory_mb(16000),
            # Minutes. A trainer saves before a cluster's time limit, and the job is submitted again.
            runtime=720,
        params:
            settings=stage_settings(stage),
            digests=digests_of(stage_files(stage)),
            operation=stage_operation(stage),
            # Not an output: Snakemake deletes outputs when a job starts and when it fails.
            checkpoints=f"results/experts/{{expert}}/{STAGES[stage].folder()}/checkpoints",
            start=start_flag,
            models=model_flags(stage),
            later=later_stages(stage),
            launcher=launcher(stage),
        shell:
            "exec {params.launcher} python scripts/train_stage.py --base {input.base:q} --train {input.train:q}"
            " --val {input.val:q} --stats {input.stats:q} {params.start} {params.models}"
            " {params.later} --digests {params.digests:q} --settings {params.settings:q} --operation {params.operation:q}"
            " --checkpoints {params.checkpoints:q} --output {output.adapter:q} > {log:q} 2>&1"

    rule:
        name:
            f"summarize_{stage}"
        input:
            adapter=stage_adapter(stage),
        output:
            metrics=ensure(stage_metrics(stage), non_empty=True),
        log:
            f"results/experts/{{expert}}/logs/summarize_{stage}.log",
        conda:
            "../envs/train.yaml"
        resources:
            mem_mb=memory_mb(2000),
            runtime=10,
        shell:
            "exec python scripts/summarize_stage.py --adapter {input.adapter:q} --output {output.metrics:q} > {log:q} 2>&1"
