"""A snapshot becomes a folder that every version of every library loads the same way.

The staged folder has no dot in its name, links the weights, and holds rewritten copies of the
configs: native classes where transformers has them, no `auto_map` that leads out of the folder, and
every fact that a library would otherwise choose by itself stated. `stage.json` records it all.
"""

import ast
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import UserError, printable
from ..files import atomic, damaged, sha256, write_json, write_record, write_text
from ..keys import RECIPE
from .architectures import native_class
from .facts import hidden_size, json_object, resolve, template_end
from .hub import check_replaceable
from .preflight import preflight, refuse_failed
from .snapshot import check_no_pointers, check_whole, hash_files

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", *TOKENIZER_FILES[7:])
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


def check_digests(folder: Path, files: dict[str, dict[str, Any]], listed: str) -> None:
    """Refuse a folder whose files have other digests than listed; about a second for a gigabyte."""
    found = hash_files({name: folder / name for name in files})
    for name, facts in files.items():
        if found[name]["sha256"] != facts.get("sha256"):
            raise damaged(folder / name, f"its sha256 is not the one in {listed}", folder)


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


def refuse_bad_tokenizer(snapshot: Path) -> None:
    if not any((snapshot / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{snapshot}: no tokenizer (none of {', '.join(VOCABULARIES)})")
    path = snapshot / "tokenizer.json"
    if path.is_file():
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path}: not a tokenizer ({printable(error)})") from None


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


def code_files(snapshot: Path, custom: dict[str, Any]) -> list[str]:
    """The files that an `auto_map` names and what they import from beside them."""
    waiting = [module_file(target) for target in targets(custom)]
    found: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = snapshot / name
        if not path.is_file():
            raise UserError(f"{snapshot}: its code {printable(name)} is not in the snapshot")
        found.append(name)
        waiting += imports(path, name)
    return sorted(found)


def targets(custom: dict[str, Any]) -> Iterator[str]:
    for value in custom.values():
        for target in value if isinstance(value, list) else [value]:
            if target is not None:
                yield str(target)


def module_file(target: str) -> str:
    """'org/repo--module.Class' -> 'module.py'; a module in a folder is refused."""
    module, dot, _ = target.rpartition("--")[2].rpartition(".")
    if not dot or not module.isidentifier():
        raise UserError(f"auto_map: {printable(target)} is not module.Class")
    return f"{module}.py"


def imports(path: Path, name: str) -> list[str]:
    """The sibling files that a code file imports relatively."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not Python ({error})") from None
    siblings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or (node.module and "." in node.module):
                raise UserError(f"{path}: imports from outside its own folder (line {node.lineno})")
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            siblings += [f"{module}.py" for module in modules]
    return siblings


def localize(custom: dict[str, Any]) -> dict[str, Any]:
    """An auto_map without `repo--` prefixes."""

    def local(value: Any) -> Any:
        if isinstance(value, list):
            return [local(item) for item in value]
        return value.rpartition("--")[2] if isinstance(value, str) else value

    return {name: local(value) for name, value in custom.items()}


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


def write_tokenizer(snapshot: Path, folder: Path, facts: dict[str, Any]) -> None:
    """The tokenizer files, the end token in the post-processor, no custom class."""
    for name in TOKENIZER_FILES:
        if (snapshot / name).is_file():
            copy(snapshot / name, folder / name)
    settings = json_object(snapshot / "tokenizer_config.json", {})
    custom = settings.pop("auto_map", None)
    # TokenizersBackend is transformers 5's name for what 4 and 5 both load under the older one.
    if custom or settings.get("tokenizer_class") in (None, "TokenizersBackend"):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    settings["padding_side"] = facts["padding_side"]
    write_json(folder / "tokenizer_config.json", settings)
    lowercase = json_object(snapshot / "sentence_bert_config.json", {}).get("do_lower_case")
    path = folder / "tokenizer.json"
    if path.is_file():
        shipped = json_object(path)
        staged = staged_tokenizer(shipped, facts["end_token"], bool(lowercase), snapshot)
        if staged != shipped:
            write_text(path, json.dumps(staged, ensure_ascii=False))
    elif facts["end_token"] is not None or lowercase or custom:
        what = (
            "the custom tokenizer class can't be replaced" if custom else "nothing to state it in"
        )
        raise UserError(f"{snapshot}: no tokenizer.json: {what}; save a fast tokenizer there")


def staged_tokenizer(
    tokenizer: dict[str, Any], end_token: str | None, lowercase: bool, snapshot: Path
) -> dict[str, Any]:
    """tokenizer.json that appends the end token and doesn't cut or pad by itself."""
    staged = tokenizer | {"truncation": None, "padding": None}
    if lowercase:  # sentence-transformers lower-cases the text before tokenizing
        steps = [{"type": "Lowercase"}, *filter(None, [tokenizer.get("normalizer")])]
        staged["normalizer"] = {"type": "Sequence", "normalizers": steps}
    if end_token is not None and template_end(tokenizer) != end_token:
        staged["post_processor"] = with_end_token(tokenizer, end_token, snapshot)
    return staged


def with_end_token(tokenizer: dict[str, Any], token: str, snapshot: Path) -> dict[str, Any]:
    """A post-processor that appends `token`, after whatever the shipped one adds already."""
    number = token_id(tokenizer, token)
    if number is None:
        raise UserError(f"{snapshot}: end_token {printable(token)} is not in its vocabulary")
    shipped = tokenizer.get("post_processor")
    steps = shipped.get("processors", [shipped]) if shipped else []
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
        template = {"type": "TemplateProcessing", "single": [first], "pair": [first, second]}
        steps = [*steps, template]
    single, pair = ({"SpecialToken": {"id": token, "type_id": kind}} for kind in (0, 1))
    known = template.get("special_tokens", {})
    closing = {
        "single": [*template["single"], single],
        "pair": [*template["pair"], pair],
        "special_tokens": known | {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    steps = [step | closing if step is template else step for step in steps]
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "processors": steps}


def token_id(tokenizer: dict[str, Any], token: str) -> int | None:
    for row in tokenizer.get("added_tokens") or []:
        if row["content"] == token:
            return row["id"]
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of the ids
        return next((i for i, row in enumerate(vocabulary) if row[0] == token), None)
    return vocabulary.get(token)


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


def verify_code(staged: Path) -> dict[str, Any]:
    """Read stage.json; check that the code, and the config that names it, are as staged."""
    staged = Path(staged)
    record = json_object(staged / "stage.json")
    expected = record["code"] | {"config.json": record["files"]["config.json"]["sha256"]}
    present = {path.relative_to(staged).as_posix() for path in staged.rglob("*.py")}
    for name in sorted(present | set(expected)):
        path = staged / name
        if not path.is_file() or sha256(path) != expected.get(name):
            raise damaged(path, "not what was staged", staged)
    return record


def verify_staged(staged: Path) -> None:
    """Check every staged file, weights too, against stage.json, before vectors are made of them.

    A folder made by hand, whose stage.json lists no files, is taken as it is.
    """
    if "files" not in json_object(staged / "stage.json"):
        return
    files = verify_code(staged)["files"]
    for name in files:
        if not (staged / name).is_file():
            raise damaged(staged / name, "is missing", staged)
    check_digests(staged, files, "stage.json")


def register(record: dict[str, Any], staged: Path, root: Path) -> None:
    """Link `root`/by_id/<org>/<name> to the staged folder and list it in `root`/names.tsv."""
    staged, root = Path(staged), Path(root)
    parts = record["id"].split("/")
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise UserError(f"{printable(record['id'])}: not a model id")
    place = root.joinpath("by_id", *parts)
    with lock(root / "names.tsv.lock"):
        try:
            with atomic(place) as temporary:
                temporary.symlink_to(os.path.relpath(staged, place.parent))
        except OSError as error:
            raise UserError(f"{place}: can't be linked ({error.strerror})") from None
        row = [record["id"], record["revision"] or "", record["model"]]
        row += [os.path.relpath(staged, root), str("." in record["id"]).lower()]
        write_text(root / "names.tsv", merged_names(root / "names.tsv", row))


def merged_names(path: Path, row: list[str]) -> str:
    """The table with `row` in it, sorted; a row for the same id and revision is replaced."""
    header = ["id", "revision", "model", "path", "has_dot"]
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    rows = [line.split("\t") for line in lines]
    rows = [old for old in rows if (old[0], old[3]) != (row[0], row[3])]
    return "".join("\t".join(cells) + "\n" for cells in [header, *sorted([*rows, row])])


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made when missing)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
