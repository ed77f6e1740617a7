"""The profiles as Snakemake reads them, held against the rules. No cluster and no plugin is needed:
tests/cluster runs them."""

import os
import re

import pytest
from helpers import REPOSITORY
from snakemake.profiles import ProfileConfigFileParser

CLUSTERS = ("slurm", "kubernetes")
KERNELS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What a profile sets is taken back after each test."""
    for name in KERNELS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def gpu_rules():
    """The rules that ask for a GPU, from the rules' text."""
    found = []
    for path in sorted((REPOSITORY / "rules").glob("*.smk")):
        for name, body in re.findall(
            r"^rule (\w+):\n((?: .*\n|\n)+)", path.read_text(), re.MULTILINE
        ):
            if re.search(r"^        gpu=", body, re.MULTILINE):
                found.append(name)
    return found


def parsed(name, tmp_path, **edits):
    """A profile with some of its definitions edited as a user does."""
    text = (REPOSITORY / "profiles" / name / "config.yaml").read_text()
    for variable, value in edits.items():
        text, count = re.subn(rf"(?m)^  - {variable} = .*$", f"  - {variable} = {value!r}", text)
        assert count == 1, variable
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with open(path, encoding="utf-8") as stream:
        return ProfileConfigFileParser().parse(stream)


def of_rules(profile):
    """{rule: {resource: value}}"""
    resources = {}
    for setting in profile["set-resources"]:
        rule, _, rest = setting.partition(":")
        name, _, value = rest.partition("=")
        resources.setdefault(rule, {})[name] = value
    return resources


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_profile_names_every_rule_that_asks_for_a_gpu(name, tmp_path):
    assert sorted(of_rules(parsed(name, tmp_path))) == sorted(gpu_rules())
    assert "encode_corpus" in gpu_rules()


def test_slurm_as_it_is_names_no_account_and_no_kind_of_gpu(tmp_path):
    profile = parsed("slurm", tmp_path)
    assert not [x for x in profile["default-resources"] if x.startswith("slurm_account")]
    for resources in of_rules(profile).values():
        assert resources == {"slurm_partition": "'gpu'"}


def test_the_three_things_to_edit_reach_slurm(tmp_path):
    edits = {
        "GPU_PARTITION": "a100",
        "CPU_PARTITION": "small",
        "ACCOUNT": "me",
        "GPU_MODEL": "a100",
    }
    profile = parsed("slurm", tmp_path, **edits)
    assert {"slurm_partition='small'", "slurm_account='me'"} <= set(profile["default-resources"])
    for resources in of_rules(profile).values():
        assert resources == {"slurm_partition": "'a100'", "gpu_model": "'a100'"}


@pytest.mark.parametrize(("answers", "command"), [(True, "sacct"), (False, "squeue")])
def test_slurm_is_asked_by_what_answers(answers, command, tmp_path, monkeypatch):
    """The wrong one waits for ever: sacct is there also where there is no accounting."""
    sacct = tmp_path / "bin" / "sacct"
    sacct.parent.mkdir()
    sacct.write_text("#!/bin/sh\nexit 0\n" if answers else "#!/bin/sh\nexit 1\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", str(sacct.parent), prepend=":")
    assert parsed("slurm", tmp_path)["slurm-status-command"] == command


def test_slurm_is_asked_through_squeue_where_there_is_no_sacct(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert parsed("slurm", tmp_path)["slurm-status-command"] == "squeue"


def test_kernels_are_compiled_on_the_nodes_own_disk(tmp_path):
    profile = parsed("slurm", tmp_path, SCRATCH="/local")
    assert "tmpdir='/local'" in profile["default-resources"]
    for name in KERNELS:
        assert os.environ[name].startswith("/local/embed-repro-")


def test_what_a_pod_is_given_is_written_in_one_place(tmp_path):
    edits = {"IMAGE": "here/image:1", "CLAIM": "mine", "MOUNTED": "/v", "NAMESPACE": "lab"}
    profile = parsed("kubernetes", tmp_path, **edits)
    assert profile["kubernetes-persistent-volumes"] == ["mine:/v"]
    assert profile["container-image"] == "here/image:1"
    assert profile["kubernetes-namespace"] == "lab"
    assert profile["default-storage-prefix"].startswith("/v/")
    assert profile["remote-job-local-storage-prefix"].startswith("/v/")
