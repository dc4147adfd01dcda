# A rule for each chain of stages, because it declares a file of predictions for each stage: `evaluate_expert`, and
# `evaluate_expert_<stages>` for experts with other stages than the first expert.
for stages in CHAINS:

    rule:
        name:
            evaluation_rule(stages)
        input:
            base=BASE_MANIFEST,
            val=evaluation_records,
            train=seen_records,
            adapters=chain_adapters,
            # A user's own reward is code that decides the numbers.
            reward=own(chain_files, made="results/experts/{expert}/evaluation.json"),
        output:
            evaluation=ensure("results/experts/{expert}/evaluation.json", non_empty=True),
            predictions=predictions_of(stages),
        log:
            "results/experts/{expert}/logs/evaluate_expert.log",
        benchmark:
            "results/experts/{expert}/benchmarks/evaluate_expert.tsv"
        wildcard_constraints:
            expert=evaluated_by(stages),
        conda:
            "../envs/train.yaml"
        threads: evaluation_threads
        resources:
            gpu=gpus,
            gpu_model=gpu_model,
            slurm_partition=gpu_partition,
            mem_mb=memory_mb(16000),
            runtime=240,
        params:
            settings=evaluation_settings,
            digests=digests_of(chain_files),
            operation=evaluation_operation,
        shell:
            "exec python scripts/evaluate_expert.py --base {input.base:q} --val {input.val:q}"
            " --train {input.train:q} --adapters {input.adapters:q} --settings {params.settings:q} --operation {params.operation:q}"
            " --digests {params.digests:q} --output {output.evaluation:q} --predictions {output.predictions:q} > {log:q} 2>&1"
