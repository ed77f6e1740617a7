"""Every layout of model folders that the field uses, held against sentence-transformers.

    python tests/layouts.py [--only WORD] [--table FILE]

makes each folder with tiny random weights, stages and preflights it, and encodes short and long
texts, as queries and as passages, with the engine that was chosen and with sentence-transformers
(or the maker's own library) on the files as they came, in float32 on the CPU. The table has a line
for each: the engine and the largest difference, or the words of the refusal. A row is wrong where
the vectors differ, where a refusal isn't the expected one, or where something is refused or taken
that shouldn't be; crashed where anything but a UserError comes out. Exit status 1 if there are any.
"""

import argparse
import os
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "unit"), str(HERE.parent / "scripts")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from embedrepro.errors import UserError  # noqa: E402
from embedrepro.models.preflight import preflight  # noqa: E402
from embedrepro.models.staging import stage  # noqa: E402
from layout_kinds import KINDS  # noqa: E402
from layout_list import LAYOUTS, Layout  # noqa: E402

NEAR = 2e-5  # of vectors of length 1, in float32
SAID = 160  # characters of a refusal in the table


@dataclass
class Row:
    """One line of the table. `verdict`: right, refused, wrong or crash."""

    layout: Layout
    verdict: str
    engine: str = ""
    difference: float | None = None
    words: str = ""
    seconds: float = field(default=0.0, compare=False)


def judge(layout: Layout, place: Path) -> Row:
    """The row of one layout, made below `place`."""
    began = time.perf_counter()
    try:
        row = tried(layout, place)
    except Exception as error:  # whatever comes out is what the row is about
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        row = Row(layout, "crash", words=f"{type(error).__name__}: {error} ({where})")
    row.seconds = time.perf_counter() - began
    return row


def tried(layout: Layout, place: Path) -> Row:
    snapshot = layout.make(place / "snapshot")
    spec = {
        "id": layout.id,
        "model": "tiny",
        "source": {"path": "/x"},
        "trust_remote_code": layout.trust,
        "allow_pickle": layout.pickle,
        "kind": layout.kind,
        "facts": layout.facts,
        "registry": {},
    }
    if (base := place / "base").is_dir():  # of an adapter
        spec["base"] = {"id": "org/Base-1B", "source": {"path": "/b"}, "folder": str(base)}
    staged, engine = place / "staged", ""
    try:
        record = stage(spec, snapshot, staged)
        engine = record.get("engine") or record.get("scoring") or ""
        preflight(staged, place / "preflight.json")
        found, expected = KINDS[layout.kind](layout, snapshot, staged, record)
    except UserError as error:
        as_said = layout.refused is not None and re.search(layout.refused, str(error))
        return Row(layout, "refused" if as_said else "wrong", engine, words=str(error))
    if layout.refused is not None:
        return Row(layout, "wrong", engine, words=f"not refused ({layout.refused})")
    if layout.engine and engine != layout.engine:
        return Row(layout, "wrong", engine, words=f"not by {layout.engine}")
    difference = apart(found, expected)
    verdict = "right" if difference <= NEAR else "wrong"
    return Row(layout, verdict, engine, difference)


def apart(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference of two lists of arrays, relative to the largest number if above 1."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            raise AssertionError(f"shape {ours.shape}, expected {theirs.shape}")
        scale = max(1.0, float(abs(theirs).max(initial=0)))
        difference = float(abs(ours - theirs).max(initial=0)) / scale
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
    return worst


def line(row: Row) -> str:
    """The table's line: layout, kind, engine, verdict, difference, words."""
    difference = "" if row.difference is None else f"{row.difference:.1e}"
    words = " ".join(row.words.split())[:SAID]
    cells = (row.layout.name, row.layout.kind, row.engine, row.verdict, difference, words)
    return "\t".join(cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="layouts whose name holds this")
    parser.add_argument("--table", type=Path, help="write the table there")
    arguments = parser.parse_args()
    names = Counter(layout.name for layout in LAYOUTS)
    assert max(names.values()) == 1, names.most_common(1)
    rows = []
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("layout\tkind\tengine\tverdict\tdifference\twords")
    for layout in LAYOUTS:
        if arguments.only and arguments.only not in layout.name:
            continue
        quiet = redirect_stdout(StringIO()), redirect_stderr(StringIO())
        with tempfile.TemporaryDirectory(prefix="layout-") as place, quiet[0], quiet[1]:
            rows.append(judge(layout, Path(place)))
        print(line(rows[-1]), flush=True)
    counts = Counter(row.verdict for row in rows)
    total = f"{len(rows)} layouts: " + ", ".join(
        f"{name} {counts[name]}" for name in ("right", "wrong", "crash", "refused")
    )
    print(total, f"in {sum(row.seconds for row in rows):.0f} s")
    if arguments.table:
        lines = ["layout\tkind\tengine\tverdict\tdifference\twords", *map(line, rows)]
        arguments.table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if counts["wrong"] or counts["crash"] else 0


if __name__ == "__main__":
    sys.exit(main())
