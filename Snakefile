# embed-repro: text-embedding models on retrieval benchmarks, step by step, each step cached.
from snakemake.logging import logger
from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"
include: "rules/starting.smk"
include: "rules/showing.smk"
include: "rules/download.smk"
include: "rules/prepare.smk"
include: "rules/encode.smk"
include: "rules/search.smk"
include: "rules/score.smk"
include: "rules/report.smk"
include: "rules/reference.smk"


# Of a file that a failed job didn't make Snakemake would say that it had no backup to restore.
logger.addFilter(lambda record: "no backup found" not in record.getMessage())


rule all:
    # Without a product, so that verdicts and the report's path are shown also when all was there.
    default_target: True
    input:
        PLAN.shown(PLAN.report),
    log:
        "logs/all.log",
    localrule: True
    conda:
        "envs/data.yaml"
    threads: SHOW_THREADS
    shell:
        show() + " 2>&1 | tee {log:q}"


onstart:
    start_at_once()
    start_server()


onerror:
    # What could be made is reported, what couldn't be stands in it with its reason.
    shell(f"{restart('finish_rest')} || true; {show('--partial')} || true")
