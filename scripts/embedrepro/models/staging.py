"""A snapshot becomes a folder that every version of every library loads the same way.

The staged folder has no dot in its name, links the weights, and holds rewritten copies of the
configs: native classes where transformers has them, no `auto_map` that leads out of the folder, and
every fact that a library would otherwise choose by itself stated. `stage.json` records it all.

Staging reads configs and headers only. That the folder computes what stage.json says is proven by
`preflight`, which loads it.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import atomic, damaged, sha256, write_json, write_record
from ..sources.code import CODE
from ..sources.hub import check_replaceable
from ..sources.snapshot import check_digests, check_no_pointers, check_whole
from .adapters import Adapter, opened
from .architectures import ENCODERS, native_class, native_head, packs
from .facts import Resolved, hidden_size, resolve
from .facts_table import KINDS, VECTORS
from .native_config import native_config, native_type, untranslatable
from .remote_code import code_files, localize, native_wanted
from .st_files import Layout, json_object, module_files
from .tokenizer_files import TOKENIZER_FILES, refuse_bad_tokenizer, write_tokenizer

HASH = re.compile(r"[0-9a-f]{40}")
SHIPPED = "shipped"  # below a staged folder: the model as it came, for the comparison
HEADS = ("sparse_linear.pt", "colbert_linear.pt")  # of BGE-M3: lexical weights, token vectors


def stage(
    spec: Mapping[str, Any], snapshot: Path, output: Path, prove: bool = False
) -> dict[str, Any]:
    """Write the staged folder `output` of the model `spec` and return what its stage.json says.

    `spec`: id, model (its slug), source, trust_remote_code, allow_pickle, kind (dense without one),
    facts (all that the user states), registry (its entry) and, of an adapter, base (id, source and
    folder of what it changes). `snapshot` is only read; weights are hard-linked (copied onto
    another file system). `prove` checks the snapshot's digests first.
    Whatever is refused is refused with a UserError and nothing written.
    """
    snapshot, output = Path(snapshot), Path(output)
    if "." in output.name:
        raise UserError(f"{output}: a staged folder's name must not hold a dot")
    if not snapshot.is_dir():
        raise UserError(f"{snapshot}: no such folder; download the model first")
    if "server" in spec["source"]:
        from .served import stage_server

        return stage_server(spec, snapshot, output)
    files = listed_files(snapshot)
    if prove:
        check_digests(snapshot, files, "manifest.json")
    weights = {n: snapshot / n for n in files if n.endswith((".safetensors", ".bin"))}
    check_no_pointers(weights, str(snapshot))
    with opened(spec, snapshot, output, prove) as (spec, snapshot, adapter):
        if spec.get("kind") == "reranker":
            from .rerankers import stage_reranker

            return stage_reranker(spec, snapshot, output, files, adapter)
        if not (snapshot / "modules.json").is_file():
            configuration(snapshot)  # what is wrong with it comes before what is not said of it
        resolved = resolve(spec, snapshot)
        check_kind(spec, resolved.layout)
        if adapter:
            files = adapter.merge(resolved.layout.own)
        cls = _GeneralFolder if resolved.layout.general else _TransformerFolder
        return cls(spec, snapshot, files, resolved, adapter).write(output)


class _Folder:
    """A staged folder in the making."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        snapshot: Path,
        files: dict[str, dict[str, Any]],
        resolved: Resolved,
        adapter: Adapter | None,
    ) -> None:
        self.spec, self.snapshot, self.files = spec, snapshot, files
        self.facts, self.decisions = dict(resolved.facts), resolved.decisions
        self.layout = resolved.layout
        self.base = snapshot / self.layout.base
        self.translated = False  # config.json, into transformers' words
        self.adapter = adapter
        if adapter:
            self.decisions.append(adapter.decision())
            self.layout.beyond.append("an adapter, merged")

    def record(self, architecture: str, cls: str, code: Iterable[str]) -> dict[str, Any]:
        return {
            "id": self.spec["id"],
            "model": self.spec["model"],
            "revision": self.spec.get("source", {}).get("revision"),
            "kind": self.spec.get("kind") or "dense",
            "architecture": architecture,
            "class": cls,
            "trust_remote_code": bool(list(code)),
            "decisions": self.decisions,
            "beyond": self.layout.beyond,
        }

    def describe(self, folder: Path, linked: Iterable[str]) -> dict[str, dict[str, Any]]:
        """{name: {size, sha256}} of the staged files; those linked as the manifest has them."""
        prefix = f"{self.layout.base}/" if self.layout.base else ""  # of what lies at the top now
        known = {}
        for name in linked:
            source = self.files.get(name) or self.files.get(prefix + name)
            if source:
                known[name] = source
        return known | describe(folder, skip=known)

    def finish(self, folder: Path, record: dict[str, Any], linked: Iterable[str]) -> None:
        record["files"] = self.describe(folder, linked)
        record["code"] = {
            name: row["sha256"] for name, row in record["files"].items() if name.endswith(".py")
        }
        alike = not (self.layout.general or record["code"] or self.translated or self.overruled())
        if self.adapter:
            # sentence-transformers looks for the base in a folder of the adapter's folder's name.
            alike = alike and not self.layout.base
            path = self.layout.base if self.layout.general else ""
            self.adapter.ship(folder / SHIPPED, self.snapshot if alike else folder, path)
            record |= {"shipped": True, "adapter": {**self.adapter.about, "path": path}}
        elif self.layout.beyond and alike:
            record["shipped"] = self.ship(folder)
        write_record(folder / "stage.json", record)

    def overruled(self) -> bool:
        """Whether somebody states what the folder's own files state otherwise, or not at all."""
        stated = self.layout.facts
        if any(self.facts[fact] != stated.get(fact) for fact in ("pooling", "include_prompt")):
            return True
        by_hand = [row["fact"] for row in self.decisions if row["source"] in ("config", "registry")]
        return bool({"attention", "end_token", "native"} & set(by_hand))

    def ship(self, folder: Path) -> bool:
        """The files as they came, beside the staged ones: what the comparison loads."""
        for name in self.files:
            if not name.endswith((".md", ".py")) and name != "manifest.json":
                place = folder / SHIPPED / name
                place.parent.mkdir(parents=True, exist_ok=True)
                link(self.snapshot / name, place)
        return True


class _TransformerFolder(_Folder):
    """A transformer, then steps that are described one by one."""

    def write(self, output: Path) -> dict[str, Any]:
        config = configuration(self.base) | self.layout.config
        weights = weight_files(self.base, self.spec.get("allow_pickle", False))
        present = [name for name in TOKENIZER_FILES if (self.base / name).is_file()]
        check_whole(self.base, [*weights, *present], str(self.base))
        refuse_bad_tokenizer(self.base)
        if hidden_size(config) is None:
            raise UserError(f"{self.base}/config.json: states no hidden_size")
        if config.get("use_bidirectional_attention"):
            self.layout.beyond.append("use_bidirectional_attention")
        modules = self.steps(config)
        given = self.spec, self.snapshot, self.base, config
        native = self.facts["native"]
        code, cls = choose_class(*given, "AutoModel", native, self.decisions)
        if not code:
            told = native_config(config)
            self.translated, config = told != config, told
        engine = self.engine(config, bool(code))
        record = self.record(config["model_type"], cls, code) | self.facts | engine
        record |= {
            "native": not code,
            "hidden_size": hidden_size(config),
            "modules": modules,
            "full_dimension": self.layout.dimension or hidden_size(config),
        }
        record["dimension"] = cut(record, printable(self.spec["id"]))
        with atomic(output) as folder:
            folder.mkdir()
            for name in weights:
                link(self.base / name, folder / name)
            for name, path in code.items():
                copy(path, folder / name)
            linked = [*weights, *self.link_modules(folder), *self.link_heads(folder)]
            write_json(folder / "config.json", staged_config(config, self.facts, code))
            write_tokenizer(self.base, folder, self.facts, self.layout, str(config["model_type"]))
            write_sentence_transformers(folder, record)
            self.finish(folder, record, linked)
            check_replaceable(output, staged_names(folder))
        return record

    def steps(self, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The modules after the transformer, with what was stated otherwise in them."""
        rows = [dict(row) for row in self.layout.modules] or [{"type": "Pooling"}]
        pooling, include = self.facts["pooling"], self.facts["include_prompt"]
        rows[0] |= {"path": "1_Pooling", "include_prompt": include}
        if pooling != "modules":
            rows[0]["pooling_mode"] = ["lasttoken" if pooling == "last_token" else pooling]
        rows[0]["embedding_dimension"] = hidden_size(config)
        steps = [row for row in rows if row["type"] != "Normalize" or row is not rows[-1]]
        if self.facts["normalize"]:
            steps.append({"type": "Normalize", "path": f"{len(steps) + 1}_Normalize"})
        elif rows[-1]["type"] == "Normalize" and self.facts["dimensions"]:
            steps.append(rows[-1])  # scaled, then cut, and not scaled again
        if pooling == "modules" and not self.layout.dimension:
            self.layout.dimension = len(rows[0]["pooling_mode"]) * (hidden_size(config) or 0)
        return steps

    def link_modules(self, folder: Path) -> list[str]:
        """Link the files of Dense and the like; Pooling and Normalize are written anew."""
        linked = []
        for name in module_files(self.snapshot, self.layout):
            if name.endswith((".safetensors", ".bin")):
                check_pickle(self.snapshot / name, self.spec.get("allow_pickle", False))
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                link(self.snapshot / name, folder / name)
                linked.append(name)
        return linked

    def link_heads(self, folder: Path) -> list[str]:
        """Link BGE-M3's further heads."""
        if self.spec.get("kind") != "m3":
            return []
        for name in HEADS:
            if not (self.base / name).is_file():
                raise UserError(
                    f"{printable(self.spec['id'])}: has no {name}, which a model of kind m3 has; "
                    "set kind: dense"
                )
            link(self.base / name, folder / name)
        return list(HEADS)

    def engine(self, config: Mapping[str, Any], custom: bool) -> dict[str, Any]:
        wanted = self.facts.pop("engine")
        engine, reason = choose_engine(wanted, self.facts, self.layout, config, custom)
        note_engine(self.decisions, engine, wanted, reason)
        return {"engine": engine, "engine_reason": reason}


class _GeneralFolder(_Folder):
    """A folder that only sentence-transformers itself can run: staged as it came."""

    def write(self, output: Path) -> dict[str, Any]:
        names = [name for name in self.files if name != "manifest.json"]
        code: dict[str, Path] = {}
        if self.layout.own:
            refuse_untrusted(self.spec)
            code = self.own_code(names)
        names = [name for name in names if not name.endswith((".py", ".md"))]
        weights = [name for name in names if name.endswith((".safetensors", ".bin"))]
        for name in weights:
            check_pickle(self.snapshot / name, self.spec.get("allow_pickle", False))
        check_whole(self.snapshot, names, str(self.snapshot))
        config = json_object(self.snapshot / "config.json", {})
        if not self.layout.own:
            config = {key: value for key, value in config.items() if key != "auto_map"}
        elif config.get("auto_map"):
            config["auto_map"] = localize(config["auto_map"])
        wanted = self.facts.pop("engine")
        if wanted not in ("auto", "sentence_transformers"):
            raise UserError(
                f"{printable(self.spec['id'])}: engine: {wanted} can't run this model "
                f"({self.layout.general}); set engine: auto"
            )
        reason = "asked for" if wanted != "auto" else str(self.layout.general)
        note_engine(self.decisions, "sentence_transformers", wanted, reason)
        full = self.layout.dimension or hidden_size(config)
        if self.layout.kind == "sparse":  # a place for every term
            full = json_object(self.base / "config.json", {}).get("vocab_size", full)
        if full is None:
            raise UserError(f"{self.snapshot}: nothing says how long its vectors are")
        architecture = str(config.get("model_type") or self.layout.first)
        record = self.record(architecture, self.layout.first, code) | self.facts
        record |= {
            "native": not code,
            "hidden_size": full,
            "full_dimension": full,
            "modules": [],
            "engine": "sentence_transformers",
            "engine_reason": reason,
        }
        record["dimension"] = cut(record, printable(self.spec["id"]))
        with atomic(output) as folder:
            folder.mkdir()
            for name, path in code.items():
                copy(path, folder / name)
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if name in weights:
                    link(self.snapshot / name, folder / name)
                else:
                    copy(self.snapshot / name, folder / name)
            if config:
                write_json(folder / "config.json", config)
            self.finish(folder, record, weights)
            check_replaceable(output, staged_names(folder))
        return record

    def own_code(self, names: Iterable[str]) -> dict[str, Path]:
        """All code of the folder, and what config.json names in another repository."""
        own = [n for n in names if n.endswith(".py") and not n.startswith(f"{CODE}/")]
        custom = json_object(self.snapshot / "config.json", {}).get("auto_map") or {}
        found = {name: self.snapshot / name for name in own}
        return code_files(self.spec, self.snapshot, self.snapshot, custom) | found


def staged_names(folder: Path) -> set[str]:
    """All files of a staged folder: what may be replaced when it is staged again."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def cut(record: Mapping[str, Any], name: str) -> int:
    """Length of the final vector."""
    dimensions, full = record["dimensions"], record["full_dimension"]
    if dimensions and dimensions > full:
        raise UserError(f"{name}: dimensions: {dimensions}, but its vectors have only {full}")
    return int(dimensions or full)


def check_kind(spec: Mapping[str, Any], layout: Layout) -> None:
    wanted = spec.get("kind") or "dense"
    if wanted not in KINDS:
        raise UserError(f"{printable(spec['id'])}: kind: {printable(wanted)} is not known")
    plain = layout.general is None and wanted in ("sparse", "multivector")
    if layout.kind != wanted and (layout.kind != "dense" or plain):
        other = (
            f"set kind: {layout.kind}" if layout.kind in VECTORS else f"give it as {layout.kind}"
        )
        raise UserError(
            f"{printable(spec['id'])}: its modules make a {layout.kind} model, not a {wanted} one; "
            f"{other}"
        )


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


def configuration(folder: Path) -> dict[str, Any]:
    """config.json, refused where no model can be made of it."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json; not a transformers model folder")
    check_no_pointers({"config.json": path}, str(folder))
    config = json_object(path)
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: no model_type; not a transformers model")
    if not isinstance(config.get("auto_map") or {}, dict):
        raise UserError(f"{path}: auto_map is not a table")
    if config.get("is_encoder_decoder") and config["model_type"] not in ENCODERS:
        raise UserError(f"{path}: an encoder-decoder ({config['model_type']}) is not supported")
    return config


def weight_files(folder: Path, allow_pickle: bool) -> list[str]:
    """Names of the weight files, safetensors first; shards are checked against their index."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = f"{single}.index.json"
        if (folder / index).is_file():
            names = [*shards(folder, index), index]
        elif (folder / single).is_file():
            names = [single]
        else:
            continue
        check_pickle(folder / single, allow_pickle)
        return names
    raise UserError(f"{folder}: no weights (model.safetensors or its index)")


def check_pickle(path: Path, allowed: bool) -> None:
    if path.suffix == ".bin" and not allowed:
        raise UserError(
            f"{path.parent}: its weights are a pickle ({path.name}), which can run code when "
            "loaded; set allow_pickle: true under the model if you trust its author"
        )


def shards(folder: Path, index: str) -> list[str]:
    """The files that an index names, those that are there; `check_whole` misses the others."""
    table = json_object(folder / index).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{folder / index}: {printable(name)} leads out of the folder")
    return [name for name in names if (folder / name).is_file()]


def choose_class(
    spec: Mapping[str, Any],
    snapshot: Path,
    folder: Path,
    config: Mapping[str, Any],
    task: str,
    native: bool | None,
    decisions: list[dict[str, Any]],
) -> tuple[dict[str, Path], str]:
    """The code files to keep (none for a native class) and the model class's name.

    The model lies in `folder` of the `snapshot`; `task` names transformers' auto class for it. Its
    own code is asked for by `native: false`, by the registry's `custom_code: required`, and, where
    neither says anything, by `trust_remote_code: true`, as transformers has it. Code of which
    nobody says anything is refused: by the user, by the registry or as a family of `native_config`.
    """
    encoder = task == "AutoModel"
    kind = native_type(config) if encoder else str(config["model_type"])
    built = ENCODERS.get(kind) or native_class(kind) if encoder else native_head(kind, task)
    custom = config.get("auto_map") or {}
    target = custom.get(task)
    name = printable(spec["id"])
    wanted = native_wanted(spec, native, target, name)
    if wanted is None and (told := (spec.get("registry") or {}).get("custom_code")):
        wanted = told == "native"
    if wanted is None and target and spec.get("trust_remote_code"):
        wanted = False
    differs = untranslatable(config)
    if differs and (native or not target):
        raise UserError(
            f"{name}: config.json says {differs}, which transformers' class for "
            f"{printable(kind)} hasn't got"
            + ("; set native: false to run its own code" * bool(target))
        )
    if built and not differs and wanted is not False:
        read = native_config(config) != config or "attention" in (spec.get("facts") or {})
        if wanted is None and target and not read:
            raise UserError(
                f"{name}: config.json names code of its own for the model ({printable(target)}) "
                f"beside transformers' {built}, and that may compute something else; set native: "
                "true to leave it out, or read it and set native: false and trust_remote_code: true"
            )
        reason = f"transformers has {built}" + ("; custom code dropped" if custom else "")
        decisions.append(decision("class", built, "transformers", reason))
        return {}, built
    if not isinstance(target, str):
        raise UserError(
            f"{folder}: transformers has no {task} for {printable(kind)} and config.json's "
            "auto_map names none"
        )
    refuse_untrusted(spec)
    code = code_files(spec, snapshot, folder, custom)
    name = target.rpartition(".")[2]
    reason = "custom code, kept and trusted by the config"
    decisions.append(decision("class", name, "auto_map", reason))
    return code, name


def refuse_untrusted(spec: Mapping[str, Any]) -> None:
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
    wanted: str,
    facts: Mapping[str, Any],
    layout: Layout,
    config: Mapping[str, Any],
    custom: bool,
) -> tuple[str, str]:
    """(engine, reason): packed where it can, else the library that runs such a model."""
    from ..encode import families as packed

    kind = config["model_type"]
    steps = [row["type"] for row in layout.modules]
    other = [name for name in steps if name not in packed.PACKED_MODULES]
    obstacles = {
        "custom code": custom,
        "transformers here is older than 4.53": not packs(),
        f"packed does not take {kind}": kind not in packed.PACKED_MODEL_TYPES,
        "quantized weights": bool(config.get("quantization_config")),
        f"pooling {facts['pooling']}": facts["pooling"] not in packed.PACKED_POOLINGS,
        f"module {', '.join(other)}": bool(other),
        "include_prompt: false": not facts["include_prompt"]
        and not packed.PACKED_LEAVES_PROMPT_OUT,
    }
    obstacle = next((text for text, there in obstacles.items() if there), None)
    plain = (
        facts["pooling"] in ("mean", "cls", "last_token")
        and not {"Dense", "LayerNorm"} & set(steps)
        and facts["include_prompt"]
        and kind not in ENCODERS
    )
    if wanted == "http":
        raise UserError("engine: http is that of source: {server: address}; set engine: auto")
    if wanted == "packed" and obstacle:
        raise UserError(f"engine: packed can't run this model ({obstacle}); set engine: auto")
    if wanted == "flagembedding" and not plain:
        raise UserError(
            "engine: flagembedding can't run this model (it pools by mean, cls or last_token, all "
            "tokens, and does nothing after it); set engine: auto"
        )
    if wanted != "auto":
        return wanted, "asked for"
    if obstacle is None:
        return "packed", f"native {kind}"
    return "flagembedding" if plain else "sentence_transformers", obstacle


def note_engine(decisions: list[dict[str, Any]], engine: str, wanted: str, reason: str) -> None:
    source = next((row["source"] for row in decisions if row["fact"] == "engine"), "auto")
    decisions[:] = [row for row in decisions if row["fact"] != "engine"]
    decisions.append(decision("engine", engine, "auto" if wanted == "auto" else source, reason))


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


def staged_config(
    config: Mapping[str, Any], facts: Mapping[str, Any], code: Mapping[str, Path]
) -> dict[str, Any]:
    """config.json with the attention direction stated and nothing that leads elsewhere."""
    causal = facts["attention"] == "causal"
    staged = {k: v for k, v in config.items() if k not in ("auto_map", "_name_or_path")}
    # Old custom code breaks on a cache object it doesn't know; an embedder needs none.
    staged["use_cache"] = False
    if "use_bidirectional_attention" in staged or config["model_type"].startswith("gemma3"):
        staged["use_bidirectional_attention"] = not causal
        staged.pop("is_causal", None)  # would change the mask of its sliding windows as well
    else:
        staged["is_causal"] = causal
    if code:
        staged["auto_map"] = localize(config["auto_map"])
    return staged


def write_sentence_transformers(folder: Path, record: Mapping[str, Any]) -> None:
    """The facts in sentence-transformers' own files, so that it loads the staged folder alike."""
    rows = [{"type": "Transformer", "path": ""}, *record["modules"]]
    write_json(
        folder / "modules.json",
        [
            {
                "idx": number,
                "name": str(number),
                "path": row["path"],
                "type": f"sentence_transformers.models.{row['type']}",
            }
            for number, row in enumerate(rows)
        ],
    )
    for row in record["modules"]:
        settings = {key: value for key, value in row.items() if key not in ("type", "path")}
        write_json(folder / row["path"] / "config.json", settings)
    length = {"max_seq_length": max(record["max_length"].values()), "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", length)
    texts = {"query": record["query_prompt"], "document": record["passage_prompt"]}
    prompts = {name: text if isinstance(text, str) else "" for name, text in texts.items()}
    similarity = "cosine" if record["normalize"] else "dot"
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "similarity_fn_name": similarity},
    )
