"""Tokenising in processes, and packing, against one text at a time."""

import gc
import os
import random
import subprocess
import sys
import time
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from embedrepro.encode import resolve, tokens
from embedrepro.encode.batches import (
    SHORT,
    PaddedPacker,
    Sequences,
    VarlenPacker,
    padded_arrays,
    varlen_arrays,
)
from embedrepro.encode.tokens import Tokeniser
from encode_models import WORDS, tiny
from transformers import AutoTokenizer

PAD = 1


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bert") / "model", "bert", passage_prompt="w3 w4 ")


def tokeniser(staged):
    return Tokeniser(AutoTokenizer.from_pretrained(staged), resolve(staged, {}), "passage", None)


def some_texts(count, longest=70):
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


@pytest.fixture
def eager(monkeypatch):
    """Small chunks, processes as soon as may be and on any number of cores; the pools made."""
    made = []
    monkeypatch.setattr(tokens, "CHUNK", 16)
    monkeypatch.setattr(tokens, "LOOK", 1)
    monkeypatch.setattr(tokens, "free_cores", lambda: 4)

    def pool(*given):
        made.append(Pool(*given))
        while not made[-1].ready():
            time.sleep(0.01)
        return made[-1]

    Pool = tokens.tokenizer_pool.Pool
    monkeypatch.setattr(tokens.tokenizer_pool, "Pool", pool)
    return made


def test_processes_give_what_the_tokenizer_gives(staged, eager, monkeypatch):
    texts = some_texts(500)
    made = tokeniser(staged)
    found = list(made.chunks(texts))
    (pool,) = eager
    assert len(pool.processes) == 2
    assert all(process.poll() is None for process in pool.processes)  # for the next request
    again = list(made.chunks(texts[:40]))
    assert eager == [pool]
    assert (
        np.concatenate([chunk.ids for chunk in again]).tolist()
        == (
            np.concatenate([chunk.ids for chunk in found])[: sum(len(chunk.ids) for chunk in again)]
        ).tolist()
    )
    del made
    gc.collect()
    assert all(process.poll() is not None for process in pool.processes)  # none is left
    plain = AutoTokenizer.from_pretrained(staged)
    whole = [plain("w3 w4 " + text)["input_ids"] for text in texts]
    expected = plain(["w3 w4 " + text for text in texts], truncation=True, max_length=64)
    ids = np.concatenate([chunk.ids for chunk in found])
    assert ids.tolist() == list(chain.from_iterable(expected["input_ids"]))
    assert np.concatenate([chunk.rows for chunk in found]).tolist() == list(range(500))
    lengths = [len(one) for one in expected["input_ids"]]
    assert np.concatenate([chunk.lengths for chunk in found]).tolist() == lengths
    cut = np.concatenate([chunk.truncated for chunk in found])
    assert cut.tolist() == [len(one) > 64 for one in whole]
    assert 0 < cut.sum() < 500


@pytest.mark.parametrize(("patience", "pools"), [(3, 0), (0, 1)])
def test_processes_start_only_where_tokenising_holds_up_the_rest(
    staged, eager, monkeypatch, patience, pools
):
    """By a clock on which a chunk takes one second here and `patience` wherever it goes."""
    now = [0.0]
    monkeypatch.setattr(tokens, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    made = tokeniser(staged)
    rust = made._rust

    def work(texts):
        now[0] += 1
        return rust(texts)

    monkeypatch.setattr(made, "_rust", work)
    for _ in made._found(iter([some_texts(16)] * 20)):
        now[0] += patience
    assert len(eager) == pools


def test_texts_are_read_only_as_needed(staged, eager):
    read = 0

    def counted():
        nonlocal read
        for text in some_texts(3000):
            read += 1
            yield text

    chunks = tokeniser(staged).chunks(counted())
    for _ in range(10):
        next(chunks)
    time.sleep(0.3)
    chunks.close()
    assert 160 <= read < 500


def test_a_process_that_dies_is_an_error(staged, eager):
    chunks = tokeniser(staged).chunks(some_texts(20_000))
    with pytest.raises(RuntimeError, match="a tokenizer process ended, status -9"):
        for _ in chunks:
            if eager:
                eager[0].processes[0].kill()  # does nothing to one that has ended
    assert all(process.poll() is not None for process in eager[0].processes)


def test_a_pool_can_be_closed_while_it_starts(staged):
    rust = AutoTokenizer.from_pretrained(staged).backend_tokenizer
    for wait in (0, 0.001, 0.01, 0.1, 0.3):
        pool = tokens.tokenizer_pool.Pool(rust, 8)
        time.sleep(wait)
        pool.close()
        assert all(process.poll() is not None for process in pool.processes)


def test_processes_end_with_the_one_that_started_them(staged):
    script = (
        "import sys, time; from tokenizers import Tokenizer\n"
        "from embedrepro.encode.tokenizer_pool import Pool\n"
        f"pool = Pool(Tokenizer.from_file({str(staged / 'tokenizer.json')!r}), 2)\n"
        "while not pool.ready(): time.sleep(0.01)\n"
        "assert 'torch' not in sys.modules\n"
        "print(*(process.pid for process in pool.processes), flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def made_sequences(lengths):
    """One chunk: text i has ids i, i, …"""
    lengths = np.array(lengths, np.int64)
    rows = np.arange(len(lengths))
    return Sequences(rows, np.repeat(rows, lengths).astype(np.int32), lengths, lengths % 7 == 0)


@pytest.mark.parametrize(("Packer", "budget"), [(PaddedPacker, 2048), (VarlenPacker, 3000)])
def test_batches_hold_each_sequence_once_and_whole(Packer, budget):
    draw = np.random.default_rng(0)
    lengths = np.minimum(draw.geometric(0.005, 2000), 1500)
    given = made_sequences(lengths)
    packer = Packer(budget, 1500)
    batches = []
    for chunk in given.cut([1, 300, 1100, 2000]):
        batches += packer.add(chunk)
        for held in packer._open.values():
            assert sum(part.lengths.sum() for part in held) <= budget
    batches += packer.flush()
    seen = []
    for batch in batches:
        found = read_back(batch, Packer)
        rows = batch.sequences.rows
        assert len(found) == len(rows)
        for row, ids in zip(rows, found, strict=True):
            assert ids.tolist() == [row] * lengths[row]
        assert batch.sequences.truncated.tolist() == (lengths[rows] % 7 == 0).tolist()
        assert batch.sequences.lengths.max() <= batch.width
        seen += rows.tolist()
        if Packer is VarlenPacker:
            assert batch.shape == (3000,)
            assert (lengths[rows] <= SHORT).all() or (lengths[rows] > SHORT).all()
            assert (batch.width <= SHORT) == (lengths[rows] <= SHORT).all()
        else:
            assert batch.width - lengths[rows].min() < 32
            assert batch.shape == (max(1, 2048 // batch.width), batch.width)
    assert sorted(seen) == list(range(2000))
    tokens = sum(len(batch.sequences.ids) for batch in batches)
    assert tokens > 0.7 * sum(np.prod(batch.shape) for batch in batches)


def read_back(batch, Packer):
    """The ids of each sequence from the arrays that a model gets; the rest is checked."""
    count = len(batch.sequences.rows)
    if Packer is PaddedPacker:
        ids, lengths = padded_arrays(batch, PAD)
        assert ids.shape == batch.shape and len(lengths) == len(ids)
        assert (ids[np.arange(batch.width) >= lengths[:, None]] == PAD).all()
        assert (ids[count:] == ids[0]).all()
        return [row[:length] for row, length in zip(ids, lengths, strict=True)][:count]
    ids, positions, offsets = varlen_arrays(batch, PAD)
    assert (len(ids),) == (len(positions),) == batch.shape == (offsets[-1],)
    sizes = np.diff(offsets)
    assert (sizes > 0).all() and (sizes <= batch.width).all()
    assert positions.tolist() == list(chain.from_iterable(map(range, sizes)))
    assert (ids[offsets[count] :] == PAD).all()
    return np.split(ids, offsets[1:-1])[:count]


@pytest.mark.parametrize("Packer", [PaddedPacker, VarlenPacker])
def test_halved_budget_splits_what_was_gathered(Packer):
    lengths = np.random.default_rng(1).integers(1, 100, 64)
    packer = Packer(4096, 128)
    batches = list(packer.add(made_sequences(lengths)))
    packer.budget = 512
    batches = [part for batch in batches for part in packer.split(batch)] + list(packer.flush())
    assert sorted(chain.from_iterable(b.sequences.rows.tolist() for b in batches)) == [*range(64)]
    for batch in batches:
        assert batch.shape == packer.shape(batch.width) and np.prod(batch.shape) <= 512
        assert all(len(ids) for ids in read_back(batch, Packer))
