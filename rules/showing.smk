# The commands that show what was made, and that make what a mistake elsewhere held up.

SHOW_THREADS = 2  # as all that is forked


def show(*options):
    """The command that shows a report: the view of it in results/, verdicts on the screen."""
    return f"{forked()} {FOLDER}/show_results.py --plan {PLAN_FILE} {' '.join(options)}"


def restart(script):
    """The command of a script that starts this workflow once more, as it was started."""
    given = ["--plan", PLAN_FILE, "--snakefile", workflow.main_snakefile]
    given += ["--directory", Path.cwd(), *(f"--configfile={f}" for f in GIVEN)]
    words = shlex.join(map(str, [*given, "--", *sys.argv[1:]]))
    return f"{PYTHON} {FOLDER}/{script}.py {words}"
