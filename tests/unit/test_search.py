"""Exact search and merge against brute force in float64, for any cut into shards."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval
import torch
from embedrepro.errors import UserError
from embedrepro.search import exact, job, scan
from embedrepro.search.hits import group_size, regrouped, write_hits
from embedrepro.search.job import MergeRow, Piece, Row
from embedrepro.search.runs import read_run
from embedrepro.search.scores import dot
from embedrepro.vectors import shard as vectors
from embedrepro.vectors.dense import save_array, sidecar
from hypothesis import given, settings
from hypothesis import strategies as st

MADE = {"compute_dtype": "float16", "model_id": "org/m"}


def write_ids(folder: Path, docs: list[str], queries: list[str]) -> None:
    pq.write_table(pa.table({"id": docs}), folder / "corpus.parquet", row_group_size=700)
    pq.write_table(pa.table({"id": queries}), folder / "queries.parquet")


def run_of(folder: Path, queries, corpus, k: int, shards: int, **merge) -> bytes:
    """Cut the corpus; search the pieces and merge their hits, or make the run in one go.

    By way of scans, of NumPy and of memory alone: they must agree in every byte.
    """
    save_array(folder / "q.npy", queries, **MADE)
    pieces = []
    for i in range(shards):
        start, stop = len(corpus) * i // shards, len(corpus) * (i + 1) // shards
        pieces.append(folder / f"c{i}.npy")
        save_array(pieces[-1], corpus[start:stop], rows=[start, stop], **MADE)
    ids, names = folder / "corpus.parquet", folder / "queries.parquet"
    runs = []
    for device in ("cpu", "auto"):
        hits = [folder / f"{device}{i}.parquet" for i in range(shards)]
        for path in [*hits, folder / "merged.trec", folder / "run.trec"]:
            path.unlink(missing_ok=True)
        depth = k + bool(merge.get("spare_identical_ids"))
        job.search_pieces(
            [
                Piece(folder / "q.npy", piece, ids, depth, path)
                for piece, path in zip(pieces, hits, strict=True)
            ],
            device,
        )
        job.merge_rows([MergeRow(hits[::-1], ids, names, k, "m", folder / "merged.trec", **merge)])
        row = Row(folder / "q.npy", pieces, ids, names, k, "m", folder / "run.trec", **merge)
        job.search_rows([row], device)
        runs += [(folder / name).read_bytes() for name in ("merged.trec", "run.trec")]
    assert len(set(runs)) == 1
    return runs[0]


def brute_force(queries, corpus, docs: list[str], k: int) -> bytes:
    scores = (queries.astype(np.float64) @ corpus.astype(np.float64).T).astype(np.float32)
    lines = []
    for row, of_query in enumerate(scores):
        best = sorted(zip(of_query, [d.encode() for d in docs], strict=True), reverse=True)[:k]
        lines += [
            f"q{row} Q0 {doc.decode()} {rank} {score:.9g} m\n"
            for rank, (score, doc) in enumerate(best, 1)
        ]
    return "".join(lines).encode()


def made(seed: int, n: int, queries: int, dim: int, dtype=np.float16):
    """Vectors with whole blocks of duplicates, queries that hit them, and ids beyond ASCII."""
    random = np.random.default_rng(seed)
    corpus = random.standard_normal((n, dim)).astype(dtype)
    corpus[n // 5 : n // 3] = corpus[0]
    corpus[n // 2 : n // 2 + n // 8] = corpus[n // 2]
    wanted = random.standard_normal((queries, dim)).astype(dtype)
    wanted[0], wanted[1] = corpus[0] * 2, corpus[n // 2]
    docs = [f"{random.choice(list('aZ9é中𝄞'))}{i}" for i in random.permutation(n)]
    return wanted, corpus, docs


@pytest.mark.parametrize(
    ("query_dtype", "dtype", "cuts"),
    [
        (np.float16, np.float16, (1, 64)),
        (np.float32, np.float32, (1, 5)),
        (np.float32, np.float16, (1, 5)),
        (np.float16, np.float32, (5,)),
    ],
)
def test_equals_brute_force_for_any_number_of_shards(tmp_path, query_dtype, dtype, cuts):
    queries, corpus, docs = made(1, 3000, 21, 37, dtype)
    queries = (queries * np.float32(1.0001)).astype(query_dtype)
    write_ids(tmp_path, docs, [f"q{i}" for i in range(21)])
    expected = brute_force(queries, corpus, docs, 100)
    for shards in cuts:
        assert run_of(tmp_path, queries, corpus, 100, shards) == expected


def test_k_may_exceed_the_shard_and_the_corpus(tmp_path):
    queries, corpus, docs = made(2, 90, 5, 8)
    write_ids(tmp_path, docs, [f"q{i}" for i in range(5)])
    for shards in (1, 7, 30):
        assert run_of(tmp_path, queries, corpus, 10_000, shards) == brute_force(
            queries, corpus, docs, 10_000
        )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 400),
    queries=st.integers(1, 9),
    dim=st.integers(1, 40),
    k=st.integers(1, 60),
    dtype=st.sampled_from([np.float16, np.float32]),
    levels=st.sampled_from([None, 2, 1]),
    scores=st.sampled_from([64, 600, 2**20]),
    streamed=st.booleans(),
)
def test_blocks_groups_and_ties(
    tmp_path_factory, seed, n, queries, dim, k, dtype, levels, scores, streamed
):
    """Vectors of few levels tie everywhere, a small limit makes many blocks."""
    folder = tmp_path_factory.mktemp("search")
    random = np.random.default_rng(seed)
    draw = (
        random.standard_normal
        if levels is None
        else (lambda shape: random.integers(-levels, levels + 1, shape).astype(float))
    )
    corpus, wanted = draw((n, dim)).astype(dtype), draw((queries, dim)).astype(dtype)
    docs = [f"d{i}" for i in random.permutation(n)]
    save_array(folder / "c.npy", corpus)
    ids = pa.array(docs, pa.large_string())
    shard = vectors.Shard(folder / "c.npy", "cpu")
    shard.random_access = not streamed  # as on a GPU that the corpus doesn't fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "CPU_SCORES", scores)
        patch.setattr(scan, "CPU_POOL", 1)  # the smallest groups of queries
        patch.setattr(scan, "group_size", lambda k: 4)
        batches = list(scan.scan(wanted, shard, k, ids.take))
    got = "".join(
        f"q{first + i} Q0 {docs[doc]} {rank} {score:.9g} m\n"
        for first, rows, values in batches
        for i in range(len(rows))
        for rank, (doc, score) in enumerate(zip(rows[i], values[i], strict=True), 1)
    )
    assert got.encode() == brute_force(wanted, corpus, docs, k)


@pytest.mark.parametrize("streamed", [False, True])
def test_more_ties_at_the_cut_than_candidates_are_kept(tmp_path, streamed, monkeypatch):
    """Twenty thousand duplicates and better documents after them, k = 7."""
    monkeypatch.setattr(scan, "CPU_SCORES", 8000)
    corpus = np.ones((20_000, 16), dtype=np.float16)
    corpus[-3:] = 2
    docs = [f"d{i}" for i in np.random.default_rng(3).permutation(20_000)]
    save_array(tmp_path / "c.npy", corpus)
    shard = vectors.Shard(tmp_path / "c.npy", "cpu")
    shard.random_access = not streamed
    queries = np.ones((2, 16), dtype=np.float16)
    ids = pa.array(docs, pa.large_string())
    (_, rows, scores) = next(iter(scan.scan(queries, shard, 7, ids.take)))
    best = sorted(docs[-3:], reverse=True) + sorted(docs[:-3], reverse=True)[:4]
    assert [[docs[row] for row in found] for found in rows] == [best, best]
    assert scores.tolist() == [[32.0] * 3 + [16.0] * 4] * 2


def test_scores_that_only_float64_tells_apart(tmp_path):
    """float32 sums of these depend on the order by more than the documents differ."""
    random = np.random.default_rng(4)
    base = random.standard_normal(512).astype(np.float32)
    corpus = np.repeat(base[None], 400, 0)
    corpus += random.standard_normal(corpus.shape).astype(np.float32) * 1e-7
    queries = np.repeat(base[None], 3, 0) * np.float32(1000)
    docs = [f"d{i}" for i in range(400)]
    write_ids(tmp_path, docs, ["q0", "q1", "q2"])
    expected = brute_force(queries, corpus, docs, 20)
    for shards in (1, 3):
        assert run_of(tmp_path, queries, corpus, 20, shards) == expected


def test_identical_ids_do_not_count_among_the_k(tmp_path):
    queries, corpus, docs = made(5, 200, 4, 8)
    names = [docs[0], "other", docs[3], docs[100]]
    write_ids(tmp_path, docs, names)
    run_of(tmp_path, queries, corpus, 50, 3, spare_identical_ids=True)
    run = read_run(tmp_path / "run.trec")
    everything = brute_force(queries, corpus, docs, 200).decode().splitlines()
    for row, name in enumerate(names):
        ranked = [line.split()[2] for line in everything if line.startswith(f"q{row} ")]
        assert [doc for doc in run[name] if doc != name] == [d for d in ranked if d != name][:50]
        assert (name in run[name]) == (name in ranked[:51])
    hits = [tmp_path / f"cpu{i}.parquet" for i in range(3)]
    ids, names = tmp_path / "corpus.parquet", tmp_path / "queries.parquet"
    row = MergeRow(hits, ids, names, 51, "m", tmp_path / "other.trec", spare_identical_ids=True)
    with pytest.raises(UserError, match="--top-k 52"):
        job.merge_rows([row])


def test_rank_is_the_rank_that_trec_eval_scores(tmp_path):
    queries, corpus, docs = made(6, 500, 6, 4)
    write_ids(tmp_path, docs, [f"q{i}" for i in range(6)])
    run_of(tmp_path, queries, corpus, 30, 2)
    run = read_run(tmp_path / "run.trec")
    for query, ranking in run.items():
        for rank, doc in enumerate(ranking, 1):
            judged = pytrec_eval.RelevanceEvaluator({query: {doc: 1}}, {"recip_rank"})
            assert judged.evaluate({query: ranking})[query]["recip_rank"] == pytest.approx(1 / rank)


def test_dot_is_exact_and_the_same_in_any_company():
    random = np.random.default_rng(7)
    a, b = (torch.from_numpy(random.standard_normal((50, 77)).astype(np.float16)) for _ in "ab")
    exact = (a.double().numpy() * b.double().numpy()).sum(1).astype(np.float32)
    assert dot(a, b).numpy().tobytes() == exact.tobytes()
    alone = torch.cat([dot(a[i : i + 1], b[i : i + 1]) for i in range(50)])
    assert torch.equal(alone, dot(a, b))
    assert not np.signbit(dot(-a[:1] * 0, b[:1]).numpy()).any()


def shard_files(tmp_path, **change):
    queries, corpus, docs = made(8, 60, 3, 8)
    write_ids(tmp_path, docs, ["q0", "q1", "q2"])
    save_array(tmp_path / "q.npy", change.pop("queries", queries), **MADE)
    save_array(
        tmp_path / "c.npy", change.pop("corpus", corpus), **({"rows": [0, 60]} | MADE | change)
    )


def search_one(tmp_path, device="cpu", top_k=5):
    (tmp_path / "h.parquet").unlink(missing_ok=True)
    paths = [tmp_path / name for name in ("q.npy", "c.npy", "corpus.parquet")]
    job.search_pieces([Piece(*paths, top_k, tmp_path / "h.parquet")], device)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_wrong_inputs_are_refused_by_name(tmp_path, device):
    damaged = np.ones((60, 8), np.float16)
    damaged[41, 3] = np.nan
    for change, message in [
        ({"queries": np.ones((3, 9), np.float16)}, r"q\.npy has shape \[3, 9\].*8 dimensions"),
        ({"model_id": "org/other"}, "model_id org/m.*org/other"),
        ({"corpus": damaged}, r"c\.npy: row 41 holds NaN"),
        ({"queries": np.full((3, 8), np.inf, np.float16)}, r"q\.npy: row 0 holds"),
        ({"rows": [10, 70]}, "60 vectors for rows 10 to 70"),
        ({"corpus": np.ones((60, 8), np.float64)}, "no matrix of embeddings"),
    ]:
        shard_files(tmp_path, **change)
        with pytest.raises(UserError, match=message):
            search_one(tmp_path, device=device)
        assert not (tmp_path / "h.parquet").exists()
    shard_files(tmp_path)
    with pytest.raises(UserError, match="at least 1"):
        search_one(tmp_path, top_k=0)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_damaged_vectors_are_refused(tmp_path, device):
    shard_files(tmp_path)
    with open(tmp_path / "c.npy", "r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x00\x01")
    with pytest.raises(UserError, match="sha256"):
        search_one(tmp_path, device=device)
    assert [path.name for path in tmp_path.glob("*h.parquet")] == []


def test_a_larger_shard_is_scanned(tmp_path, monkeypatch):
    shard_files(tmp_path)
    search_one(tmp_path, device="auto")
    found = pq.read_table(tmp_path / "h.parquet")
    monkeypatch.setattr(job, "LARGE", 3 * 60 * 8 - 1)
    monkeypatch.delattr(job, "search_array")
    search_one(tmp_path, device="auto")
    assert pq.read_table(tmp_path / "h.parquet").equals(found)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bounds_hold_the_scores_and_know_nearly_all(dtype):
    """Also where exact zeros and cancellation leave float32 finer than the bound."""
    random = np.random.default_rng(10)
    corpus = random.standard_normal((500, 129)).astype(dtype)
    corpus[:50, 1:] = 0
    queries = random.standard_normal((40, 129)).astype(dtype)
    queries[:5, 0] = 0
    pairs = np.arange(40 * 500)
    scores = exact.dots(queries, corpus, *np.divmod(pairs, 500)).reshape(40, 500)
    low, high = exact.bounds(queries, corpus)
    assert (low <= scores).all() and (scores <= high).all()
    assert (low != high)[5:, 50:].mean() < 1e-2
    a, b = (torch.from_numpy(array[part]) for array, part in
            ((queries, pairs // 500), (corpus, pairs % 500)))  # fmt: skip
    assert dot(a, b).numpy().tobytes() == (scores + np.float32(0)).tobytes()


def test_what_is_made_is_not_made_again(tmp_path, monkeypatch):
    queries, corpus, docs = made(11, 90, 5, 8)
    write_ids(tmp_path, docs, [f"q{i}" for i in range(5)])
    run_of(tmp_path, queries, corpus, 10, 2)
    monkeypatch.delattr(job, "Queries")
    pieces = [tmp_path / f"c{i}.npy" for i in range(2)]
    ids, names = tmp_path / "corpus.parquet", tmp_path / "queries.parquet"
    row = Row(tmp_path / "q.npy", pieces, ids, names, 10, "m", tmp_path / "run.trec")
    job.search_rows([row])
    with open(tmp_path / "run.trec", "ab") as file:
        file.write(b"q9 Q0 d 1 0.5 m\n")
    with pytest.raises(UserError, match=r"run\.trec: its sha256"):
        job.search_rows([row])


def test_pieces_out_of_order_are_refused(tmp_path):
    queries, corpus, docs = made(12, 90, 5, 8)
    write_ids(tmp_path, docs, [f"q{i}" for i in range(5)])
    run_of(tmp_path, queries, corpus, 10, 2)
    pieces = [tmp_path / f"c{i}.npy" for i in range(2)]
    ids, names = tmp_path / "corpus.parquet", tmp_path / "queries.parquet"
    row = Row(tmp_path / "q.npy", pieces[::-1], ids, names, 10, "m", tmp_path / "other.trec")
    with pytest.raises(UserError, match="begins with row 45 of the corpus where 0"):
        job.search_rows([row])
    with pytest.raises(UserError, match="ends with row 45 of the corpus's 90"):
        job.search_rows([replace(row, corpus=pieces[:1])])


@given(st.lists(st.integers(1, 9), max_size=9), st.integers(1, 7))
def test_batches_of_any_size_are_regrouped(sizes, step):
    rows = np.arange(sum(sizes) * 2).reshape(-1, 2)
    cuts = np.cumsum([0, *sizes])
    batches = [
        (start, rows[start:stop], rows[start:stop] / 2)
        for start, stop in zip(cuts, cuts[1:], strict=False)
    ]
    again = list(regrouped(batches, step))
    assert [first for first, _, _ in again] == list(range(0, len(rows), step))
    assert all(len(docs) == step for _, docs, _ in again[:-1])
    if again:
        assert (np.concatenate([docs for _, docs, _ in again]) == rows).all()
        assert (np.concatenate([scores for _, _, scores in again]) == rows / 2).all()


def test_merge_refuses_shards_that_do_not_belong_together(tmp_path):
    docs = [f"d{i}" for i in range(6)]
    write_ids(tmp_path, docs, ["q0"])

    def hits(name: str, start: int, stop: int, **change) -> Path:
        meta = {"rows": [start, stop], "k": 3, "queries": 1, "queries_sha256": "a"} | change
        found = np.arange(start, stop)[None]
        write_hits(tmp_path / name, [(0, found, np.ones(found.shape, np.float32))], meta)
        return tmp_path / name

    first, second = hits("a", 0, 3), hits("b", 3, 6)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x")
    for files, message in [
        ([first], "cover 3 of the corpus's 6"),
        ([second], "rows 0 to 3 of the corpus are missing"),
        ([first, second, second], "come twice"),
        ([first, hits("c", 3, 6, queries_sha256="b")], "other queries"),
        ([first, hits("d", 3, 6, k=2)], "this merge needs 3"),
        ([first, tmp_path / "x"], "not a hits file"),
    ]:
        with pytest.raises(UserError, match=message):
            ids, names = tmp_path / "corpus.parquet", tmp_path / "queries.parquet"
            job.merge_rows([MergeRow(files, ids, names, 3, "m", tmp_path / "run.trec")])
        assert not (tmp_path / "run.trec").exists()


def test_hits_say_where_they_come_from(tmp_path):
    shard_files(tmp_path)
    search_one(tmp_path)
    file = pq.ParquetFile(tmp_path / "h.parquet")
    meta = json.loads(file.schema_arrow.metadata[b"embed-repro"])
    sums = [json.loads(sidecar(tmp_path / f"{x}.npy").read_text())["sha256"] for x in "qc"]
    assert meta == {
        "rows": [0, 60],
        "k": 5,
        "queries": 3,
        "queries_sha256": sums[0],
        "corpus_sha256": sums[1],
    }
    assert file.read().num_rows == 15 and group_size(10_000) == 26


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_bytes_of_the_cpu(tmp_path):
    queries, corpus, docs = made(9, 50_000, 300, 96)
    write_ids(tmp_path, docs, [f"q{i}" for i in range(300)])
    save_array(tmp_path / "q.npy", queries, **MADE)
    save_array(tmp_path / "c.npy", corpus, rows=[0, 50_000], **MADE)
    found = {}
    for device in ("cpu", "cuda"):
        search_one(tmp_path, device=device, top_k=1000)
        found[device] = pq.read_table(tmp_path / "h.parquet")
    assert found["cpu"].equals(found["cuda"])
