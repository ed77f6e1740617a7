"""A snapshot becomes a folder that every version of every library loads the same way.

The staged folder has no dot in its name, links the weights, and holds rewritten copies of the
configs: native classes where transformers has them, no `auto_map` that leads out of the folder, and
every fact that a library would otherwise choose by itself stated. `stage.json` records it all.
"""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import atomic, damaged, sha256, write_json, write_record
from ..keys import RECIPE
from ..sources.hub import check_replaceable
from ..sources.snapshot import check_digests, check_no_pointers, check_whole
from .architectures import native_class
from .facts import hidden_size, json_object, resolve
from .preflight import preflight, refuse_failed
from .remote_code import code_files, localize
from .tokenizer_files import TOKENIZER_FILES, refuse_bad_tokenizer, write_tokenizer

HASH = re.compile(r"[0-9a-f]{40}")


def stage(
    spec: dict[str, Any], snapshot: Path, output: Path, prove: bool = False
) -> dict[str, Any]:
    """Write the staged folder `output` of the model `spec` and return what its stage.json says.

    `snapshot` is only read; weights are hard-linked (copied onto another file system). `prove`
    checks the snapshot's digests, runs the preflight (some seconds) and refuses a folder that fails
    it. Whatever is refused is refused with a UserError and nothing written.
    """
    snapshot, output = Path(snapshot), Path(output)
    if "." in output.name:
        raise UserError(f"{output}: a staged folder's name must not hold a dot")
    if not snapshot.is_dir():
        raise UserError(f"{snapshot}: no such folder; download the model first")
    files = listed_files(snapshot)
    if prove:
        check_digests(snapshot, files, "manifest.json")
    config = configuration(snapshot)
    weights = weight_files(snapshot, spec.get("allow_pickle", False))
    present = [name for name in TOKENIZER_FILES if (snapshot / name).is_file()]
    check_whole(snapshot, [*weights, *present], str(snapshot))
    refuse_bad_tokenizer(snapshot)
    facts, decisions = resolve(spec, snapshot)
    if hidden_size(config) is None:
        raise UserError(f"{snapshot}/config.json: states no hidden_size")
    code, cls = choose_code(spec, snapshot, config, decisions)
    engine = choose_engine(facts, config, bool(code), decisions)
    record = {
        "id": spec["id"],
        "model": spec["model"],
        "revision": spec.get("source", {}).get("revision"),
        "recipe": RECIPE["stage"],
        "architecture": config["model_type"],
        "class": cls,
        "native": not code,
        "hidden_size": hidden_size(config),
        "trust_remote_code": bool(code),
        "decisions": decisions,
        "preflight": [],
    }
    with atomic(output) as folder:
        folder.mkdir()
        for name in weights:
            link(snapshot / name, folder / name)
        for name in code:
            copy(snapshot / name, folder / name)
        write_json(folder / "config.json", staged_config(config, facts, code))
        write_tokenizer(snapshot, folder, facts)
        write_sentence_transformers(snapshot, folder, facts, config)
        known = {name: files[name] for name in weights if name in files}
        record |= facts | engine
        record["files"] = known | describe(folder, skip=known)
        record["code"] = {name: record["files"][name]["sha256"] for name in code}
        write_record(folder / "stage.json", record)
        if prove:
            record["preflight"] = preflight(folder)
            refuse_failed(record["preflight"], printable(spec["id"]))
            write_record(folder / "stage.json", record)
        check_replaceable(output, {*record["files"], "stage.json"})
    return record


def listed_files(snapshot: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files {name: {size, sha256}}, their sizes checked against the folder."""
    manifest = snapshot / "manifest.json"
    if not manifest.exists():
        return describe(snapshot, skip=())
    files = json_object(manifest).get("files")
    if not isinstance(files, dict):
        raise UserError(f"{manifest}: names no files; delete the folder and download again")
    for name, facts in files.items():
        path = snapshot / name
        size = path.stat().st_size if path.is_file() else None
        if size != facts.get("size"):
            found = "is missing" if size is None else f"has {size} bytes"
            raise damaged(path, f"{found}, the manifest says {facts.get('size')}", snapshot)
    return files


def describe(folder: Path, skip: Iterable[str]) -> dict[str, dict[str, Any]]:
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    paths = {name: folder / name for name in names if name not in set(skip)}
    return {
        name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for name, path in paths.items()
        if path.is_file()
    }


def configuration(snapshot: Path) -> dict[str, Any]:
    """config.json, refused where no model can be made of it."""
    path = snapshot / "config.json"
    if not path.is_file():
        raise UserError(f"{snapshot}: no config.json; not a transformers model folder")
    check_no_pointers({"config.json": path}, str(snapshot))
    config = json_object(path)
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: no model_type; not a transformers model")
    if not isinstance(config.get("auto_map") or {}, dict):
        raise UserError(f"{path}: auto_map is not a table")
    if config.get("is_encoder_decoder"):
        raise UserError(f"{path}: an encoder-decoder ({config['model_type']}) is not supported")
    return config


def weight_files(snapshot: Path, allow_pickle: bool) -> list[str]:
    """Names of the weight files, safetensors first; shards are checked against their index."""
    for single, asks in (("model.safetensors", False), ("pytorch_model.bin", True)):
        index = f"{single}.index.json"
        if (snapshot / index).is_file():
            names = [*shards(snapshot, index), index]
        elif (snapshot / single).is_file():
            names = [single]
        else:
            continue
        if asks and not allow_pickle:
            raise UserError(
                f"{snapshot}: its weights are a pickle ({single}), which can run code when loaded; "
                "set allow_pickle: true under the model if you trust its author"
            )
        return names
    raise UserError(f"{snapshot}: no weights (model.safetensors or its index)")


def shards(snapshot: Path, index: str) -> list[str]:
    """The files that an index names, those that are there; `check_whole` misses the others."""
    table = json_object(snapshot / index).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{snapshot / index}: {printable(name)} leads out of the folder")
    return [name for name in names if (snapshot / name).is_file()]


def choose_code(
    spec: dict[str, Any], snapshot: Path, config: dict[str, Any], decisions: list[dict[str, Any]]
) -> tuple[list[str], str]:
    """The code files to keep (none for a native class) and the model class's name."""
    native = native_class(config["model_type"])
    custom = config.get("auto_map") or {}
    required = (spec.get("registry") or {}).get("custom_code") == "required"
    if native and not (custom and required):
        reason = f"transformers has {native}" + ("; custom code dropped" if custom else "")
        decisions.append(decision("class", native, "transformers", reason))
        return [], native
    target = custom.get("AutoModel")
    if not isinstance(target, str):
        raise UserError(
            f"{snapshot}: transformers has no architecture {printable(config['model_type'])} and "
            "config.json's auto_map names no AutoModel"
        )
    refuse_untrusted(spec)
    code = code_files(snapshot, custom)
    name = target.rpartition(".")[2]
    reason = "custom code, kept and trusted by the config"
    decisions.append(decision("class", name, "auto_map", reason))
    return code, name


def refuse_untrusted(spec: dict[str, Any]) -> None:
    name = printable(spec["id"])
    if spec.get("trust_remote_code") is not True:
        raise UserError(
            f"{name}: it runs its own code; read that code, then set trust_remote_code: true under "
            "the model"
        )
    source = spec.get("source", {})
    if "hub" in source and not HASH.fullmatch(str(source.get("revision"))):
        raise UserError(f"{name}: custom code needs a full revision (40 hex digits), not a branch")


def choose_engine(
    facts: dict[str, Any], config: dict[str, Any], custom: bool, decisions: list[dict[str, Any]]
) -> dict[str, Any]:
    from ..encode.families import PACKED_MODEL_TYPES

    kind = config["model_type"]
    if custom:
        obstacle = "custom code"
    elif kind not in PACKED_MODEL_TYPES:
        obstacle = f"packed does not take {kind}"
    elif config.get("quantization_config"):
        obstacle = "quantized weights"
    else:
        obstacle = None
    wanted = facts.pop("engine")
    if wanted == "packed" and obstacle:
        raise UserError(f"engine: packed can't run this model ({obstacle}); set engine: auto")
    packed = wanted == "packed" or (wanted == "auto" and obstacle is None)
    engine = "packed" if packed else "flagembedding"
    reason = "asked for" if wanted != "auto" else obstacle or f"native {kind}"
    decisions[:] = [row for row in decisions if row["fact"] != "engine"]
    decisions.append(decision("engine", engine, "config" if wanted != "auto" else "auto", reason))
    return {"engine": engine, "engine_reason": reason}


def decision(fact: str, value: Any, source: str, reason: str) -> dict[str, Any]:
    return {"fact": fact, "value": value, "source": source, "reason": reason}


def link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def staged_config(config: dict[str, Any], facts: dict[str, Any], code: list[str]) -> dict[str, Any]:
    """config.json with the attention direction stated and nothing that leads elsewhere."""
    causal = facts["attention"] == "causal"
    dropped = {"auto_map", "_name_or_path"}
    staged = {key: value for key, value in config.items() if key not in dropped}
    # Old custom code breaks on a cache object it doesn't know; an embedder needs none.
    staged |= {"is_causal": causal, "use_cache": False}
    if "use_bidirectional_attention" in staged or config["model_type"].startswith("gemma3"):
        staged["use_bidirectional_attention"] = not causal
    if code:
        staged["auto_map"] = localize(config["auto_map"])
    return staged


def write_sentence_transformers(
    snapshot: Path, folder: Path, facts: dict[str, Any], config: dict[str, Any]
) -> None:
    """The facts in sentence-transformers' own files, so that it loads the staged folder alike."""
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * facts["normalize"]
    write_json(
        folder / "modules.json",
        [
            {
                "idx": number,
                "name": str(number),
                "path": f"{number}_{kind}" if number else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for number, kind in enumerate(kinds)
        ],
    )
    pooling = facts["pooling"]
    flags = {"mean": "mean_tokens", "cls": "cls_token", "last_token": "lasttoken"}
    modes = {f"pooling_mode_{flag}": name == pooling for name, flag in flags.items()}
    size = {"word_embedding_dimension": hidden_size(config)}
    write_json(folder / "1_Pooling" / "config.json", size | modes)
    length = {"max_seq_length": max(facts["max_length"].values()), "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", length)
    prompts = {"query": facts["query_prompt"] or "", "document": facts["passage_prompt"] or ""}
    similarity = "cosine" if facts["normalize"] else "dot"
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "similarity_fn_name": similarity},
    )
