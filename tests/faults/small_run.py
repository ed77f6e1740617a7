"""A run small enough to be broken often, the ways to break it, and what a user does then."""

import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
SLUG = "embed-repro__IDF-Attention-0_1B"
# `error: PATH: what; delete it and run again` or `…; delete OTHER PATH and run again`
REMEDY = re.compile(r"^error: (.+?): .*; delete (.+) and run again$", re.MULTILINE)
# What to delete so that a run starts again from that step; each adds to what comes after it.
STEPS: dict[str, list[str]] = {"report": ["store/reports", "results"]}
STEPS["score"] = ["store/scores", *STEPS["report"]]
STEPS["merge"] = ["store/runs", *STEPS["score"]]
STEPS["search"] = ["store/hits", *STEPS["merge"]]
STEPS["encode"] = ["store/vectors", *STEPS["search"]]
STEPS["stage"] = ["store/models/staged", "store/models/preflight", *STEPS["encode"]]
STEPS["all"] = ["store", "results"]
PIECES = 161  # more than one process searches by itself: hits of each piece, merged later


def write_corpus(folder: Path, documents: int = 170, queries: int = 20) -> Path:
    """The first passages of the demonstration corpus, with queries that they answer."""
    source = REPOSITORY / "data" / "demo"
    (folder / "qrels").mkdir(parents=True)
    lines = (source / "corpus.jsonl").read_text("utf-8").splitlines()[:documents]
    known = {json.loads(line)["_id"] for line in lines}
    with open(source / "qrels" / "test.tsv", encoding="utf-8", newline="") as file:
        rows = [r for r in csv.reader(file, delimiter="\t") if r[1] in known]
    wanted = list(dict.fromkeys(row[0] for row in rows))[:queries]
    asked = (source / "queries.jsonl").read_text("utf-8").splitlines()
    asked = [line for line in asked if json.loads(line)["_id"] in wanted]
    judged = ["\t".join(row) for row in rows if row[0] in wanted]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "queries.jsonl").write_text("\n".join(asked) + "\n", "utf-8")
    table = "\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n"
    (folder / "qrels" / "test.tsv").write_text(table, "utf-8")
    return folder


def config(corpus: Path) -> dict:
    """A model, BM25 and both fused: nearly every kind of artifact, of few bytes each."""
    model = {
        "id": "embed-repro/IDF-Attention-0.1B",
        "source": {"demo": 7},
        "trust_remote_code": True,
    }
    fused = {"runs": [model["id"], "BM25"]}
    models = [model, {"id": "BM25", "bm25": {}}, {"id": "both", "fuse": fused}]
    dataset = {"name": "small", "source": {"beir": str(corpus)}, "shards": PIECES}
    return {"experiment": "demo", "models": models, "datasets": [dataset]}


class Run:
    """A working directory and its config."""

    def __init__(self, workdir: Path, settings: dict) -> None:
        self.workdir, self.settings = workdir, settings
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "overlay.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), "utf-8")

    def start(self, *arguments: str, environment: dict | None = None) -> subprocess.Popen:
        command = [Path(sys.executable).with_name("snakemake"), "-s", REPOSITORY / "Snakefile"]
        command += ["-d", self.workdir, "--cores", "2"]
        command += ["--configfile", self.workdir / "overlay.yaml"]
        kept = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
        kept |= {"PATH": "/usr/local/bin:/usr/bin:/bin"} | (environment or {})
        return subprocess.Popen(
            [*map(str, command), *arguments],
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen, timeout: float = 600) -> tuple[int, str]:
        """Exit status and output; raises TimeoutExpired, everything it started killed."""
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill(process)
            raise
        return process.returncode, output

    def __call__(self, *arguments: str, **kwargs) -> tuple[int, str]:
        return self.finish(self.start(*arguments, **kwargs))

    def kill(self, process: subprocess.Popen) -> None:
        """SIGKILL to the workflow and all that it started: the machine went down."""
        with suppress(ProcessLookupError):  # it was faster
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def mend(self, rounds: int = 5) -> tuple[int, list[str]]:
        """Run, delete what the error lines name, run again: (last exit status, what was said)."""
        said: list[str] = []
        for _ in range(rounds):
            status, output = self()
            said.append(output)
            if status == 0:
                status, output = self.verify()
                said.append(output)
                if status == 0:
                    break
            if not self.delete_named(output) and len(said) > 2:
                break
        return status, said

    def verify(self) -> tuple[int, str]:
        command = [sys.executable, REPOSITORY / "scripts" / "verify_files.py", "store", "results"]
        done = subprocess.run(command, cwd=self.workdir, capture_output=True, text=True)
        return done.returncode, done.stderr

    def delete_named(self, output: str) -> list[Path]:
        found = []
        for subject, what in REMEDY.findall(output):
            for name in [subject] if what == "it" else what.split():  # as a shell's rm takes it
                path = self.workdir / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                found.append(path)
        return found

    def cut(self, step: str) -> None:
        """Take away a step's outputs and all that follows."""
        for name in STEPS[step]:
            path = self.workdir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def copy(self, workdir: Path) -> "Run":
        shutil.copytree(self.workdir, workdir, symlinks=True)
        return Run(workdir, self.settings)

    def results(self) -> dict[str, str]:
        """Digests of the final files: runs, scores and the table of metrics."""
        folder = self.workdir / "results" / "demo"
        found = [
            *folder.glob("runs/*/*/*.trec"),
            *folder.glob("scores/*/*/*.*"),
            *folder.glob("metrics.tsv"),
        ]
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(found)
        }

    def temporaries(self) -> list[Path]:
        """What is left in the store after `make clean-temp`."""
        make = ["make", "-s", "-f", REPOSITORY / "Makefile", "clean-temp"]
        subprocess.run([*map(str, make)], cwd=self.workdir, check=True)
        return [p for p in (self.workdir / "store").rglob("*") if p.name.startswith(".tmp-")]


def flip(path: Path, rng: random.Random, keep_time: bool = True) -> None:
    """Turn one bit, as a failing disk does: size and time stay."""
    info, data = path.stat(), bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def cut_short(path: Path, rng: random.Random) -> None:
    info = path.stat()
    os.truncate(path, rng.randrange(info.st_size))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def job_processes(workflow: int, script: str = "") -> list[int]:
    """Ids of the Python processes of a workflow's jobs; of one script only, if given.

    Of a job that is forked that of `forked.py`, with which it ends.
    """
    scripts = f"{REPOSITORY / 'scripts'}/".encode()
    parents, jobs = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        number = int(stat.parent.name)
        try:
            parents[number] = int(stat.read_text().rpartition(")")[2].split()[1])
            words = (stat.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        named = [word.removeprefix(scripts) for word in words[1:] if word.startswith(scripts)]
        name = named[-1] if named else b"forkserver.py"
        if name == f"{script}.py".encode() if script else name != b"forkserver.py":
            jobs.append(number)
    return [number for number in jobs if workflow in _ancestors(number, parents)]


def _ancestors(number: int, parents: dict[int, int]) -> list[int]:
    found = []
    while number in parents:
        number = parents[number]
        found.append(number)
    return found
