# The plan of the config, the targets, and the one helper by which a job of the plan becomes a rule.
import shlex
import sys
from pathlib import Path

from snakemake.common.configfile import load_configfile
from snakemake.logging import logger
from snakemake.settings.types import SharedFSUsage
from snakemake.utils import update_config

REPOSITORY = Path(workflow.current_basedir).parent
if str(REPOSITORY / "scripts") not in sys.path:
    sys.path.insert(0, str(REPOSITORY / "scripts"))

from embedrepro.errors import UserError, printable
from embedrepro.plan.build import build_plan, read_config
from embedrepro.plan.plan import write_plan

IN_MODULE = workflow.modifier.parent_modifier is not None
try:
    PLAN = build_plan(
        # A module's config is the outer workflow's to give; else each file has paths of its own.
        (
            config
            if IN_MODULE
            else read_config(
                REPOSITORY,
                workflow.overwrite_configfiles,
                workflow.config_settings.config,
                load_configfile,
                update_config,
            )
        ),
        REPOSITORY,
        [] if IN_MODULE else workflow.overwrite_configfiles,
        {} if IN_MODULE else workflow.config_settings.config,
    )
except UserError as error:
    print(f"error: {printable(error, 2000)}", file=sys.stderr, flush=True)
    sys.exit(2)

# Environments bring a python of their own; without them it is the one that runs Snakemake.
DEPLOYED = bool(workflow.deployment_settings.deployment_method)
PYTHON = "python" if DEPLOYED else shlex.quote(sys.executable)
SCRIPTS = shlex.quote(str(REPOSITORY / "scripts"))
PLAN_FILE = (
    f".embed-repro/{PLAN.experiment}.json"
    if workflow.dryrun
    else write_plan(PLAN, ".embed-repro")
)


# Without a file system that all jobs share, files are carried: then each has to be named.
CARRIED = SharedFSUsage.INPUT_OUTPUT not in workflow.storage_settings.shared_fs_usage


def jobs(rule):
    return [job for job in PLAN.jobs if job.rule == rule]


def inputs(job):
    return PLAN.awaited(job, CARRIED)


def products(job):
    """update(): Snakemake would delete what another workflow on the same store makes meanwhile."""
    return [update(f) for f in PLAN.wanted(job, CARRIED)]


def command(script, job):
    """What a job runs; everything it needs stands in the plan."""
    slot = f"{PYTHON} {SCRIPTS}/gpu_slot.py {job.gpu} -- " if job.gpu else ""
    return f"{slot}{PYTHON} {SCRIPTS}/{script}.py --plan {PLAN_FILE} --job {job.name}"


# It says of every such file that a failed job didn't make that it had no backup to restore.
logger.addFilter(lambda record: "no backup found" not in record.getMessage())


def log_of(job):
    return f"logs/{job.rule}/{job.name}.log"


def asked(job):
    """What a job asks for: a failed one gets more time and memory when it is tried again."""
    resources = {"runtime": growing(job.minutes), "mem_mb": growing(job.mem_mb)}
    # Kubernetes grants a GPU only as a limit, which scale: 0 makes of what is asked for.
    kubernetes = {"gpu_manufacturer": "nvidia", "scale": 0}
    return resources | ({"gpu": job.gpu} | kubernetes if job.gpu else {})


def growing(amount):
    return lambda wildcards, attempt: amount * attempt


def show(*options):
    """The command that shows a report: the view of it in results/, verdicts on the screen."""
    return f"{PYTHON} {SCRIPTS}/show_results.py --plan {PLAN_FILE} {' '.join(options)}"


def rest():
    """The command that makes what a mistake elsewhere held up: this one, its paths absolute."""
    words = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    words = [word for word in words if word not in workflow.dag_settings.targets]
    given = ["--snakefile", workflow.main_snakefile, "--directory", Path.cwd(), "--plan", PLAN_FILE]
    files = ["--configfile", *workflow.overwrite_configfiles] * bool(workflow.overwrite_configfiles)
    line = shlex.join(map(str, [*given, *files, "--", *words]))
    return f"{PYTHON} {SCRIPTS}/finish_rest.py {line}"
