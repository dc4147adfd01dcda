rule prepare_data:
    input:
        base=BASE_MANIFEST,
        files=own(dataset_files, made="results/data/{dataset}/stats.json"),
        parts=dataset_parts,
    output:
        # Empty if all records are held out.
        train="results/data/{dataset}/train.jsonl",
        val=ensure("results/data/{dataset}/val.jsonl", non_empty=True),
        stats="results/data/{dataset}/stats.json",
    log:
        "results/data/{dataset}/prepare_data.log",
    wildcard_constraints:
        dataset=rf"(?!(?:{'|'.join(TESTED)})/){NAME}" if TESTED else NAME,
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(4000),
        runtime=60,
    params:
        settings=dataset_settings,
        digests=digests_of(dataset_files),
        parts=lambda wildcards, input: sorted({os.path.dirname(path) for path in input.parts}),
        test=test_flag,
    shell:
        "exec python scripts/prepare_data.py --settings {params.settings:q} --base {input.base:q}"
        " --digests {params.digests:q} --parts {params.parts:q} --train {output.train:q} --val {output.val:q} {params.test}"
        " --stats {output.stats:q}"
        " > {log:q} 2>&1"


# The same with one more file, because outputs cannot depend on a wildcard.
if TESTED:

    use rule prepare_data as prepare_data_and_test_set with:
        output:
            train="results/data/{dataset}/train.jsonl",
            val=ensure("results/data/{dataset}/val.jsonl", non_empty=True),
            test=ensure("results/data/{dataset}/test.jsonl", non_empty=True),
            stats="results/data/{dataset}/stats.json",
        wildcard_constraints:
            dataset="|".join(TESTED),
