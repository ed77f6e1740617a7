"""Files that exist are whole, and what isn't whole is refused by name."""

import numpy as np
import pytest
from embedrepro.errors import UserError
from embedrepro.files import atomic, load_array, save_array, sidecar


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
