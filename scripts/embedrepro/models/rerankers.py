"""Rerankers, staged and proven like any model: heads, code and recipe.

A recipe says how a pair becomes a score. A cross-encoder has a classification head with one label;
a language model scores by what it would say next, and each family asks in its own words.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import atomic, sha256, write_json, write_record
from ..sources.hub import check_replaceable
from ..sources.snapshot import check_whole
from .adapters import Adapter
from .architectures import dtype_name, flagembedding_rerankers
from .classes import choose_class, decision
from .examination import HEADS, NEAR, TEXTS, Finding, finding, poisoned
from .facts import Resolver, token_text
from .laying import check_pickle, configuration, copy, describe, link, staged_names, weight_files
from .native_config import native_config
from .remote_code import localize
from .st_files import Layout, json_object
from .tensors import main_dtype, tensors
from .tokenizer_files import TOKENIZER_FILES, refuse_bad_tokenizer, write_tokenizer

# What each recipe's model ends in, in transformers' auto classes.
HEADED, LOGITS = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
TASKS = {
    "cross-encoder": HEADED,
    "encoder-only-base": HEADED,
    "decoder-only-base": LOGITS,
    "decoder-only-layerwise": LOGITS,
    "decoder-only-lightweight": LOGITS,
    "qwen3-reranker": LOGITS,
}
RECIPES = tuple(TASKS)
LAYERWISE, LIGHTWEIGHT = "decoder-only-layerwise", "decoder-only-lightweight"
# The card of Qwen3-Reranker: what is asked, and of which two words the next one is to be.
QWEN3 = {
    "prefix": "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
    'Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n",
    "suffix": "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "body": "<Instruct>: {task}\n<Query>: {query}\n<Document>: {passage}",
    "task": "Given a web search query, retrieve relevant passages that answer the query",
    "yes": "yes",
    "no": "no",
}
HEAD = ("classifier", "score.", "classification_head", "logits_proj")
ST_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")


def stage_reranker(
    spec: Mapping[str, Any],
    snapshot: Path,
    output: Path,
    files: dict[str, dict[str, Any]],
    adapter: Adapter | None,
) -> dict[str, Any]:
    """Write the staged folder of a reranker and return what its stage.json says.

    `spec` is as for `staging.stage`; its facts may name the `recipe`, one of RECIPES, where the
    folder and FlagEmbedding's mapping don't tell. `files` are the snapshot's, which lacks the
    weights yet where it is an `adapter`'s. Raises UserError.
    """
    decisions: list[dict[str, Any]] = []
    if adapter:
        files = adapter.merge()
        decisions.append(adapter.decision())
    config = configuration(snapshot)
    weights = weight_files(snapshot, spec.get("allow_pickle", False))
    present = [name for name in TOKENIZER_FILES if (snapshot / name).is_file()]
    check_whole(snapshot, [*weights, *present], str(snapshot))
    refuse_bad_tokenizer(snapshot)
    recipe = choose_recipe(spec, snapshot, config, decisions)
    task = LOGITS if asks_in_modules(snapshot) and recipe == "cross-encoder" else TASKS[recipe]
    check_head(spec, snapshot, config, task)
    if recipe == LAYERWISE:
        code: dict[str, Path] = {}
        cls = "LayerWiseMiniCPMForCausalLM"
        reason = "FlagEmbedding's class; custom code dropped"
        decisions.append(decision("class", cls, "FlagEmbedding", reason))
    else:
        stated = (spec.get("facts") or {}).get("native")
        code, cls = choose_class(spec, snapshot, snapshot, config, task, stated, decisions)
    side = padding(snapshot, task)
    limit = Resolver(
        {"id": spec["id"], "facts": {"pooling": "mean", "normalize": False}}, snapshot
    ).position_limit()
    stored = spec.get("stored") or main_dtype(snapshot)
    record = {
        "id": spec["id"],
        "model": spec["model"],
        "revision": spec.get("source", {}).get("revision"),
        "kind": "reranker",
        "scoring": recipe,
        "task": task,
        "template": QWEN3 if recipe == "qwen3-reranker" else None,
        "architecture": config["model_type"],
        "class": cls,
        "native": not code,
        "trust_remote_code": bool(code),
        "longest": limit,
        "fast_dtype": "bfloat16" if stored == "BF16" else "float16",
        "decisions": decisions,
        "beyond": [],
    }
    with atomic(output) as folder:
        folder.mkdir()
        for name in weights:
            link(snapshot / name, folder / name)
        for name, path in code.items():
            copy(path, folder / name)
        linked = [*weights, *link_modules(snapshot, folder, files, spec)]
        theirs = config if code else native_config(config)
        staged = {k: v for k, v in theirs.items() if k not in ("auto_map", "_name_or_path")}
        if code:
            staged["auto_map"] = localize(config["auto_map"])
        facts = {"end_token": None, "padding_side": side}
        write_tokenizer(snapshot, folder, facts, Layout(), str(config["model_type"]))
        if staged.get("pad_token_id") is None and (number := padding_id(folder)) is not None:
            staged["pad_token_id"] = number  # a head on a decoder looks for the last real token
        write_json(folder / "config.json", staged)
        known = {name: files[name] for name in linked if name in files}
        record["files"] = known | describe(folder, skip=known)
        record["code"] = {name: sha256(folder / name) for name in code}
        write_record(folder / "stage.json", record)
        check_replaceable(output, staged_names(folder))
    return record


def asks_in_modules(snapshot: Path) -> bool:
    """Whether sentence-transformers' own files say which words' logits are the score."""
    path = snapshot / ST_FILES[0]
    rows = json_object_list(path) if path.is_file() else []
    return any(str(row.get("type")).rpartition(".")[2] == "LogitScore" for row in rows)


def choose_recipe(
    spec: Mapping[str, Any],
    snapshot: Path,
    config: Mapping[str, Any],
    decisions: list[dict[str, Any]],
) -> str:
    """How the model scores: as stated, as FlagEmbedding maps its name, or by what it ends in."""
    name = printable(spec["id"])
    stated = (spec.get("facts") or {}).get("recipe")
    basename = str(spec["id"]).rpartition("/")[2]
    ends = str((config.get("architectures") or [""])[0])
    mapped = flagembedding_rerankers().get(basename)
    if stated is not None:
        if stated not in RECIPES:
            choices = ", ".join(RECIPES)
            raise UserError(f"{name}: rerank: engine: {printable(stated)} is none of {choices}")
        found = stated, "config", "stated by the user"
    elif asks_in_modules(snapshot):
        found = "cross-encoder", "sentence-transformers", "modules.json has LogitScore"
    elif ends.endswith("ForCausalLM") and mapped:
        found = mapped, "FlagEmbedding", f"model_mapping.py, {basename}"
    elif ends.endswith("ForCausalLM") and basename.startswith("Qwen3-Reranker"):
        found = "qwen3-reranker", "name", "the recipe of its card"
    elif ends.endswith("ForCausalLM"):
        usable = [r for r, task in TASKS.items() if task == LOGITS and r != LIGHTWEIGHT]
        raise UserError(
            f"{name}: a language model ({ends}), and nothing says how it is asked to rerank; set "
            "rerank: {engine: …} to " + ", ".join(usable)
        )
    else:
        found = "cross-encoder", "config.json", f"ends in {ends or 'a head'}"
    if found[0] == LIGHTWEIGHT:
        raise UserError(
            f"{name}: a lightweight reranker ({found[0]}): FlagEmbedding's class for it needs "
            "transformers 4.46 and fails under the installed version 5; it is not supported"
        )
    if found[0] == LAYERWISE and config["model_type"] != "minicpm":
        raise UserError(
            f"{name}: {LAYERWISE} is the recipe of MiniCPM's rerankers, and this is a "
            f"{printable(config['model_type'])}; set rerank: {{engine: auto}}"
        )
    decisions.append(decision("scoring", *found))
    return found[0]


def check_head(
    spec: Mapping[str, Any], snapshot: Path, config: Mapping[str, Any], task: str
) -> None:
    """A classification head with one label has to be in the checkpoint."""
    if task == LOGITS:
        return
    name = printable(spec["id"])
    names = tensors(snapshot)
    if names and not any(part in tensor for tensor in names for part in HEAD):
        raise UserError(
            f"{name}: holds no classification head (classifier, score): an embedding model, not a "
            "reranker; its scores would be random"
        )
    labels = config.get("num_labels", len(config.get("id2label") or {}) or None)
    ends = [row["shape"] for tensor, row in names.items() if is_last(tensor)]
    found = ends[0][0] if len(ends) == 1 and ends[0] else labels
    if found is not None and found != 1:
        raise UserError(
            f"{name}: its classification head has {found} labels, and nothing says which is "
            "relevance; only heads with one label are supported"
        )


def is_last(tensor: str) -> bool:
    """Whether a tensor is the weight of a head's last layer, under its usual names."""
    last = ("classifier.weight", "score.weight", "classifier.out_proj.weight")
    return tensor in last or tensor.endswith("classification_head.out_proj.weight")


def padding(snapshot: Path, task: str) -> str:
    """Where short pairs are filled up: before, where the last column is read."""
    if task == LOGITS:
        return "left"
    return str(json_object(snapshot / "tokenizer_config.json", {}).get("padding_side", "right"))


def padding_id(folder: Path) -> int | None:
    """The number of the staged tokenizer's padding token."""
    settings = json_object(folder / "tokenizer_config.json")
    special = json_object(folder / "special_tokens_map.json", {})
    token = token_text(settings.get("pad_token") or special.get("pad_token"))
    path = folder / "tokenizer.json"
    if token is None or not path.is_file():
        return None
    from tokenizers import Tokenizer

    number = Tokenizer.from_file(str(path)).token_to_id(token)
    return None if number is None else int(number)


def link_modules(
    snapshot: Path, folder: Path, files: Mapping[str, Any], spec: Mapping[str, Any]
) -> list[str]:
    """sentence-transformers' own files of a cross-encoder, as they are: it reads them itself."""
    if not (snapshot / ST_FILES[0]).is_file():
        return []
    linked = []
    rows = json_object_list(snapshot / ST_FILES[0])
    for row in rows:
        if not str(row.get("type")).startswith("sentence_transformers."):
            raise UserError(
                f"{printable(spec['id'])}: its module {printable(row.get('type'))} is code of its "
                "own, which is not supported in a reranker"
            )
    folders = {str(row.get("path")).rstrip("/") for row in rows if row.get("path")}
    for name in files:
        if name in ST_FILES or name.rpartition("/")[0] in folders:
            if name.endswith((".safetensors", ".bin")):
                check_pickle(snapshot / name, spec.get("allow_pickle", False))
                linked.append(name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link(snapshot / name, folder / name)
    return linked


def json_object_list(path: Path) -> list[dict[str, Any]]:
    from ..files import read_json

    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: not a list of modules")
    return rows


def examine_reranker(staged: Path, record: dict[str, Any]) -> list[Finding]:
    """The findings for a staged reranker: what was loaded, and that a pair has its own score."""
    import torch
    import transformers
    from transformers import AutoTokenizer, logging

    from .staged import verify_code

    verify_code(staged)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    trust = {"trust_remote_code": bool(record["code"]), "local_files_only": True}
    task = record["task"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(staged, **trust)
        with poisoned():
            cls = (
                layerwise_class() if record["scoring"] == LAYERWISE else getattr(transformers, task)
            )
            model, info = cls.from_pretrained(
                staged, output_loading_info=True, **{dtype_name(): torch.float32}, **trust
            )
    except Exception as error:  # own code may raise anything
        return [finding("load", False, f"it can't be loaded: {printable(error)}")]
    with torch.no_grad():
        return list(_pair_checks(tokenizer, model.eval(), info, record))


def _pair_checks(
    tokenizer: Any, model: Any, info: Mapping[str, Any], record: Mapping[str, Any]
) -> Iterator[Finding]:
    import torch

    missing = sorted(n for n in info["missing_keys"] if "position_ids" not in n)
    left = sorted(n for n in info["unexpected_keys"] if not HEADS.search(n))
    names = [*missing, *left]
    detail = f"missing or left over: {', '.join(names[:3])}" if names else "all tensors are used"
    yield finding("weights", not names, detail)
    if names:
        return
    if record["template"]:
        for word in (record["template"]["yes"], record["template"]["no"]):
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            yield finding("words", len(ids) == 1, f"{word!r} is {len(ids)} token(s)")
    longest = min(record["longest"] or 512, 512)
    pairs = [(TEXTS[1], text) for text in (*TEXTS, TEXTS[3] * 40)]
    cut = {"truncation": "longest_first", "max_length": longest, "return_tensors": "pt"}
    batch = tokenizer(*zip(*pairs, strict=True), padding=True, **cut)
    scores = last(model(**batch).logits, batch["attention_mask"])
    yield finding("finite", bool(scores.isfinite().all()), "scores of short and long pairs")
    alone = []
    for query, passage in pairs[:-1]:
        one = tokenizer(query, passage, **cut)
        alone.append(last(model(**one).logits, one["attention_mask"])[0])
    apart = float((torch.stack(alone) - scores[: len(alone)]).abs().max())
    scale = float(scores.abs().max().clamp(min=1))
    yield finding("padding", apart <= NEAR * scale, f"alone and padded differ by {apart:.1e}")


def layerwise_class() -> Any:
    from .minicpm import MendedMiniCPM

    return MendedMiniCPM


def last(logits: Any, mask: Any) -> Any:
    """A head's logits, or a language model's at the last real token; of several layers the last."""
    import torch

    if isinstance(logits, tuple):
        logits = logits[-1][..., None]
    if logits.ndim == 2:
        return logits
    places = (torch.arange(mask.shape[1]) * mask).argmax(1)
    return logits[torch.arange(len(logits)), places]
