"""Make `rules/registry/prompts.json` from the model metadata of an installed mteb.

    python tools/registry/mteb_prompts.py rules/registry/prompts.json

For each text model that mteb evaluates for retrieval: what its loader there is told of prompts,
read from the loader's object itself, whose SentenceTransformer is replaced by one that loads
nothing. No model is downloaded. `embedrepro/models/prompts.py` reads the file and follows the same
rules.

A model has
  way         "named": the text is looked up by task and role; "instruct": an instruction is looked
              up and put into a template; absent: mteb has code of its own for it, see `loader`
  prompts     {name: text}. named: absent where mteb takes those of the model's own files
  fallback    named: the name used where none fits
  template    instruct: {role: [text around {task}, the instruction; text where that is empty]}
  passages    instruct: false where passages get no prompt
  priority    instruct: order of sources, where it isn't the usual one
  max_length  tokens at which mteb tells the model to cut
  max_tokens  what the metadata says that the model reads
  dimensions, revision, kind
"""

import argparse
import json
import logging
import os
import sys
import warnings
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

REGISTRY = Path(__file__).resolve().parents[2] / "rules" / "registry"
MARK = "\x00instruction\x00"
# Wrappers whose own `encode` puts prompts as their parent class does.
SAME_ENCODE = {"BekkoEncoderWrapper", "KALMWrapper", "GeeVecLiteModel"}


class NothingLoaded:
    """Stands in for SentenceTransformer while a loader is called."""

    def __init__(self, *_: Any, prompts: dict[str, str] | None = None, **kwargs: Any) -> None:
        # As sentence-transformers makes them for a model whose files say nothing.
        self.prompts: dict[str, str] = {"query": "", "document": ""} | (prompts or {})
        self.max_seq_length: int | None = None
        self.tokenizer = self.auto_model = self.config = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: self


def loaded(meta: Any) -> Any:
    """The loader's object, or None where it needs more than a SentenceTransformer."""
    if meta.loader is None:
        return None
    try:
        return meta.loader(meta.name, revision=meta.revision, **meta.loader_kwargs)
    except Exception as error:  # any other library may be missing, any key unset
        print(f"{meta.name}: {type(error).__name__}: {error}"[:160], file=sys.stderr)
        return None


def encodes_like(wrapper: Any, parent: type) -> bool:
    return type(wrapper).encode is parent.encode or type(wrapper).__name__ in SAME_ENCODE


def described(meta: Any) -> dict[str, Any]:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

    wrapper = loaded(meta)
    entry: dict[str, Any] = {}
    name = type(wrapper).__name__
    if isinstance(wrapper, InstructSentenceTransformerModel):
        if encodes_like(wrapper, InstructSentenceTransformerModel):
            entry = instructed(wrapper, tuple(AbsEncoder.prompt_priority))
    elif isinstance(wrapper, SentenceTransformerEncoderWrapper) and (
        encodes_like(wrapper, SentenceTransformerEncoderWrapper) or name in OWN_ENCODE
    ):
        entry = named(meta, wrapper)
    # Of other wrappers nothing is read: whether they load depends on what is installed.
    own = getattr(wrapper.model, "max_seq_length", None) if entry else None
    entry = entry or {"loader": loader_name(meta)}
    return entry | {
        "max_length": own if isinstance(own, int) else None,
        "max_tokens": int(meta.max_tokens)
        if meta.max_tokens and isfinite(meta.max_tokens)
        else None,
        "dimensions": meta.embed_dim if isinstance(meta.embed_dim, int) else None,
        "revision": meta.revision,
        "kind": meta.model_type[0],
    }


def used(prompts: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
    """Those that a retrieval task of texts can ask for."""
    names = {*tasks, *(task["type"] for task in tasks.values())}
    names |= {f"{name}-{role}" for name in names for role in ("query", "document")}
    names |= {"query", "document", "passage", "corpus"}
    return {key: text for key, text in prompts.items() if key in names}


def loader_name(meta: Any) -> str:
    loader = getattr(meta.loader, "func", meta.loader)
    return getattr(loader, "__name__", "none")


def instructed(wrapper: Any, usual: tuple[Any, ...]) -> dict[str, Any]:
    prompts = wrapper.prompts_dict
    priority = tuple(wrapper.prompt_priority)
    return {
        "way": "instruct",
        "prompts": prompts or None,
        "template": template(wrapper),
        "passages": None if wrapper.apply_instruction_to_passages else False,
        "priority": None if priority == usual else [source.value for source in priority],
    }


def template(wrapper: Any) -> dict[str, list[str]] | None:
    from mteb.types import PromptType

    made = wrapper.instruction_template
    if not made:
        return None
    if isinstance(made, str):
        shape = made.format(instruction=MARK).replace(MARK, "{task}")
        return {role: [shape, ""] for role in ("query", "passage")}
    found = {}
    for role, kind in (("query", PromptType.query), ("passage", PromptType.document)):
        text, empty = made(MARK, kind), made("", kind)
        found[role] = [text.replace(MARK, "{task}"), empty]
    return found


def named(meta: Any, wrapper: Any) -> dict[str, Any]:
    own = OWN_ENCODE.get(type(wrapper).__name__)
    if own is not None:
        return {"way": "named"} | own(wrapper)
    if not meta.loader_kwargs.get("model_prompts"):
        return {"way": "named"}
    # sentence-transformers falls back on the names of its own among all that were given.
    spare = {"passage", "corpus"} & set(wrapper.model.prompts)
    kept = wrapper.model_prompts | {name: wrapper.model.prompts[name] for name in spare}
    return {"way": "named", "prompts": kept}


def _nomic(wrapper: Any) -> dict[str, Any]:
    return {"prompts": dict(wrapper.model_prompts), "fallback": "document"}


def _uae(wrapper: Any) -> dict[str, Any]:
    """Its texts are put into the prompt; a text that isn't its end can't be put before."""
    return {
        "prompts": {
            key: value.removesuffix("{text}")
            for key, value in wrapper.model_prompts.items()
            if value.endswith("{text}")
        }
    }


def _jina(wrapper: Any) -> dict[str, Any]:
    texts = wrapper.jina_task_to_prompt
    return {"prompts": {key: texts.get(task, "") for key, task in wrapper.model_prompts.items()}}


def _jina_v5(_: Any) -> dict[str, Any]:
    return {"prompts": {"query": "Query: ", "document": "Document: "}}


OWN_ENCODE = {
    "NomicWrapper": _nomic,
    "UAEWrapper": _uae,
    "JinaWrapper": _jina,
    "JinaV5TextWrapper": _jina_v5,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import mteb
    import sentence_transformers
    import sentence_transformers.models
    from mteb.models.model_implementations import MODEL_REGISTRY

    sentence_transformers.SentenceTransformer = NothingLoaded
    sentence_transformers.models.Transformer = NothingLoaded
    sentence_transformers.models.Pooling = NothingLoaded
    overrides = yaml.safe_load((REGISTRY / "mteb_overrides.yaml").read_text(encoding="utf-8"))
    tasks = json.loads((REGISTRY / "mteb_tasks.json").read_text(encoding="utf-8"))["tasks"]
    models = {}
    for name, meta in sorted(MODEL_REGISTRY.items()):
        if "text" in meta.modalities and "cross-encoder" not in meta.model_type:
            found = described(meta)
            found["max_length"] = overrides["max_length"].get(name, found["max_length"])
            if found.get("prompts"):
                found["prompts"] = used(found["prompts"], tasks)
            models[name] = {key: value for key, value in found.items() if value is not None}
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False, sort_keys=True)}"
        for name, entry in models.items()
    )
    text = f'{{"mteb": {json.dumps(mteb.__version__)},\n"models": {{\n{lines}\n}}}}\n'
    arguments.output.write_text(text, encoding="utf-8")
    known = sum("way" in entry for entry in models.values())
    print(f"{arguments.output}: {len(models)} models of mteb {mteb.__version__}, {known} by rule")


if __name__ == "__main__":
    main()
