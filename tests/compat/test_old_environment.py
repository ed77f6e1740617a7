"""The bug that this project exists for: as it was reported, seen by the watchdog, and cured."""

import json
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import old_qwen2
import pytest
from embedrepro.evaluation import watchdog
from embedrepro.models.staging import stage
from embedrepro.names import slug
from helpers import REPOSITORY, snakemake

pytestmark = pytest.mark.compat
ID = "embed-repro/Tiny-Qwen2-1.5B-instruct"
COMMIT = "1cad2ab3ff41c2671f34e135d29831368ee26b68"
TEXTS = ["one", "another, longer text", "北京大学 and the rest of it", "a b c d e f g"] * 3
EMBED = Path(__file__).with_name("embed.py")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """An HF_HOME in which the dotted id has been downloaded."""
    home = tmp_path_factory.mktemp("hf")
    repository = home / "hub" / f"models--{ID.replace('/', '--')}"
    old_qwen2.build(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return home


@pytest.fixture(scope="module")
def dotted(tmp_path_factory):
    return old_qwen2.build(tmp_path_factory.mktemp("dotted") / ID.rpartition("/")[2])


@pytest.fixture(scope="module")
def embed(old_python, hub, tmp_path_factory):
    """Embed TEXTS in the old environment: embed(model, *devices) -> float32 (texts, hidden)."""

    def run(model, *devices):
        scratch = tmp_path_factory.mktemp("embed")
        (scratch / "texts.json").write_text(json.dumps(TEXTS))
        output = scratch / "vectors.npy"
        env = os.environ | {
            "HF_HOME": str(hub),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(scratch / "modules"),
            "OMP_NUM_THREADS": "1",
        }
        command = [old_python, EMBED, model, scratch / "texts.json", output, *devices]
        watchdog.run(list(map(str, command)), timeout=400, env=env, name="FlagEmbedding 1.3.5")
        return np.load(output)

    return run


@pytest.fixture(scope="module")
def truth(embed, dotted):
    """Vectors of the model's own code in the stack that it was written for, on one device."""
    return embed(dotted, "cpu")


def staged(dotted, folder, custom_code="native"):
    """The record of the staged folder, under the class that the registry says by `custom_code`."""
    spec = {"id": ID, "model": "m", "source": {"path": str(dotted)}, "trust_remote_code": True}
    facts = {"attention": "causal", "max_length": {"query": 512, "passage": 512}}
    facts |= {"query_prompt": "", "passage_prompt": ""}
    registry = {"custom_code": custom_code}
    record = stage(spec | {"facts": facts, "registry": registry}, dotted, folder)
    assert "." not in folder.name
    return record


@pytest.mark.parametrize(
    ("kind", "module"), [("hub id", "embed-repro.Tiny-Qwen2-1"), ("folder", "Tiny-Qwen2-1")]
)
def test_a_dotted_name_dies_on_two_devices_and_the_watchdog_says_so(embed, dotted, kind, module):
    with pytest.raises(watchdog.JobFailed) as failure:
        embed(ID if kind == "hub id" else dotted, "cpu", "cpu")
    assert f"No module named 'transformers_modules.{module}'" in str(failure.value)
    assert "exit status 1" in str(failure.value)


@pytest.mark.parametrize("custom_code", ["required", "native"])
def test_the_staged_folder_passes_on_two_devices(embed, dotted, truth, tmp_path, custom_code):
    """With its own code kept under a safe name, and with transformers' own class in its place."""
    folder = tmp_path / "embed-repro__Tiny-Qwen2-1_5B-instruct-0123456789ab"
    assert staged(dotted, folder, custom_code)["native"] == (custom_code == "native")
    two = embed(folder, "cpu", "cpu")
    assert np.abs(two - embed(folder, "cpu")).max() <= 1e-6
    assert np.abs(two - truth).max() <= 1e-6


def test_every_modern_library_gives_the_vectors_of_the_old_code(dotted, truth, tmp_path):
    from embedrepro.encode import load_engine
    from FlagEmbedding import FlagLLMModel
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "embed-repro__Tiny-Qwen2-1_5B-instruct-0123456789ab"
    assert staged(dotted, folder)["engine"] == "packed"
    found = {
        "FlagEmbedding": FlagLLMModel(str(folder), use_fp16=False, devices="cpu").encode(TEXTS),
        "sentence-transformers": SentenceTransformer(str(folder), device="cpu").encode(TEXTS),
    }
    for name in ("packed", "flagembedding"):
        found[name] = np.zeros_like(truth)
        engine = load_engine(folder, {"dtype": "float32", "engine": name}, "cpu")
        for part in engine.encode(TEXTS, "passage"):
            found[name][part.rows] = part.vectors
    for name, vectors in found.items():
        difference = np.abs(vectors - truth).max()
        print(f"{name}: {difference:.1e}")
        assert difference <= 1e-6, name


def test_without_staging_the_modern_environment_is_silently_wrong(dotted, truth, tmp_path):
    """Its own class, as transformers loads it by default: config.json's is_causal counts now."""
    from FlagEmbedding import FlagLLMModel

    plain = tmp_path / "plain"
    shutil.copytree(dotted, plain)
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((plain / name).read_text())
        del settings["auto_map"]
        settings.pop("tokenizer_class", None)
        (plain / name).write_text(json.dumps(settings))
    vectors = FlagLLMModel(str(plain), use_fp16=False, devices="cpu").encode(TEXTS)
    assert (vectors * truth).sum(1).min() < 0.99


def test_dotted_custom_code_models_pass_through_the_modern_workflow(dotted, tmp_path):
    idf = {"id": "embed-repro/IDF-Attention-0.1B", "source": {"demo": 7}, "trust_remote_code": True}
    qwen = {"id": ID, "source": {"path": str(dotted)}, "attention": "causal"}
    qwen |= {"query_prompt": "", "passage_prompt": ""}
    source = {"beir": str(REPOSITORY / "data" / "demo")}
    config = {
        "experiment": "compat",
        "models": [idf, qwen],
        "datasets": [{"name": "demo", "source": source, "splits": ["test"], "shards": 2}],
        "reference": {"devices": ["cpu", "cpu"], "timeout_minutes": 15},
    }
    # After --configfile come files, so another option has to stand before the target.
    done = snakemake(tmp_path, "--cores", "2", "reference", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    parity = json.loads((tmp_path / "results" / "compat" / "parity.json").read_text())
    assert {row["model_id"] for row in parity} == {ID, idf["id"]}
    assert len(parity) == 6
    assert all("--devices cpu cpu" in row["command"] for row in parity)
    assert max(abs(row["delta"]) for row in parity) <= 1e-4
    assert "Parity with FlagEmbedding" in (tmp_path / "results/compat/report.md").read_text()


def test_own_code_in_its_environment_beside_the_native_class_is_the_same_run(
    dotted, legacy, tmp_path
):
    """Through the ordinary workflow; without the environment its code is told to be broken."""
    facts = {"attention": "causal", "query_prompt": "", "passage_prompt": "Say: "}
    native = {"id": ID, "source": {"path": str(dotted)}} | facts
    own = native | {"alias": "own", "native": False, "trust_remote_code": True}
    source = {"beir": str(REPOSITORY / "data" / "demo")}
    config = {
        "experiment": "legacy",
        "models": [native, own | {"environment": "legacy"}],
        "datasets": [{"name": "demo", "source": source, "splits": ["test"], "shards": 2}],
    }
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "environments").symlink_to(legacy.parent)
    done = snakemake(tmp_path, config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [run_of(tmp_path / "results" / "legacy", name) for name in (slug(ID), "own")]
    assert runs[0].keys() == runs[1].keys()
    apart = []
    for query, docs in runs[0].items():
        theirs = runs[1][query]
        assert docs.keys() == theirs.keys()
        apart += [abs(docs[doc] - theirs[doc]) for doc in docs]
    same = sum(list(runs[0][query]) == list(runs[1][query]) for query in runs[0])
    print(f"{len(apart)} scores, {max(apart):.1e} apart; {same} of {len(runs[0])} in one order")
    assert max(apart) <= 1e-5
    provenance = json.loads((tmp_path / "results/legacy/provenance.json").read_text())
    versions = {row["model"]: row["versions"]["transformers"] for row in provenance["embeddings"]}
    assert versions == {slug(ID): version("transformers"), "own": "4.51.3"}
    broken = snakemake(tmp_path, config=config | {"models": [own], "experiment": "broken"})
    assert broken.returncode != 0
    errors = [line for line in broken.stdout.splitlines() if line.startswith("error:")]
    assert errors and ID in errors[0], broken.stdout + broken.stderr


def test_what_own_code_imports_in_turn_is_there_in_the_old_environment(old_python, tmp_path):
    """transformers 4 copies, of a local folder, only what its first file imports."""
    snapshot = old_qwen2.build(tmp_path / "snap")
    code = snapshot / "modeling_qwen.py"
    first, second = "from torch import nn\n", "from .shapes import nn\n"
    assert first in code.read_text()
    code.write_text(code.read_text().replace(first, second))
    (snapshot / "shapes.py").write_text("from .deeper import nn\n")
    (snapshot / "deeper.py").write_text(first)
    folder = tmp_path / "embed-repro__Nested-0123456789ab"
    assert set(staged(snapshot, folder, "required")["code"]) == {
        code.name,
        "shapes.py",
        "deeper.py",
    }
    check = (
        "import sys; from embedrepro.models.preflight import preflight; preflight(*sys.argv[1:])"
    )
    scripts = str(REPOSITORY / "scripts")
    env = os.environ | {"PYTHONPATH": scripts, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [old_python, "-c", check, folder, tmp_path / "found.json"]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    findings = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert all(row["ok"] for row in findings)


def run_of(results, model):
    """query -> document -> score of a run file."""
    found = {}
    for line in (results / "runs/demo/test" / f"{model}.trec").read_text().splitlines():
        query, _, doc, _, score, _ = line.split()
        found.setdefault(query, {})[doc] = float(score)
    return found
