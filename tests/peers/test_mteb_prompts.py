"""The texts put before queries and passages are those that mteb puts, string by string.

mteb's own wrappers are made as its loaders make them and asked to encode, for each text retrieval
task, with a SentenceTransformer that loads nothing and records what it would read.
"""

import logging
import os
from types import SimpleNamespace

import pytest
from embedrepro.datasets.registry import read_registry, resolve
from embedrepro.models import prompts
from embedrepro.models.known import read_models
from embedrepro.plan.artifacts import prompt_of
from embedrepro.plan.config import Digests, read_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
MODELS = [
    "intfloat/e5-mistral-7b-instruct",
    "intfloat/multilingual-e5-large-instruct",
    "intfloat/e5-base-v2",
    "intfloat/multilingual-e5-small",
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    "Alibaba-NLP/gte-Qwen2-7B-instruct",
    "Qwen/Qwen3-Embedding-0.6B",
    "Qwen/Qwen3-Embedding-8B",
    "BAAI/bge-base-en-v1.5",
    "BAAI/bge-base-zh-v1.5",
    "BAAI/bge-m3",
    "GritLM/GritLM-7B",
    "nomic-ai/nomic-embed-text-v1.5",
    "nomic-ai/modernbert-embed-base",
    "NovaSearch/stella_en_1.5B_v5",
    "Salesforce/SFR-Embedding-Mistral",
    "Linq-AI-Research/Linq-Embed-Mistral",
    "mixedbread-ai/mxbai-embed-large-v1",
    "Snowflake/snowflake-arctic-embed-m-v1.5",
    "nvidia/NV-Embed-v2",
    "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1.5",
    "WhereIsAI/UAE-Large-V1",
    "jinaai/jina-embeddings-v3",
    "ReasonIR/ReasonIR-8B",
    "ai-forever/FRIDA",
    "nicher92/saga-embed_v1",
    "tencent/KaLM-Embedding-Gemma3-12B-2511",
    "codefuse-ai/C2LLM-7B",
    "infgrad/Jasper-Token-Compression-600M",
    "llamaindex/vdr-2b-multi-v1",  # its template is never filled in
]
TEXT = "what is put before this?"
ROLES = {"query": "query", "passage": "document"}


@pytest.fixture(scope="module")
def mteb(peers):
    os.environ["HF_HUB_OFFLINE"] = "1"
    import mteb as module

    assert module.__version__ == prompts.tasks()["mteb"]
    logging.disable(logging.WARNING)
    yield module
    logging.disable(logging.NOTSET)


@pytest.fixture
def recorder(monkeypatch):
    """The texts that models would read, in a list."""
    import sentence_transformers
    import torch

    real, read = sentence_transformers.SentenceTransformer, []

    class Echo(torch.nn.Module):
        max_seq_length = 512
        tokenizer = SimpleNamespace()
        auto_model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))

    class Recorder(real):
        tokenizer = Echo.tokenizer

        def __init__(self, *_, prompts=None, **__):
            super().__init__(modules=[Echo()], prompts=prompts, device="cpu")

        def encode(self, inputs, prompt_name=None, prompt=None, **_):
            put = self._resolve_prompt(prompt, prompt_name) or ""
            read.extend(put + text for text in inputs)
            return torch.zeros(len(inputs), 4)

        def set_pooling_include_prompt(self, include_prompt):
            pass

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Recorder)
    return read


@pytest.mark.parametrize("model_id", MODELS)
def test_the_texts_put_before_are_those_of_mteb(mteb, recorder, model_id):
    from mteb._create_dataloaders import _create_dataloader_from_texts
    from mteb.get_tasks import _TASKS_REGISTRY
    from mteb.models.model_implementations import MODEL_REGISTRY
    from mteb.types import PromptType

    meta = MODEL_REGISTRY[model_id]
    wrapper = meta.loader(meta.name, revision=meta.revision, **meta.loader_kwargs)
    loader = _create_dataloader_from_texts([TEXT])
    unlike, compared = [], 0
    for task in prompts.tasks()["tasks"]:
        for role, kind in ROLES.items():
            ours = prompts.prompt_of(model_id, task, role)
            recorder.clear()
            wrapper.encode(
                loader,
                task_metadata=_TASKS_REGISTRY[task].metadata,
                hf_split="test",
                hf_subset="default",
                prompt_type=PromptType(kind),
            )
            compared += 1
            if ours is None:  # the model's own files decide: mteb must have put nothing of its own
                ours = ""
            if recorder != [ours + TEXT]:
                unlike.append((task, role, ours, list(recorder)))
    assert not unlike, unlike[:3]
    assert compared == 2 * len(prompts.tasks()["tasks"])


@pytest.mark.parametrize("model_id", MODELS)
def test_a_plan_puts_them(model_id):
    """By name alone, on every dataset of the registry that is a task of MTEB's; what mteb leaves to
    the model's own files, a plan may."""
    registry = read_registry(prompts.REGISTRY / "datasets.yaml")
    digests = Digests(path=str, file=str, server=dict, pins=str)
    model = read_model({"id": model_id}, read_models(prompts.REGISTRY), digests)
    datasets = resolve([name for name in registry if registry[name].get("mteb")], registry)
    compared = 0
    for dataset in datasets:
        for split, place in dataset.mteb.items():
            for role in ROLES:
                theirs = prompts.prompt_of(model_id, place["task"], role)
                if theirs is None:
                    continue
                ours = prompt_of(model, dataset, role, split if role == "query" else None)
                assert ours["prompt"] == theirs, (dataset.name, split, role)
                compared += 1
    assert compared or model_id == "BAAI/bge-m3"
