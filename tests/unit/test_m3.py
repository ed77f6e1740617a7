"""BGE-M3 in its three ways, held against FlagEmbedding's BGEM3FlagModel."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from embedrepro.encode.formats import is_written, m3_outputs, open_piece
from embedrepro.encode.m3 import M3Engine, lexical_weights
from embedrepro.errors import UserError
from embedrepro.search.runs import write_run
from embedrepro.search.weighted import M3Pairs, check_weights, rank, weighted_sum
from embedrepro.vectors.dense import load_array
from embedrepro.vectors.multivector import TokenVectors
from embedrepro.vectors.sparse import SparseVectors
from format_models import LENGTHS, bert, facts, m3, texts
from safetensors.torch import save_file

WEIGHTS = (0.4, 0.2, 0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return m3(tmp_path_factory.mktemp("m3") / "model")


@pytest.fixture(scope="module")
def engine(folder):
    return M3Engine(facts(folder, architecture="xlm-roberta"), "cpu", tokens_per_batch=256)


def encode(engine, given, role, output, **meta):
    with open_piece(engine, output, len(given)) as writer:
        for part in engine.encode(given, role):
            writer.put(part)
        writer.seal(**{"model_id": "m"} | meta)
    return output


@pytest.fixture(scope="module")
def encoded(engine, tmp_path_factory):
    """Queries and passages, and their pieces."""
    place = tmp_path_factory.mktemp("pieces")
    queries, passages = texts(6, 1), texts(12, 2)
    corpus = [
        encode(engine, passages[:5], "passage", place / "c0.npy", rows=[0, 5]),
        encode(engine, passages[5:], "passage", place / "c1.npy", rows=[5, 12]),
    ]
    return queries, passages, encode(engine, queries, "query", place / "q.npy"), corpus


def test_scores_are_those_of_compute_score(folder, encoded):
    from FlagEmbedding import BGEM3FlagModel

    peer = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
    queries, passages, q, corpus = encoded
    pairs = np.divmod(np.arange(len(queries) * len(passages)), len(passages))
    ours = M3Pairs(q, corpus).scores(*pairs)
    sums = weighted_sum(ours, WEIGHTS)
    halves = weighted_sum((ours[0], ours[1], ours[2] * 0), (0.4, 0.2, 0.0))
    for place, (i, j) in enumerate(zip(*pairs, strict=True)):
        # One pair at a time: in a batch, padding would count as token vectors of zeros.
        theirs = peer.compute_score(
            [(queries[i], passages[j])],
            max_query_length=LENGTHS["query"],
            max_passage_length=LENGTHS["passage"],
            weights_for_different_modes=list(WEIGHTS),
        )
        found = {
            "dense": ours[0],
            "sparse": ours[1],
            "colbert": ours[2],
            "sparse+dense": halves,
            "colbert+sparse+dense": sums,
        }
        for name, values in found.items():
            assert values[place] == pytest.approx(theirs[name][0], abs=1e-5, rel=1e-5)


def test_vectors_are_those_of_encode(folder, encoded):
    from FlagEmbedding import BGEM3FlagModel

    peer = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
    _, passages, _, corpus = encoded
    theirs = peer.encode(
        passages[:5],
        max_length=LENGTHS["passage"],
        return_dense=True,
        return_sparse=True,
        return_colbert_vecs=True,
    )
    lexical, tokens = m3_outputs(corpus[0])
    np.testing.assert_allclose(load_array(corpus[0])[0], theirs["dense_vecs"], atol=1e-5)
    sparse, multi = SparseVectors(lexical), TokenVectors(tokens)
    for row in range(5):
        columns, values = sparse.block(row, row + 1)
        expected = {int(term): weight for term, weight in theirs["lexical_weights"][row].items()}
        assert columns.tolist() == sorted(expected)
        np.testing.assert_allclose(values, [expected[term] for term in columns], atol=1e-5)
        np.testing.assert_allclose(
            multi.block(row, row + 1), theirs["colbert_vecs"][row], atol=1e-5
        )


def test_neighbours_and_cuts_change_no_byte(engine, tmp_path):
    given = texts(50, 3)
    whole = encode(engine, given, "passage", tmp_path / "x.npy")
    parts = [
        encode(engine, given[50 * i // 3 : 50 * (i + 1) // 3], "passage", tmp_path / f"{i}.npy")
        for i in range(3)
    ]

    def content(path):
        lexical, tokens = m3_outputs(path)
        sparse = SparseVectors(lexical)
        columns, values = sparse.block(0, sparse.rows)
        multi = TokenVectors(tokens)
        return load_array(path)[0], columns, values, multi.block(0, multi.rows)

    joined = [np.concatenate(arrays) for arrays in zip(*map(content, parts), strict=True)]
    for ours, all_of in zip(joined, content(whole), strict=True):
        assert ours.tobytes() == all_of.tobytes()


def test_a_piece_is_whole_only_with_all_its_files(engine, tmp_path):
    path = encode(engine, ["w1 w2"], "query", tmp_path / "q.npy")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert len(names) == 9 and is_written(path)
    for name in names:
        (tmp_path / name).rename(tmp_path / "away")
        assert not is_written(path), name
        (tmp_path / "away").rename(tmp_path / name)


def test_a_piece_that_can_not_be_opened_leaves_nothing(engine, tmp_path):
    with pytest.raises(UserError, match="dimensions 999"):
        open_piece(engine, tmp_path / "p.npy", 3, 999)
    assert not list(tmp_path.iterdir())


def test_ranks_by_the_weighted_sum_of_what_runs_name(encoded, tmp_path):
    queries, passages, q, corpus = encoded
    docs, names = [f"d{i}" for i in range(12)], [f"q{i}" for i in range(6)]
    pq.write_table(pa.table({"id": docs}), tmp_path / "corpus.parquet")
    pq.write_table(pa.table({"id": names}), tmp_path / "queries.parquet")
    for name, best in (("one", docs[:4]), ("two", docs[2:8])):
        scores = np.arange(len(best), 0, -1, np.float32)
        write_run(tmp_path / name, ((query, best, scores) for query in names), name)
    runs = [tmp_path / "one", tmp_path / "two"]
    given = (q, tmp_path / "queries.parquet", corpus, tmp_path / "corpus.parquet", WEIGHTS)
    found = list(rank(runs, *given, 4, "cpu"))
    assert [query for query, _, _ in found] == names
    sums = weighted_sum(M3Pairs(q, corpus).scores(*np.divmod(np.arange(72), 12)), WEIGHTS).reshape(
        6, 12
    )
    for row, (_, best, scores) in enumerate(found):
        assert sorted(best) == docs[:6]
        assert scores.tolist() == [sums[row, docs.index(doc)] for doc in best]
        assert (np.diff(scores) <= 0).all()


def test_largest_weight_of_a_term_without_special_ones():
    ids = np.array([[2, 9, 7, 9, 3, 0], [2, 5, 3, 0, 0, 0]])
    weights = np.array([[9, 1, 2, 3, 9, 9], [9, 0, 9, 9, 9, 9]], np.float32)
    mask = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], bool)
    lengths, terms, values = lexical_weights(ids, weights, mask, [2, 3, None])
    assert (lengths.tolist(), terms.tolist(), values.tolist()) == ([2, 0], [7, 9], [2, 3])


def test_heads_are_read_from_either_file(folder, engine, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).hardlink_to(path)
    for name in ("sparse_linear", "colbert_linear"):
        save_file(torch.load(folder / f"{name}.pt"), copy / f"{name}.safetensors")
        (copy / f"{name}.pt").unlink()
    given = facts(copy, architecture="xlm-roberta")
    found = [next(M3Engine(given, "cpu", 256).encode(["w1 w2 w3"], "query"))]
    found.append(next(engine.encode(["w1 w2 w3"], "query")))
    assert (found[0].tokens, found[0].truncated) == (5, 0)
    assert found[0].multivector.vectors.tobytes() == found[1].multivector.vectors.tobytes()


def test_mistakes_are_named(tmp_path, engine):
    with pytest.raises(UserError, match="has no sparse_linear.pt"):
        M3Engine(facts(bert(tmp_path / "plain")), "cpu")
    with pytest.raises(UserError, match="knows no dimensions"):
        engine.encode(["w1"], "query", dimensions=8)
    for weights in ((1, 1), (0, 0, 0), (1, -1, 1)):
        with pytest.raises(UserError, match="give three numbers"):
            check_weights(weights)
    broken = m3(tmp_path / "broken")
    (broken / "sparse_linear.pt").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="not a file of tensors"):
        M3Engine(facts(broken, architecture="xlm-roberta"), "cpu")
