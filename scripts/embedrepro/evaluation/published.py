"""Published numbers, each with what its publisher says of how it was made.

Two sources: MTEB's published results (`published.parquet`, made by tools/registry/mteb_results.py)
and tables of rows by hand, the registry's `published.tsv` and a user's own. A fact that a row
doesn't state is None: unknown, never assumed.

A table by hand is tab-separated, with a header; `REQUIRED` columns must be there, the other ones of
`COLUMNS` may. An empty cell is unknown. Prompts are written as JSON text, `"query: "`, so that one
that is empty or ends in a space can be seen. `dataset_revision` may name several that hold the same
data, with `|` between.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..models import prompts
from ..models.facts_table import prompt_for
from ..models.known import read_models
from . import metrics, protocols

UNIT = 100_000  # scores in published.parquet are whole numbers of 1e-5
MTEB_METRICS = {
    "ndcg_at_10": "nDCG@10",
    "map_at_10": "AP@10",
    "recall_at_100": "R@100",
    "mrr_at_10": "RR@10",
}
TIES = {
    "older": "mteb before 2.18.19 ordered ties of RR otherwise",
    "differs": "in the published file RR@1 differs from P@1, so the order of ties changed its RR",
}
UNKNOWN_REVISIONS = {"", "external", "unknown", "no_revision", "main", "None", "1"}


@dataclass(frozen=True)
class Published:
    """One published number. None: the publisher doesn't say.

    revision, dataset_revision: commits or names. The latter holds all that have the same data.
    query_prompt, passage_prompt: what is put before each text, any of several equally good ones.
    max_length_*: tokens at which texts are cut; least_length: below so many a run surely cuts more
    than the publisher did, most_length: above so many surely less, where no length is stated.
    dimensions: of the vectors that were compared, None for whole ones.
    decimals: of the printed value. tolerance: stated by hand in place of the rule's.
    """

    model_id: str
    dataset: str
    split: str
    metric: str
    value: float
    protocol: str
    source: str
    revision: str | None = None
    decimals: int = 5
    tolerance: float | None = None
    protocol_version: str | None = None
    dataset_revision: tuple[str, ...] | None = None
    subset: str | None = None
    query_prompt: tuple[str, ...] | None = None
    passage_prompt: tuple[str, ...] | None = None
    max_length_query: int | None = None
    max_length_passage: int | None = None
    least_length: int | None = None
    most_length: int | None = None
    dimensions: int | None = None
    title: str | None = None
    precision: str | None = None
    queries: int | None = None
    note: str = ""


REQUIRED = ("model_id", "dataset", "split", "metric", "value", "protocol", "source")
_NOT_WRITTEN = ("decimals", "least_length", "most_length")
COLUMNS = tuple(f.name for f in fields(Published) if f.name not in _NOT_WRITTEN)
_NUMBERS = ("max_length_query", "max_length_passage", "dimensions", "queries")


def load(
    registry: Path,
    own: Sequence[Path],
    model_ids: Collection[str],
    datasets: Collection[str],
    stated: Mapping[str, Mapping[str, Mapping[str, str]]] | None = None,
) -> list[Published]:
    """All rows about these models and datasets (by our names): the user's, the registry's, MTEB's.

    `stated`: for datasets whose names the registry doesn't know their places in MTEB, as a config's
    `mteb` says them: {dataset: {split: {task, split, subset}}}. Raises `UserError` for a faulty
    table. Reads a few row groups: 0.1 s for three models.
    """
    rows = [row for path in own for row in read_table(path)]
    rows += read_table(registry / "published.tsv")
    rows = [row for row in rows if row.model_id in model_ids and row.dataset in datasets]
    return rows + list(read_mteb(registry, model_ids, datasets, stated or {}))


def read_own(path: Path) -> list[Published]:
    """A user's table of published numbers; see `read_table`."""
    return read_table(path)


def read_table(path: Path | str) -> list[Published]:
    """All rows of a table by hand; a wrong header, number or name is an error that names the line.

    The source column may be left out of a table of one's own: then the file's name stands there.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    numbers = [n for n, line in enumerate(text.splitlines(), 1) if not line.startswith("#")]
    header = lines[0].split("\t") if lines else []
    _check_header(path, header)
    rows = []
    for number, line in zip(numbers[1:], lines[1:], strict=True):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            raise UserError(
                f"{path}:{number}: {len(cells)} fields where the header has {len(header)}; "
                "separate them by tabs"
            )
        rows.append(_by_hand(f"{path}:{number}", Path(path), dict(zip(header, cells, strict=True))))
    return rows


def _check_header(path: Path | str, header: Sequence[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in REQUIRED if name not in header and name != "source"]
    if missing:
        raise UserError(
            f"{path}:1: the column {missing[0]} is missing; wanted, separated by tabs: "
            f"{' '.join(REQUIRED)}"
        )
    if unknown:
        raise UserError(
            f"{path}:1: unknown column '{printable(unknown[0], 60)}'; known: {' '.join(COLUMNS)}"
        )
    if len(set(header)) < len(header):
        raise UserError(f"{path}:1: a column is there twice")


def _by_hand(where: str, path: Path, cells: Mapping[str, str]) -> Published:
    row: dict[str, Any] = {key: cell for key, cell in cells.items() if cell != ""}
    row.setdefault("source", path.name)
    for name in REQUIRED:
        if name not in row:
            raise UserError(f"{where}: {name} is empty")
    printed = row["value"]
    row["decimals"] = len(printed.partition(".")[2])
    row["value"] = _fraction(where, "value", printed)
    if "tolerance" in row:
        row["tolerance"] = _fraction(where, "tolerance", row["tolerance"])
    for name in _NUMBERS:
        if name in row:
            row[name] = _whole(where, name, row[name])
    for name in ("query_prompt", "passage_prompt"):
        if name in row:
            row[name] = (_text(where, name, row[name]),)
    if "dataset_revision" in row:
        row["dataset_revision"] = tuple(row["dataset_revision"].split("|"))
    if row.get("title") not in (None, "join", "drop"):
        raise UserError(f"{where}: title is '{printable(row['title'], 40)}'; it may be join, drop")
    if row["protocol"] not in protocols.PROTOCOLS:
        raise UserError(
            f"{where}: unknown protocol '{printable(row['protocol'], 40)}'; "
            f"it may be {', '.join(protocols.PROTOCOLS)}"
        )
    try:
        row["metric"] = str(metrics.parse(row["metric"]))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    encoding = protocols.PROTOCOLS[row["protocol"]].encoding
    row.setdefault("title", encoding.get("title"))
    for role in ("query", "passage"):
        row.setdefault(f"max_length_{role}", encoding.get("max_length", {}).get(role))
    return Published(**row)


def _fraction(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(
            f"{where}: {name} is '{printable(text, 40)}'; a fraction from 0 to 1 is wanted"
        )
    return value


def _whole(where: str, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"{where}: {name} is '{printable(text, 40)}'; a whole number is wanted")
    return int(text)


def _text(where: str, name: str, text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, str):
        raise UserError(
            f"{where}: {name} is {printable(text, 60)}; write it as JSON text, in double quotes"
        )
    return found


def read_mteb(
    registry: Path,
    model_ids: Collection[str],
    datasets: Collection[str],
    stated: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> Iterator[Published]:
    """MTEB's published results about these models and datasets, a row a metric."""
    found: dict[tuple[str, str], list[tuple[str, dict[str, str]]]] = {}
    for dataset in datasets:
        splits: dict[tuple[str, str], dict[str, str]] = {}
        own = {split: [_place(place)] for split, place in stated.get(dataset, {}).items()}
        for split, rows in (prompts.places(dataset, registry) or own).items():
            for place in rows:
                splits.setdefault((place.task, place.subset), {})[place.split] = split
        for key, names in splits.items():
            found.setdefault(key, []).append((dataset, names))
    if not found or not model_ids:
        return
    for source, row in _parquet_rows(registry / "published.parquet", model_ids):
        for dataset, names in found.get((row["task"], row["subset"]), ()):
            split = names.get(row["split"], row["split"])
            yield from _mteb_row(registry, source, row, dataset, split)


def _place(stated: Mapping[str, str]) -> prompts.Place:
    return prompts.Place(stated["task"], stated.get("subset") or "default", stated["split"])


def _parquet_rows(path: Path, model_ids: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the results repository and its commit, row) for each row about the models.

    The file is sorted by model and its row groups say which models they hold.
    """
    import pyarrow.parquet as pq  # here: verdicts on no model need none of it

    file = pq.ParquetFile(path)
    source = file.metadata.metadata[b"source"].decode()
    for group in range(file.num_row_groups):
        span = file.metadata.row_group(group).column(0).statistics
        if not any(span.min <= name <= span.max for name in model_ids):
            continue
        table = file.read_row_group(group)
        names = table.column("model").to_pylist()
        start = 0
        while start < len(names):
            stop = start + 1
            while stop < len(names) and names[stop] == names[start]:
                stop += 1
            if names[start] in model_ids:
                for row in table.slice(start, stop - start).to_pylist():
                    yield source, row
            start = stop


def _mteb_row(
    registry: Path, source: str, row: Mapping[str, Any], dataset: str, split: str
) -> Iterator[Published]:
    known = prompts.tasks(registry)
    task, entry = row["task"], prompts.model(row["model"], registry)
    about = known["tasks"][task]
    copied = row["revision"] == "external"
    folder = f"{row['model'].replace('/', '__', 1)}/{row['revision']}"
    revisions = _same_data(known, task, row["dataset_revision"])
    current = revisions is not None and about["source"]["revision"] in revisions
    counted = about.get("queries", {}).get(row["split"], {}).get(row["subset"])
    stated = [_prompts(registry, row["model"], task, role, copied) for role in prompts.ROLES]
    limit = entry.get("max_length")
    readable = limit or entry.get("max_tokens")
    notes = [known["notes"].get(row["model"], "")]
    notes += ["copied from the model card"] if copied else []
    for column, metric in MTEB_METRICS.items():
        if row[column] is None:
            continue
        ties = [TIES[row["ties"]]] if column == "mrr_at_10" and row["ties"] else []
        yield Published(
            model_id=row["model"],
            revision=None if row["revision"] in UNKNOWN_REVISIONS else row["revision"],
            dataset=dataset,
            split=split,
            metric=metric,
            value=row[column] / UNIT,
            protocol="mteb",
            protocol_version=row["mteb_version"] or None,
            source=f"{source} results/{folder}/{task}.json",
            dataset_revision=revisions,
            subset=row["subset"],
            query_prompt=stated[0],
            passage_prompt=stated[1],
            max_length_query=None if copied else limit,
            max_length_passage=None if copied else limit,
            least_length=min(readable, LEAST) if readable else None,
            most_length=readable,
            title="join",
            queries=counted if current else None,
            note="; ".join(filter(None, [*notes, *ties])),
        )


def _prompts(
    registry: Path, model_id: str, task: str, role: prompts.Role, copied: bool
) -> tuple[str, ...] | None:
    """What MTEB's own evaluation puts; for a number of the maker's also what the registry has.

    mteb leaves some models' prompts to their own files: then the registry's must do.
    """
    found = [prompts.prompt_of(model_id, task, role, registry)]
    if found[0] is None or copied:
        entry = read_models(registry).get(model_id, {})
        own = prompt_for(entry.get(f"{role}_prompt"), [task])
        if own is not None:
            about = prompts.tasks(registry)["tasks"][task]
            instruction = about.get("instruction") or about["fallback"]
            if isinstance(instruction, dict):
                instruction = instruction["query"]
            found.append(own.replace("{task}", instruction))
    known = [text for text in dict.fromkeys(found) if text is not None]
    return tuple(known) or None


# MTEB's metadata says what a model can read, its own files may cut sooner, seldom below this.
LEAST = 512


def _same_data(known: Mapping[str, Any], task: str, revision: str) -> tuple[str, ...] | None:
    if revision in UNKNOWN_REVISIONS:
        return None
    same = known["same_data"].get(task, [])
    return tuple(same) if revision in same else (revision,)


def table_text(rows: Iterable[Published]) -> str:
    """A table by hand of these rows, as `read_table` reads it."""
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(_cell(row, name) for name in COLUMNS) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(row: Published, name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return ""
    if name.endswith("_prompt"):
        return json.dumps(value[0], ensure_ascii=False)
    if name == "dataset_revision":
        return "|".join(value)
    return f"{value:.{row.decimals}f}" if name == "value" else str(value)
