rule prepare_data:
    input:
        base=BASE_MANIFEST,
        files=dataset_files,
        parts=dataset_parts,
    output:
        train=ensure("results/data/{dataset}/train.jsonl", non_empty=True),
        val=ensure("results/data/{dataset}/val.jsonl", non_empty=True),
        stats="results/data/{dataset}/stats.json",
    log:
        "results/data/{dataset}/prepare_data.log",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(4000),
        runtime=60,
    params:
        settings=dataset_settings,
        parts=lambda wildcards, input: sorted({os.path.dirname(path) for path in input.parts}),
    shell:
        "exec python scripts/prepare_data.py --settings {params.settings:q} --base {input.base:q}"
        " --parts {params.parts:q} --train {output.train:q} --val {output.val:q} --stats {output.stats:q}"
        " > {log:q} 2>&1"
