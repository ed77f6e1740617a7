"""Models on a server: what is sent, what comes back wrong, and what a config may say of one."""

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from embedding_server import COMMIT, EmbeddingServer, sentence_transformer
from embedrepro.encode import load_engine
from embedrepro.errors import UserError
from embedrepro.models.preflight import preflight
from embedrepro.models.staging import stage
from embedrepro.search.rerank import DEFAULTS, load_reranker
from embedrepro.sources import server as client
from embedrepro.sources.address import KEY
from embedrepro.sources.hub import download_model
from helpers import REPOSITORY
from test_plan import changed, experiment, keys, outside, plan

sys.path.insert(0, str(REPOSITORY / "tests" / "journeys"))
from stand_ins import bert, cross_encoder  # noqa: E402

FACTS = {"normalize": True, "query_prompt": "Ask: ", "passage_prompt": ""}
TEXTS = [f"text {i} " + "word " * (i % 7) for i in range(43)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("served") / "bert", normalize=False)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(client, "WAITS", (0.01, 0.01, 0.01))


def staged(tmp_path, server, api=None, facts=FACTS, kind="dense", **source):
    given = {"server": server.url, "model": server.name} | ({"api": api} if api else {}) | source
    spec = {"id": "me/Served-1.5B", "model": "m", "kind": kind, "source": given, "registry": {}}
    download_model(spec, tmp_path / "snap", tmp_path / "cache")
    return stage(
        spec | {"facts": facts}, tmp_path / "snap", tmp_path / "staged"
    ), tmp_path / "staged"


def vectors(folder, texts, role="passage", **settings):
    engine = load_engine(folder, settings, "cpu")
    found = np.full((len(texts), engine.dimension), np.nan, np.float32)
    for part in engine.encode(texts, role):
        found[part.rows] = part.vectors
    return found


def expected(folder, texts, prompt=""):
    return sentence_transformer(folder).encode(
        [prompt + text for text in texts], normalize_embeddings=True
    )


@pytest.mark.parametrize("api", ["tei", "openai"])
def test_vectors_are_the_models_own_in_order_and_several_requests_are_under_way(
    folder, tmp_path, api
):
    with EmbeddingServer(folder, api) as server:
        record, place = staged(tmp_path, server)
        assert record["server"]["said"]["api"] == api and record["pinned"] is False
        for role, prompt in (("passage", ""), ("query", "Ask: ")):
            ours = vectors(place, TEXTS * 8, role)
            assert np.abs(ours - np.tile(expected(folder, TEXTS, prompt), (8, 1))).max() < 1e-6
        assert 1 < server.most <= client.CONCURRENT
        sizes = {len(b.get("inputs") or b.get("input") or []) for _, _, b in server.requests}
        assert max(sizes) == (5 if api == "tei" else client.BATCH)


@pytest.mark.parametrize("kind", ["429", "500", "503", "drop", "cut"])
@pytest.mark.parametrize("api", ["tei", "openai"])
def test_a_passing_fault_is_tried_again(folder, tmp_path, api, kind):
    with EmbeddingServer(folder, api) as server:
        _, place = staged(tmp_path, server)
        server.fail("/embed", kind, times=3)
        assert np.abs(vectors(place, TEXTS) - expected(folder, TEXTS)).max() < 1e-6
        assert not server.unspent()


def test_a_server_that_stays_overloaded_is_given_up_in_one_line(folder, tmp_path):
    with EmbeddingServer(folder, "tei") as server:
        _, place = staged(tmp_path, server)
        server.fail("/embed", "429", times=10_000)
        with pytest.raises(
            UserError, match=r"server http://127.*gives no answer \(HTTP status 429\)"
        ):
            vectors(place, TEXTS)


def test_answers_in_another_order_go_where_they_belong(folder, tmp_path):
    with EmbeddingServer(folder, "openai") as server:
        _, place = staged(tmp_path, server)
        server.fail("/embed", "shuffled", times=100)
        assert np.abs(vectors(place, TEXTS) - expected(folder, TEXTS)).max() < 1e-6


@pytest.mark.parametrize(
    ("api", "kind", "says"),
    [
        ("openai", "unnumbered", "don't say which text each is for"),
        ("openai", "twice", "don't say which text each is for"),
        ("openai", "short", "answers 31 results for 32 texts"),
        ("tei", "short", "answers 4 vectors for 5 texts"),
        ("openai", "null", "text 0 with NaN, Inf or nothing"),
        ("tei", "null", "text 0 with NaN, Inf or nothing"),
        ("openai", "wide", "17 numbers, it had 16"),
        ("tei", "wide", "17 numbers, it had 16"),
        ("tei", "404", "check the address, and api:"),
    ],
)
def test_a_wrong_answer_is_refused_in_one_line(folder, tmp_path, monkeypatch, api, kind, says):
    monkeypatch.setattr(client, "CONCURRENT", 1)
    with EmbeddingServer(folder, api) as server:
        _, place = staged(tmp_path, server)
        server.fail("/embed", kind)
        with pytest.raises(UserError) as error:
            vectors(place, TEXTS)
        assert says in str(error.value) and "\n" not in str(error.value)


def test_a_text_that_the_server_refuses_is_named_and_the_others_are_not_lost(folder, tmp_path):
    texts = [*TEXTS[:20], "x" * 3000, *TEXTS[20:]]
    with EmbeddingServer(folder, "openai") as server:
        _, place = staged(tmp_path, server)
        with pytest.raises(
            UserError, match=r"text 20 \(3,000 characters\) is refused.*maximum con"
        ):
            vectors(place, texts)
        preflight(place, tmp_path / "proof.json")
        found = {
            f["check"]: f for f in json.loads((tmp_path / "proof.json").read_text())["findings"]
        }
        assert "a text like that stops the run" in found["long"]["detail"]
        assert "20,008 words" in found["long"]["detail"]


def test_a_server_that_cuts_on_request_is_asked_to(folder, tmp_path):
    texts = [*TEXTS, "word " * 600]
    with EmbeddingServer(folder, "openai") as server:
        server.vllm = True
        _, place = staged(tmp_path, server)
        assert np.abs(vectors(place, texts) - expected(folder, texts)).max() < 1e-6
        preflight(place, tmp_path / "proof.json")
        assert "cut as truncate_prompt_tokens asks: taken" in (tmp_path / "proof.json").read_text()


def test_preflight_says_what_an_empty_text_does_and_finds_another_models_answers(folder, tmp_path):
    with EmbeddingServer(folder, "tei") as server:
        _, place = staged(tmp_path, server)
        preflight(place, tmp_path / "proof.json")
        found = {
            f["check"]: f for f in json.loads((tmp_path / "proof.json").read_text())["findings"]
        }
        assert all(f["ok"] for f in found.values())
        assert {"pinned", "dimension", "finite", "repeat", "order", "empty", "long"} == set(found)
        assert "`inputs` cannot be empty" in found["empty"]["detail"]
        assert COMMIT in found["pinned"]["detail"]
        honest = server.of
        turns = iter(range(10**6))
        server.of = lambda text: (np.array(honest(text)) * [1, -1, -1][next(turns) % 3]).tolist()
        with pytest.raises(UserError, match="preflight check 'repeat' failed"):
            preflight(place, tmp_path / "proof2.json")
        assert not (tmp_path / "proof2.json").exists()


def test_a_server_that_is_another_one_by_now_is_refused(folder, tmp_path):
    with EmbeddingServer(folder, "tei") as server:
        _, place = staged(tmp_path, server)
        server.about = {"model_sha": COMMIT[::-1]}
        with pytest.raises(UserError, match="says another revision than when it was staged"):
            vectors(place, TEXTS)


def test_vectors_are_cut_and_scaled_here(folder, tmp_path):
    with EmbeddingServer(folder, "tei") as server:
        _, place = staged(tmp_path, server, facts=FACTS | {"dimensions": 8})
        engine = load_engine(place, {}, "cpu")
        (part,) = engine.encode(TEXTS[:3], "passage")
        whole = expected(folder, TEXTS[:3])[:, :8]
        whole /= np.linalg.norm(whole, axis=1, keepdims=True)
        assert part.vectors.shape == (3, 8) and np.abs(part.vectors - whole).max() < 1e-6


def test_the_key_is_sent_never_written_and_never_shown(folder, tmp_path, monkeypatch, capfd):
    secret = "sk-only-for-tests-5e11a7e"
    with EmbeddingServer(folder, "openai", key=secret) as server:
        with pytest.raises(UserError, match=f"HTTP status 401.*set {KEY}"):
            staged(tmp_path, server)
        monkeypatch.setenv(KEY, "sk-wrong")
        with pytest.raises(UserError, match="gives no access") as error:
            staged(tmp_path, server)
        assert "sk-wrong" not in str(error.value)
        monkeypatch.setenv(KEY, secret)
        _, place = staged(tmp_path, server)
        server.fail("/embed", "500", times=2)
        vectors(place, TEXTS)
        preflight(place, tmp_path / "proof.json")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret not in "".join(capfd.readouterr())


def test_a_redirect_takes_the_key_nowhere(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "sk-5e11a7e")
    with EmbeddingServer(folder, "tei") as server:
        _, place = staged(tmp_path, server)
        server.fail("/embed", "307")
        with pytest.raises(UserError, match="HTTP status 307"):
            vectors(place, TEXTS)


def test_rerank_scores_are_the_cross_encoders_in_the_order_of_the_pairs(tmp_path):
    from sentence_transformers import CrossEncoder

    model = cross_encoder(tmp_path / "cross")
    pairs = [(f"query {i // 7}", text) for i, text in enumerate(TEXTS)]
    with EmbeddingServer(model, "tei", reranker=True) as server:
        record, place = staged(tmp_path, server, kind="reranker", facts={})
        assert record["scoring"] == "server"
        preflight(place, tmp_path / "proof.json")
        score = load_reranker(place, DEFAULTS, "cpu")
        server.fail("/rerank", "429", times=2)
        found = score(pairs)
        truth = CrossEncoder(str(model), device="cpu").predict(pairs, activation_fn=lambda x: x)
        assert np.abs(np.array(found) - truth).max() < 1e-5
        with pytest.raises(UserError, match="has a model of kind reranker, and a dense one"):
            staged(tmp_path / "other", server)


def test_nothing_that_answers_is_told_with_what_to_do(folder, tmp_path):
    with EmbeddingServer(folder, "tei") as server:
        url = server.url
    for source, says in (
        ({"server": url, "model": "m"}, "gives no answer"),
        ({"server": url, "model": "m", "api": "tei"}, "check its address, and whether it is up"),
    ):
        with pytest.raises(UserError, match=says):
            client.server_identity(source, tmp_path)
    with EmbeddingServer(folder, "openai", name="small") as server:
        for name, api, says in (
            ("smal", None, "has no model smal (did you mean 'small'?)"),
            ("small", "tei", "check"),
        ):
            source = {"server": server.url, "model": name} | ({"api": api} if api else {})
            with pytest.raises(UserError) as error:
                client.server_identity(source, tmp_path)
            assert says in str(error.value)


def test_a_server_goes_by_what_it_says_and_by_its_address_only_without_a_commit(folder, tmp_path):
    def of(server, **more):
        return client.server_identity({"server": server.url, "model": "me/m"} | more, tmp_path)

    with EmbeddingServer(folder, "tei") as one, EmbeddingServer(folder, "tei") as two:
        assert of(one) == of(two) and of(one)["revision"] == COMMIT
        before = of(one)
        two.about = {"model_dtype": "float16"}
        assert of(two) != before
    assert of(one) == before  # silent now: as it last was
    with EmbeddingServer(folder, "openai") as one, EmbeddingServer(folder, "openai") as two:
        assert of(one) != of(two)
        assert of(one) == of(one)  # `created` is the time of asking
        assert of(one, revision="v1") == of(two, revision="v1")


SERVER = {"server": "http://h:80", "model": "x"}


def test_keys_are_the_servers_identity_and_no_gpu_is_asked_for():
    model = {"id": "Org/Known-1.5B", "source": SERVER, "revision": "v1"}
    moved = model | {"source": SERVER | {"server": "http://other:81"}}
    again = model | {"revision": "v2"}
    one, two, three = (
        keys(
            experiment(
                models=[m],
                served=lambda s: {"server": s["model"], "revision": s["revision"]},
            )
        )
        for m in (model, moved, again)
    )
    assert one == two
    assert changed(one, three) == {"source", "stage", "corpus", "query", "run", "scores"}
    made = plan(models=[model])
    assert [job.gpu for job in made.jobs if job.rule in ("encode", "preflight")] == [0]
    assert not [job for job in made.jobs if job.rule == "reference"]
    scores = next(a for a in made.artifacts.values() if a.step == "score")
    assert scores.spec["facts"]["pinned"] is False
    large = plan(models=[model], datasets=["msmarco-passage"])
    assert {job.gpu for job in large.jobs if job.rule == "encode"} == {0}
    assert len([job for job in large.jobs if job.rule == "encode"]) == 1
    built = experiment(models=[model])
    assert outside(built)
    codes = model | {"stored": ["int8", "binary"], "rescore": 3, "calibration": 99}
    for datasets in (["beir/scifact"], ["msmarco-passage"]):  # quantised here, like any vectors
        made = plan(models=[codes], datasets=datasets)
        assert {job.gpu for job in made.jobs} == {0}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"pooling": "cls"}, "pooling: its server decides that"),
        ({"max_length": 512, "dtype": "float16"}, "dtype, max_length: its server decides that"),
        ({"trust_remote_code": True}, "trust_remote_code: its server decides that"),
        ({"environment": "legacy"}, "environment: its server decides that"),
        ({"engine": "packed"}, "engine: packed: its server decides that"),
        ({"stored": "int8", "rerank": {"run": "x"}}, "stored is of dense vectors; this row's kind"),
        ({"rescore": 3}, "rescore is of stored: int8 or binary; it does nothing here"),
        ({"kind": "sparse"}, "a server gives dense vectors, this row's kind is sparse"),
        ({"source": SERVER | {"server": "http://me:pw@h"}}, f"give the key in {KEY} instead"),
        ({"source": SERVER | {"server": "host:80"}}, "needs an address like http://host:8080"),
        ({"source": SERVER | {"server": "http://h/?key=x"}}, "needs an address like"),
        ({"source": SERVER | {"path": "x"}}, "unknown key"),
        ({"source": {"model": "x"}}, "unknown key 'model'"),
        ({"mirrors": [SERVER]}, "mirrors[0]"),
    ],
)
def test_what_can_t_be_said_of_a_server_is_one_line(more, says):
    with pytest.raises(UserError) as error:
        experiment(models=[{"id": "Org/Known-1.5B", "source": SERVER} | more])
    assert says in str(error.value), str(error.value)


def test_an_engine_for_servers_is_refused_elsewhere(folder, tmp_path):
    spec = {"id": "me/m", "model": "m", "source": {"path": str(folder)}, "registry": {}}
    spec |= {"facts": {"engine": "http"}, "trust_remote_code": False}
    with pytest.raises(UserError, match="engine: http is that of source: {server"):
        stage(spec, Path(folder), tmp_path / "staged")


def test_threads_end_with_the_work(folder, tmp_path):
    before = threading.active_count()
    with EmbeddingServer(folder, "tei") as server:
        _, place = staged(tmp_path, server)
        parts = load_engine(place, {}, "cpu").encode(iter(TEXTS * 50), "passage")
        next(parts)
        parts.close()
    assert threading.active_count() <= before + 1
