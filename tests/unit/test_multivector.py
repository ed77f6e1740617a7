"""Token vectors: encoded as MultiVectorEncoder does, stored, searched exactly, for any cut."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from embedrepro.encode.flat import Flat
from embedrepro.encode.formats import is_written, open_piece
from embedrepro.encode.multivector import MultiVectorEngine
from embedrepro.errors import UserError
from embedrepro.search import maxsim
from embedrepro.search.runs import write_run
from embedrepro.vectors.multivector import TokenVectors, TokenWriter
from end_to_end import lay_end_to_end
from format_models import (
    bert,
    colbert,
    facts,
    pylate,
    run_bytes,
    stanford,
    texts,
    without_special_tokens,
)
from helpers import printed_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import MultiVectorEncoder

FIXED = {"strategy": "fixed", "length": 24}
LAYOUTS = {
    "plain": (colbert, {}),
    "mean": (colbert, {"similarity": "meanmaxsim"}),
    "expanded": (colbert, {"query_expansion": FIXED}),
    "attended": (colbert, {"query_expansion": FIXED | {"attend": True}}),
    "at_least": (colbert, {"query_expansion": {"strategy": "min", "length": 20}}),
    "pylate": (pylate, {}),
    "stanford": (stanford, {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("multivector")
    return {
        name: make(root / name / "model", **given) for name, (make, given) in LAYOUTS.items()
    } | {"headless": bert(root / "headless")}


def own(folder: Path, **given):
    """Facts of a folder whose prompts are the model's own."""
    return facts(folder, query_prompt=None, passage_prompt=None, **given)


def encode(engine, given, role, output, **meta):
    with open_piece(engine, output, len(given)) as writer:
        for part in engine.encode(given, role):
            writer.put(part)
        writer.seal(**{"model_id": "m"} | meta)
    return TokenVectors(output)


def each(piece: TokenVectors) -> list[np.ndarray]:
    return [piece.block(row, row + 1) for row in range(piece.rows)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["padded", "end to end"])
def test_vectors_and_scores_are_sentence_transformers_own(
    folders, layout, way, tmp_path, monkeypatch
):
    ran = lay_end_to_end(monkeypatch, 200) if way == "end to end" else []
    peer = MultiVectorEncoder(str(folders[layout]), device="cpu")
    engine = MultiVectorEngine(own(folders[layout]), "cpu")
    queries, passages = texts(9, 1), texts(50, 2)
    q = encode(engine, queries, "query", tmp_path / "q.npy")
    p = encode(engine, passages, "passage", tmp_path / "p.npy", rows=[0, 50])
    assert len(ran) == (way == "end to end")
    cut = {"text": {"max_length": 24}} if layout not in ("expanded", "attended") else None
    expected = (
        peer.encode_query(queries, processing_kwargs=cut, batch_size=4),
        peer.encode_document(passages, processing_kwargs={"text": {"max_length": 40}}),
    )
    for piece, vectors in zip((q, p), expected, strict=True):
        assert piece.lengths.tolist() == [len(rows) for rows in vectors]
        for ours, theirs in zip(each(piece), vectors, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    scores = peer.similarity(*expected).numpy()
    pairs = np.divmod(np.arange(9 * 50), 50)
    ours = maxsim.score_pairs(q, [p], *pairs).reshape(9, 50)
    np.testing.assert_allclose(ours, scores, rtol=1e-5, atol=1e-5)
    ids = pa.array([f"d{i}" for i in range(50)], pa.large_string())
    ((_, rows, best),) = maxsim.scan(q, p, 50, lambda rows: ids.take(pa.array(rows)), "cpu")
    assert np.array_equal(np.take_along_axis(ours, rows, 1), best)


@pytest.mark.parametrize("layout", ["plain", "expanded", "at_least", "stanford"])
@pytest.mark.parametrize("role", ["query", "passage"])
def test_neighbours_and_cuts_change_no_byte(folders, layout, role, tmp_path):
    engine = MultiVectorEngine(own(folders[layout]), "cpu", tokens_per_batch=256)
    given = texts(60, 3)
    whole = encode(engine, given, role, tmp_path / "x.npy")
    for shards in (3, 8):
        for i in range(shards):
            start, stop = 60 * i // shards, 60 * (i + 1) // shards
            part = encode(engine, given[start:stop], role, tmp_path / "y.npy")
            assert part.block(0, part.rows).tobytes() == whole.block(start, stop).tobytes()
    order = np.random.default_rng(0).permutation(60)
    shuffled = encode(engine, [given[i] for i in order], role, tmp_path / "y.npy")
    for place, row in enumerate(order):
        assert each(shuffled)[place].tobytes() == each(whole)[row].tobytes()


@pytest.mark.parametrize("way", ["padded", "end to end"])
def test_texts_without_a_token_have_no_vectors_as_beside_others(way, tmp_path, monkeypatch):
    ran = lay_end_to_end(monkeypatch, 200) if way == "end to end" else []
    folder = without_special_tokens(colbert(tmp_path / "bare" / "model"))
    config = folder / "config_sentence_transformers.json"
    prompts = {"query": "", "document": ""}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": prompts}))
    engine = MultiVectorEngine(own(folder), "cpu")
    given = ["", *texts(20, 5, most=30), ".", ""]  # a full stop has a token, and is skipped
    found = each(encode(engine, given, "passage", tmp_path / "x.npy"))
    expected = MultiVectorEncoder(str(folder), device="cpu").encode_document(given)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert [len(found[row]) for row in (0, 21, 22)] == [0, 0, 0]
    nothing = encode(engine, ["", " "], "passage", tmp_path / "y.npy")  # the peer raises here
    assert nothing.lengths.tolist() == [0, 0]
    assert len(ran) == 2 * (way == "end to end")


def test_ids_are_compared_once_a_model_and_prompt(folders, tmp_path, monkeypatch):
    ran, compared = lay_end_to_end(monkeypatch, 200), []
    tokeniser = Flat.tokeniser
    monkeypatch.setattr(
        Flat, "tokeniser", lambda self, *given: compared.append(given) or tokeniser(self, *given)
    )
    engine = MultiVectorEngine(own(folders["plain"]), "cpu")
    pieces = [engine.encode(texts(9, 6), "passage", prompt=p) for p in ("w2 ", "w3 ", "w2 ")]
    first, other, again = ([part.vectors.tobytes() for part in piece] for piece in pieces)
    assert first == again != other
    assert len(ran) == 3 and [prompt for _, prompt, _ in compared] == ["w2 ", "w3 "]


def test_out_of_memory_halves_the_budget(folders, tmp_path, monkeypatch, capsys):
    given = texts(40, 3)
    engine = MultiVectorEngine(own(folders["plain"]), "cpu", tokens_per_batch=512)
    expected = encode(engine, given, "passage", tmp_path / "x.npy")
    run = engine._computed

    def limited(batch, *rest):
        if batch.features["input_ids"].numel() > 200:
            raise torch.OutOfMemoryError("forced")
        return run(batch, *rest)

    monkeypatch.setattr(engine, "_computed", limited)
    found = encode(engine, given, "passage", tmp_path / "y.npy")
    assert engine.tokens_per_batch == 128 and "going on with 128" in capsys.readouterr().err
    np.testing.assert_allclose(found.block(0, 40), expected.block(0, 40), atol=1e-5)


def test_half_precision_is_stored_in_half(folders, tmp_path):
    given = texts(20, 4)
    found = {}
    for dtype in ("float32", "bfloat16"):
        engine = MultiVectorEngine(own(folders["plain"], dtype=dtype), "cpu")
        found[dtype] = encode(engine, given, "passage", tmp_path / f"{dtype}.npy")
    vectors = [found[dtype].block(0, 20) for dtype in ("float32", "bfloat16")]
    assert [v.dtype for v in vectors] == [np.float32, np.float16]
    error = np.abs(vectors[0] - vectors[1]).max()
    assert 1e-4 < error < 0.2


def test_a_model_without_projection_is_refused(folders):
    with pytest.raises(UserError, match="is no late-interaction model"):
        MultiVectorEngine(facts(folders["headless"]), "cpu")


def made(path: Path, vectors: list[np.ndarray], **meta) -> Path:
    dtype, width = vectors[0].dtype, vectors[0].shape[1]
    with TokenWriter(path, len(vectors), width, dtype) as writer:
        lengths = np.array([len(rows) for rows in vectors])
        writer.put(np.arange(len(vectors)), lengths, np.concatenate(vectors))
        writer.seal(**{"model_id": "m"} | meta)
    return path


def random_texts(draw, n, dim, dtype, levels=None, least=0, most=9):
    counts = draw.integers(least, most, n)
    shape = [(count, dim) for count in counts]
    if levels is None:
        return [draw.standard_normal(size).astype(dtype) for size in shape]
    return [draw.integers(-levels, levels + 1, size).astype(dtype) for size in shape]


def brute_force(queries, corpus, docs, k, similarity):
    for query in queries:
        scores = [
            maxsim.defined_score(query.astype(float), doc.astype(float), similarity)
            if len(doc)
            else np.float32(maxsim.EMPTY)
            for doc in corpus
        ]
        order = sorted(range(len(docs)), key=lambda i: (scores[i], docs[i].encode()), reverse=True)
        yield [docs[i] for i in order[:k]], [float(scores[i]) for i in order[:k]]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 80),
    k=st.integers(1, 30),
    levels=st.sampled_from([None, 1, 2]),
    block=st.sampled_from([1, 60, 2**15]),
    dtype=st.sampled_from([np.float16, np.float32]),
    half=st.booleans(),
    similarity=st.sampled_from(["maxsim", "meanmaxsim"]),
)
def test_equals_brute_force(tmp_path_factory, seed, n, k, levels, block, dtype, half, similarity):
    """`half` runs the products that CUDA would do, float16 parts of the queries, on the CPU."""
    folder, draw = tmp_path_factory.mktemp("search"), np.random.default_rng(seed)
    corpus = random_texts(draw, n, 12, dtype, levels)
    corpus[n // 2 : n // 2 + n // 5] = [corpus[0]] * (n // 5)
    queries = random_texts(draw, 4, 12, np.float32, levels, most=6)
    docs = [f"d{i}" for i in draw.permutation(n)]
    meta = {"similarity": similarity}
    pieces = [made(folder / f"{i}.npy", rows, **meta) for i, rows in enumerate((queries, corpus))]
    ids, group = pa.array(docs, pa.large_string()), maxsim.Group
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(maxsim.BLOCK, "cpu", block)
        patch.setitem(maxsim.PRODUCTS, "cpu", 4 * block)
        patch.setitem(maxsim.EXACT, "cpu", 300)
        patch.setattr(
            maxsim, "Group", lambda *given: group(*given[:-1], half and dtype == np.float16)
        )
        opened = [TokenVectors(path) for path in pieces]
        ((_, rows, scores),) = maxsim.scan(*opened, k, lambda r: ids.take(pa.array(r)), "cpu")
    expected = brute_force(queries, corpus, docs, k, similarity)
    for row, found, (names, values) in zip(rows, scores, expected, strict=True):
        assert [docs[i] for i in row] == names and found.tolist() == values


def test_pairs_that_float64_leaves_open_are_computed_as_defined(monkeypatch):
    draw = np.random.default_rng(5)
    query = draw.standard_normal((7, 16))
    documents = [draw.standard_normal((count, 16)) for count in (3, 1, 8)]
    tokens, lengths = torch.from_numpy(np.concatenate(documents)), np.array([3, 1, 8])
    expected = [maxsim.defined_score(query, document, "maxsim") for document in documents]
    asked = torch.from_numpy(query)
    assert maxsim.exact_scores(asked, tokens, lengths, "maxsim").tolist() == expected
    called = []
    defined = maxsim.defined_score
    monkeypatch.setattr(maxsim, "defined_score", lambda *a: called.append(a) or defined(*a))
    # Norms so large that no float32 is certain.
    tokens[0, 0] = asked[0, 0] = 1e12
    maxsim.exact_scores(asked, tokens, lengths, "maxsim")
    assert called


def run_of(folder: Path, queries, corpus, k: int, shards: int) -> bytes:
    """The run of a job, in one go and by hits, which must agree."""
    made(folder / "q.npy", queries)
    pieces = []
    for i in range(shards):
        start, stop = len(corpus) * i // shards, len(corpus) * (i + 1) // shards
        pieces.append(made(folder / f"c{i}.npy", corpus[start:stop], rows=[start, stop]))
    return run_bytes(folder, pieces, k)


@pytest.fixture
def small(tmp_path):
    """Queries, passages, their ids in Parquet."""
    draw = np.random.default_rng(1)
    corpus = random_texts(draw, 300, 16, np.float16)
    queries = random_texts(draw, 10, 16, np.float32, least=1)
    docs = [f"d{i}" for i in draw.permutation(300)]
    pq.write_table(pa.table({"id": docs}), tmp_path / "corpus.parquet")
    pq.write_table(pa.table({"id": [f"q{i}" for i in range(10)]}), tmp_path / "queries.parquet")
    return queries, corpus, docs


def test_runs_are_the_same_for_any_number_of_shards(tmp_path, small):
    queries, corpus, _ = small
    runs = [run_of(tmp_path, queries, corpus, 100, shards) for shards in (1, 3, 8)]
    assert runs[0] == runs[1] == runs[2] and runs[0].count(b"\n") == 1000


def test_reranking_gives_the_scores_of_the_search(tmp_path, small):
    queries, corpus, docs = small
    run = run_of(tmp_path, queries, corpus, 300, 3).decode().splitlines()
    scores = {tuple(line.split()[0:3:2]): line.split()[4] for line in run}
    draw, first = np.random.default_rng(2), {}
    for query in range(10):
        first[f"q{query}"] = [docs[i] for i in draw.permutation(300)[:40]]
    rankings = ((name, best, np.arange(40, 0, -1, np.float32)) for name, best in first.items())
    write_run(tmp_path / "first.trec", rankings, "first")
    pieces = [tmp_path / f"c{i}.npy" for i in (2, 0, 1)]
    reranked = maxsim.rerank(
        tmp_path / "first.trec",
        tmp_path / "q.npy",
        tmp_path / "queries.parquet",
        pieces,
        tmp_path / "corpus.parquet",
        30,
        "cpu",
    )
    for name, best, values in reranked:
        assert sorted(best) == sorted(first[name][:30])
        assert [f"{value:.9g}" for value in values] == [scores[name, doc] for doc in best]
        assert (np.diff(values) <= 0).all()


def test_mistakes_are_named(tmp_path, small):
    queries, corpus, _ = small
    made(tmp_path / "q.npy", queries)
    made(tmp_path / "mean.npy", corpus, similarity="meanmaxsim")
    corpus[7] = corpus[7] * np.float16(np.nan)
    corpus[7] = np.full((2, 16), np.inf, np.float16)
    made(tmp_path / "bad.npy", corpus)
    for name, why in (("mean", "has similarity"), ("bad", "row 7 holds NaN")):
        with pytest.raises(UserError, match=why):
            run_bytes(tmp_path, [tmp_path / f"{name}.npy"], 5)
        assert not (tmp_path / "run.trec").exists()
    whole = (tmp_path / "q.npy").read_bytes()
    (tmp_path / "q.npy").write_bytes(whole[:-1] + b"\x07")
    with pytest.raises(UserError, match=r"q\.npy: its bytes are not"):
        TokenVectors(tmp_path / "q.npy")
    assert is_written(tmp_path / "bad.npy")


MEMORY = """
import resource, sys
import numpy as np, pyarrow as pa
from embedrepro.search import maxsim
from embedrepro.vectors.multivector import TokenVectors
folder = sys.argv[1]
queries = TokenVectors(folder + "/q.npy")
ids = pa.array([f"d{i}" for i in range(20_000)], pa.large_string())
for name in ("small", "large"):
    shard = TokenVectors(f"{folder}/{name}.npy", verify=False)
    list(maxsim.scan(queries, shard, 10, lambda rows: ids.take(pa.array(rows)), "cpu"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Ten times as many passages, 160 MB of them, take no more memory."""
    draw = np.random.default_rng(3)
    made(tmp_path / "q.npy", random_texts(draw, 4, 64, np.float32, least=4))
    for name, count in (("small", 1000), ("large", 10_000)):
        block = draw.standard_normal((125, 64)).astype(np.float16)
        made(tmp_path / f"{name}.npy", [block] * count)
    small, large = printed_memory(MEMORY, tmp_path)
    assert large - small < 40
