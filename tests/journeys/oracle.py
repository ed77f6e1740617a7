"""What the workflow should measure, by other means: plain transformers, numpy, pytrec_eval.

One text at a time, so that neither padding nor batching can matter; sums in double precision.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Run = dict[str, dict[str, float]]


@cache
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@cache
def loaded(folder: Path, kind: str = "AutoModel") -> Any:
    """The model in single precision; a folder of pickled weights is read as such."""
    import torch
    import transformers

    options = {} if list(Path(folder).glob("*.safetensors")) else {"use_safetensors": False}
    return (
        getattr(transformers, kind)
        .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)
        .eval()
    )


def vectors(
    folder: Path,
    texts: Mapping[str, str],
    prompt: str = "",
    max_length: int = 160,
    pooling: str = "mean",
    normalize: bool = True,
    end_token: str | None = None,
    attention: str | None = None,
    dimensions: int | None = None,
    without_prompt: bool = False,
    shift: float = 0,
) -> dict[str, np.ndarray]:
    """Text id → vector.

    `attention` None leaves the model as it is built. `without_prompt`: pooling leaves the prompt
    out, and with it the token that opens a text. `shift` is added to every state.
    """
    import torch

    words, model = tokenizer(folder), loaded(folder)
    found = {}
    for name, text in texts.items():
        ids = words(prompt + text)["input_ids"]
        extra = words.convert_tokens_to_ids([end_token]) if end_token else []
        if len(ids) + len(extra) > max_length:  # special tokens at the end survive a cut
            closing = [ids[-1]] if ids[-1] == words.eos_token_id else []
            ids = ids[: max_length - len(closing) - len(extra)] + closing
        ids = ids + extra
        given = {"input_ids": torch.tensor([ids])}
        if attention:
            mask = torch.zeros(len(ids), len(ids))
            if attention == "causal":
                mask.masked_fill_(torch.ones_like(mask, dtype=torch.bool).triu(1), -1e9)
            given["attention_mask"] = mask[None, None]
        with torch.no_grad():
            states = model(**given).last_hidden_state[0].double().numpy()
        if without_prompt and prompt:
            states = states[len(words(prompt)["input_ids"]) - 1 :]
        vector = pool(states + shift, pooling)[:dimensions]
        found[name] = vector / np.linalg.norm(vector) if normalize else vector
    return found


def pool(states: np.ndarray, pooling: str) -> np.ndarray:
    """A text's vector of its states (tokens, width), as sentence-transformers' Pooling does it."""
    count = np.arange(1, len(states) + 1)[:, None]
    return {
        "mean": states.mean(0),
        "cls": states[0],
        "last_token": states[-1],
        "max": states.max(0),
        "weightedmean": (states * count).sum(0) / count.sum(),
        "mean_sqrt_len_tokens": states.sum(0) / np.sqrt(len(states)),
    }[pooling]


def search(
    queries: Mapping[str, np.ndarray], corpus: Mapping[str, np.ndarray], top_k: int = 1000
) -> Run:
    """query → document → dot product, the best `top_k`, ties by trec_eval's order."""
    return {query: best({d: float(q @ v) for d, v in corpus.items()}, top_k)
            for query, q in queries.items()}  # fmt: skip


def best(scores: Mapping[str, float], top_k: int) -> dict[str, float]:
    """trec_eval's order: the score in single precision, then the document's id, both falling."""
    order = sorted(scores, key=lambda doc: (np.float32(scores[doc]), doc), reverse=True)
    return {doc: scores[doc] for doc in order[:top_k]}


TREC = {"nDCG@10": "ndcg_cut_10", "AP": "map", "R@100": "recall_100", "R@5": "recall_5"}
TREC |= {"P@10": "P_10", "nDCG@5": "ndcg_cut_5", "RR": "recip_rank", "R@10": "recall_10"}


def metric(
    name: str, run: Run, qrels: Mapping[str, Mapping[str, int]], threshold: int = 1
) -> float:
    """The mean over all judged queries, by trec_eval; RR@10 from the best ten hits."""
    import pytrec_eval

    if name == "RR@10":
        name, run = "RR", {query: best(docs, 10) for query, docs in run.items()}
    judged = {query: dict(docs) for query, docs in qrels.items()}
    found = pytrec_eval.RelevanceEvaluator(judged, {TREC[name]}, threshold).evaluate(run)
    return sum(found.get(q, {}).get(TREC[name], 0.0) for q in judged) / len(judged)


def same_run(ours: Run, theirs: Run, tolerance: float = 2e-5) -> None:
    """The same documents with the same scores, order aside where scores are as good as equal."""
    assert ours.keys() == theirs.keys()
    for query, docs in theirs.items():
        mine = ours[query]
        assert len(mine) == len(docs), f"{query}: {len(mine)} hits, expected {len(docs)}"
        worst = min(docs.values())
        for doc, score in docs.items():
            if doc not in mine:
                assert abs(score - worst) <= tolerance, f"{query}: {doc} is missing"
                continue
            bound = tolerance * max(1.0, abs(score))
            assert abs(mine[doc] - score) <= bound, f"{query} {doc}: {mine[doc]} not {score}"


def cross_score(folder: Path, query: str, passage: str, max_length: int = 512) -> float:
    """A cross-encoder's logit of one pair."""
    import torch

    given = tokenizer(folder)(
        query, passage, truncation=True, max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        return loaded(folder, "AutoModelForSequenceClassification")(**given).logits.item()


def decoder_score(folder: Path, query: str, passage: str, prompt: str) -> float:
    """FlagEmbedding's BaseLLMReranker: the logit of "Yes" after query, passage and prompt."""
    import torch

    words = tokenizer(folder)

    def ids(text: str) -> list[int]:
        return words(text, add_special_tokens=False)["input_ids"]

    row = [*ids(f"A: {query}"), *ids("\n"), *ids(f"B: {passage}"), *ids("\n"), *ids(prompt)]
    with torch.no_grad():
        logits = loaded(folder, "AutoModelForCausalLM")(input_ids=torch.tensor([row])).logits
    return logits[0, -1, ids("Yes")[0]].item()


QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}"
    "<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def qwen3_score(folder: Path, query: str, passage: str, instruction: str) -> float:
    """Qwen3-Reranker's card: the logit of "yes" less that of "no" after its chat template."""
    import torch

    words = tokenizer(folder)
    text = QWEN3.format(instruction=instruction, query=query, passage=passage)
    row = words(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = loaded(folder, "AutoModelForCausalLM")(input_ids=torch.tensor([row])).logits
    yes, no = words.convert_tokens_to_ids(["yes", "no"])
    return (logits[0, -1, yes] - logits[0, -1, no]).item()
