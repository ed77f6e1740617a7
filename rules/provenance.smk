# What the report says of the experiment itself; the rule is in report.smk.
import subprocess
from importlib import metadata


def git(*arguments):
    try:
        answer = subprocess.run(
            ["git", "-C", REPOSITORY, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # a release without its history, or a machine without git
    return answer.stdout.strip()


def command_line():
    """The command that repeats this experiment."""
    files = [
        f"--configfile {shlex.quote(str(f))}" for f in workflow.overwrite_configfiles
    ]
    overrides = [
        shlex.quote(f"{k}={json.dumps(v)}")
        for k, v in workflow.config_settings.config.items()
    ]
    given = files + (["--config", *overrides] if overrides else [])
    snakefile = shlex.quote(str(REPOSITORY / "Snakefile"))
    return " ".join(["snakemake", "-s", snakefile, *given, "--cores all"])


def experiment_facts():
    """What the report says of the experiment itself."""
    packages = [
        "snakemake",
        "torch",
        "transformers",
        "FlagEmbedding",
        "huggingface_hub",
        "numpy",
    ]
    packages += ["pyarrow", "pytrec-eval-terrier"]
    return {
        "experiment": EXPERIMENT.name,
        "models": [
            {"id": m.id, "model": m.slug, "revision": m.revision, "kind": m.kind}
            for m in EXPERIMENT.models.values()
        ],
        "datasets": [
            {"name": d.name, "slug": d.slug, "split": split}
            for d in EXPERIMENT.datasets.values()
            for split in d.splits
        ],
        "metrics": EXPERIMENT.config["evaluate"]["metrics"],
        "command": command_line(),
        "git_commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: metadata.version(name) for name in packages},
    }
