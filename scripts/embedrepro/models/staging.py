"""A snapshot becomes a folder that every version of every library loads the same way.

The staged folder has no dot in its name, links the weights, and holds rewritten copies of the
configs: native classes where transformers has them, no `auto_map` that leads out of the folder, and
every fact that a library would otherwise choose by itself stated. `stage.json` records it all.

Staging reads configs and headers only. That the folder computes what stage.json says is proven by
`preflight`, which loads it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import atomic, write_json, write_record
from ..sources.code import CODE
from ..sources.hub import check_replaceable
from ..sources.snapshot import check_digests, check_no_pointers, check_whole
from .adapters import Adapter, opened
from .classes import choose_class, choose_engine, note_engine, refuse_untrusted
from .facts import Resolved, hidden_size, resolve
from .facts_table import KINDS, VECTORS
from .laying import (
    check_pickle,
    configuration,
    copy,
    describe,
    link,
    listed_files,
    staged_names,
    weight_files,
)
from .native_config import native_config
from .remote_code import code_files, localize
from .st_files import Layout, json_object, module_files
from .tokenizer_files import TOKENIZER_FILES, refuse_bad_tokenizer, write_tokenizer

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
