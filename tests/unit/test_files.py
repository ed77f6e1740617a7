"""Files that exist are whole, and what isn't whole is refused by name."""

import random
import threading

import numpy as np
import pytest
from embedrepro.errors import UserError
from embedrepro.files import (
    atomic,
    read_json,
    sealed,
    sha256,
    whole,
    write_record,
)
from embedrepro.vectors.dense import load_array, save_array, sidecar


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "stale").touch()
    with atomic(path) as temporary:
        temporary.mkdir()
        (temporary / "fresh").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "fresh"]


@pytest.mark.parametrize("harm", ["flip", "cut", "other shape", "no sidecar"])
def test_a_harmed_array_is_refused_by_name(tmp_path, harm):
    path = tmp_path / "x.npy"
    save_array(path, np.arange(600, dtype=np.float32).reshape(200, 3))
    stored = bytearray(path.read_bytes())
    if harm == "flip":
        stored[-5] ^= 1
    elif harm == "cut":
        del stored[-100:]
    elif harm == "other shape":
        np.save(path, np.zeros((3, 200), np.float32))
        stored = bytearray(path.read_bytes())
    else:
        sidecar(path).unlink()
    path.write_bytes(stored)
    with pytest.raises(UserError, match=r"x\.(npy|json).*delete it and run again"):
        load_array(path)


def test_an_array_comes_back(tmp_path):
    array = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float16)
    save_array(tmp_path / "x.npy", array, rows=[3, 10])
    loaded, meta = load_array(tmp_path / "x.npy")
    assert np.array_equal(loaded, array)
    assert meta["rows"] == [3, 10]


def test_every_bit_of_a_record_counts_or_says_nothing(tmp_path):
    record = {"rows": [0, 12], "model_id": "é", "nested": {"2": 0.1}, "none": None}
    path = tmp_path / "r.json"
    write_record(path, record)
    stored = path.read_bytes()
    for place in range(8 * len(stored)):
        flipped = bytearray(stored)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read_json(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "delete it and run again" in str(error)
            continue
        # White space, or the seal's own name: what the record holds is as it was.
        assert {k: v for k, v in found.items() if k in record} == record


def test_a_sealed_file_is_whole_or_refused(tmp_path):
    path = tmp_path / "a.trec"
    with sealed(path) as temporary:
        temporary.write_text("q Q0 d 1 0.5 t\n")
    assert whole(path) == path
    assert (tmp_path / "a.trec.sha256").read_text() == f"{sha256(path)}  a.trec\n"
    path.write_text("q Q0 d 1 0.7 t\n")
    with pytest.raises(UserError, match=r"a\.trec: .*; delete it and run again"):
        whole(path)


@pytest.mark.parametrize("record", ["corpus.json", "split.json"])
def test_a_listed_file_names_its_list_as_what_to_delete(tmp_path, record):
    path = tmp_path / "queries.parquet"
    path.write_bytes(b"abc")
    write_record(tmp_path / record, {"files": {path.name: {"size": 3, "sha256": sha256(path)}}})
    assert whole(path) == path
    path.write_bytes(b"abd")
    with pytest.raises(UserError, match=rf"queries\.parquet: .*delete \S+/{record} and run"):
        whole(path)


def test_many_writers_of_one_folder_leave_one_whole_folder(tmp_path):
    path, failures = tmp_path / "folder", []

    def write(number):
        rng = random.Random(number)
        try:
            for _ in range(50):
                with atomic(path) as temporary:
                    temporary.mkdir()
                    for name in "ab":
                        (temporary / name).write_text(str(rng.random()))
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(p.name for p in path.iterdir()) == ["a", "b"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
