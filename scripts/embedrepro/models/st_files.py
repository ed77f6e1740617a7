"""sentence-transformers' own files, read as closed: each module and key is understood or refused.

`read` says what they state, what comes after the transformer, and whether only
sentence-transformers itself can run the model.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import UserError, printable
from ..files import read_json
from .facts_table import POOLINGS, Kind, Pooling, Role
from .tensors import shapes

# Where a module's type begins that is not the repository's own; of PyLate's modules
# sentence-transformers makes its own.
OWN = ("sentence_transformers.", "pylate.")
# In the order in which sentence-transformers tries them; the first that holds anything counts.
TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
ST_POOLING: dict[str, Pooling] = {
    "cls": "cls",
    "lasttoken": "last_token",
    **{name: name for name in POOLINGS if name not in ("cls", "last_token")},
}
# The older form, one flag for each mode, in the order in which several are put end to end.
ST_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ROUTERS = ("Router", "Asym")  # the second is the first one's older name
SIZES = {"embedding_dimension", "word_embedding_dimension"}
INPUT = {"module_input_name", "module_output_name"}
# Steps after the transformer that are described key by key; every other goes to
# sentence-transformers as it is.
STEPS = {
    "Pooling": {*SIZES, *ST_FLAGS, "pooling_mode", "include_prompt"},
    "Dense": {"in_features", "out_features", "bias", "activation_function", "use_residual", *INPUT},
    "LayerNorm": {"dimension"},
    "Normalize": INPUT,
    "Dropout": {"dropout"},
}
KINDS_OF: dict[str, Kind] = {
    "SpladePooling": "sparse",
    "MLMTransformer": "sparse",
    "SparseAutoEncoder": "sparse",
    "SparseStaticEmbedding": "sparse",
    "MultiVectorMask": "multivector",
    "TokenPooling": "multivector",
    "LogitScore": "reranker",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multivector",
    "CrossEncoder": "reranker",
    "ColBERT": "multivector",
}
MODEL_KEYS = {
    *("__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name"),
    *("truncate_dim", "requirements"),
}
STANFORD = "artifact.metadata"  # ColBERT's own settings
TRANSFORMER_KEYS = {
    *("max_seq_length", "do_lower_case", "unpad_inputs", "query_length", "document_length"),
    *("query_expansion", "transformer_task", "modality_config", "module_output_name"),
    *("processing_kwargs", "tokenizer_name_or_path"),
}
ARGUMENTS = {  # the older name of each, and what it is for
    "model_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "config_args": "config_kwargs",
}
# Arguments that change where and how fast a model is loaded, not what it computes.
HARMLESS = {
    *("trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "revision", "token"),
    *("use_fast", "local_files_only", "device_map", "low_cpu_mem_usage", "cache_dir", "use_cache"),
    *("add_pooling_layer", "use_safetensors", "code_revision"),
}


class Refusal(str):
    """In place of a fact's value: why this source's statement can't be followed."""


@dataclass
class Layout:
    """What a folder's sentence-transformers files say.

    `base`: where the transformer lies, below the folder. `modules`: the steps after it. `general`:
    why only sentence-transformers itself runs it, or None. `beyond`: in words, each thing that the
    plain layouts (Transformer, Pooling in one mode, Normalize) lack. `unbound`: roles
    whose route has no transformer, so nothing limits their texts. `trunks`: where the transformer
    of a role's own route lies. `config` and `tokenizer` are laid
    over config.json and tokenizer_config.json.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    modules: list[dict[str, Any]] = field(default_factory=list)
    base: str = ""
    first: str = "Transformer"
    general: str | None = None
    own: bool = False
    kind: Kind = "dense"
    lower_case: bool = False
    dimension: int | None = None
    unbound: set[Role] = field(default_factory=set)
    trunks: dict[Role, str] = field(default_factory=dict)
    beyond: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)


def read(snapshot: Path, kind: Kind = "dense") -> Layout | None:
    """The layout that modules.json describes, or None without one. Raises UserError.

    A sparse or multi-vector model (`kind`) may have none: sentence-transformers knows its modules.
    """
    if not (snapshot / "modules.json").is_file():
        return without_modules(snapshot, kind) if kind in ("sparse", "multivector") else None
    return _Reader(snapshot).run()


def without_modules(snapshot: Path, kind: Kind) -> Layout:
    """A masked language model, or ColBERT as Stanford's code saves it."""
    layout = Layout(kind=kind, general=f"a {kind} model")
    layout.beyond.append(layout.general or "")
    layout.facts = {"pooling": "modules", "normalize": False}
    layout.facts |= {"query_prompt": "", "passage_prompt": ""}
    if (snapshot / STANFORD).is_file():
        said = json_object(snapshot / STANFORD)
        lengths = {"query": said.get("query_maxlen"), "passage": said.get("doc_maxlen")}
        layout.facts |= {
            "query_prompt": (said.get("query_token_id") or "[unused0]") + " ",
            "passage_prompt": (said.get("doc_token_id") or "[unused1]") + " ",
            "max_length": {role: n for role, n in lengths.items() if n},
        }
    return layout


class _Reader:
    def __init__(self, snapshot: Path) -> None:
        self.snapshot, self.layout = snapshot, Layout()

    def run(self) -> Layout:
        rows = self.rows()
        layout = self.layout
        layout.own = any(not kind.startswith(OWN) for kind, _, _ in rows)
        names = [kind.rpartition(".")[2] for kind, _, _ in rows]
        layout.first = names[0]
        layout.kind = next((KINDS_OF[name] for name in names if name in KINDS_OF), "dense")
        layout.general = self.obstacle(rows, names)
        model = json_object(self.snapshot / "config_sentence_transformers.json", {})
        self.model_settings(model)
        if layout.kind in ("sparse", "multivector"):
            layout.general = layout.general or f"a {layout.kind} model"
        transformer = rows[0][1] if names[0] == "Transformer" else ""
        layout.base = transformer
        if layout.general and not (self.snapshot / layout.base / "config.json").is_file():
            layout.base = self.nested()
        if layout.base or names[0] == "Transformer" or layout.own:
            self.transformer_settings(self.snapshot / layout.base)
        if layout.general is None:
            for name, path in zip(names[1:], (path for _, path, _ in rows[1:]), strict=True):
                self.step(name, path)
            self.flags()
        else:
            layout.beyond.append(layout.general)
            layout.facts["pooling"] = "modules"
            if layout.kind == "multivector":
                self.late_interaction(model)
            layout.dimension = self.dimension([(n, r[1]) for n, r in zip(names, rows, strict=True)])
            if names[0] in ROUTERS:
                self.routes(self.snapshot / rows[0][1])
        # Sparse and token vectors are as their modules make them.
        many = layout.kind in ("sparse", "multivector")
        layout.facts["normalize"] = False if many else normalize(names, model)
        return layout

    def late_interaction(self, model: dict[str, Any]) -> None:
        """PyLate's settings: lengths by role, and marks that sentence-transformers puts itself."""
        stated = {"query": model.get("query_length"), "passage": model.get("document_length")}
        if any(stated.values()):
            self.layout.facts["max_length"] = {role: n for role, n in stated.items() if n}
        texts = model.get("prompts") or {}
        for fact, name in (("query_prompt", "query"), ("passage_prompt", "document")):
            if f"{name}_prefix" in model:
                prefix = model[f"{name}_prefix"] or ""
                self.layout.facts[fact] = prefix + (texts.get(name) or "").removeprefix(prefix)

    def rows(self) -> list[tuple[str, str, list[str]]]:
        """(type, path, names of keyword arguments) of each module."""
        where = self.snapshot / "modules.json"
        modules = read_json(where)
        try:
            rows = [
                (str(row["type"]), str(row["path"]), row.get("kwargs") or []) for row in modules
            ]
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"{where}: not a list of modules") from None
        if not rows:
            raise UserError(f"{where}: not a list of modules")
        for row in modules:
            refuse_unknown(row, {"idx", "name", "path", "type", "kwargs"}, where)
        for _, path, _ in rows:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise UserError(f"{where}: path {printable(path)} leaves the folder")
        return [(kind, "" if path == "." else path, given) for kind, path, given in rows]

    def nested(self) -> str:
        """Where the transformer with the fewest positions lies within a Router, or ""."""
        found = []
        for path in sorted(self.snapshot.rglob("config.json")):
            config = json_object(path)
            if isinstance(config.get("model_type"), str):
                positions = config.get("max_position_embeddings")
                number = positions if isinstance(positions, int) else sys.maxsize
                found.append((number, path.parent.relative_to(self.snapshot).as_posix()))
        return min(found)[1] if found else ""

    def obstacle(self, rows: list[tuple[str, str, list[str]]], names: list[str]) -> str | None:
        """Why the modules can't be described step by step, or None."""
        for (kind, _, given), name in zip(rows, names, strict=True):
            if not kind.startswith(OWN):
                return f"module {printable(kind)} of its own"
            if given:
                return f"module {name} takes {printable(', '.join(map(str, given)))}"
        if names[0] != "Transformer":
            return f"module {names[0]}"
        for name in names[1:]:
            if name not in STEPS:
                return f"module {name}"
        if names[1:2] != ["Pooling"] or names.count("Pooling") != 1:
            return "no Pooling straight after the transformer"
        return None

    def model_settings(self, model: dict[str, Any]) -> None:
        layout = self.layout
        for key in sorted(set(model) - MODEL_KEYS):
            layout.beyond.append(f"config_sentence_transformers.json has {printable(key)}")
        if model.get("requirements"):
            layout.beyond.append("config_sentence_transformers.json has requirements")
        if layout.kind == "dense":
            layout.kind = KINDS_OF.get(str(model.get("model_type")), "dense")
        layout.facts |= prompts(model)
        if model.get("truncate_dim") is not None:
            layout.facts["dimensions"] = model["truncate_dim"]
            layout.beyond.append("truncate_dim")

    def transformer_settings(self, folder: Path) -> None:
        """sentence_bert_config.json or one of its older names."""
        found = ((folder / name, json_object(folder / name, {})) for name in TRANSFORMER_FILES)
        path, settings = next(((p, s) for p, s in found if s), (folder, {}))
        layout = self.layout
        if not layout.own:
            refuse_unknown(
                settings, TRANSFORMER_KEYS | set(ARGUMENTS) | {*ARGUMENTS.values()}, path
            )
        if settings and path.name != TRANSFORMER_FILES[0]:
            layout.beyond.append(f"settings in {path.name}")
        for old, new in ARGUMENTS.items():
            given = settings.get(old, settings.get(new)) or {}
            known = {key: value for key, value in given.items() if key not in HARMLESS}
            if not known:
                continue
            layout.beyond.append(f"{path.name} has {old}")
            if new == "config_kwargs":
                layout.config = known
            elif new == "processor_kwargs":
                layout.tokenizer = known
            elif layout.general is None:
                raise UserError(
                    f"{path}: {old}: {printable(next(iter(known)))} is not understood; save the "
                    "model without it, or with what it changes in config.json"
                )
        lengths = {
            role: settings.get(key) or settings.get("max_seq_length")
            for role, key in (("query", "query_length"), ("passage", "document_length"))
        }
        if layout.tokenizer.get("model_max_length"):
            lengths = dict.fromkeys(lengths, layout.tokenizer["model_max_length"])
        if any(lengths.values()):
            layout.facts["max_length"] = {role: n for role, n in lengths.items() if n}
        if settings.get("query_length") or settings.get("document_length"):
            layout.beyond.append("a length for each role")
        layout.lower_case = bool(settings.get("do_lower_case"))
        if layout.lower_case:
            layout.beyond.append("do_lower_case")
        self.general_settings(settings, path)

    def general_settings(self, settings: dict[str, Any], path: Path) -> None:
        """Settings that only sentence-transformers itself follows."""
        task = settings.get("transformer_task", "feature-extraction")
        plain = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
        for name, other in (
            (f"transformer_task {task}", task != "feature-extraction"),
            ("modality_config", settings.get("modality_config", plain) != plain),
            ("processing_kwargs", bool(settings.get("processing_kwargs"))),
            ("query_expansion", bool(settings.get("query_expansion"))),
            ("tokenizer_name_or_path", bool(settings.get("tokenizer_name_or_path"))),
        ):
            if other and self.layout.general is None:
                self.layout.general = f"{path.name} has {printable(name)}"

    def step(self, name: str, path: str) -> None:
        """One module after the transformer, its keys as sentence-transformers names them."""
        where = self.snapshot / path / "config.json"
        config = json_object(where, {})
        refuse_unknown(config, STEPS[name], where)
        if name == "Dropout":  # does nothing when a model is only used
            return
        for key in INPUT & set(config):
            if config[key] not in (None, "sentence_embedding"):
                raise UserError(f"{where}: {key}: {printable(config[key])} is not a text's vector")
        row = {"type": name, "path": path} | {k: v for k, v in config.items() if k not in INPUT}
        if name == "Pooling":
            row = {"type": name, "path": path, "pooling_mode": pooling_modes(config)}
            row["include_prompt"] = config.get("include_prompt", True)
            self.layout.facts |= {
                "pooling": pooling_fact(row["pooling_mode"], where),
                "include_prompt": row["include_prompt"],
            }
        elif name in ("Dense", "LayerNorm"):
            self.layout.dimension = self.size(row, where)
        self.layout.modules.append(row)

    def size(self, row: dict[str, Any], where: Path) -> int:
        key = "out_features" if row["type"] == "Dense" else "dimension"
        if type(row.get(key)) is not int:
            raise UserError(f"{where}: states no {key}")
        function = str(row.get("activation_function", "torch.nn.modules.activation.Tanh"))
        if row["type"] == "Dense" and not re.fullmatch(r"torch\.nn(\.\w+)+", function):
            raise UserError(
                f"{where}: activation_function: {printable(function)} is not torch.nn's"
            )
        return int(row[key])

    def flags(self) -> None:
        """What of the step-by-step layouts is not plain."""
        layout = self.layout
        for row in layout.modules:
            if row["type"] in ("Dense", "LayerNorm"):
                layout.beyond.append(f"module {row['type']}")
        if layout.facts["pooling"] not in ("mean", "cls", "last_token"):
            layout.beyond.append("pooling " + " + ".join(layout.modules[0]["pooling_mode"]))
        if layout.facts["include_prompt"] is False:
            layout.beyond.append("include_prompt: false")
        if layout.base:
            layout.beyond.append(f"the transformer lies in {layout.base}")

    def dimension(self, rows: list[tuple[str, str]]) -> int | None:
        """Length of the vectors that the last module that changes it gives; None: not stated."""
        for name, path in reversed(rows):
            folder = self.snapshot / path
            config = json_object(folder / "config.json", {})
            if name in ROUTERS:
                return self.routed(folder)
            if name == "BoW" and isinstance(config.get("vocab"), list):
                return len(config["vocab"])
            if name == "StaticEmbedding":
                found = shapes(folder)
                sizes = [s for n, s in found.items() if n in ("embedding.weight", "embeddings")]
                return sizes[0][-1] if sizes else None
            if name == "Pooling":
                size = next((config[key] for key in SIZES if key in config), None)
                return size * len(pooling_modes(config)) if isinstance(size, int) else None
            for key in ("out_features", "dimension", "projection_dim"):
                if isinstance(config.get(key), int) and name in ("Dense", "LayerNorm", "CLIPModel"):
                    return int(config[key])
        return None

    def routed(self, folder: Path) -> int | None:
        """Length of the vectors of a Router: that of the last module of its first route."""
        return self.dimension(next(iter(self.router(folder).values())))

    def router(self, folder: Path) -> dict[str, list[tuple[str, str]]]:
        """By route the names and paths of its modules."""
        path = folder / "router_config.json"
        config = json_object(path if path.is_file() else folder / "config.json", {})
        types, routes = config.get("types"), config.get("structure")
        if not isinstance(types, dict) or not isinstance(routes, dict) or not routes:
            raise UserError(f"{path}: names no routes")
        below = folder.relative_to(self.snapshot)
        return {
            name: [(str(types[s]).rpartition(".")[2], str(below / s)) for s in steps if s in types]
            for name, steps in routes.items()
        }

    def routes(self, folder: Path) -> None:
        """What limits each role's texts, where they take routes of their own from the start."""
        routes = self.router(folder)
        for role, route in (("query", "query"), ("passage", "document")):
            modules = routes.get(route, [])
            trunk = next((path for name, path in modules if name == "Transformer"), None)
            if trunk is not None:
                self.layout.trunks[cast(Role, role)] = trunk
            elif modules and "CLIPModel" not in dict(modules):
                self.layout.unbound.add(cast(Role, role))


def pooling_modes(config: Mapping[str, Any]) -> list[str]:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in ST_FLAGS.items() if config.get(flag)] or ["mean"]
    return [str(mode) for mode in modes] if isinstance(modes, list) else [str(modes)]


def pooling_fact(modes: list[str], where: Path) -> str:
    for mode in modes:
        if mode not in ST_POOLING:
            raise UserError(f"{where}: pooling_mode {printable(mode)} is not known")
    return ST_POOLING[modes[0]] if len(modes) == 1 else "modules"


def prompts(config: dict[str, Any]) -> dict[str, str | None]:
    """As `encode_query` and `encode_document` of sentence-transformers 6.2 choose them.

    No query prompt among prompts of other names is no statement: one of them may be meant.
    """
    stated = config.get("prompts") or {}
    if not isinstance(stated, dict):
        raise UserError("config_sentence_transformers.json: prompts is not a table")
    stated = {name: text for name, text in stated.items() if text is not None}
    default = stated.get(config.get("default_prompt_name") or "")
    passages = [stated[name] for name in ("document", "passage", "corpus") if name in stated]
    if default is None and not any(stated.values()):
        default = ""
    passage = passages[0] if passages else default
    query = stated.get("query", default)
    return {
        "query_prompt": query,
        "passage_prompt": "" if passage is None and query is not None else passage,
    }


def normalize(names: list[str], config: dict[str, Any]) -> bool | Refusal:
    """True with a Normalize module at the end, or where its similarity is cosine (the default)."""
    similarity = config.get("similarity_fn_name") or "cosine"
    steps = [name for name in names if name != "Dropout"]
    # A cut comes after the modules: what is compared by dot product is not scaled again then.
    if steps[-1] == "Normalize" and not (similarity == "dot" and config.get("truncate_dim")):
        return True
    if similarity in ("cosine", "dot"):
        return bool(similarity == "cosine")
    return Refusal(f"its similarity is {printable(similarity)}, search here is by dot product")


def refuse_unknown(config: Mapping[str, Any], known: set[str], where: Path) -> None:
    for key in sorted(set(config) - known - {"__version__"}):
        raise UserError(
            f"{where}: the key {printable(key)} is not known here, and may change the vectors; "
            "remove it if it doesn't"
        )


def json_object(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object from a file; `default` where there is no file."""
    if default is not None and not path.exists():
        return default
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def module_files(snapshot: Path, layout: Layout) -> Iterator[str]:
    """Names of the files of the modules after the transformer."""
    for row in layout.modules:
        folder = snapshot / row["path"]
        if row["path"] and folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    yield path.relative_to(snapshot).as_posix()
