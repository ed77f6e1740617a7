"""Sparse vectors: encoded as SparseEncoder does, stored, searched exactly, for any cut."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedrepro.encode.formats import is_written, open_piece
from embedrepro.encode.sparse import SparseEngine
from embedrepro.errors import UserError
from embedrepro.search import sparse as search
from embedrepro.vectors import ragged
from embedrepro.vectors.dense import sidecar
from embedrepro.vectors.sparse import SparseVectors, SparseWriter
from end_to_end import lay_end_to_end
from format_models import (
    LENGTHS,
    bert,
    facts,
    inference_free,
    run_bytes,
    splade,
    texts,
    without_special_tokens,
)
from helpers import printed_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SparseEncoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    return {
        "splade": splade(folder / "a" / "splade"),
        "sum": splade(folder / "b" / "sum", pooling_strategy="sum"),
        "log1p": splade(folder / "c" / "log1p", activation_function="log1p_relu"),
        "inference_free": inference_free(folder / "d" / "free"),
        "plain": bert(folder / "plain", head=True),
        "bare": without_special_tokens(splade(folder / "e" / "bare")),
        "headless": bert(folder / "headless"),
    }


def encode(engine, given, role, output, **meta):
    with open_piece(engine, output, len(given)) as writer:
        for part in engine.encode(given, role):
            writer.put(part)
        writer.seal(**{"model_id": "m"} | meta)
    return SparseVectors(output)


def matrix(piece: SparseVectors) -> np.ndarray:
    found = np.zeros((piece.rows, piece.width), np.float32)
    columns, values = piece.block(0, piece.rows)
    found[np.repeat(np.arange(piece.rows), piece.lengths), columns] = values
    return found


@pytest.mark.parametrize("layout", ["splade", "sum", "log1p", "inference_free", "plain"])
@pytest.mark.parametrize("way", ["padded", "end to end"])
def test_vectors_and_scores_are_sentence_transformers_own(
    folders, layout, way, tmp_path, monkeypatch
):
    ran = lay_end_to_end(monkeypatch, 200) if way == "end to end" else []
    peer = SparseEncoder(str(folders[layout]), device="cpu")
    engine = SparseEngine(facts(folders[layout]), "cpu")
    flat = way == "end to end" and layout != "inference_free"  # that one has a router
    queries, passages = texts(9, 1), texts(70, 2)
    q = encode(engine, queries, "query", tmp_path / "q.npy")
    p = encode(engine, passages, "passage", tmp_path / "p.npy", rows=[0, 70])
    assert len(ran) == flat
    expected = []
    for some, length, task in ((queries, 24, "query"), (passages, 40, "document")):
        for module in peer.modules():
            if hasattr(module, "tokenizer"):
                module.tokenizer.model_max_length = length
        expected.append(peer.encode(some, task=task, convert_to_sparse_tensor=False))
    for piece, vectors in zip((q, p), expected, strict=True):
        np.testing.assert_allclose(matrix(piece), vectors.numpy(), atol=1e-5, rtol=1e-6)
    scores = peer.similarity(*expected).numpy()
    pairs = np.divmod(np.arange(9 * 70), 70)
    ours = search.score_pairs(q, [p], *pairs).reshape(9, 70)
    np.testing.assert_allclose(ours, scores, rtol=1e-5, atol=1e-5)
    ids = pa.array([f"d{i}" for i in range(70)], pa.large_string())
    ((_, rows, best),) = search.scan(q, p, 70, lambda rows: ids.take(pa.array(rows)))
    assert np.array_equal(np.take_along_axis(ours, rows, 1), best)


@pytest.mark.parametrize("layout", ["splade", "inference_free"])
@pytest.mark.parametrize("role", ["query", "passage"])
def test_neighbours_and_cuts_change_no_byte(folders, layout, role, tmp_path):
    engine = SparseEngine(facts(folders[layout]), "cpu", tokens_per_batch=256)
    given = texts(90, 3)
    whole = encode(engine, given, role, tmp_path / "x.npy")
    for shards in (3, 8):
        for i in range(shards):
            start, stop = 90 * i // shards, 90 * (i + 1) // shards
            part = encode(engine, given[start:stop], role, tmp_path / "y.npy")
            for ours, all_of in zip(
                part.block(0, part.rows), whole.block(start, stop), strict=True
            ):
                assert ours.tobytes() == all_of.tobytes()


def test_files_do_not_depend_on_the_order_in_which_rows_come(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 9, 200)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    columns = draw.integers(0, 50, ends[-1]).astype(np.int32)
    values = draw.random(ends[-1]).astype(np.float32)
    found = []
    for order, hold in (
        (np.arange(200), 2**28),
        (draw.permutation(200), 0),
        (-np.sort(-np.arange(200)), 99),
    ):
        monkeypatch.setattr(ragged, "HOLD", hold)
        with SparseWriter(tmp_path / "x.npy", 200, 50, np.float32) as writer:
            for rows in np.array_split(order, 13):
                items = np.concatenate([np.arange(ends[row], ends[row + 1]) for row in rows])
                writer.put(rows, lengths[rows], columns[items], values[items])
            writer.seal(model_id="m")
        found.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert found[0] == found[1] == found[2]
    assert sorted(found[0]) == ["x.columns.npy", "x.json", "x.npy", "x.offsets.npy"]
    assert np.array_equal(np.load(tmp_path / "x.npy"), values)
    piece = SparseVectors(tmp_path / "x.npy")
    rows = np.array([7, 150, 3])
    wanted = np.concatenate([values[ends[row] : ends[row + 1]] for row in rows])
    assert np.array_equal(piece.gather("values", rows), wanted)


def test_a_piece_without_any_term(tmp_path):
    with SparseWriter(tmp_path / "x.npy", 3, 50, np.float32) as writer:
        writer.put(np.arange(3), np.zeros(3, int), np.empty(0, np.int32), np.empty(0, np.float32))
        writer.seal(model_id="m")
    piece = SparseVectors(tmp_path / "x.npy")
    assert piece.rows == 3 and is_written(tmp_path / "x.npy")
    ids = pa.array(["a", "c", "b"], pa.large_string())
    ((_, rows, scores),) = search.scan(piece, piece, 2, lambda rows: ids.take(pa.array(rows)))
    assert rows.tolist() == [[1, 2]] * 3 and not scores.any()


def test_damage_and_killed_writers_are_noticed(tmp_path):
    path = tmp_path / "x.npy"

    def write(complete=True):
        with SparseWriter(path, 2, 50, np.float32) as writer:
            writer.put(
                np.array([1]), np.array([1]), np.array([4], np.int32), np.ones(1, np.float32)
            )
            if complete:
                writer.put(
                    np.array([0]), np.array([1]), np.array([2], np.int32), np.ones(1, np.float32)
                )
            writer.seal(model_id="m")

    with pytest.raises(RuntimeError, match="row 0 was never written"):
        write(complete=False)
    assert not list(tmp_path.iterdir()) and not is_written(path)
    write()
    assert is_written(path)
    for name in ("x.npy", "x.columns.npy", "x.offsets.npy"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-1] + b"\x07")
        with pytest.raises(UserError, match=f"{name}: its bytes are not"):
            SparseVectors(path)
        (tmp_path / name).write_bytes(whole[:-1])
        with pytest.raises(UserError, match=f"{name}: not a whole"):
            SparseVectors(path)
        (tmp_path / name).write_bytes(whole)
    record = json.loads(sidecar(path).read_text())
    sidecar(path).write_text(json.dumps(record | {"width": 51}))
    with pytest.raises(UserError, match="not the JSON that was written"):
        SparseVectors(path)


def made(folder: Path, name: str, dense: np.ndarray, **meta) -> Path:
    """A piece of a matrix's entries that are not 0."""
    rows, columns = np.nonzero(dense)
    with SparseWriter(folder / name, len(dense), dense.shape[1], dense.dtype) as writer:
        lengths = np.bincount(rows, minlength=len(dense))
        writer.put(np.arange(len(dense)), lengths, columns.astype(np.int32), dense[rows, columns])
        writer.seal(**{"model_id": "m"} | meta)
    return folder / name


def brute_force(queries, corpus, docs, k):
    """By (score, id) downwards, scores added term by term."""
    for query in queries:
        total = np.zeros(len(corpus))
        for term in np.flatnonzero(query):
            total += np.float64(query[term]) * corpus[:, term].astype(np.float64)
        scores = total.astype(np.float32)
        order = sorted(range(len(docs)), key=lambda i: (scores[i], docs[i].encode()), reverse=True)
        yield [docs[i] for i in order[:k]], [float(scores[i]) for i in order[:k]]


def run_of(folder: Path, queries, corpus, k: int, shards: int) -> bytes:
    """The run of a job, in one go and by hits, which must agree."""
    made(folder, "q.npy", queries)
    pieces = []
    for i in range(shards):
        start, stop = len(corpus) * i // shards, len(corpus) * (i + 1) // shards
        pieces.append(made(folder, f"c{i}-of-{shards}.npy", corpus[start:stop], rows=[start, stop]))
    return run_bytes(folder, pieces, k)


def sparse_matrix(draw, n, width, density, levels=None, dtype=np.float32):
    values = draw.random((n, width)) if levels is None else draw.integers(1, levels + 1, (n, width))
    return np.where(draw.random((n, width)) < density, values, 0).astype(dtype)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 300),
    density=st.sampled_from([0.0, 0.02, 0.3]),
    levels=st.sampled_from([None, 1, 2]),
    k=st.integers(1, 40),
    block=st.sampled_from([1, 200, 2**22]),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_equals_brute_force(tmp_path_factory, seed, n, density, levels, k, block, dtype):
    draw = np.random.default_rng(seed)
    corpus = sparse_matrix(draw, n, 60, density, levels, dtype)
    queries = sparse_matrix(draw, 5, corpus.shape[1], 0.1, levels)
    docs = [f"d{i}" for i in draw.permutation(n)]
    folder = tmp_path_factory.mktemp("search")
    pieces = [
        SparseVectors(made(folder, *given)) for given in (("q.npy", queries), ("c.npy", corpus))
    ]
    ids = pa.array(docs, pa.large_string())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK", block)
        ((_, rows, scores),) = search.scan(*pieces, k, lambda rows: ids.take(pa.array(rows)))
    for row, found, (names, values) in zip(
        rows, scores, brute_force(queries, corpus, docs, k), strict=True
    ):
        assert [docs[i] for i in row] == names and found.tolist() == values


def test_terms_beyond_16_bits(tmp_path):
    draw = np.random.default_rng(4)
    columns = draw.integers(0, 250_000, 5000).astype(np.int32)
    assert np.array_equal(search._stable_order(columns), np.argsort(columns, kind="stable"))


def test_runs_are_the_same_for_any_number_of_shards(tmp_path):
    draw = np.random.default_rng(1)
    corpus, queries = sparse_matrix(draw, 400, 90, 0.1, 3), sparse_matrix(draw, 12, 90, 0.1, 3)
    docs = [f"d{i}" for i in draw.permutation(400)]
    pq.write_table(pa.table({"id": docs}), tmp_path / "corpus.parquet")
    pq.write_table(pa.table({"id": [f"q{i}" for i in range(12)]}), tmp_path / "queries.parquet")
    runs = [run_of(tmp_path, queries, corpus, 100, shards) for shards in (1, 3, 8)]
    assert runs[0] == runs[1] == runs[2] and runs[0].count(b"\n") == 1200


MEMORY = """
import resource, sys
import pyarrow as pa
from embedrepro.search import sparse
from embedrepro.vectors.sparse import SparseVectors
sparse.BLOCK = 2**17
ids = pa.array([f"d{i}" for i in range(50_000)], pa.large_string())
queries = SparseVectors(sys.argv[1] + "/q.npy")
for name in ("small", "large"):
    shard = SparseVectors(f"{sys.argv[1]}/{name}.npy", verify=False)
    list(sparse.scan(queries, shard, 10, lambda rows: ids.take(pa.array(rows))))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Ten times as many passages, 40 MB of them, take no more memory."""
    draw = np.random.default_rng(3)
    terms = np.sort(draw.permutation(30_000)[:100]).astype(np.int32)
    for name, rows in (("q", 4), ("small", 5_000), ("large", 50_000)):
        with SparseWriter(tmp_path / f"{name}.npy", rows, 30_000, np.float32) as writer:
            weights = draw.random(100 * rows).astype(np.float32)
            writer.put(np.arange(rows), np.full(rows, 100), np.tile(terms, rows), weights)
            writer.seal(model_id="m")
    small, large = printed_memory(MEMORY, tmp_path)
    assert large - small < 15


def test_mistakes_are_named(folders, tmp_path):
    with pytest.raises(UserError, match="is no sparse encoder"):
        SparseEngine(facts(folders["headless"]), "cpu")
    engine = SparseEngine(facts(folders["splade"]), "cpu")
    with pytest.raises(UserError, match="prompt takes 26 of 24 tokens"):
        engine.encode(["w1"], "query", prompt="w1 " * 24)
    with pytest.raises(UserError, match="use query or passage"):
        engine.encode(["w1"], "document")
    with pytest.raises(UserError, match="knows no dimensions"):
        engine.encode(["w1"], "query", dimensions=8)
    draw = np.random.default_rng(2)
    one, other = sparse_matrix(draw, 3, 20, 0.5), sparse_matrix(draw, 3, 21, 0.5)
    pq.write_table(pa.table({"id": ["a", "b", "c"]}), tmp_path / "corpus.parquet")
    pq.write_table(pa.table({"id": ["x", "y"]}), tmp_path / "queries.parquet")
    with pytest.raises(UserError, match=r"q\.npy: ends with row 3 of .*'s 2"):
        run_bytes(tmp_path, [made(tmp_path, "q.npy", one)], 2)
    pq.write_table(pa.table({"id": ["x", "y", "z"]}), tmp_path / "queries.parquet")
    made(tmp_path, "q.npy", one)
    with pytest.raises(UserError, match="has width 20.*has 21"):
        run_bytes(tmp_path, [made(tmp_path, "c.npy", other)], 2)
    one[1, 1] = np.nan
    with pytest.raises(UserError, match=r"row 1 holds NaN"):
        run_bytes(tmp_path, [made(tmp_path, "c.npy", one)], 2)


def test_texts_without_a_term_have_none(folders):
    engine = SparseEngine(facts(folders["inference_free"]), "cpu")
    (part,) = engine.encode(["", " "], "query")
    assert part.lengths.tolist() == [0, 0] and not len(part.values)


@pytest.mark.parametrize("way", ["padded", "end to end"])
def test_texts_without_a_token_have_no_terms_as_beside_others(folders, way, tmp_path, monkeypatch):
    ran = lay_end_to_end(monkeypatch, 200) if way == "end to end" else []
    engine = SparseEngine(facts(folders["bare"]), "cpu")
    given = ["", *texts(20, 5, most=30), " ", ""]
    found = matrix(encode(engine, given, "passage", tmp_path / "x.npy"))
    peer = SparseEncoder(str(folders["bare"]), device="cpu")
    expected = peer.encode_document(given, convert_to_sparse_tensor=False).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-6)
    assert not found[[0, 21, 22]].any() and found[1:21].any(1).all()
    nothing = encode(engine, ["", " "], "passage", tmp_path / "y.npy")  # the peer raises here
    assert nothing.lengths.tolist() == [0, 0]
    assert len(ran) == 2 * (way == "end to end")


def test_lengths_are_the_facts(folders):
    engine = SparseEngine(facts(folders["splade"]), "cpu")
    long = " ".join(["w3"] * 60)
    for role, length in LENGTHS.items():
        (part,) = engine.encode([long], role)
        assert (part.tokens, part.truncated) == (length, 1)
    (part,) = engine.encode([" ".join(["w3"] * 38)], "passage")
    assert (part.tokens, part.truncated) == (40, 0)
