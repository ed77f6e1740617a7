"""Incremental equals fresh: edited data, models, registry and store; sequences of edits."""

import random

import editing
import pytest

pytestmark = pytest.mark.journey
# What follows from the edit of a file that a later one needs can't be undone within a sequence.
ONCE = ("pointer", "nowhere", "store moved", "cut", "whole store", "judged passage")
STEPS = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return editing.new_world(tmp_path_factory.mktemp("base") / "world")


@pytest.mark.parametrize("name", editing.OUTSIDE)
def test_an_edit_outside_the_config(base, tmp_path, name):
    editing.journey(base, tmp_path / "world", name, *editing.OUTSIDE[name])


@pytest.mark.parametrize("seed", range(3))
def test_a_sequence_of_edits(base, tmp_path, seed):
    world = base.copy(tmp_path / "world")
    choice = random.Random(seed)
    every = editing.CONFIG | editing.OUTSIDE
    names = [name for name in every if not any(word in name for word in ONCE)]
    for name in choice.sample(names, STEPS):
        try:
            every[name][0](world)
        except (AssertionError, KeyError, IndexError, FileNotFoundError):
            continue  # an earlier edit took away what this one changes
        editing.check(world, world.run())
