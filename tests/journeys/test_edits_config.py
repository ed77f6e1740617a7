"""Incremental equals fresh: an edited config, key by key."""

import editing
import pytest

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return editing.new_world(tmp_path_factory.mktemp("base") / "world")


@pytest.mark.parametrize("name", editing.CONFIG)
def test_an_edited_config(base, tmp_path, name):
    editing.journey(base, tmp_path / "world", name, *editing.CONFIG[name])


def test_enough_edits():
    assert len(editing.CONFIG) + len(editing.OUTSIDE) >= 40
