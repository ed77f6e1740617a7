"""MTEB's prompts by model and task, against what mteb's own wrappers put (see tests/peers)."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from embedrepro.models import prompts

ROOT = Path(__file__).parents[2]
INSTRUCT = "Instruct: {}\nQuery: "


@pytest.mark.parametrize(
    ("model", "task", "query", "passage"),
    [
        ("intfloat/e5-base-v2", "SciFact", "query: ", "passage: "),
        (
            "intfloat/e5-mistral-7b-instruct",
            "SciFact",
            INSTRUCT.format(
                "Given a scientific claim, retrieve documents that support or refute the claim"
            ),
            "",
        ),
        # The task has no instruction: its class has.
        (
            "Alibaba-NLP/gte-Qwen2-7B-instruct",
            "XQuADRetrieval",
            INSTRUCT.format("Retrieve text based on user query."),
            "",
        ),
        # A level of its own for some tasks.
        (
            "BAAI/bge-base-en-v1.5",
            "BrightBiologyRetrieval",
            "Represent this biology post for searching relevant passages: ",
            "",
        ),
        (
            "BAAI/bge-base-en-v1.5",
            "SciFact",
            "Represent this sentence for searching relevant passages: ",
            "",
        ),
        # The template stays where the instruction is empty.
        (
            "GritLM/GritLM-7B",
            "SciFact",
            "<|user|>\nGiven a scientific claim, retrieve documents that support or refute the "
            "claim\n<|embed|>\n",
            "<|embed|>\n",
        ),
        # The model's own files decide; mteb's own code does; mteb doesn't know it.
        ("sentence-transformers/all-MiniLM-L6-v2", "SciFact", None, None),
        ("openai/text-embedding-3-small", "SciFact", None, None),
        ("org/nobody", "SciFact", None, None),
        ("intfloat/e5-base-v2", "NoSuchTask", None, None),
    ],
)
def test_prompts(model, task, query, passage):
    assert prompts.prompt_of(model, task, "query") == query
    assert prompts.prompt_of(model, task, "passage") == passage


def test_a_model_that_prompts_passages_of_some_tasks_only():
    """An instruction for both roles reaches passages, one for queries alone doesn't."""
    prompt = INSTRUCT.format("Retrieve text based on user query.")
    assert prompts.prompt_of("nvidia/NV-Embed-v2", "XQuADRetrieval", "passage") == prompt
    assert prompts.prompt_of("nvidia/NV-Embed-v2", "SciFact", "passage") == ""


@pytest.mark.parametrize(
    ("dataset", "task"),
    [
        ("beir/scifact", "SciFact"),
        ("xquad/de", "XQuADRetrieval"),
        ("msmarco-passage", "MSMARCO"),
        ("ArguAna", "ArguAna"),
        ("BelebeleRetrieval/acm_Arab-acm_Arab", "BelebeleRetrieval"),
        ("BelebeleRetrieval/xx", None),
        ("BelebeleRetrieval", None),
        ("mine", None),
        ("a/b/c", None),
    ],
)
def test_the_task_of_a_dataset(dataset, task):
    assert prompts.task_of(dataset) == task


def test_it_is_read_quickly_and_imports_nothing_heavy():
    code = (
        "import sys, time; start = time.process_time(); from embedrepro.models import prompts; "
        "prompts.prompt_of('BAAI/bge-m3', 'SciFact', 'query'); "
        "print(time.process_time() - start, {'torch', 'yaml', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "scripts"
    )
    seconds, heavy = done.stdout.split(maxsplit=1)
    assert float(seconds) < 0.2  # 0.03 where nothing else runs
    assert heavy.strip() == "set()"
    start = time.process_time()
    for _ in range(100):
        prompts.prompt_of("BAAI/bge-m3", "SciFact", "query")
    assert time.process_time() - start < 0.1
