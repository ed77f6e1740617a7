"""The runs of a job that are refined, on one float32 model loaded when the first asks for it."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from ..encode import load_engine
from ..encode.again import Again
from ..encode.engine import Engine
from ..files import write_record
from ..search.refine import Refined, refine_row
from .artifacts import Artifact
from .command_line import Task
from .tasks import search_row


def refine_runs(task: Task, runs: Sequence[Artifact]) -> None:
    """Make each run, and beside it the record of what refining measured."""
    device = task.options.device

    @cache
    def engine(staged: str) -> Engine:
        return load_engine(staged, {"dtype": "float32"}, device)

    def make(run: Artifact) -> None:
        spec = run.spec
        corpus, kept = Path(spec["corpus"]), Path(spec["refined"])
        again = Again(
            lambda: engine(spec["staged"]),
            corpus,
            spec["prompt"],
            spec["title"],
            kept,
            spec["dimensions"],
        )
        found = refine_row(search_row(run), again, spec["depths"], spec["share"], device)
        measured = {k: v for k, v in asdict(found).items() if k not in ("rows", "scores")}
        write_record(run.beside[-1], measured | {"encoded_again": again.encoded})
        print(_told(run.label, found))

    task.each(runs, make)


def _told(label: str, found: Refined) -> str:
    if not found.exact_depth:
        return f"rounding: {label}, scores off by at most {found.score_error:.1e}"
    return (
        f"refine: {label}, {found.share:.2%} of the passages again in float32, first "
        f"{found.exact_depth} ranks exact, largest error {found.largest_error:.1e}"
    )
