rule build_demo_base:
    input:
        facts=own(facts, made="results/base/demo/base.json"),
    output:
        manifest="results/base/demo/base.json",
        model=[f"results/base/demo/{name}" for name in DEMO_BASE_FILES],
    log:
        "results/base/demo.log",
    benchmark:
        "results/base/demo.tsv"
    conda:
        "../envs/train.yaml"
    threads: SETTINGS.base.demo.threads
    resources:
        mem_mb=memory_mb(4000),
        runtime=20,
    params:
        settings=base_settings,
        digests=digests_of(facts),
        operation=base_operation,
    shell:
        "exec python scripts/build_demo_base.py --settings {params.settings:q} --operation {params.operation:q}"
        " --digests {params.digests:q} --output {output.manifest:q} > {log:q} 2>&1"


rule fetch_base_model:
    input:
        files=own(base_files, made="results/base/{base}/base.json"),
    output:
        manifest="results/base/{base}/base.json",
    log:
        "results/base/{base}.log",
    wildcard_constraints:
        base=r"(?!demo$)[a-z0-9][a-z0-9._-]*",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(4000),
        runtime=240,
    params:
        settings=base_settings,
        digests=digests_of(base_files),
        tasks=base_tasks,
        targets=base_targets,
    shell:
        "exec python scripts/fetch_base_model.py --settings {params.settings:q} --tasks {params.tasks} --targets {params.targets:q}"
        " --digests {params.digests:q} --output {output.manifest:q} > {log:q} 2>&1"
