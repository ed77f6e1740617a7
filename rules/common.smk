# The plan of the config, the targets, and the one helper by which a job of the plan becomes a rule.
import json
import os
import sys
from pathlib import Path

from snakemake.settings.types import SharedFSUsage

REPOSITORY = Path(workflow.current_basedir).parent
if str(REPOSITORY / "scripts") not in sys.path:
    sys.path.insert(0, str(REPOSITORY / "scripts"))

from embedrepro.errors import UserError, printable
from embedrepro.plan.build import build_plan, read_config
from embedrepro.plan.plan import write_plan
from embedrepro.startup import uncollected

# A module's config is given by the outer workflow; else each config file has paths of its own.
IN_MODULE = workflow.modifier.parent_modifier is not None
GIVEN = [] if IN_MODULE else workflow.overwrite_configfiles
OVERRIDES = {} if IN_MODULE else workflow.config_settings.config
try:
    # Snakemake's objects as well are left alone then: it would look through them as it ends.
    with uncollected():
        given = config if IN_MODULE else read_config(REPOSITORY, GIVEN, OVERRIDES)
        PLAN = build_plan(given, REPOSITORY, GIVEN, OVERRIDES)
except UserError as error:
    print(f"error: {printable(error, 2000)}", file=sys.stderr, flush=True)
    sys.exit(2)

PLAN_FILE = write_plan(PLAN, ".embed-repro")

# What a job with a GPU asks for besides, as JSON: set by a cluster's profile, which can name no job.
GPU_RESOURCES = json.loads(os.environ.get("EMBED_REPRO_GPU_RESOURCES") or "{}")

# Without a file system that all jobs share, files are carried: then each has to be named.
CARRIED = SharedFSUsage.INPUT_OUTPUT not in workflow.storage_settings.shared_fs_usage


def jobs(*rules):
    return [job for job in PLAN.jobs if job.rule in rules]


def inputs(job):
    return PLAN.awaited(job, CARRIED)


def products(job):
    """update(): Snakemake would delete what another workflow on the same store makes meanwhile."""
    return [update(f) for f in PLAN.wanted(job, CARRIED)]


def log_of(job):
    return f"logs/{job.rule}/{job.name}.log"


def asked(job):
    """What a job asks for: a failed one gets more time and memory when it is tried again."""
    minutes = lambda wildcards, attempt: job.minutes * attempt
    memory = lambda wildcards, attempt: job.mem_mb * attempt
    resources = {"runtime": minutes, "mem_mb": memory}
    return resources | ({"gpu": devices(job)} | GPU_RESOURCES if job.gpu else {})


def devices(job):
    """Those that a job has for itself: on this machine, not on a cluster, little work shares one."""
    if not job.shared or GPU_RESOURCES or not workflow.is_main_process:
        return job.gpu
    return lambda wildcards: 0 if workflow.local_exec else job.gpu
