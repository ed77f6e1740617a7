"""A staged folder's engine held against sentence-transformers itself, in float32, on a sample.

Only for what goes beyond the plain layouts; a common model pays nothing. Of a large native model
both sides run the first layers only.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, printable
from ..sources.adapter import ADAPTER
from .adapters import BASE
from .examination import FULL_BYTES, LAYERS, TEXTS, Finding, finding, weight_bytes
from .facts_table import ROLES, Role, prompt_for
from .st_files import json_object

if TYPE_CHECKING:
    import numpy as np

    from ..encode import Engine

APART = 1e-4  # of vectors of length 1: more than float32 and another order of summing explain
SHIPPED = "shipped"
WORDS = 1500  # of the longest text of the sample


def sample(record: dict[str, Any]) -> list[str]:
    """Short texts and a long one, beyond max_length where that is not too much to compute."""
    longest = min(max(record["max_length"].values()), WORDS)
    text = TEXTS[3] * (longest // 16 + 1)
    return [*TEXTS, text[: 8 * longest]]


def compare(staged: Path, record: dict[str, Any]) -> list[Finding]:
    """One finding: whether the engine gives the vectors that sentence-transformers gives."""
    what = "beyond the plain layouts: " + ", ".join(record["beyond"])
    with views(staged, record) as (ours, theirs):
        try:
            model = reference(theirs, record)
            expected = {role: peer(model, record, sample(record), role) for role in ROLES}
        except Exception as error:  # a model's modules may raise anything
            detail = f"sentence-transformers can't run it ({what}): {printable(error)}"
            return [finding("sentence-transformers", False, detail)]
        del model
        engine = load_ours(ours)
        for role in ROLES:
            try:
                found = own(engine, sample(record), role)
            except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
                detail = f"{record['engine']} can't run it ({what}): {printable(error)}"
                return [finding("sentence-transformers", False, detail)]
            if difference := apart(found, expected[role], record, role):
                return [finding("sentence-transformers", False, f"{difference} ({what})")]
    return [finding("sentence-transformers", True, f"the same vectors within {APART:g}; {what}")]


def compare_many(staged: Path, record: dict[str, Any]) -> list[Finding]:
    """`compare` for a sparse or a multi-vector model: weights of terms, or a vector a token."""
    try:
        both = views(staged, record) if record.get("adapter") else nullcontext((staged, staged))
        with both as (merged, unmerged):
            engine = load_ours(merged)
            found = {role: own_many(engine, sample(record), role) for role in ROLES}
            del engine
            model = reference(unmerged, record)
            expected = {role: peer_many(model, record, sample(record), role) for role in ROLES}
    except UserError as error:
        return [finding("load", False, printable(error, 2000))]
    except Exception as error:  # a model's modules may raise anything
        return [finding("load", False, f"sentence-transformers can't run it: {printable(error)}")]
    for role in ROLES:
        for text, ours, theirs in zip(sample(record), found[role], expected[role], strict=True):
            what = f"{role} {text[:30]!r} ({len(text)} characters)"
            if ours.shape != theirs.shape:
                detail = f"{what}: {ours.shape} numbers, its own are {theirs.shape}"
                return [finding("sentence-transformers", False, detail)]
            apart_by = abs(ours - theirs).max(initial=0) / max(1, abs(theirs).max(initial=0))
            if not apart_by <= APART:
                detail = f"{what}: {apart_by:.1e} apart from sentence-transformers' own"
                return [finding("sentence-transformers", False, detail)]
    return [finding("sentence-transformers", True, f"the same vectors within {APART:g}")]


def compare_m3(staged: Path, record: dict[str, Any]) -> list[Finding]:
    """Whether BGE-M3's dense vectors are sentence-transformers' own and its heads give numbers.

    What its heads give no other library here computes; the engine refuses NaN and infinity.
    """
    import numpy as np

    try:
        engine, model = load_ours(staged), reference(staged, record)
        for role in ROLES:
            parts = list(engine.encode(sample(record), role, "task"))
            order = np.argsort(np.concatenate([part.rows for part in parts]))
            found = np.concatenate([part.dense.vectors for part in parts])[order]
            expected = peer(model, record, sample(record), role)
            if difference := apart(found.astype(np.float32), expected, record, role):
                return [finding("sentence-transformers", False, difference)]
    except UserError as error:
        return [finding("load", False, printable(error, 2000))]
    except Exception as error:  # whatever a library finds wrong with it
        return [finding("load", False, f"it can't be run: {printable(error)}")]
    detail = f"the same dense vectors within {APART:g}; both heads give finite numbers"
    return [finding("sentence-transformers", True, detail)]


def own_many(engine: Any, texts: Sequence[str], role: Role) -> "list[np.ndarray]":
    """Of each text the weights of all terms, or the vectors of its tokens (n, dimension)."""
    import numpy as np

    found: dict[int, np.ndarray] = {}
    for part in engine.encode(list(texts), role, "task"):
        ends = np.cumsum(part.lengths)
        for number, row in enumerate(part.rows.tolist()):
            mine = slice(int(ends[number] - part.lengths[number]), int(ends[number]))
            if engine.name == "multivector":
                found[row] = part.vectors[mine]
                continue
            found[row] = np.zeros(engine.dimension, np.float32)
            found[row][part.columns[mine]] = part.values[mine]
    return [found[row] for row in range(len(texts))]


def peer_many(
    model: Any, record: dict[str, Any], texts: Sequence[str], role: Role
) -> "list[np.ndarray]":
    """The same of sentence-transformers, one text at a time."""
    import numpy as np

    encode = model.encode_query if role == "query" else model.encode_document
    prompt = prompt_for(record[f"{role}_prompt"])
    options: dict[str, Any] = {"show_progress_bar": False, "batch_size": 1}
    if prompt is not None:
        options["prompt"] = prompt.replace("{task}", "task")
    cut_to(model, record["max_length"][role], role, options)
    vectors = [vector.cpu() for vector in encode(list(texts), **options)]
    if record["kind"] == "sparse":
        dense = [v.to_dense() if v.is_sparse else v for v in vectors]
        if model.similarity_fn_name == "cosine":
            dense = [v / v.norm().clamp_min(1e-12) for v in dense]
        return [np.asarray(v, np.float32) for v in dense]
    return [np.asarray(v, np.float32) for v in vectors]


def cut_to(model: Any, length: int, role: Role, options: dict[str, Any]) -> None:
    """Have sentence-transformers keep `length` tokens, as the staged facts say."""
    for module in model.modules():
        tokenizer = getattr(module, "tokenizer", None)
        if type(module).__name__ == "SparseStaticEmbedding" and tokenizer is not None:
            tokenizer.model_max_length = length  # it asks its tokenizer only
    expansion = getattr(model[0], "query_expansion", None) if role == "query" else None
    if not (expansion and expansion["strategy"] == "fixed"):
        options["processing_kwargs"] = {"text": {"max_length": length}}


def apart(
    found: "np.ndarray", expected: "np.ndarray", record: dict[str, Any], role: Role
) -> str | None:
    """In words, how two arrays of vectors differ, or None where they don't."""
    if found.shape != expected.shape:
        return f"{role}: vectors of {found.shape[1]}, its own have {expected.shape[1]}"
    one = unit if record["normalize"] else in_scale(expected)
    differences = abs(one(found) - one(expected)).max(axis=1)
    worst = int(differences.argmax())
    if differences[worst] <= APART:
        return None
    text = sample(record)[worst]
    return (
        f"{role} {text[:30]!r} ({len(text)} characters): {record['engine']} "
        f"{shown(found[worst])}, sentence-transformers {shown(expected[worst])}, "
        f"{differences[worst]:.1e} apart"
    )


def unit(vectors: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def in_scale(expected: "np.ndarray") -> "Callable[[np.ndarray], np.ndarray]":
    """Makes the longest of `expected` a vector of length 1: lengths count in a dot product."""
    import numpy as np

    longest = float(np.linalg.norm(expected, axis=1).max(initial=1e-12))
    return lambda vectors: vectors / longest


def shown(vector: "np.ndarray") -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in vector[:3]) + ", …]"


@contextmanager
def views(staged: Path, record: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
    """(folder for the engine, folder for sentence-transformers), cut to some layers if large."""
    theirs = staged / SHIPPED if record.get("shipped") else staged
    adapter = record.get("adapter")
    layers = json_object(staged / "config.json", {}).get("num_hidden_layers", 0)
    whole = record["code"] or weight_bytes(record) <= FULL_BYTES
    whole = whole or not isinstance(layers, int) or layers <= LAYERS
    if whole and not adapter:
        yield staged, theirs
        return
    with tempfile.TemporaryDirectory(prefix="preflight-") as scratch:
        places = Path(scratch) / "ours", Path(scratch) / "theirs"
        for place, folder in zip(places, (staged, theirs), strict=True):
            linked = shutil.copytree(folder, place, copy_function=os.symlink)
            if adapter and folder == theirs:
                base = linked / BASE
                name = linked / adapter["path"] / ADAPTER
                rewrite(name, json_object(name) | {"base_model_name_or_path": str(base)})
                linked = base
            if not whole:
                short = json_object(linked / "config.json") | {"num_hidden_layers": LAYERS}
                if short.get("layer_types"):
                    short["layer_types"] = short["layer_types"][:LAYERS]
                rewrite(linked / "config.json", short)
        yield places


def rewrite(link: Path, value: dict[str, Any]) -> None:
    """Put a file of its own in place of a link."""
    link.unlink()
    link.write_text(json.dumps(value), encoding="utf-8")


def reference(folder: Path, record: dict[str, Any]) -> Any:
    """sentence-transformers' own model of the folder, on CPU in float32."""
    import sentence_transformers
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cls = {"sparse": "SparseEncoder", "multivector": "MultiVectorEncoder"}.get(
        record["kind"], "SentenceTransformer"
    )
    model = getattr(sentence_transformers, cls)(
        str(folder),
        device="cpu",
        local_files_only=True,
        trust_remote_code=bool(record["code"]),
        model_kwargs={"dtype": "float32"},
    )
    if (adapter := record.get("adapter")) and adapter["dora"]:
        from peft import load_peft_weights, set_peft_model_state_dict

        # transformers 5.23 leaves DoRA's magnitudes as they began, without a word; peft reads them.
        tensors = load_peft_weights(str(folder / adapter["path"]), device="cpu")
        set_peft_model_state_dict(model[0].auto_model, tensors)
    return model


def peer(model: Any, record: dict[str, Any], texts: Sequence[str], role: Role) -> "np.ndarray":
    """(n, dimension) of sentence-transformers, one text at a time: nothing is padded."""
    import numpy as np

    encode = model.encode_query if role == "query" else model.encode_document
    with suppress(AttributeError):  # a static model has no length to set
        model.max_seq_length = record["max_length"][role]
    prompt = prompt_for(record[f"{role}_prompt"]) or ""
    options = {"prompt": prompt.replace("{task}", "task"), "show_progress_bar": False}
    options |= {"batch_size": 1, "truncate_dim": record["dimensions"]}
    vectors = encode(list(texts), normalize_embeddings=record["normalize"], **options)
    return np.asarray(vectors, np.float32)


def load_ours(folder: Path) -> Any:
    from ..encode import load_engine

    return load_engine(folder, {"dtype": "float32"}, "cpu")


def own(engine: "Engine", texts: Sequence[str], role: Role) -> "np.ndarray":
    """(n, dimension) of the engine that the workflow uses."""
    import numpy as np

    parts = list(engine.encode(list(texts), role, "task"))
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    return np.concatenate([part.vectors for part in parts])[order].astype(np.float32)
