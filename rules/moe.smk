rule assemble_moe:
    input:
        packages=per_expert("results/packages/{expert}.tgsp"),
        selections=per_expert("results/experts/{expert}/selection.json"),
        base=BASE_MANIFEST,
        train=expand(
            "results/data/{dataset}/train.jsonl",
            dataset=sorted({e.dataset for e in SETTINGS.experts}),
        ),
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
    # On standard input, because one argument holds at most 128 KiB and a thousand experts are more.
    shell:
        "exec python scripts/assemble_moe.py --packages results/packages --experts results/experts"
        " --data results/data --base {input.base:q} --output {output.config:q} > {log:q} 2>&1"
        " <<'END_OF_SETTINGS'\n{params.settings}\nEND_OF_SETTINGS\n"
