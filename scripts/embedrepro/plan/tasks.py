"""From an artifact of the plan to what the library takes for it: a dataclass a step."""

from pathlib import Path

from ..encode.job import Piece
from ..search import job as search
from .artifacts import Artifact


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
    )


def search_row(artifact: Artifact) -> search.Row:
    spec = artifact.spec
    return search.Row(
        queries=Path(spec["vectors"]),
        corpus=[Path(path) for path in spec["pieces"]],
        ids=Path(spec["corpus"]),
        query_ids=Path(spec["queries"]),
        top_k=spec["top_k"],
        tag=spec["tag"],
        output=Path(artifact.path),
        spare_identical_ids=True,
    )


def search_piece(artifact: Artifact) -> search.Piece:
    spec = artifact.spec
    return search.Piece(
        queries=Path(spec["vectors"]),
        corpus=Path(spec["piece"]),
        ids=Path(spec["corpus"]),
        top_k=spec["top_k"],
        output=Path(artifact.path),
    )


def merge_row(artifact: Artifact) -> search.MergeRow:
    spec = artifact.spec
    return search.MergeRow(
        hits=[Path(path) for path in spec["hits"]],
        ids=Path(spec["corpus"]),
        query_ids=Path(spec["queries"]),
        top_k=spec["top_k"],
        tag=spec["tag"],
        output=Path(artifact.path),
        spare_identical_ids=True,
    )
