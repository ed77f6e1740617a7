"""The environments' pins are pyproject.toml's; nothing is pinned twice to different versions."""

import tomllib

import pytest
import yaml
from helpers import REPOSITORY


def name_of(requirement):
    return requirement.split("==")[0].lower().replace("_", "-")


PINS = {
    name_of(requirement): requirement
    for requirement in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())[
        "dependency-groups"
    ]["run"]
}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "envs").glob("*.yaml")), ids=lambda p: p.name)
def test_an_environment_repeats_the_pins(path):
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    (listed,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert listed
    for requirement in listed:
        assert "==" in requirement
        pinned = PINS.get(name_of(requirement))
        assert pinned is not None, f"{path.name}: {requirement} stands not in pyproject.toml"
        assert pinned.lower() == requirement.lower()


def test_every_pin_is_exact():
    assert not [requirement for requirement in PINS.values() if "==" not in requirement]
