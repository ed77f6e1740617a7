"""Encoding as the workflow calls it: engines agree, cuts don't matter, mistakes are one line."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from embedrepro import files
from embedrepro.encode import Engine, formats, load_engine
from embedrepro.encode.job import Piece, encode_piece, encode_pieces
from embedrepro.encode.packed import PackedEngine
from embedrepro.errors import UserError
from embedrepro.vectors import dense
from encode_models import WORDS, minilm, stage, tiny, write_corpus
from helpers import XQUAD
from minilm import minilm_folder


def random_texts(count, seed=0):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bert") / "model", "bert")


@pytest.fixture
def corpus(tmp_path):
    texts = random_texts(130)
    return write_corpus(tmp_path / "corpus.parquet", texts, ["", "w1 w2"] * 65)


def whole(engine, corpus, output, shards=1):
    parts = []
    for i in range(shards):
        encode_piece(engine, Piece(corpus, "passage", i, shards, output, "float32"))
        parts.append(dense.load_array(output)[0])
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """MiniLM staged, and XQuAD's passages."""
    if not XQUAD.is_dir():
        pytest.skip("shared/data/xquad-en is not there")
    folder = minilm(tmp_path_factory.mktemp("minilm") / "model", minilm_folder())
    return folder, [
        json.loads(line)["text"] for line in (XQUAD / "corpus.jsonl").read_text().splitlines()
    ]


def vectors(engine, texts):
    found = np.full((len(texts), engine.facts.dimension), np.nan, engine.precision.stored)
    for part in engine.encode(texts, "passage"):
        found[part.rows] = part.vectors
    return found


def test_engines_agree_on_real_text(real):
    """The issue's bound, 1e-5, against FlagEmbedding as we call it and sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    folder, texts = real
    texts = texts[::16]
    ours = vectors(load_engine(folder, {}, "cpu"), texts)
    flag = vectors(load_engine(folder, {"engine": "flagembedding"}, "cpu"), texts)
    peer = SentenceTransformer(str(minilm_folder()), device="cpu")
    assert np.abs(ours - flag).max() <= 1e-5
    assert np.abs(ours - peer.encode(texts, show_progress_bar=False)).max() <= 1e-5


@pytest.mark.parametrize("engine", ["packed", "flagembedding"])
def test_cut_and_order_change_no_byte(bert, corpus, tmp_path, engine):
    engine = load_engine(bert, {"engine": engine}, "cpu", tokens_per_batch=512)
    expected = whole(engine, corpus, tmp_path / "x.npy")
    for shards in (3, 8):
        assert whole(engine, corpus, tmp_path / "x.npy", shards).tobytes() == expected.tobytes()
    texts = [f"{title} {text}".strip() for title, text in _rows(corpus)]
    order = np.random.default_rng(1).permutation(len(texts))
    shuffled = vectors(engine, [texts[i] for i in order])
    assert shuffled[np.argsort(order)].tobytes() == expected.tobytes()


def _rows(corpus):
    import pyarrow.parquet as pq

    table = pq.read_table(corpus).to_pydict()
    return zip(table["title"], table["text"], strict=True)


def test_out_of_memory_halves_the_budget(bert, monkeypatch, capsys):
    texts = random_texts(80)
    expected = vectors(load_engine(bert, {}, "cpu", tokens_per_batch=512), texts)
    run = PackedEngine._run_padded

    def limited(self, ids, *rest):
        if ids.numel() > 200:
            raise torch.OutOfMemoryError("forced")
        return run(self, ids, *rest)

    monkeypatch.setattr(PackedEngine, "_run_padded", limited)
    engine = load_engine(bert, {}, "cpu", tokens_per_batch=512)
    assert vectors(engine, texts).tobytes() == expected.tobytes()
    assert engine.tokens_per_batch == 128
    assert "going on with 128 tokens a batch" in capsys.readouterr().err


def test_other_errors_are_shown_as_they_are(bert, monkeypatch):
    def broken(self, *rest):
        raise RuntimeError("something else")

    monkeypatch.setattr(PackedEngine, "_run_padded", broken)
    with pytest.raises(RuntimeError, match="something else"):
        vectors(load_engine(bert, {}, "cpu"), ["w1 w2"])


def test_matryoshka_cuts_then_normalises(bert):
    texts = random_texts(9)
    full = vectors(load_engine(bert, {}, "cpu"), texts)[:, :16]
    cut = vectors(load_engine(bert, {"dimensions": 16}, "cpu"), texts)
    np.testing.assert_allclose(cut, full / np.linalg.norm(full, axis=1)[:, None], atol=1e-6)


def test_prompt_task_and_truncation(bert):
    engine = load_engine(bert, {"query_prompt": "w5 {task} "}, "cpu")
    plain = load_engine(bert, {}, "cpu")
    long = " ".join(["w9"] * 100)
    parts = list(engine.encode(["w1", long], "query", "w7 {0}"))
    found = np.empty((2, 64), np.float32)
    for part in parts:
        found[part.rows] = part.vectors
    np.testing.assert_allclose(found, vectors(plain, ["w5 w7 {0} w1", f"w5 w7 {{0}} {long}"]))
    assert sum(part.truncated for part in parts) == 1


def piece(corpus, output, **given):
    facts = {"role": "passage", "shard": 0, "of": 1, "dtype": "float32"} | given
    return Piece(texts=corpus, output=output, **facts)


def test_a_job_writes_sealed_arrays_with_sidecars(bert, corpus, tmp_path, capsys):
    """Pieces of both roles and two precisions; the float32 model is shown before it encodes."""
    queries = write_corpus(tmp_path / "queries.parquet", random_texts(9, seed=3))
    folder = tmp_path / "set" / "model-key"
    pieces = [
        piece(corpus, folder / "corpus-0-of-2.npy", of=2, dtype="fast"),
        piece(corpus, folder / "corpus-1-of-2.npy", of=2, shard=1, dtype="fast"),
        piece(queries, folder / "test-queries.npy", role="query", prompt="w3 {task} "),
        piece(corpus, folder / "exact.npy"),
    ]
    shown = []
    encode_pieces(bert, pieces, "cpu", on_model=lambda e: shown.append((e, e.precision.dtype)))
    ((engine, dtype),) = shown
    assert isinstance(engine, Engine) and dtype == "float32"
    said = capsys.readouterr().err.splitlines()
    order = ["test-queries", "exact", "corpus-0-of-2", "corpus-1-of-2"]
    assert [line.split()[2].rstrip(":") for line in said[::2]] == order
    assert said[0].startswith("test/model: set test-queries: 9 texts") and "texts/s" in said[1]

    array, meta = dense.load_array(folder / "exact.npy")
    array = np.array(array)
    assert array.tobytes() == whole(load_engine(bert, {}, "cpu"), corpus, tmp_path / "x").tobytes()
    assert meta["docs"] == len(array) and meta["tokens"] > meta["docs"]
    assert meta["engine"] == "packed" and meta["compute_dtype"] == "float32"
    wanted = {"seconds", "peak_memory_mb", "truncated", "versions", "settings", "rows", "prompt"}
    assert wanted <= set(meta) and set(meta["versions"]) == {"torch", "transformers", "tokenizers"}
    fast, meta = dense.load_array(folder / "corpus-1-of-2.npy")
    assert fast.dtype == np.float16 and meta["rows"][1] == len(array)
    asked = ("asked_dtype", "compute_dtype", "arithmetic_dtype")
    assert [meta[key] for key in asked] == ["fast", "float16", "float32"]
    error = np.abs(fast.astype(np.float32) - array[slice(*meta["rows"])]).max()
    assert 0 < error < 5e-3
    found, meta = dense.load_array(folder / "test-queries.npy")
    assert found.dtype == np.float32
    assert meta["prompt"] == meta["settings"]["query_prompt"] == "w3 {task} "

    encode_pieces(Path("/nowhere"), pieces, "cpu")  # all is there: not even the model is looked at
    folder.joinpath("exact.npy").write_bytes(folder.joinpath("exact.npy").read_bytes()[:-1])
    capsys.readouterr()
    encode_pieces(bert, pieces, "cpu")
    assert capsys.readouterr().err.count("\n") == 2
    assert dense.load_array(folder / "exact.npy")[0].tobytes() == array.tobytes()


def test_a_finished_job_imports_nothing_heavy(bert, corpus, tmp_path):
    wanted = piece(corpus, tmp_path / "x.npy")
    encode_pieces(bert, [wanted], "cpu")
    script = (
        "import sys; from pathlib import Path; from embedrepro.encode.job import *\n"
        f"encode_pieces(Path('/nowhere'), [Piece(Path({str(corpus)!r}), 'passage', 0, 1, "
        f"Path({str(wanted.output)!r}), 'float32')])\n"
        "assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_dtypes_on_a_cpu_round_weights_and_compute_in_float32(bert, tmp_path):
    """As plain transformers with rounded weights; rounding shows, and only once."""
    texts = random_texts(12)
    exact = vectors(load_engine(bert, {}, "cpu"), texts)
    for dtype, size in (("float16", 2e-3), ("bfloat16", 2e-2)):
        engine = load_engine(bert, {"dtype": dtype}, "cpu")
        assert {p.dtype for p in engine.model.parameters()} == {torch.float32}
        found = vectors(engine, texts)
        assert found.dtype == np.float16
        for mine, theirs in zip(
            engine.model.parameters(), load_engine(bert, {}, "cpu").model.parameters(), strict=True
        ):
            assert torch.equal(mine, theirs.to(getattr(torch, dtype)).float())
        assert size / 100 < np.abs(found.astype(np.float32) - exact).max() < size * 10


def test_a_piece_with_a_mistake_keeps_no_other_from_its_vectors(bert, corpus, tmp_path, capsys):
    bad = piece(corpus, tmp_path / "bad.npy", prompt="w1 " * 70)
    good = piece(corpus, tmp_path / "good.npy")
    with pytest.raises(UserError, match="prompt takes"):
        encode_pieces(bert, [bad, good], "cpu")
    assert good.output.exists() and not bad.output.exists()
    assert "bad: test/model: the passage prompt takes 72" in capsys.readouterr().err


def test_a_piece_that_can_not_be_sealed_leaves_no_temporary_file(
    bert, corpus, tmp_path, monkeypatch
):
    """Nor does the one that was encoded meanwhile."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(formats, "seal_array", full)
    pieces = [piece(corpus, tmp_path / f"{name}.npy") for name in "abc"]
    with pytest.raises(OSError, match="no space left"):
        encode_pieces(bert, pieces, "cpu")
    assert [*tmp_path.iterdir()] == [corpus]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"texts": Path("/nowhere.parquet")}, "/nowhere.parquet"),
        ({"shard": 2, "of": 2}, "shard 2 of 2"),
        ({"role": "document"}, "role document"),
        ({"dtype": "auto"}, "dtype auto"),
        ({"dtype": "fp8"}, "fp8"),
        ({"prompt": "w1 w2 w3 " * 30}, "prompt"),
        ({"dimensions": 65}, "dimensions 65"),
    ],
)
def test_mistakes_are_named(bert, corpus, tmp_path, given, words):
    output = tmp_path / "x.npy"
    facts = {"texts": corpus, "output": output, "dtype": "float32", "of": 1, "shard": 0}
    with pytest.raises(UserError, match=words):
        encode_pieces(bert, [Piece(**({"role": "passage"} | facts | given))], "cpu")
    assert not output.exists()


def test_weights_that_lack_a_tensor_are_refused(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny(tmp_path / "model", "bert")
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stage(folder, architecture="bert")
    with pytest.raises(Exception, match="lack 1 tensors"):
        load_engine(folder, {}, "cpu")


def test_killed_job_leaves_nothing_under_the_final_name(bert, tmp_path):
    """… and the next one makes what is missing."""
    corpus = write_corpus(tmp_path / "many.parquet", random_texts(4000))
    first = write_corpus(tmp_path / "few.parquet", random_texts(5))
    folder = tmp_path / "out"
    script = (
        "from pathlib import Path; from embedrepro.encode.job import *\n"
        f"p = lambda t, o: Piece(Path(t), 'passage', 0, 1, Path({str(folder)!r}, o), 'float32')\n"
        f"encode_pieces(Path({str(bert)!r}), [p({str(first)!r}, 'few.npy'), "
        f"p({str(corpus)!r}, 'many.npy')], 'cpu')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    job = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL
    )
    begun = f"{files.TEMPORARY}*many*"  # beside which few.npy is sealed
    while job.poll() is None and not ((folder / "few.npy").exists() and any(folder.glob(begun))):
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert (folder / "few.npy").exists() and not (folder / "many.npy").exists()


def test_a_staged_folder_that_was_changed_is_refused(bert, corpus, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="its sha256"):
        encode_pieces(folder, [piece(corpus, tmp_path / "x.npy")], "cpu")
