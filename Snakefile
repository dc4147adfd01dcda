# Sealed Experts: private domain-expert adapters, sealed in signed packages, assembled into a routed mixture.
from snakemake.utils import min_version

min_version("9.0")


if not workflow.overwrite_configfiles:

    # A configuration on the command line replaces the demo. It does not extend it.
    configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/artifacts.smk"
include: "rules/base.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/export.smk"
include: "rules/seal.smk"
include: "rules/moe.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


localrules:
    all,
    data,
    packages,
    moe,


# Each target lists every kind of artifact that it depends on. Otherwise an old package would look up to date after a
# new training that failed or was stopped.
rule all:
    default_target: True
    input:
        sealed_from(),
        evaluated(),
        sealed_packages(),
        "results/moe/moe_config.json",
        "results/moe/composition.json",


rule data:
    input:
        base_artifacts(),
        data_artifacts(EXPERTS),


# Each stage's name is a target too.
for stage in STAGES:

    rule:
        name:
            stage
        input:
            trained([stage]),
        localrule: True


rule packages:
    input:
        sealed_from(),
        sealed_packages(),


rule moe:
    input:
        sealed_from(),
        per_expert("results/packages/{expert}.tgsp"),
        "results/moe/moe_config.json",
