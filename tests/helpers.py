"""What tests share: run the workflow as a user does, from another folder; make a dataset."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
XQUAD = REPOSITORY.parent / "shared" / "data" / "xquad-en"


def snakemake(workdir: Path, *arguments: str, config: dict | None = None, **kwargs):
    """Run the workflow in `workdir`, with `config` as an overlay. Returns the finished process.

    No environment is activated: PATH holds only the system's folders.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    command = [Path(sys.executable).with_name("snakemake"), "-s", REPOSITORY / "Snakefile"]
    command += ["-d", workdir, "--cores", "2"]
    if config is not None:
        overlay = workdir / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(config), encoding="utf-8")
        command += ["--configfile", overlay]
    environment = {k: v for k, v in os.environ.items() if k not in ("PATH", "VIRTUAL_ENV")}
    environment["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    return subprocess.run(
        [*map(str, command), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        **kwargs,
    )


def jobs(workdir: Path, *arguments: str, config: dict | None = None) -> Counter[str]:
    """How many jobs of each step a dry run plans."""
    done = snakemake(workdir, "-n", "--quiet", "host", *arguments, config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    listing = (done.stdout + done.stderr).partition("Job stats:")[2]
    counts: Counter[str] = Counter()
    for line in listing.splitlines()[3:]:
        words = line.split()
        if len(words) != 2 or not words[1].isdigit():
            break
        counts[words[0].partition("__")[0]] += int(words[1])
    for name in ("total", "all"):
        counts.pop(name, None)
    return counts


def planned(workdir: Path, config: dict) -> tuple[Path, dict[str, str]]:
    """The plan of `config`, written for steps run by hand: its file, and jobs' names by rule.

    Where a rule has several jobs the last one counts.
    """
    from embedrepro.plan.build import build_plan
    from embedrepro.plan.plan import write_plan

    config = {"store": str(workdir / "store")} | config
    plan = build_plan(config, REPOSITORY, [], {})
    return write_plan(plan, workdir / "plans"), {job.rule: job.name for job in plan.jobs}


REFERENCE = ("reference", "parity", "report_with_reference")


def unmade(workdir: Path, config: dict) -> Counter[str]:
    """How many artifacts of each step `config` has that `workdir` hasn't, vectors by role, those
    of the target `reference` left out."""
    from embedrepro.plan.plan import read_plan

    path, _ = planned(workdir, config)
    plan = read_plan(path)
    asked = [a for job in plan.jobs if job.rule not in REFERENCE for a in plan.of_job(job.name)]
    missing = [a for a in asked if not (workdir / a.path).exists()]
    return Counter(f"encode {a.spec['role']}" if a.step == "encode" else a.step for a in missing)


def one_model(models: list[dict]) -> dict:
    """A config of these models on the demonstration's texts."""
    source = {"beir": str(REPOSITORY / "data" / "demo")}
    return {
        "experiment": "demo",
        "models": models,
        "datasets": [{"name": "demo", "source": source}],
    }


def step(script: str, plan: Path, job: str) -> list[str]:
    """The command of one job, as a rule has it."""
    path = REPOSITORY / "scripts" / f"{script}.py"
    return [sys.executable, str(path), "--plan", str(plan), "--job", job]


def prepared_dataset(folder: Path, passages: dict, queries: dict) -> Path:
    """A prepared dataset of {id: (title, text)} and {id: text}; d1 is relevant to every query.

    The corpus' folder, in which `test` is the split's.
    """

    source = folder / "source"
    (source / "qrels").mkdir(parents=True)
    lines = [{"_id": i, "title": t, "text": text} for i, (t, text) in passages.items()]
    (source / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    lines = [{"_id": i, "text": text} for i, text in queries.items()]
    (source / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows = "".join(f"{query}\td1\t1\n" for query in queries)
    (source / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    prepared({"beir": str(source)}, folder / "made")
    return folder / "made"


def prepared(source: dict, folder: Path, splits: dict | None = None, **more) -> list[dict]:
    """Prepare a corpus in `folder` and its splits (ours: theirs) in folders of their names."""
    from embedrepro.datasets.prepare import CorpusTask, SplitTask, prepare_dataset

    shared = {"name": "mine", "source": source}
    tasks = [
        SplitTask({**shared, "split": ours, "theirs": theirs}, folder / ours)
        for ours, theirs in (splits or {"test": "test"}).items()
    ]
    return prepare_dataset(CorpusTask(shared | more, folder), tasks)


def printed_memory(code: str, *arguments: Path) -> list[float]:
    """What a fresh process prints that runs `code`: a line of KiB for each size; in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={"PYTHONPATH": str(REPOSITORY / "scripts"), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line) / 1024 for line in done.stdout.split()]
