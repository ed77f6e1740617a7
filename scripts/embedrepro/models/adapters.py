"""A PEFT adapter, merged into its base model: what follows sees an ordinary model's snapshot.

`opened` lays the files of both out as one folder and finds by the names and shapes of the adapter's
tensors which class of transformers they belong to; `Adapter.merge` then adds the weights, which
peft does, in float32. Read as closed: a setting, a tensor or a file that isn't understood is
refused by name.
"""

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import read_json, write_json
from ..sources.adapter import ADAPTER, WEIGHTS, read_adapter, refuse_baseless
from ..sources.snapshot import MANIFEST, check_whole
from .architectures import ENCODERS, dtype_name, native_class
from .examination import HEADS, HEADS_OF
from .laying import (
    check_pickle,
    configuration,
    copy,
    describe,
    link,
    listed_files,
    weight_files,
)
from .st_files import json_object
from .tensors import main_dtype
from .tokenizer_files import TOKENIZER_FILES, VOCABULARIES

# What of each kind of adapter merging follows, or what only training reads; everything else that
# is set is refused.
COMMON = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "target_modules", "exclude_modules", "modules_to_save"),
    "fan_in_fan_out",
}
UNDERSTOOD = {
    "LORA": {
        *(*COMMON, "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "init_lora_weights"),
        *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_dora"),
        *("trainable_token_indices", "loftq_config", "eva_config", "velora_config", "lora_bias"),
        *("runtime_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    },
    "IA3": {*COMMON, "feedforward_modules", "init_ia3_weights"},
}
# Of `init_lora_weights`: beginnings that leave the base model's weights as they are.
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "true", "false")
# In whose order an adapter's tensors are tried to belong to a class, by what is made of texts.
CLASSES = {
    "reranker": ("AutoModelForSequenceClassification", "AutoModelForCausalLM"),
    "sparse": ("AutoModelForMaskedLM",),
    "dense": ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"),
}
PREFIX = "base_model.model."  # what peft puts before a tensor's name
# Keys of a config.json that say how a checkpoint came about, not what it computes.
HISTORY = {
    *("architectures", "_name_or_path", "dtype", "torch_dtype", "transformers_version"),
    *("use_cache", "id2label", "label2id", "num_labels", "problem_type", "_attn_implementation"),
    *("gradient_checkpointing", "pad_token_id", "eos_token_id", "bos_token_id"),
}
DIRECTIONS = ("is_causal", "use_bidirectional_attention")
BASE = "base"  # below a shipped folder: the model that an adapter changes
MERGE = "merge it (peft: merge_and_unload) and give that folder as source: {path: …}"
APART = 1e-4  # of states whose largest is 1: merged and unmerged, in float32
PROBE = 16  # tokens


@dataclass(frozen=True)
class Adapter:
    """An adapter and the model that it changes, laid out as one folder but for the weights.

    `folder` is that folder, `path` where the transformer lies in it; `snapshot` is the adapter's
    own and `own` the place in it; `base` the base model's folder and `about` what stage.json says
    of it. `cls` names transformers' auto class that the tensors belong to; `stored` is what the
    base's weights are stored as.
    """

    id: str
    folder: Path
    path: str
    snapshot: Path
    base: Path
    weights: tuple[str, ...]  # of the base
    cls: str
    kind: str
    copies: tuple[str, ...]  # tensors that only repeat the base's
    stored: str | None
    about: Mapping[str, Any]

    @property
    def own(self) -> Path:
        return self.snapshot / self.path

    def decision(self) -> dict[str, Any]:
        """What stage.json says of it among the facts."""
        named = printable(self.about["named"])
        reason = f"{self.cls}, merged in float32; {ADAPTER} names {named}"
        return {"fact": "base", "value": self.about["id"], "source": "config", "reason": reason}

    def merge(self, own_code: bool = False) -> dict[str, dict[str, Any]]:
        """Write the merged weights into `folder`, in float32 where they changed.

        Returns all its files, {name: {size, sha256}}. Takes memory for the whole model in float32.
        Raises UserError for what isn't exact.
        """
        import torch
        from peft import PeftModel

        if own_code:
            raise UserError(f"{self.id}: an adapter in modules of its own code; {MERGE}")
        place = self.folder / self.path
        config = configured(place)
        model, missing = self.load_base(config)
        self.check_copies(model.state_dict())
        ids = torch.linspace(1, int(config.vocab_size) - 1, PROBE).long()[None]
        with torch.no_grad(), quiet():
            both = PeftModel.from_pretrained(model, str(self.own), config=settings_of(self.own))
            before = states(both.eval(), ids)
            whole = both.merge_and_unload()
            difference = float((states(whole.eval(), ids) - before).abs().max())
        if not difference <= APART * max(1.0, float(before.abs().max())):
            raise UserError(
                f"{self.id}: its adapter can't be merged: merged and unmerged, states are "
                f"{difference:.1e} apart"
            )
        kept = narrowed(whole, self.stored)
        state = {name: kept[name] for name in kept if name not in missing}
        settings = (place / "config.json").read_bytes()
        whole.save_pretrained(place, state_dict=state)
        (place / "config.json").write_bytes(settings)  # as the base states it, not as it was saved
        (place / "generation_config.json").unlink(missing_ok=True)
        return describe(self.folder, skip=())

    def load_base(self, config: Any) -> tuple[Any, set[str]]:
        """The base model in float32, and the names of tensors that its checkpoint lacks."""
        import torch

        with quiet():
            model, info = auto_class(self.cls, config).from_pretrained(
                str(self.base),
                config=config,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                **{dtype_name(): torch.float32},
            )
        saved = {name.removeprefix(PREFIX) for name in tensors_of(self.own)}
        heads = HEADS_OF.get(config.model_type)
        encoder = config.model_type in ENCODERS
        headed = self.kind in ("reranker", "sparse")  # whose numbers come out of a head

        def spare(name: str) -> bool:
            head = HEADS.search(name) or (heads and heads.search(name))
            return bool(head) or (encoder and name.startswith("decoder."))

        missing = {str(name) for name in info["missing_keys"]}
        lacking = sorted(n for n in missing if n not in saved and (headed or not spare(n)))
        left = sorted(str(n) for n in info["unexpected_keys"] if not spare(str(n)))
        if lacking or left:
            names = ", ".join([*lacking, *left][:3])
            raise UserError(
                f"{self.id}: its base {self.about['id']}: tensors are missing or left over: {names}"
            )
        return model, missing - saved

    def check_copies(self, state: Mapping[str, Any]) -> None:
        """What peft saved of the base beside the adapter (embeddings) must be what it has."""
        import torch

        found = tensors_of(self.own)
        for tensor in self.copies:
            if not torch.equal(found[tensor].float(), state[unwrapped(tensor)].float()):
                raise UserError(
                    f"{self.id}: its adapter carries weights of its own for {unwrapped(tensor)}, "
                    f"{MERGE}"
                )

    def ship(self, folder: Path, shown: Path, path: str) -> None:
        """The unmerged model in `folder`, for the comparison.

        It is what `shown` holds, but for the merged weights (in `path`), with the adapter in their
        place and its base beside it.
        """
        from safetensors.torch import save_file

        for file in sorted(p for p in shown.rglob("*") if p.is_file()):
            name = file.relative_to(shown).as_posix()
            merged = file.parent == shown / path and (
                is_weight(file.name) or file.name == "config.json"
            )
            if not merged and name != "stage.json" and not file.is_relative_to(folder):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                link(file, folder / name)
        copy(self.own / ADAPTER, folder / path / ADAPTER)
        # Of a local folder transformers takes this one form.
        save_file(tensors_of(self.own), folder / path / WEIGHTS[0], {"format": "pt"})
        copy(shown / path / "config.json", folder / BASE / "config.json")
        for name in self.weights:
            link(self.base / name, folder / BASE / name)


@contextmanager
def opened(
    spec: Mapping[str, Any], snapshot: Path, output: Path, prove: bool
) -> Iterator[tuple[Mapping[str, Any], Path, Adapter | None]]:
    """(spec, snapshot, None) of a whole model; of an adapter a folder of both to stage from.

    That folder lies beside `output` and goes again. The spec then says as what its base is stored.
    """
    path = adapter_path(snapshot, spec)
    if path is None:
        yield spec, snapshot, None
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=output.parent) as scratch:
        adapter = lay_out(spec, snapshot, path, Path(scratch) / "model", prove)
        yield {**spec, "stored": adapter.stored}, adapter.folder, adapter


def adapter_path(snapshot: Path, spec: Mapping[str, Any]) -> str | None:
    """Where in a snapshot the adapter lies, or None without one."""
    found = [p.parent.relative_to(snapshot).as_posix() for p in sorted(snapshot.rglob(ADAPTER))]
    name, base = printable(spec["id"]), spec.get("base")
    if not found:
        if base:
            raise UserError(
                f"{name}: base: is of an adapter, and its folder holds no {ADAPTER}; leave it out"
            )
        return None
    places = {".", first_module(snapshot)}
    if others := [place for place in found if place not in places]:
        raise UserError(
            f"{name}: holds an adapter in {printable(others[0])}, not of its one transformer; "
            f"{MERGE}"
        )
    if len(found) > 1:
        raise UserError(f"{name}: holds several adapters ({', '.join(found)}); keep one of them")
    if not base:
        refuse_baseless(snapshot / found[0], spec["id"])
    return "" if found[0] == "." else found[0]


def first_module(snapshot: Path) -> str:
    """The folder of what modules.json names first, "." without one; `st_files` checks the rest."""
    if not (snapshot / "modules.json").is_file():
        return "."
    rows = read_json(snapshot / "modules.json")
    first = rows[0] if isinstance(rows, list) and rows else {}
    return Path(str(first.get("path") or ".") if isinstance(first, dict) else ".").as_posix()


def lay_out(
    spec: Mapping[str, Any], snapshot: Path, path: str, folder: Path, prove: bool
) -> Adapter:
    """Everything but the weights in `folder`, with all that can be refused before they are read."""
    from ..sources.snapshot import check_digests

    name, base = printable(spec["id"]), Path(spec["base"]["folder"])
    own = snapshot / path
    if find_spec("peft") is None:
        raise UserError(f"{name}: its environment has no peft, which merges adapters; add its pin")
    check_settings(own, name)
    if not (own / WEIGHTS[0]).is_file():
        check_pickle(own / WEIGHTS[1], spec.get("allow_pickle", False))
    files = listed_files(base)
    if prove:
        check_digests(base, files, MANIFEST)
    if (base / ADAPTER).is_file():
        raise UserError(f"{name}: its base holds an adapter itself; merge that one first")
    config = configuration(base)
    about = {"id": spec["base"]["id"], "named": read_adapter(own).get("base_model_name_or_path")}
    about["revision"] = spec["base"]["source"].get("revision")
    if config.get("quantization_config"):
        raise UserError(
            f"{name}: its base {about['id']} holds quantized weights, into which an adapter can't "
            "be merged exactly; set base: to the model that was quantized"
        )
    if not (native_class(str(config["model_type"])) or config["model_type"] in ENCODERS):
        raise UserError(
            f"{name}: its base runs code of its own ({printable(config['model_type'])} is not in "
            f"transformers); {MERGE}"
        )
    weights = weight_files(base, spec.get("allow_pickle", False))
    check_whole(base, weights, str(base))
    check_whole(own, [n for n in WEIGHTS if (own / n).is_file()], str(own))
    check_config(own, config, name)
    for file, source in composed(snapshot, path, base).items():
        place = folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        (link if file.endswith((".safetensors", ".bin", ".pt")) else copy)(source, place)
    check_vocabulary(folder / path, base, config, name)
    config |= labels(own)
    write_json(folder / path / "config.json", config)
    kind = str(spec.get("kind") or "dense")
    cls, architecture, copies = class_of(own, folder / path, kind, name)
    write_json(folder / path / "config.json", config | {"architectures": [architecture]})
    about["dora"] = bool(read_adapter(own).get("use_dora"))
    stored = main_dtype(base) or {"bfloat16": "BF16", "float16": "F16"}.get(
        str(config.get("dtype", config.get("torch_dtype"))), "F32"
    )
    return Adapter(
        name, folder, path, snapshot, base, tuple(weights), cls, kind, copies, stored, about
    )


def check_settings(own: Path, name: str) -> None:
    """Refuse, by name, what an adapter's settings say that merging would not follow."""
    settings = read_adapter(own)
    kind = str(settings.get("peft_type"))
    if kind not in UNDERSTOOD:
        raise UserError(
            f"{name}: its adapter is {printable(kind)}, which is not merged here (LoRA and IA3 "
            f"are); {MERGE}"
        )
    for key in sorted(settings.keys() - UNDERSTOOD[kind]):
        if settings[key]:
            raise UserError(
                f"{name}: {ADAPTER} has {printable(key)}: {printable(settings[key], 60)}, which is "
                f"not followed here; {MERGE}"
            )
    if (start := settings.get("init_lora_weights")) not in PLAIN_BEGINNINGS:
        raise UserError(
            f"{name}: {ADAPTER} has init_lora_weights: {printable(start)}, which changes the base "
            "model's weights as well; save it as plain LoRA "
            "(peft: path_initial_model_for_weight_conversion)"
        )
    if not any((own / file).is_file() for file in WEIGHTS):
        raise UserError(f"{name}: {ADAPTER}, and none of {', '.join(WEIGHTS)}")


def check_config(own: Path, config: Mapping[str, Any], name: str) -> None:
    """An adapter's own config.json counts for nothing, so it must say nothing else."""
    stated = json_object(own / "config.json", {})
    if stated.get("auto_map"):
        raise UserError(
            f"{name}: the config.json beside its adapter names code of its own; {MERGE}"
        )
    shared = (stated.keys() & config.keys()) - HISTORY | (stated.keys() & set(DIRECTIONS))
    for key in sorted(shared):
        if stated[key] != config.get(key):
            raise UserError(
                f"{name}: the config.json beside its adapter says {printable(key)}: "
                f"{printable(stated[key], 60)}, its base {printable(config.get(key), 60)}; "
                "set base: to the model that it was trained on"
            )


def composed(snapshot: Path, path: str, base: Path) -> dict[str, Path]:
    """Which file comes from where: the adapter's own, and its base's where it has none.

    The base's tokenizer counts where the adapter has no vocabulary, its sentence-transformers
    files where the adapter has no modules.json.
    """
    own = snapshot / path
    prefix = f"{path}/" if path else ""
    left = {prefix + n for n in (ADAPTER, *WEIGHTS, "config.json")} | {MANIFEST}
    found = {}
    for file in sorted(p for p in snapshot.rglob("*") if p.is_file()):
        name = file.relative_to(snapshot).as_posix()
        model = name.rpartition("/")[0] == path and is_weight(file.name)
        if name not in left and not model and not name.endswith((".md", ".py")):
            found[name] = file
    if not any((own / name).is_file() for name in VOCABULARIES):
        tokens = {prefix + n: base / n for n in TOKENIZER_FILES if (base / n).is_file()}
        found = tokens | found
    if not (snapshot / "modules.json").is_file():
        for file in sorted(p for p in base.rglob("*") if p.is_file()):
            name = file.relative_to(base).as_posix()
            ours = "/" not in name and (name in TOKENIZER_FILES or is_weight(name))
            if not (ours or name in (MANIFEST, "config.json") or name.endswith((".md", ".py"))):
                found.setdefault(name, file)
    return found


def is_weight(name: str) -> bool:
    """Whether a file is a transformer's weights, or an index of them."""
    return name.startswith(("model", "pytorch_model")) and name.endswith(
        (".safetensors", ".bin", ".index.json")
    )


def check_vocabulary(place: Path, base: Path, config: Mapping[str, Any], name: str) -> None:
    """An adapter's tokenizer must not know tokens for which its base has no row."""
    sizes = []
    for folder in (place, base):
        if (path := folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            ids = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values()
            sizes.append(max(ids, default=0) + 1)
    rows = config.get("vocab_size")
    if len(sizes) == 2 and isinstance(rows, int) and sizes[0] > max(rows, sizes[1]):
        raise UserError(resized(name, f"its tokenizer has {sizes[0]} tokens", rows))


def resized(name: str, what: str, rows: int) -> str:
    return (
        f"{name}: its vocabulary was enlarged ({what}, its base has rows for {rows}), and the new "
        f"rows can't be told; {MERGE}"
    )


def labels(own: Path) -> dict[str, Any]:
    """num_labels of the classification head that an adapter brings, if it brings one."""
    for name, tensor in tensors_of(own).items():
        if name.endswith(("score.weight", "classifier.weight", "classifier.out_proj.weight")):
            return {"id2label": {str(n): f"LABEL_{n}" for n in range(tensor.shape[0])}}
    return {}


def tensors_of(own: Path) -> dict[str, Any]:
    """The adapter's tensors by name, as peft reads them."""
    from peft import load_peft_weights

    return dict(load_peft_weights(str(own), device="cpu"))


def settings_of(own: Path) -> Any:
    """The adapter's settings for any class: what a task adds is in the saved ones already."""
    from peft import PeftConfig

    with quiet():
        settings = PeftConfig.from_pretrained(str(own))
    settings.task_type, settings.inference_mode = None, True
    return settings


def configured(place: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)


def auto_class(cls: str, config: Any) -> Any:
    """transformers' class; of an encoder-decoder its encoder, as sentence-transformers loads it."""
    import transformers

    if cls == "AutoModel" and config.model_type in ENCODERS:
        return getattr(transformers, ENCODERS[config.model_type])
    return getattr(transformers, cls)


def class_of(own: Path, place: Path, kind: str, name: str) -> tuple[str, str, tuple[str, ...]]:
    """(auto class, its model's class) whose tensors the adapter's are, and which are the base's.

    Built without memory, with the adapter put in; names and shapes must be the file's.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    found, said = tensors_of(own), ""
    for cls in CLASSES.get(kind, CLASSES["dense"]):
        config = configured(place)
        auto = auto_class(cls, config)
        try:
            with torch.device("meta"), quiet():
                trust = {"trust_remote_code": False}
                automatic = "Auto" in auto.__name__
                model = auto.from_config(config, **trust) if automatic else auto(config)
                plain = {n: t.shape for n, t in model.state_dict().items()}
                both = PeftModel(model, settings_of(own), low_cpu_mem_usage=True)
            with quiet():
                asked = get_peft_model_state_dict(both, save_embedding_layers=False)
        except (ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
            said = said or printable(error)
            continue
        wanted = {n: tuple(t.shape) for n, t in asked.items()}
        wrong = difference(found, wanted, plain, name, int(config.vocab_size))
        if not wrong:
            return cls, type(model).__name__, tuple(sorted(found.keys() - wanted.keys()))
        said = said or wrong
    raise UserError(
        f"{name}: its adapter doesn't belong to its base: {said}; set base: to the model that it "
        "was trained on"
    )


def difference(
    found: Mapping[str, Any],
    wanted: Mapping[str, Sequence[int]],
    plain: Mapping[str, Any],
    name: str,
    rows: int,
) -> str:
    """In words, how an adapter's tensors are not those of a class, or ""."""
    for tensor, held in found.items():
        bare = unwrapped(tensor)
        expected = wanted.get(tensor, plain.get(bare))
        if expected is None:
            return f"{printable(tensor)} is left over"
        if tuple(held.shape) != tuple(expected):
            if expected[0] == rows and held.shape[1:] == tuple(expected)[1:]:
                raise UserError(resized(name, f"{bare} has {held.shape[0]}", rows))
            return f"{printable(tensor)} is {tuple(held.shape)}, not {tuple(expected)}"
    lacking = sorted(wanted.keys() - found.keys())
    return f"{printable(lacking[0])} is missing" if lacking else ""


def unwrapped(tensor: str) -> str:
    """The base model's own name of a tensor that peft saved with an adapter."""
    return tensor.removeprefix(PREFIX).replace(".base_layer.", ".")


def states(model: Any, ids: Any) -> Any:
    """What a model makes of some tokens: its states, or its logits."""
    return model(input_ids=ids, return_dict=True)[0].float()


def narrowed(model: Any, stored: str | None) -> dict[str, Any]:
    """The weights, those that lose nothing in it in the base's own precision."""
    import torch

    half = {"BF16": torch.bfloat16, "F16": torch.float16}.get(str(stored))
    for tensor in [*model.parameters(), *model.buffers()]:
        if half and tensor.dtype == torch.float32 and torch.equal(tensor.to(half).float(), tensor):
            tensor.data = tensor.data.to(half)
    return dict(model.state_dict())


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor bars of what is loaded: what matters is checked here."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
