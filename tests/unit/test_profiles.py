"""The profiles as Snakemake reads them, held against the rules. No cluster and no plugin is needed:
tests/cluster runs them."""

import json
import os
import re

import pytest
from helpers import REPOSITORY, one_model, snakemake
from snakemake.profiles import ProfileConfigFileParser

CLUSTERS = ("slurm", "kubernetes")
MODELS = [{"id": "a/b", "source": {"demo": 7}, "trust_remote_code": True}]
KERNELS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
GPU_RESOURCES = "EMBED_REPRO_GPU_RESOURCES"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What a profile sets is taken back after each test."""
    for name in (*KERNELS, GPU_RESOURCES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


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


def gpu_resources():
    """What the profile that was read last gives to each job that asks for a GPU."""
    return json.loads(os.environ[GPU_RESOURCES])


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_profile_names_no_rule(name, tmp_path):
    """Rules are made of the plan's jobs: a name in a profile would be none of them."""
    profile = parsed(name, tmp_path)
    assert not {"set-resources", "set-threads", "groups", "slurm-array-jobs"} & set(profile)


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_makes_a_job_run_stands_in_the_default_profile_alone(name, tmp_path):
    assert not set(parsed("default", tmp_path)) & set(parsed(name, tmp_path))


def test_slurm_as_it_is_names_no_account_and_no_kind_of_gpu(tmp_path):
    profile = parsed("slurm", tmp_path)
    assert not [x for x in profile["default-resources"] if x.startswith("slurm_account")]
    assert gpu_resources() == {"slurm_partition": "gpu"}


def test_the_three_things_to_edit_reach_slurm(tmp_path):
    edits = {
        "GPU_PARTITION": "a100",
        "CPU_PARTITION": "small",
        "ACCOUNT": "me",
        "GPU_MODEL": "a100",
    }
    profile = parsed("slurm", tmp_path, **edits)
    assert {"slurm_partition='small'", "slurm_account='me'"} <= set(profile["default-resources"])
    assert gpu_resources() == {"slurm_partition": "a100", "gpu_model": "a100"}


def test_jobs_with_a_gpu_ask_for_the_profiles_partition_and_the_others_do_not(tmp_path):
    """As Snakemake prints it in a dry run of the rules made of a plan's jobs."""
    parsed("slurm", tmp_path, GPU_PARTITION="many", GPU_MODEL="a100")
    done = snakemake(tmp_path / "work", "-n", "--quiet", "host", config=one_model(MODELS))
    assert done.returncode == 0, done.stderr
    asked = {}
    for name, body in re.findall(r"(?m)^(?:local)?rule (\w+?)__\w+:\n((?: .*\n)+)", done.stdout):
        (asked[name],) = re.findall(r"resources: (.*)", body)
    assert "gpu=1" in asked["encode"]
    assert "slurm_partition=many" in asked["encode"] and "gpu_model=a100" in asked["encode"]
    others = {name: text for name, text in asked.items() if name != "encode"}
    assert {"download", "stage", "prepare", "score", "report"} <= others.keys()
    assert not [text for text in others.values() if "slurm_partition" in text or "gpu" in text]


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
    # Kubernetes grants a GPU only as a limit, which scale: 0 makes of what is asked for.
    assert gpu_resources() == {"gpu_manufacturer": "nvidia", "scale": 0}
    assert profile["kubernetes-persistent-volumes"] == ["mine:/v"]
    assert profile["container-image"] == "here/image:1"
    assert profile["kubernetes-namespace"] == "lab"
    assert profile["default-storage-prefix"].startswith("/v/")
    assert profile["remote-job-local-storage-prefix"].startswith("/v/")
