"""Incremental equals fresh: an edited config, key by key."""

import editing
import pytest

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return editing.Bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("name", editing.CONFIG)
def test_an_edited_config(bases, tmp_path, name):
    editing.journey(bases, tmp_path / "world", name, *editing.CONFIG[name])


def test_enough_edits():
    assert len(editing.CONFIG) + len(editing.OUTSIDE) >= 40
