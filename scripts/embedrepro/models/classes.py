"""Which class a model is of, transformers' or its own, and which engine runs it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from .architectures import ENCODERS, native_class, native_head, packs
from .native_config import native_config, native_type, untranslatable
from .remote_code import code_files, native_wanted
from .st_files import Layout

HASH = re.compile(r"[0-9a-f]{40}")


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
