"""The fast part: one small experiment, edited once and broken once; what needs no run at all."""

import re
from pathlib import Path

import editing
import oracle
import pytest
import test_config_keys
import test_experiments
import test_readme
from covering import COVERED, forms
from drive import REPOSITORY, Results, environment, snakemake
from stand_ins import Texts


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return editing.new_world(tmp_path_factory.mktemp("small") / "world")


def test_the_numbers_are_those_of_brute_force(world):
    texts = Texts(1, grades=3)
    queries = oracle.vectors(world.weights, texts.queries, prompt="w1 w2 w3 ")
    dense = oracle.search(queries, oracle.vectors(world.weights, texts.joined()))
    words = test_config_keys.bm25(texts.joined(), texts.queries)
    results = Results(world.root / world.workdir, "x")
    for slug, run in (("me__Tiny-1_0", dense), ("bm25", words)):
        oracle.same_run(results.run(slug, "mine"), run)
        value = oracle.metric("nDCG@10", run, texts.qrels)
        assert results.metric(slug, "nDCG@10") == pytest.approx(value, abs=2e-6)


def test_again_it_shows_the_report_and_computes_nothing(world):
    again = world.run().ok()
    assert again.computing == []
    assert "results/x/report.html" in again.screen
    assert "nDCG@10" in again.screen


def test_an_edit_gives_what_an_empty_store_gives(world, tmp_path):
    edited = world.copy(tmp_path / "world")
    before = edited.results()
    for edit in ("a passage", "query_prompt"):
        (editing.CONFIG | editing.OUTSIDE)[edit][0](edited)
    assert editing.check(edited, edited.run())
    assert edited.results() != before


def test_one_model_that_fails_leaves_a_report_with_a_hole(world, tmp_path):
    broken = world.copy(tmp_path / "world")
    lost = {"id": "nobody/lost-1.0", "revision": "0123456789abcdef" * 2 + "01234567"}
    broken.config["models"].insert(0, lost)
    done = snakemake(
        broken.root / broken.workdir,
        config=broken.whole_config(),
        env=environment(HF_ENDPOINT="http://127.0.0.1:9"),
    )
    assert done.status != 0
    report = (broken.root / broken.workdir / "results/x/report.md").read_text()
    assert "nobody/lost-1.0" in report and editing.ID in report


@pytest.mark.parametrize("absent", ["experiment", "models", "datasets"])
def test_an_incomplete_config_is_refused(world, tmp_path, absent):
    config = world.whole_config()
    del config[absent]
    snakemake(tmp_path, "-n", config=config).refused(absent)


def test_every_form_of_the_schema_has_a_journey():
    assert test_experiments.EXPERIMENTS and test_config_keys.ROWS  # theirs are counted
    wanted = set(forms())
    without = sorted(wanted - COVERED.keys())
    assert not without, f"no journey for: {', '.join(without)}"
    unknown = sorted(COVERED.keys() - wanted)
    assert not unknown, f"no longer in the schema: {', '.join(unknown)}"


def test_readmes_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", test_readme.TEXT):
        assert (REPOSITORY / target).exists(), target


def test_readmes_configs_have_names_and_its_commands_are_known():
    assert "my.yaml" in test_readme.shown_configs()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for line in test_readme.commands():
        if made := re.match(r"(?:\w+=\S+ )?make ([a-z-]+)", line):
            assert made[1] in targets, line
        elif script := re.search(r"scripts/\w+\.py", line):
            assert (REPOSITORY / script[0]).is_file(), line
        else:
            assert "snakemake" in line or "pip install" in line, line
    assert Path(REPOSITORY / "experiments/xquad-minilm.yaml").is_file()
