"""Write every output of the report, and show it: the view in results/, the verdicts on screen."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ..evaluation import published, significance, verdicts
from ..files import atomic, json_text, locked, read_json, remove, whole, write_record
from .collect import Report, collect, read_tsv
from .html import html
from .latex import latex
from .markdown import markdown
from .tables import metrics_tsv, provenance, speed_tsv
from .terminal import summary

PACKAGES = (
    *("snakemake", "torch", "transformers", "FlagEmbedding", "sentence-transformers"),
    *("huggingface_hub", "numpy", "pyarrow", "pytrec-eval-terrier"),
)


def write_report(spec: Mapping[str, Any], folder: Path) -> Report:
    """Write the report of the rows that are there into the new folder `folder`, provenance last.

    `spec`: what the plan says of the report (see `collect`), with `published` (tables of published
    numbers) and perhaps `holes`. Everything is rendered before the first file is written.
    """
    spec = dict(spec) | made_by()
    rows = [row for row in spec["rows"] if Path(row["scores"]).exists()]
    scored = [read_json(row["scores"]) for row in rows]
    table = published.load(
        Path(spec["registry"]),
        [Path(path) for path in spec["published"]],
        {scores["model_id"] for scores in scored},
        {scores["dataset"] for scores in scored},
    )
    judged = [verdict for scores in scored for verdict in verdicts.compare(scores, table)]
    return render(spec, verdicts.table(judged), significance.compare_rows(rows), folder)


def render(
    spec: dict[str, Any], judged: str, compared: list[dict[str, Any]], folder: Path
) -> Report:
    """Write the report of the verdicts `judged` (TSV) and the comparisons `compared`."""
    report = collect(spec, read_tsv(judged), compared)
    texts = {
        "verdicts.tsv": judged,
        "comparisons.json": json_text(compared),
        "report.html": html(report),
        "report.md": markdown(report),
        "report.tex": latex(report),
        "metrics.tsv": metrics_tsv(report),
        "speed.tsv": speed_tsv(report),
        "summary.txt": summary(report),
    }
    if report.parity:
        texts["parity.json"] = json_text(report.parity)
    with atomic(folder) as temporary:
        temporary.mkdir()
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        write_record(temporary / "provenance.json", provenance(report))
    return report


def made_by() -> dict[str, Any]:
    """Commit and package versions of what makes the report."""
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def git(*arguments: str) -> str | None:
    repository = Path(__file__).parents[3]
    try:
        answer = subprocess.run(
            ["git", "-C", repository, *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # a release without its history, or a machine without git
    return answer.stdout.strip()


def show(folder: Path, rows: Sequence[Mapping[str, str]], results: Path) -> str:
    """Make `results` the view of the report in `folder` and of its rows' files; what to print.

    Files are linked, or copied to another file system. What an earlier view held goes.
    """
    with locked(results / ".lock"):
        files = {source: results / source.name for source in sorted(folder.iterdir())}
        for row in rows:
            if not Path(row["scores"]).exists():
                continue
            where = Path(row["dataset"], row["split"])
            base = results / "scores" / where / row["model"]
            files[Path(row["run"])] = results / "runs" / where / f"{row['model']}.trec"
            files[Path(row["scores"])] = base.with_name(f"{base.name}.json")
            files[Path(row["per_query"])] = base.with_name(f"{base.name}.per_query.tsv")
        for source, target in files.items():
            if not shown(source, target):
                whole(source)
        for name in [*VIEWED, "runs", "scores"]:
            remove(results / name)
        for source, target in files.items():
            place(source, target)
    text = (folder / "summary.txt").read_text(encoding="utf-8")
    return f"{text}Report: {results / 'report.html'}"


VIEWED = (
    *("report.html", "report.md", "report.tex", "metrics.tsv", "verdicts.tsv", "speed.tsv"),
    *("summary.txt", "comparisons.json", "parity.json", "provenance.json", "why.tsv"),
)


def shown(source: Path, target: Path) -> bool:
    """Whether `target` is `source` already, unchanged since that got its digest."""
    try:
        record = Path(f"{source}.sha256").stat()
        found = source.stat()
        return target.samefile(source) and found.st_mtime_ns <= record.st_mtime_ns
    except OSError:
        return False


def place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
