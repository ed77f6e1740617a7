"""Drive the workflow as a user does: a command line, an exit status, a screen, result files.

Nothing of the workflow is imported here. `JOURNEYS_REPOSITORY` names another checkout to be driven.
"""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

HERE = Path(__file__).parent
REPOSITORY = Path(os.environ.get("JOURNEYS_REPOSITORY", HERE.parents[1]))
HOOKS = HERE / "hooks"  # a sitecustomize that writes down each process and serves ir_datasets
# Scripts that compute vectors, runs or scores of them; none may start for an edit without effect.
COMPUTING = re.compile(r"encode|search|preflight|bm25|fuse|rerank|merge|run_reference")
SECONDS = 1800


@dataclass
class Done:
    """A finished command."""

    command: list[str]
    status: int
    stdout: str
    stderr: str
    scripts: list[str] = field(default_factory=list)  # of the repository, once for each process

    @property
    def screen(self) -> str:
        return self.stdout + self.stderr

    @property
    def errors(self) -> list[str]:
        return [line for line in self.screen.splitlines() if line.startswith("error:")]

    @property
    def computing(self) -> list[str]:
        return [script for script in self.scripts if COMPUTING.search(script)]

    def ok(self) -> "Done":
        assert self.status == 0, self.told()
        return self

    def refused(self, *parts: str) -> str:
        """The one line that says what is wrong; it must hold all of `parts`."""
        assert self.status != 0, self.told()
        assert "Traceback" not in self.screen, self.told()
        lines = sorted(set(self.errors))
        assert len(lines) == 1, self.told()
        for part in parts:
            assert part in lines[0], f"{part!r} is not in: {lines[0]}"
        return lines[0]

    def told(self) -> str:
        return f"{' '.join(self.command)}\nstatus {self.status}\n{self.screen[-6000:]}"


def environment(**extra: str) -> dict[str, str]:
    """No activated environment: PATH holds only the system's folders."""
    unwanted = ("PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTEST_CURRENT_TEST")
    kept = {k: v for k, v in os.environ.items() if k not in unwanted}
    return kept | {"PATH": "/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1"} | extra


def run(command: list, cwd: Path, env: dict[str, str] | None = None, hooks: bool = True) -> Done:
    """Run a command to its end, all Python processes below it written down."""
    env = environment() if env is None else dict(env)
    record = cwd / ".processes"
    record.unlink(missing_ok=True)
    if hooks:
        env |= {"PYTHONPATH": str(HOOKS), "JOURNEYS_PROCESSES": str(record)}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=env, capture_output=True, text=True, timeout=SECONDS, errors="replace"
    )
    lines = record.read_text().splitlines() if record.exists() else []
    scripts = [name for line in lines for name in _scripts(json.loads(line))]
    return Done(words, done.returncode, done.stdout, done.stderr, scripts)


def _scripts(command: list[str]) -> list[str]:
    """The name of the workflow's script that a Python process was started for, if one."""
    paths = [Path(word) for word in command[1:] if word.endswith(".py")]
    return [path.stem for path in paths[:1] if path.parent.name == "scripts"]


def write_config(path: Path, config: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def snakemake(
    workdir: Path,
    *arguments: object,
    config: dict | None = None,
    env: dict[str, str] | None = None,
    repository: Path | None = None,
    python: Path | str = sys.executable,
    hooks: bool = True,
) -> Done:
    """`snakemake -s <repository>/Snakefile -d workdir --configfile x.yaml --cores 2 …`."""
    workdir.mkdir(parents=True, exist_ok=True)
    command = [python, "-m", "snakemake", "-s", (repository or REPOSITORY) / "Snakefile"]
    command += ["-d", workdir, "--cores", "2"]
    if config is not None:
        command += ["--configfile", write_config(workdir / "config.yaml", config)]
    return run([*command, *arguments], workdir, env, hooks)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


class Results:
    """results/<experiment>/ of a working directory."""

    def __init__(self, workdir: Path, experiment: str) -> None:
        self.folder = workdir / "results" / experiment

    def metric(self, model: str, metric: str, dataset: str | None = None, split: str = "") -> float:
        """The value of the row whose model (id or folder name) is `model`."""
        found = [
            float(row["value"])
            for row in table(self.folder / "metrics.tsv")
            if model in (row["model"], row.get("model_id"))
            and row["metric"] == metric
            and dataset in (None, row["dataset"])
            and split in ("", row["split"])
        ]
        assert len(found) == 1, f"{model} {metric} {dataset} {split}: {len(found)} rows"
        return found[0]

    def run(self, model: str, dataset: str, split: str = "test") -> dict[str, dict[str, float]]:
        """query → document → score, of runs/<dataset>/<split>/<model>.trec."""
        scores: dict[str, dict[str, float]] = {}
        path = self.folder / "runs" / dataset / split / f"{model}.trec"
        for line in path.read_text(encoding="utf-8").splitlines():
            query, _, doc, _, score, _ = line.split()
            scores.setdefault(query, {})[doc] = float(score)
        return scores

    def bytes(self) -> dict[str, str]:
        """Digest of each file that says what was measured: tables, runs, scores of each query."""
        names = ["metrics.tsv", "verdicts.tsv"]
        paths = [self.folder / name for name in names]
        paths += sorted((self.folder / "runs").rglob("*.trec"))
        paths += sorted((self.folder / "scores").rglob("*.per_query.tsv"))
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
        }
