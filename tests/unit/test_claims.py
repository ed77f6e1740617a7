"""Several processes that share pieces: each is made once, a dead holder's by another."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from embedrepro.encode import claims

SCRIPTS = Path(__file__).parents[2] / "scripts"
# Makes pieces of some milliseconds, mine first, and notes what it made.
WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from embedrepro.encode.claims import share
folder, mine, others = Path(sys.argv[2]), sys.argv[3].split(), sys.argv[4].split()
name = sys.argv[5]
def make(piece, held):
    time.sleep(float(sys.argv[6]))
    (folder / piece).touch()
    with open(folder / f"made-{name}", "a") as file:
        file.write(piece + "\\n")
share(mine, others, lambda p: folder / p, lambda p: (folder / p).exists(), make)
assert all((folder / piece).exists() for piece in mine)
"""


def worker(folder, mine, others, name, seconds=0.05):
    words = [str(SCRIPTS), str(folder), " ".join(mine), " ".join(others), name, str(seconds)]
    return subprocess.Popen([sys.executable, "-c", WORKER, *words])


def made(folder):
    return {p.name[5:]: p.read_text().split() for p in folder.glob("made-*")}


def test_each_piece_is_made_once_and_the_fast_help_the_slow(tmp_path):
    pieces = [f"p{i}" for i in range(24)]
    slow = worker(tmp_path, pieces[:12], pieces[:11:-1], "slow", 0.2)
    fast = worker(tmp_path, pieces[12:], pieces[11::-1], "fast", 0.01)
    assert (slow.wait(60), fast.wait(60)) == (0, 0)
    found = made(tmp_path)
    assert sorted(found["slow"] + found["fast"]) == sorted(pieces)
    assert len(found["fast"]) > 12  # it took up what the other hadn't begun
    assert not list(tmp_path.glob(".*claim"))


def test_what_a_killed_process_had_claimed_is_made(tmp_path):
    holder = worker(tmp_path, ["p"], [], "holder", 60)
    while not list(tmp_path.glob(".*claim")):
        time.sleep(0.01)
    time.sleep(0.1)
    waiting = worker(tmp_path, ["p"], [], "waiting")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)
    holder.kill()
    assert waiting.wait(20) == 0
    assert made(tmp_path) == {"waiting": ["p"]}


def test_a_claim_that_outlives_its_holder_is_not_waited_for_for_ever(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "PATIENCE", 0.2)
    monkeypatch.setattr(claims, "POLL", 0.05)
    calls = []

    def make(piece, held):
        calls.append(piece)

    with claims.claim(tmp_path / "p") as ours:
        assert ours
        claims.share(["p"], [], lambda p: tmp_path / p, lambda p: bool(calls), make)
    assert calls == ["p"]
    assert "claimed for long" in capsys.readouterr().err


def test_the_end_of_one_work_is_done_beside_the_next_under_its_claim(tmp_path):
    begun, ended = [], []

    def make(piece, held):
        begun.append(piece)

        def rest():
            while len(begun) == 1:  # the second begins meanwhile
                time.sleep(0.01)
            with claims.claim(tmp_path / piece) as free:
                ended.append((piece, free))

        return rest

    def is_made(piece):
        return piece in [name for name, _ in ended]

    claims.share(["a", "b", "c"], [], lambda p: tmp_path / p, is_made, make)
    assert begun == ["a", "b", "c"]
    assert ended == [("a", False), ("b", False), ("c", False)]
    assert not list(tmp_path.glob(".*claim"))


@pytest.mark.parametrize("bad", ["a", "c"])
def test_an_error_at_the_end_of_a_work_is_the_callers_and_nothing_stays_open(tmp_path, bad):
    opened, closed = [], []

    def make(piece, held):
        opened.append(piece)
        held.callback(closed.append, piece)

        def rest():
            assert piece not in closed
            if piece == bad:
                raise OSError("no space left")

        return rest

    with pytest.raises(OSError, match="no space"):
        claims.share("abc", [], lambda p: tmp_path / p, lambda p: False, make)
    assert closed == opened
    assert not list(tmp_path.glob(".*claim"))
