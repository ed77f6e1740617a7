"""Models on a server: staged as what the server says of itself, and probed before the work.

Nothing of such a model lies here, so its stage.json says how texts are put to it, and `pinned:
false`: the server can be another one tomorrow.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import atomic, read_json, write_record
from ..sources.hub import check_replaceable
from .examination import TEXTS, Finding, finding
from .facts import Resolver
from .facts_table import ROLES

RECORD = "server.json"
SAME = 0.99  # least cosine of two vectors of one text; half precision moves it by 1e-3
SCORE = 0.02  # by how much a pair's score may move, relative to the largest


def stage_server(spec: Mapping[str, Any], snapshot: Path, output: Path) -> dict[str, Any]:
    """Write the staged folder of a model on a server; returns what its stage.json says.

    `spec` is as for `staging.stage`. Prompts, normalisation and cut come from the config, the
    registry or FlagEmbedding's mapping; all else is the server's. Raises `UserError`.
    """
    found = read_json(snapshot / RECORD)
    said, name = found["said"], printable(spec["id"])
    reranker = spec.get("kind") == "reranker"
    if reranker != (said.get("kind") == "reranker") and (reranker or said.get("kind")):
        kind = said.get("kind") or f"{said['api']}'s embedding model"
        hint = "give it rerank: {run: …}" if said.get("kind") == "reranker" else "TEI serves those"
        raise UserError(
            f"{name}: its server has a model of kind {printable(kind)}, and a "
            f"{'reranker' if reranker else 'dense one'} is asked for; {hint}"
        )
    record: dict[str, Any] = {
        "id": spec["id"],
        "model": spec["model"],
        "revision": said.get("revision") or spec["source"].get("revision"),
        "kind": spec.get("kind") or "dense",
        "architecture": f"{said['api']} server",
        "class": "server",
        "trust_remote_code": False,
        "native": True,
        "pinned": False,
        "engine": "http",
        "server": {k: found[k] for k in ("said", "batch", "cut", "dimension") if k in found},
        "address": spec["source"]["server"],
        "beyond": [],
        "code": {},
        "files": {},
    }
    record |= {"scoring": "server"} if reranker else embedding_facts(spec, snapshot, found)
    record.setdefault("decisions", [])
    with atomic(output) as folder:
        folder.mkdir()
        write_record(folder / "stage.json", record)
        check_replaceable(output, {"stage.json"})
    return record


def embedding_facts(
    spec: Mapping[str, Any], snapshot: Path, found: Mapping[str, Any]
) -> dict[str, Any]:
    """What encoding needs to know; what only the server knows is None."""
    resolver = Resolver({**spec, "kind": "dense"}, snapshot)
    full = found["dimension"]
    normalize = resolver.required("normalize")
    query, passage = resolver.prompts()
    dimensions = resolver.stated("dimensions", None, "all of them")
    if dimensions and dimensions > full:
        raise UserError(
            f"{resolver.id}: dimensions: {dimensions}, but its vectors have only {full}"
        )
    length = found["said"].get("max_length")
    for fact, value in (("max_length", length), ("dtype", found["said"].get("dtype"))):
        reason = "what it says of itself" if value else "it doesn't say"
        resolver.note(fact, value, "server", reason)
    resolver.note("engine", "http", "server", "its vectors come from there")
    return {
        "normalize": normalize,
        "query_prompt": query,
        "passage_prompt": passage,
        "dimensions": dimensions,
        "attention": None,
        "end_token": None,
        "pooling": "modules",
        "max_length": dict.fromkeys(ROLES, length),
        "dtype": "float32",  # in which its vectors are stored
        "modules": [],
        "hidden_size": full,
        "full_dimension": full,
        "dimension": dimensions or full,
        "decisions": resolver.decisions,
    }


def examine_server(record: Mapping[str, Any], address: str) -> list[Finding]:
    """The findings about a model on the server at `address`. Raises `UserError`."""
    from ..sources.server import opened

    with opened(record["server"], address) as server:
        said = ", ".join(f"{k} {v}" for k, v in record["server"]["said"].items())
        first = finding("pinned", True, f"not pinned: a server's model can change; it says {said}")
        if record["kind"] == "reranker":
            return [first, *_reranker_checks(server)]
        return [first, *_embedding_checks(server, record)]


def _embedding_checks(server: Any, record: Mapping[str, Any]) -> Iterator[Finding]:
    import numpy as np

    cut = record["server"]["cut"] or {}
    width = record["full_dimension"]

    def vectors(texts: list[str]) -> Any:
        found = server.embed(texts, cut).vectors.astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    with np.errstate(all="ignore"):
        together = vectors(list(TEXTS))
        yield finding("dimension", together.shape[1] == width, f"{together.shape[1]} of {width}")
        finite = bool(np.isfinite(together).all())
        yield finding("finite", finite, "vectors of short and long texts")
        if not finite or together.shape[1] != width:
            return
        again = vectors(list(TEXTS))
        alone = np.concatenate([vectors([text]) for text in TEXTS])
        for name, other, what in (
            ("repeat", again, "the same texts asked twice"),
            ("order", alone, "a text alone and among others"),
        ):
            alike = together @ other.T
            nearest = bool((alike.argmax(1) == np.arange(len(TEXTS))).all())
            ok = nearest and bool(alike.diagonal().min() >= SAME)
            apart = np.abs(together - other).max()
            yield finding(name, ok, f"{what}: vectors differ by up to {apart:.1e}")
        yield _attempt(server, "empty", "", "a text without a character", cut)
        yield _long(server, record)


def _attempt(server: Any, name: str, text: str, what: str, cut: Mapping[str, Any]) -> Finding:
    """Whether the server takes `text`; what it refuses is said, for the run would stop there."""
    import numpy as np

    from ..sources.server import Refused, Silent

    try:
        found = server.embed([text], cut, tries=2).vectors
    except (Refused, Silent) as error:
        stop = f"refused by the server ({error}); a text like that stops the run"
        return finding(name, True, f"{what}: {stop}")
    taken = "taken" if np.isfinite(found).all() else "answered with NaN, which stops the run"
    return finding(name, True, f"{what}: {taken}")


def _long(server: Any, record: Mapping[str, Any]) -> Finding:
    from ..sources.server import long_text

    text = long_text(record["server"]["said"])
    what = f"a text of {len(text.split()):,} words"
    way = record["server"]["cut"]
    asked = f"{what}, cut as {', '.join(way)} asks" if way else what
    return _attempt(server, "long", text, asked, way or {})


def _reranker_checks(server: Any) -> Iterator[Finding]:
    import numpy as np

    query, texts = TEXTS[0], list(TEXTS)
    scores = np.array(server.rerank(query, texts))
    finite = bool(np.isfinite(scores).all())
    yield finding("finite", finite, "scores of short and long pairs")
    if not finite:
        return
    again = np.array(server.rerank(query, texts[::-1]))[::-1]
    alone = np.concatenate([server.rerank(query, [text]) for text in texts])
    scale = max(1.0, float(np.abs(scores).max()))
    for name, other, what in (
        ("repeat", again, "the same pairs asked twice, in another order"),
        ("order", alone, "a pair alone and among others"),
    ):
        apart = float(np.abs(scores - other).max())
        yield finding(name, apart <= SCORE * scale, f"{what}: scores differ by up to {apart:.1e}")
