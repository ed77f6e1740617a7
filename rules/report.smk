# Needs: everything before. Gives: the report in the store, under its key, and the targets that show
# it: results/<experiment>/ is a view of it.


def show(*options):
    """The command that shows a report: the view of it in results/, verdicts on the screen."""
    return f"{PYTHON} {SCRIPTS}/show_results.py --plan {PLAN_FILE} {' '.join(options)}"


def rest():
    """The command that makes what a mistake elsewhere held up: this one, its paths absolute."""
    words = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    words = [word for word in words if word not in workflow.dag_settings.targets]
    given = [
        "--snakefile",
        workflow.main_snakefile,
        "--directory",
        Path.cwd(),
        "--plan",
        PLAN_FILE,
    ]
    files = ["--configfile", *workflow.overwrite_configfiles] * bool(
        workflow.overwrite_configfiles
    )
    line = shlex.join(map(str, [*given, *files, "--", *words]))
    return f"{PYTHON} {SCRIPTS}/finish_rest.py {line}"


for job in jobs("report"):

    rule:
        name:
            job.name
        input:
            inputs(job),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/data.yaml"
        threads: job.threads
        resources:
            **asked(job),
        params:
            command=command("make_report", job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


rule plan:
    # Prints what is cached and what is to do; computes nothing.
    localrule: True
    shell:
        f"{PYTHON} {SCRIPTS}/show_plan.py --plan {PLAN_FILE}"


rule reproduce:
    # Fails where a published number that can be compared was not reproduced.
    input:
        PLAN.shown(PLAN.report),
    localrule: True
    shell:
        show("--require")
