# embed-repro: text-embedding models on retrieval benchmarks, step by step, each step cached.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


report: "rules/report/workflow.rst"


configfile: Path(workflow.basedir) / "config.yaml"


include: "rules/common.smk"
include: "rules/models.smk"
include: "rules/datasets.smk"
include: "rules/encode.smk"
include: "rules/retrieve.smk"
include: "rules/evaluate.smk"
include: "rules/provenance.smk"
include: "rules/plan.smk"
include: "rules/report.smk"
include: "rules/parity.smk"
include: "rules/reference.smk"


rule all:
    default_target: True
    input:
        report_files(),


# Snakemake takes what lies behind an `ancient` input for done when the step before that input has
# to run again, even where it isn't there, and would end with status 0.
onsuccess:
    wanted = {
        f for job in workflow.dag.targetjobs for f in [*job.input, *job.output]
    }
    absent = sorted(f for f in wanted if not Path(f).exists())
    if absent:
        print(
            f"error: {absent[0]}: not made, because an earlier step had to run again; run again",
            file=sys.stderr,
        )
        sys.exit(1)
