"""Make `rules/registry/models.json` from the model metadata of an installed mteb.

    python tools/registry/mteb_models.py rules/registry/models.json

models: for every text model with open weights and a pinned revision an entry as in `models.yaml`
(schema: rules/schemas/models.schema.json), whose own entries are laid over these, key by key.
Prompts are those of `prompts.json`, made by mteb_prompts.py: one text with {task} where that says
it all, else a table by task. They are left out where the model's own files decide.

about: for every text model what runs it, or why nothing does: `kind` (dense, sparse, multivector,
reranker, several), `runs` (auto: the packed engine where its architecture is known to it,
else sentence-transformers; sentence_transformers; server; none) and `why`.
"""

import argparse
import json
import logging
import os
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from embedrepro.models import prompts  # noqa: E402

KINDS = {
    "dense": "dense",
    "sparse": "sparse",
    "late-interaction": "multivector",
    "cross-encoder": "reranker",
    "hybrid": "several",
    "router": "several",
}
# Their loaders in mteb use sentence-transformers alone.
PLAIN = {
    "SentenceTransformerEncoderWrapper",
    "InstructSentenceTransformerModel",
    "sentence_transformers_loader",
    "SparseEncoderWrapper",
    "MultiVectorWrapper",
    "CrossEncoderWrapper",
}
ADAPTED = re.compile(r"([0-9a-f]{40})-([0-9a-f]{40})")  # the commits of a base and its adapter
RERANKERS = {"Qwen3RerankerWrapper", "BGEReranker", "JinaReranker"}  # recipes of their own here


def entry_of(meta: Any) -> dict[str, Any]:
    cosine = meta.similarity_fn_name is None or meta.similarity_fn_name.value == "cosine"
    size = meta.embed_dim if isinstance(meta.embed_dim, int) else None
    tokens = meta.max_tokens if meta.max_tokens and meta.max_tokens < 10**9 else None
    entry = {
        "revision": meta.revision,
        "normalize": cosine,
        "query_prompt": prompt_table(meta.name, "query"),
        "passage_prompt": prompt_table(meta.name, "passage"),
        "embedding_size": size,
        "parameters": meta.n_parameters,
        "max_tokens": int(tokens) if tokens else None,
        "source": f"mteb {prompts.tasks()['mteb']}",
    }
    return {key: value for key, value in entry.items() if value is not None}


def prompt_table(name: str, role: prompts.Role) -> str | dict[str, str] | None:
    """A text that holds for all tasks, {task} filled with each one's instruction, or a table."""
    found = {task: prompts.prompt_of(name, task, role) for task in with_corpora()}
    texts = {task: text for task, text in found.items() if text is not None}
    if not texts:
        return None
    default = common(name, role, texts)
    others = {
        task: text for task, text in texts.items() if default.replace("{task}", own(task)) != text
    }
    return {"default": default} | others if others else default


def with_corpora() -> list[str]:
    """All tasks but those that only average others, which nobody encodes."""
    known = prompts.tasks()["tasks"].items()
    return [name for name, task in known if not task["source"]["hub"].startswith("aggregate ")]


def common(name: str, role: prompts.Role, texts: dict[str, str]) -> str:
    shape = prompts.model(name).get("template", {}).get(role, ["{task}"])[0]
    if prompts.model(name).get("way") != "instruct" or "{task}" not in shape:
        return Counter(texts.values()).most_common(1)[0][0]
    fits = sum(shape.replace("{task}", own(task)) == text for task, text in texts.items())
    plain, count = Counter(texts.values()).most_common(1)[0]
    return shape if fits >= count else plain


def own(task: str) -> str:
    """The instruction that {task} stands for."""
    about = prompts.tasks()["tasks"][task]
    stated = about.get("instruction") or about["fallback"]
    return str(stated["query"] if isinstance(stated, dict) else stated)


def about_of(meta: Any) -> dict[str, str]:
    kind = KINDS[meta.model_type[0]]
    loader = getattr(getattr(meta.loader, "func", meta.loader), "__name__", "none")
    sentence = "Sentence Transformers" in meta.framework or loader in PLAIN
    base = meta.loader_kwargs.get("base_model_name_or_path")
    remote = bool(meta.loader_kwargs.get("trust_remote_code"))
    if not meta.open_weights or "API" in meta.framework:
        runs, why = (
            "server",
            "its weights aren't published; a server that speaks for it can be used",
        )
    elif base and (adapter := ADAPTED.fullmatch(meta.revision or "")):
        runs, why = (
            "none",
            (
                f"an adapter that mteb runs with code of its own ({loader}); state revision: "
                f"{adapter[2]}, base: {{hub: {base}, revision: {adapter[1]}}} and its prompts and "
                "pooling"
            ),
        )
    elif meta.revision is None or len(meta.revision) != 40:
        runs, why = "none", "mteb pins no single commit of it"
    elif kind == "several":
        runs, why = "none", "several retrievers in one: give each as a row and fuse them"
    elif loader in PLAIN or "way" in prompts.model(meta.name) or loader in RERANKERS:
        runs = "auto" if kind in ("dense", "reranker") else "sentence_transformers"
        why = "brings code of its own: trust_remote_code: true" if remote else ""
    elif kind == "multivector" and loader == "MultiVectorModel":
        runs, why = "sentence_transformers", "mteb runs it with pylate"
    elif sentence:
        runs = "sentence_transformers"
        why = f"mteb adds code of its own ({loader}), so prompts or vectors may differ"
    else:
        runs, why = "none", f"mteb runs it with code of its own ({loader})"
    return {"kind": kind, "runs": runs} | ({"why": why} if why else {})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from mteb.models.model_implementations import MODEL_REGISTRY

    models, about = {}, {}
    for name, meta in sorted(MODEL_REGISTRY.items()):
        if meta.modalities != ["text"]:
            continue
        about[name] = about_of(meta)
        if about[name]["runs"] not in ("none", "server"):
            models[name] = entry_of(meta)
    parts = []
    for key, table in (("models", models), ("about", about)):
        lines = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}"
            for name, entry in table.items()
        )
        parts.append(f'"{key}": {{\n{lines}\n}}')
    arguments.output.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
    counted = Counter((entry["kind"], entry["runs"]) for entry in about.values())
    print(f"{arguments.output}: {len(models)} models with entries, of {len(about)}")
    for (kind, runs), count in counted.most_common():
        print(f"  {count:4} {kind}, {runs}")


if __name__ == "__main__":
    main()
