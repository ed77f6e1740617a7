"""What profiles/kubernetes asks of Kubernetes, with a made-up API: no cluster is needed, and none
of the jobs is run."""

import re
import shutil

import pytest
from helpers import REPOSITORY, snakemake
from kubernetes_api import KubernetesApi

pytestmark = pytest.mark.cluster


@pytest.fixture
def asked(local, config, tmp_path, monkeypatch):
    """The Kubernetes jobs of an experiment with its models staged and its dataset prepared."""
    volume = tmp_path / "volume"
    for part in ("models", "datasets"):
        stored = volume / "embed-repro" / "store" / part
        shutil.copytree(local / "store" / part, stored, symlinks=True)
    text = (REPOSITORY / "profiles" / "kubernetes" / "config.yaml").read_text()
    assert 'MOUNTED = "/embed-repro-data"' in text
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(text.replace("/embed-repro-data", str(volume)))
    with KubernetesApi() as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        arguments = ["--profile", str(profile), "--retries", "0"]
        done = snakemake(tmp_path / "work", *arguments, config=config)
    assert done.returncode == 1, done.stdout + done.stderr  # the made-up API fails every job
    return volume, api.jobs


def test_every_job_that_encodes_asks_for_one_gpu_and_the_volume(asked):
    volume, jobs = asked
    rules = []
    for job in jobs:
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        command = container["args"][1]
        rules += re.findall(r"(encode)__[\w-]+:", command)[:1]
        resources = container["resources"]
        assert (
            resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
        )
        assert resources["requests"]["memory"] == "12000M"
        assert container["image"].startswith("registry.example.org/embed-repro:")
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["embed-repro"] == str(volume)
        claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "embed-repro"]
        assert claims == [{"claimName": "embed-repro"}]
        assert f"--default-storage-prefix '{volume}/embed-repro'" in command
    assert rules == ["encode"] * 4
    assert len(jobs) == 4
