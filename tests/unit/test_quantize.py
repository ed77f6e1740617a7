"""Quantised and cut vectors, held against sentence-transformers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedrepro.errors import UserError
from embedrepro.search import job, quantized
from embedrepro.vectors import quantize
from embedrepro.vectors.dense import load_array, save_array
from sentence_transformers.util.quantization import (
    _dequantize_embeddings,
    quantize_embeddings,
    semantic_search_faiss,
)

CALIBRATION = 40


def unit(draw, n, dim, dtype=np.float32):
    vectors = draw.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1)[:, None]).astype(dtype)


@pytest.mark.parametrize("dim", [16, 37])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_codes_are_those_of_sentence_transformers(dim, dtype):
    draw = np.random.default_rng(0)
    vectors = unit(draw, 200, dim, dtype)
    vectors[:, 3] = 0.25  # a dimension without a range
    ranges = np.stack([vectors[:90].min(0), vectors[:90].max(0)]).astype(np.float32)
    for precision in quantize.PRECISIONS:
        ours = quantize.quantize(vectors, precision, ranges)
        theirs = quantize_embeddings(vectors.astype(np.float32), precision, ranges=ranges)
        assert ours.dtype == np.int8 and ours.tobytes() == theirs.tobytes()
    codes = quantize.quantize(vectors, "int8", ranges)
    np.testing.assert_array_equal(
        quantize.restore(codes, "int8", ranges, dim),
        _dequantize_embeddings(codes.astype(int), "int8", ranges).astype(np.float32),
    )


def pieces(folder, corpus, shards, precision, **meta):
    """Dense pieces and their codes; the paths of the codes."""
    paths = []
    for i in range(shards):
        start, stop = len(corpus) * i // shards, len(corpus) * (i + 1) // shards
        paths.append(folder / f"c{i}-of-{shards}.npy")
        save_array(paths[-1], corpus[start:stop], rows=[start, stop], model_id="m", **meta)
    ranges = quantize.int8_ranges(paths[::-1], CALIBRATION) if precision == "int8" else None
    codes = [folder / f"{precision}-{path.name}" for path in paths]
    for source, output in zip(paths, codes, strict=True):
        quantize.write_quantized(source, output, precision, ranges)
    return codes, ranges


def run_of(folder, queries, corpus, docs, k, shards, precision, multiplier) -> bytes:
    pq.write_table(pa.table({"id": docs}), folder / "corpus.parquet")
    pq.write_table(pa.table({"id": [f"q{i}" for i in range(len(queries))]}), folder / "q.parquet")
    save_array(folder / "q.npy", queries, model_id="m")
    codes, _ = pieces(folder, corpus, shards, precision)
    (folder / "run.trec").unlink(missing_ok=True)
    names = (folder / "corpus.parquet", folder / "q.parquet", k, "m", folder / "run.trec")
    quantized.search_row(job.Row(folder / "q.npy", codes[::-1], *names), multiplier)
    return (folder / "run.trec").read_bytes()


@pytest.mark.parametrize("precision", quantize.PRECISIONS)
@pytest.mark.parametrize("multiplier", [0, 1, 3])
def test_equals_brute_force_for_any_number_of_shards(tmp_path, precision, multiplier, monkeypatch):
    monkeypatch.setattr(quantized, "BLOCK", 1000)
    draw = np.random.default_rng(1)
    queries, corpus = unit(draw, 7, 20), unit(draw, 300, 20, np.float16)
    docs = [f"d{i}" for i in draw.permutation(300)]
    runs = [
        run_of(tmp_path, queries, corpus, docs, 25, shards, precision, multiplier)
        for shards in (1, 3, 8)
    ]
    assert runs[0] == runs[1] == runs[2]
    some = corpus[np.arange(CALIBRATION) * 300 // CALIBRATION]
    ranges = np.stack([some.min(0), some.max(0)]).astype(np.float32)
    q, c = (quantize.quantize(v, precision, ranges) for v in (queries, corpus))
    if precision == "int8":
        first = q.astype(int) @ c.astype(int).T
    else:
        bits = [np.unpackbits((v.astype(int) + 128).astype(np.uint8), axis=1) for v in (q, c)]
        first = -(bits[0][:, None] != bits[1][None]).sum(2)
    second = queries.astype(np.float64) @ quantize.restore(c, precision, ranges, 20).T.astype(float)
    lines = []
    for row in range(7):
        order = sorted(range(300), key=lambda i: (first[row, i], docs[i]), reverse=True)
        scores = first[row].astype(np.float32)
        if multiplier:
            order, scores = order[: 25 * multiplier], second[row].astype(np.float32)
            order.sort(key=lambda i: (scores[i], docs[i]), reverse=True)
        lines += [
            f"q{row} Q0 {docs[i]} {rank} {scores[i]:.9g} m\n"
            for rank, i in enumerate(order[:25], 1)
        ]
    assert "".join(lines).encode() == runs[0]


def test_binary_search_finds_what_sentence_transformers_finds(tmp_path):
    draw = np.random.default_rng(2)
    queries, corpus = unit(draw, 5, 64), unit(draw, 120, 64)
    theirs, _ = semantic_search_faiss(
        queries,
        corpus_embeddings=quantize_embeddings(corpus, "ubinary"),
        corpus_precision="ubinary",
        top_k=60,
        rescore_multiplier=2,
    )
    codes, _ = pieces(tmp_path, corpus, 2, "binary")
    ids = pa.array([f"d{i}" for i in range(120)], pa.large_string())
    whole = quantized.Pieces([quantized.Codes(path) for path in codes])
    ((_, rows, scores),) = quantized.scan(queries, whole, 60, lambda r: ids.take(pa.array(r)), 2)
    for ours, found, expected in zip(rows, scores, theirs, strict=True):
        assert ours.tolist() == [hit["corpus_id"] for hit in expected]
        np.testing.assert_allclose(found, [hit["score"] for hit in expected], atol=1e-5)


def test_many_dimensions_are_added_without_rounding(tmp_path):
    corpus, queries = np.ones((3, 3000), np.float32), np.ones((1, 3000), np.float32)
    corpus[0] = -1
    codes, ranges = pieces(tmp_path, corpus, 1, "int8")
    piece = quantized.Codes(codes[0])
    assert quantized._numbers(piece.codes, piece).dtype == np.float64
    ((_, scores),) = quantized._scored(queries, quantized.Pieces([piece]))
    asked = quantize.quantize(queries, "int8", ranges).astype(int)
    exact = piece.codes.astype(int) @ asked[0]
    assert abs(exact).min() > 2**24 and scores[0].tolist() == exact.astype(np.float32).tolist()


def test_ranges_come_from_rows_spread_over_the_corpus(tmp_path):
    draw = np.random.default_rng(3)
    corpus = unit(draw, 1000, 8)
    rows = quantize.calibration_rows(1000, CALIBRATION)
    assert rows.tolist() == list(range(0, 1000, 25))
    expected = np.stack([corpus[rows].min(0), corpus[rows].max(0)])
    for shards in (1, 3, 8):
        _, ranges = pieces(tmp_path, corpus, shards, "int8")
        assert ranges.tobytes() == expected.tobytes()


def test_matryoshka_cut_scales_to_length_1_again(tmp_path):
    draw = np.random.default_rng(4)
    vectors = unit(draw, 50, 32)
    vectors[7] = 0
    save_array(tmp_path / "x.npy", vectors, rows=[0, 50], model_id="m")
    quantize.write_cut(tmp_path / "x.npy", tmp_path / "y.npy", 8, True)
    found, meta = load_array(tmp_path / "y.npy")
    assert (meta["rows"], meta["model_id"], meta["dimensions"]) == ([0, 50], "m", 8)
    lengths = np.linalg.norm(vectors[:, :8], axis=1)
    lengths[7] = 1
    np.testing.assert_allclose(found, vectors[:, :8] / lengths[:, None], atol=1e-7)
    alone = np.concatenate([quantize.cut(row[None], 8, True) for row in vectors])
    assert alone.tobytes() == found.tobytes()
    quantize.write_cut(tmp_path / "x.npy", tmp_path / "y.npy", 8, False)
    assert load_array(tmp_path / "y.npy")[0].tobytes() == vectors[:, :8].tobytes()
    with pytest.raises(UserError, match="use 1 to 32"):
        quantize.write_cut(tmp_path / "x.npy", tmp_path / "y.npy", 33, True)


def test_mistakes_are_named(tmp_path):
    draw = np.random.default_rng(5)
    corpus = unit(draw, 30, 8)
    (codes, other), _ = pieces(tmp_path, corpus, 2, "int8")
    save_array(tmp_path / "q.npy", unit(draw, 2, 9), model_id="m")
    pq.write_table(pa.table({"id": [f"d{i}" for i in range(30)]}), tmp_path / "corpus.parquet")
    pq.write_table(pa.table({"id": ["q0", "q1"]}), tmp_path / "q.parquet")
    names = (tmp_path / "corpus.parquet", tmp_path / "q.parquet", 3, "m", tmp_path / "run.trec")

    def search(*codes):
        quantized.search_row(job.Row(tmp_path / "q.npy", codes, *names), 2)

    with pytest.raises(UserError, match="9 dimensions"):
        search(codes, other)
    save_array(tmp_path / "q.npy", unit(draw, 2, 8), model_id="m")
    with pytest.raises(UserError, match="tile"):
        search(other)
    quantize.write_quantized(tmp_path / "c1-of-2.npy", other, "int8", np.stack([[-2] * 8, [2] * 8]))
    with pytest.raises(UserError, match="quantised otherwise"):
        search(codes, other)
    with pytest.raises(UserError, match="no quantised vectors"):
        quantize.open_quantized(tmp_path / "c1-of-2.npy")
    with pytest.raises(UserError, match="use int8 or binary"):
        quantize.write_quantized(tmp_path / "c1-of-2.npy", other, "int4", None)
