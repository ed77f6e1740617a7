# How a job starts: in which Python, on which devices, and what it needn't import itself.
import shlex

from embedrepro.plan.forking import forkserver_path, modules_for, start_forkserver
from embedrepro.plan.jobs import SCRIPTS

# Environments bring a python of their own; without them it is the one that runs Snakemake.
DEPLOYED = bool(workflow.deployment_settings.deployment_method)
PYTHON = "python" if DEPLOYED else shlex.quote(sys.executable)
FOLDER = shlex.quote(str(REPOSITORY / "scripts"))
FORKSERVER = forkserver_path()  # where none listens, a job starts by itself


def forked(python=PYTHON):
    """A python that needn't import anything, where there is a forkserver."""
    return f"{python} -I -S {FOLDER}/forked.py {shlex.quote(FORKSERVER)}"


def command(job):
    """What a job runs; everything it needs stands in the plan."""
    share = " --shared" if job.shared else ""
    slot = f"{PYTHON} {FOLDER}/gpu_slot.py {job.gpu}{share} -- " if job.gpu else ""
    python = shlex.quote(job.python) if job.python else PYTHON
    python = forked(python) if job.forked else python
    return f"{slot}{python} {FOLDER}/{SCRIPTS[job.rule]}.py --plan {PLAN_FILE} --job {job.name}"


def start_server():
    """Import what models need beside the first jobs, where jobs that need it run on this machine."""
    asking = {job.name for job in PLAN.jobs if job.imports}
    waiting = [job for job in workflow.dag.needrun_jobs() if job.rule.name in asking]
    if waiting and workflow.local_exec and not DEPLOYED:
        made = [artifact for job in waiting for artifact in PLAN.of_job(job.rule.name)]
        start_forkserver(FORKSERVER, waiting[0].threads, modules_for(made))


def start_at_once():
    """Lift Snakemake's own limit of 100 starts in a second: it holds up each run's end."""
    limit = getattr(workflow.scheduler, "job_rate_limiter", None)
    if workflow.local_exec and limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
