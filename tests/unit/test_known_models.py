"""The registry of models: generated from MTEB's metadata, with what people know laid over it."""

import json
import time
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
from embedrepro.models import known

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "rules" / "registry"


@pytest.fixture(scope="module")
def models():
    return known.read_models(REGISTRY)


def test_every_entry_fits_the_schema(models):
    schema = json.loads((ROOT / "rules" / "schemas" / "models.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate({"models": models})
    assert len(models) > 500


def test_every_text_model_of_mteb_runs_or_says_why_not():
    about = json.loads((REGISTRY / "models.json").read_text())["about"]
    runs = Counter(entry["runs"] for entry in about.values())
    assert set(runs) == {"auto", "sentence_transformers", "server", "none"}
    assert runs["auto"] + runs["sentence_transformers"] > 500
    assert all(entry.get("why") for entry in about.values() if entry["runs"] in ("server", "none"))
    assert known.about("openai/text-embedding-3-small", REGISTRY)["runs"] == "server"
    assert known.about("org/nobody", REGISTRY) == {}


@pytest.mark.parametrize(
    "model_id",
    [
        "sentence-transformers/LaBSE",
        "google/embeddinggemma-300m",
        "NovaSearch/stella_en_1.5B_v5",
        "jinaai/jina-embeddings-v2-base-en",
        "jinaai/jina-embeddings-v3",
        "jinaai/jina-embeddings-v5-text-small",
        "nomic-ai/nomic-embed-text-v2-moe",
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "tencent/KaLM-Embedding-Gemma3-12B-2511",
        "ibm-granite/granite-embedding-english-r2",
        "intfloat/multilingual-e5-small",
        "Qwen/Qwen3-Embedding-0.6B",
    ],
)
def test_what_the_field_uses_is_known(models, model_id):
    assert len(models[model_id]["revision"]) == 40
    assert models[model_id]["parameters"] > 10**7


def test_what_people_know_stays(models):
    gte = models["Alibaba-NLP/gte-Qwen2-1.5B-instruct"]
    assert (gte["attention"], gte["end_token"], gte["embedding_size"]) == (
        "causal",
        "<|endoftext|>",
        1536,  # MTEB says 8960
    )
    assert "unsupported" in models["BAAI/bge-en-icl"]


def test_an_entry_by_hand_wins_key_by_key():
    table = {"default": "q: ", "ArguAna": "argue: "}
    generated = {"revision": "a", "query_prompt": table, "max_tokens": 512, "parameters": 9}
    assert known.laid_over(generated, {"max_tokens": 256, "query_prompt": "other: "}) == {
        **generated,
        "max_tokens": 256,
        "query_prompt": "other: ",
    }
    # The same text for all tasks: the table knows more.
    assert known.laid_over(generated, {"query_prompt": "q: "}) == generated
    other = {"revision": "b", "pooling": "cls"}
    assert known.laid_over(generated, other) == other
    assert known.laid_over({}, other) == other


def test_prompts_by_task(models):
    bge = models["BAAI/bge-base-en-v1.5"]["query_prompt"]
    assert bge["default"] == "Represent this sentence for searching relevant passages: "
    assert bge["BrightBiologyRetrieval"].startswith("Represent this biology post")
    e5 = models["intfloat/e5-mistral-7b-instruct"]
    assert (e5["query_prompt"], e5["passage_prompt"]) == ("Instruct: {task}\nQuery: ", "")


def test_it_is_read_quickly():
    known._generated.cache_clear()
    known.read_models.cache_clear()
    start = time.process_time()
    known.read_models(REGISTRY)
    assert time.process_time() - start < 0.2  # 0.02 where nothing else runs
