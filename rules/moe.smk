rule assemble_moe:
    input:
        packages=per_expert("results/packages/{expert}.tgsp"),
        selections=per_expert("results/experts/{expert}/selection.json"),
        # The selections name these adapters, and moe_config.json contains their paths.
        adapters=[stage_adapter(stage).format(expert=expert) for expert in EXPERTS for stage in stages_of(expert)],
        base=BASE_MANIFEST,
    output:
        config=ensure("results/moe/moe_config.json", non_empty=True),
    log:
        "results/moe/assemble_moe.log",
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory_mb(2000),
        runtime=30,
    params:
        settings=moe_settings,
    # The settings come on standard input: an argument has at most 128 KiB, and a thousand experts need more.
    shell:
        "exec python scripts/assemble_moe.py --packages results/packages --experts results/experts"
        " --base {input.base:q} --output {output.config:q} > {log:q} 2>&1"
        " <<'END_OF_SETTINGS'\n{params.settings}\nEND_OF_SETTINGS\n"


rule check_composition:
    input:
        config="results/moe/moe_config.json",
        packages=per_expert("results/packages/{expert}.tgsp"),
        base=BASE_MANIFEST,
    output:
        report=ensure("results/moe/composition.json", non_empty=True),
    log:
        "results/moe/check_composition.log",
    conda:
        "../envs/train.yaml"
    threads: 2
    resources:
        gpu=gpus,
        gpu_model=gpu_model,
        slurm_partition=gpu_partition,
        mem_mb=memory_mb(16000),
        runtime=120,
    params:
        # Snakemake does not track a parameter whose function takes `output`: another device makes nothing stale.
        device=lambda wildcards, output: SETTINGS.device,
    shell:
        "exec python scripts/check_composition.py --config {input.config:q} --device {params.device}"
        " --threads {threads} --output {output.report:q} > {log:q} 2>&1"
