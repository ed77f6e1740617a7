"""What a staged layout gives, and what the maker's own library gives of the files as they came.

Each of KINDS answers (ours, theirs), two lists of arrays of the same shapes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from embedrepro.models import comparison
from embedrepro.models.examination import TEXTS
from layout_list import Layout

Both = tuple[list[np.ndarray], list[np.ndarray]]
SHORT = [*TEXTS, "ALL CAPITALS and then not", "  two  spaces\tand a tab\n", "x"]
LONG = TEXTS[3] * 9  # 2,200 characters


def texts(record: dict[str, Any]) -> list[str]:
    return [*SHORT, LONG]


def dense(layout: Layout, snapshot: Path, staged: Path, record: dict[str, Any]) -> Both:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(
        str(snapshot),
        device="cpu",
        trust_remote_code=layout.trust,
        local_files_only=True,
        model_kwargs={"dtype": "float32"},  # else it computes as the checkpoint is stored
    )
    if layout.mend:
        layout.mend(peer)
    ours, found, expected = comparison.load_ours(staged), [], []
    for role in ("query", "passage"):
        encode = peer.encode_query if role == "query" else peer.encode_document
        options: dict[str, Any] = {"batch_size": 1, "show_progress_bar": False}
        stated = layout.facts.get(f"{role}_prompt")
        if stated is not None:
            options["prompt"] = stated
        options["truncate_dim"] = layout.facts.get("dimensions")
        options["normalize_embeddings"] = record["normalize"]
        if "max_length" in layout.facts:
            peer.max_seq_length = record["max_length"][role]
        given = list(layout.texts) or texts(record)
        try:
            theirs = encode(given, **options)  # one by one: nothing is padded
        except (IndexError, RuntimeError):  # it runs over the model's positions
            peer.max_seq_length = record["max_length"][role]
            theirs = encode(given, **options)
        expected.append(np.asarray(theirs, np.float32))
        found.append(comparison.own(ours, given, role))
    return found, expected


def many(layout: Layout, snapshot: Path, staged: Path, record: dict[str, Any]) -> Both:
    """Sparse vectors and vectors of tokens."""
    import sentence_transformers as st

    cls = st.SparseEncoder if layout.kind == "sparse" else st.MultiVectorEncoder
    peer = cls(str(snapshot), device="cpu", local_files_only=True)
    ours, found, expected = comparison.load_ours(staged), [], []
    for role in ("query", "passage"):
        encode = peer.encode_query if role == "query" else peer.encode_document
        for text in layout.texts or texts(record):
            (vector,) = encode([text], batch_size=1, show_progress_bar=False)
            vector = vector.cpu()
            if vector.is_sparse:
                vector = vector.to_dense()
            expected.append(np.asarray(vector, np.float32))
        found += comparison.own_many(ours, layout.texts or texts(record), role)
    return found, expected


def m3(layout: Layout, snapshot: Path, staged: Path, record: dict[str, Any]) -> Both:
    """BGE-M3's three kinds of vectors beside FlagEmbedding's."""
    from FlagEmbedding import BGEM3FlagModel

    given = layout.texts or SHORT
    peer = BGEM3FlagModel(str(snapshot), devices=["cpu"], use_fp16=False, batch_size=1)
    theirs = peer.encode(
        given,
        max_length=record["max_length"]["passage"],
        return_sparse=True,
        return_colbert_vecs=True,
    )
    width = 1 + max(int(term) for row in theirs["lexical_weights"] for term in row)
    denses, weights, tokens = {}, np.zeros((len(given), width), np.float32), {}
    for part in comparison.load_ours(staged).encode(given, "passage"):
        sparse_ends = np.cumsum(part.sparse.lengths)
        token_ends = np.cumsum(part.multivector.lengths)
        for place, row in enumerate(part.rows.tolist()):
            denses[row] = part.dense.vectors[place]
            mine = slice(sparse_ends[place] - part.sparse.lengths[place], sparse_ends[place])
            weights[row, part.sparse.columns[mine]] = part.sparse.values[mine]
            mine = slice(token_ends[place] - part.multivector.lengths[place], token_ends[place])
            tokens[row] = part.multivector.vectors[mine]
    lexical = np.zeros_like(weights)
    for row, terms in enumerate(theirs["lexical_weights"]):
        for term, weight in terms.items():
            lexical[row, int(term)] = weight
    rows = range(len(given))
    found = [*(denses[row] for row in rows), weights, *(tokens[row] for row in rows)]
    expected = [*theirs["dense_vecs"], lexical, *theirs["colbert_vecs"]]
    return found, [np.asarray(array, np.float32) for array in expected]


def reranker(layout: Layout, snapshot: Path, staged: Path, record: dict[str, Any]) -> Both:
    from embedrepro.search.rerank import load_reranker, read_spec

    settings = read_spec({"max_length": 120, "batch_size": 4} | layout.options)
    ours = load_reranker(staged, settings, "cpu")(layout.pairs)
    theirs = layout.scores(snapshot, layout.pairs, settings)
    return [np.asarray(ours, np.float32)], [np.asarray(theirs, np.float32)]


KINDS: dict[str, Callable[[Layout, Path, Path, dict[str, Any]], Both]] = {
    "dense": dense,
    "sparse": many,
    "multivector": many,
    "m3": m3,
    "reranker": reranker,
}
