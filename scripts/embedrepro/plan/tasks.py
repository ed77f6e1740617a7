"""From an artifact of the plan to what the library takes for it: a dataclass a step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..encode.job import Piece
from ..evaluation import scoring
from ..files import read_json, write_json
from ..search import job as search
from ..search.runs import Ranking
from .artifacts import PIECE, Artifact, spread

# Scores of normalised vectors that float32 gives on different devices are this close: 384 products
# of components that differ by 4.5e-8 (measured, CPU and CUDA), with room to spare.
FLOAT32_ERROR = 1e-6


def encode_piece(artifact: Artifact) -> Piece:
    spec = artifact.spec
    return Piece(
        texts=Path(spec["texts"]),
        role=spec["role"],
        shard=artifact.piece,
        of=spec["of"],
        output=Path(artifact.path),
        dtype=spec["dtype"],
        compiled=spec["compiled"],
        prompt=spec["prompt"],
        instruction=spec["instruction"],
        title=spec["title"],
        address=spec["address"],
    )


def cut_vectors(artifact: Artifact) -> None:
    """The first numbers of vectors, of length 1 again where the whole ones are."""
    from ..vectors.quantize import write_cut

    (whole,) = artifact.inputs
    normalize = read_json(Path(whole).with_suffix(".json"))["settings"]["normalize"]
    write_cut(whole, artifact.path, artifact.spec["dimensions"], normalize)


def calibrate(artifact: Artifact) -> None:
    """The range of each dimension of a corpus' vectors, for `quantize_vectors`."""
    from ..vectors.quantize import int8_ranges

    calibration = artifact.spec["calibration"]
    ranges = int8_ranges(spread(artifact.spec["whole"]), calibration)
    write_json(artifact.path, {"calibration": calibration, "ranges": ranges.tolist()})


def quantize_vectors(artifact: Artifact) -> None:
    """The codes of a piece's vectors."""
    import numpy as np

    from ..vectors.quantize import write_quantized

    stored, ranges = artifact.spec["stored"], artifact.spec["ranges"]
    given = np.array(read_json(ranges)["ranges"], np.float32) if ranges else None
    write_quantized(artifact.inputs[0], artifact.path, stored, given)


# What is made of vectors, in this order.
DERIVED = {"cut": cut_vectors, "calibrate": calibrate, "quantize": quantize_vectors}


def search_row(artifact: Artifact) -> search.Row:
    spec = artifact.spec
    return search.Row(
        queries=Path(spec["vectors"]),
        corpus=[Path(path) for path in spread(spec["pieces"])],
        ids=Path(spec["corpus"]),
        query_ids=Path(spec["queries"]),
        top_k=spec["top_k"],
        tag=spec["tag"],
        output=Path(artifact.path),
        spare_identical_ids=True,
    )


def rank_weighted(artifact: Artifact, device: str) -> None:
    """The run of the weighted sum, of what the runs of the single ways found."""
    from ..search.runs import write_run
    from ..search.weighted import rank

    spec = artifact.spec
    pieces = [Path(path) for path in spread(spec["pieces"])]
    texts = spec["queries"], pieces, spec["corpus"]
    # A run that spares the query's own passage is one deeper than asked for.
    depth = spec["top_k"] + 1
    found = rank(spec["runs"], Path(spec["vectors"]), *texts, spec["weights"], depth, device)
    write_run(artifact.path, (spared(ranking, depth - 1) for ranking in found), spec["tag"])


def rank_late(artifact: Artifact, device: str) -> None:
    """The run of another run's best hits by MaxSim."""
    from ..encode import pick_device
    from ..search.maxsim import rerank
    from ..search.runs import write_run

    spec = artifact.spec
    pieces = [Path(path) for path in spread(spec["pieces"])]
    texts = spec["vectors"], spec["queries"], pieces, spec["corpus"]
    found = rerank(spec["base"], *texts, spec["depth"], pick_device(device))
    write_run(artifact.path, found, spec["tag"])


def search_stored(artifact: Artifact, device: str) -> None:
    """The run of a corpus of codes; it takes no device."""
    from ..search.quantized import search_row as search_codes

    search_codes(search_row(artifact), artifact.spec["rescore"])


# Runs that are made of other runs and of vectors.
AFTER = {"weighted": rank_weighted, "maxsim": rank_late, "stored": search_stored}


def spared(ranking: Ranking, depth: int) -> Ranking:
    """The best `depth` of a ranking, the query's own passage not counted."""
    name, docs, scores = ranking
    kept = depth + (name in docs[:depth])
    return name, docs[:kept], scores[:kept]


def search_piece(artifact: Artifact) -> search.Piece:
    spec = artifact.spec
    return search.Piece(
        queries=Path(spec["vectors"]),
        corpus=Path(spec["pieces"].replace(PIECE, str(artifact.piece))),
        ids=Path(spec["corpus"]),
        top_k=spec["top_k"],
        output=Path(artifact.path),
    )


def merge_row(artifact: Artifact) -> search.MergeRow:
    spec = artifact.spec
    return search.MergeRow(
        hits=[Path(path) for path in spread(spec["hits"])],
        ids=Path(spec["corpus"]),
        query_ids=Path(spec["queries"]),
        top_k=spec["top_k"],
        tag=spec["tag"],
        output=Path(artifact.path),
        spare_identical_ids=True,
    )


def score_row(artifact: Artifact) -> scoring.Row:
    spec = artifact.spec
    return scoring.Row(
        run=Path(spec["run"]),
        qrels=Path(spec["qrels"]),
        queries=Path(spec["queries"]),
        about={k: spec[k] for k in ("model_id", "model", "revision", "dataset", "split")},
        metrics=spec["metrics"],
        output=Path(artifact.path),
        per_query=Path(spec["per_query"]),
        facts={**spec["facts"], **encoded_facts(spec)},
        default_protocol=spec["default_protocol"],
        protocols=spec["protocols"],
        ignore_identical_ids=spec["ignore_identical_ids"],
        relevance_threshold=spec["relevance_threshold"],
        top_k=spec["top_k"],
        **rounding(spec),
    )


def rounding(spec: Mapping[str, Any]) -> dict[str, Any]:
    """By how much the precision of the vectors may have moved a row's scores."""
    if spec["refined"]:
        found = read_json(spec["refined"])
        return {
            "score_error": found["score_error"],
            "exact_depth": found["exact_depth"],
            "exact_error": FLOAT32_ERROR,
        }
    if spec["encoded"]:
        sidecar = read_json(next(iter(spec["encoded"])))
        dense = "format" not in sidecar and spec["facts"].get("way") in (None, "dense")
        dense = dense and "stored" not in spec["facts"]  # a rounded number may be another code
        ours = sidecar.get("pinned", True)  # how a server computes, nobody says
        if dense and ours and sidecar["settings"]["normalize"]:
            return {"score_error": FLOAT32_ERROR}
    return {}


def dimension(sidecar: Mapping[str, Any]) -> int:
    """Length of a vector, or the number of terms that a sparse one has a place for."""
    if "dim" in sidecar:  # of codes, which may be eight to a byte
        return int(sidecar["dim"])
    if "shape" in sidecar:
        return int(sidecar["shape"][1])
    return int(sidecar.get("width") or sidecar["files"]["tokens"]["shape"][1])


def encoded_facts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What vectors' sidecars say that a published number must share to be comparable."""
    facts: dict[str, Any] = {}
    for path in (path for one in spec["encoded"] for path in spread(one)):
        sidecar = read_json(path)
        role, settings = sidecar["role"], sidecar["settings"]
        facts[f"{role}_prompt"] = sidecar["prompt"]
        facts.setdefault("max_length", {})[role] = settings["max_length"][role]
        cut = facts.setdefault("truncated", {})
        if sidecar["truncated"] is not None:  # a server doesn't say
            cut[role] = cut.get(role, 0) + sidecar["truncated"]
        facts["kind"] = settings["kind"]
        facts["dimensions"] = sidecar.get("dimensions", settings.get("dimensions"))
        facts["dimension"] = dimension(sidecar)
        if role == "passage":
            facts["dtype"] = sidecar["compute_dtype"]
            refined = spec["refined"] and read_json(spec["refined"])["exact_depth"]
            exact = refined or sidecar["compute_dtype"] == "float32"
            facts["precision"] = "exact" if exact else "fast"
    return facts
