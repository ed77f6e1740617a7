"""Incremental equals fresh: edited data, models, registry and store; sequences of edits."""

import random

import editing
import pytest

pytestmark = pytest.mark.journey
# What follows from the edit of a file that a later one needs can't be undone within a sequence.
ONCE = ("pointer", "nowhere", "store moved", "cut", "whole store", "judged passage")
STEPS = 5


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return editing.Bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("name", editing.OUTSIDE)
def test_an_edit_outside_the_config(bases, tmp_path, name):
    editing.journey(bases, tmp_path / "world", name, *editing.OUTSIDE[name])


@pytest.mark.parametrize("seed", range(3))
def test_a_sequence_of_edits(bases, tmp_path, seed):
    world = bases().copy(tmp_path / "world")
    choice = random.Random(seed)
    every = editing.CONFIG | editing.OUTSIDE
    names = [name for name in every if not any(word in name for word in ONCE)]
    for name in choice.sample(names, STEPS):
        try:
            every[name][0](world)
        except (AssertionError, KeyError, IndexError, FileNotFoundError):
            continue  # an earlier edit took away what this one changes
        editing.check(world, world.run())
