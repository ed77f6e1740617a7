"""The staged tokenizer files: the end token in the post-processor, no class of the model's own."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import UserError, printable
from ..files import write_json, write_text
from .facts import template_end, token_text
from .st_files import Layout, json_object

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
WORDPIECE = ("bert", "distilbert", "electra", "mpnet", "mobilebert", "squeezebert", "funnel")
PADS = ("[PAD]", "<pad>", "<|pad|>")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", *TOKENIZER_FILES[7:])


def refuse_bad_tokenizer(snapshot: Path) -> None:
    if not any((snapshot / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{snapshot}: no tokenizer (none of {', '.join(VOCABULARIES)})")
    path = snapshot / "tokenizer.json"
    if path.is_file():
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path}: not a tokenizer ({printable(error)})") from None


def write_tokenizer(
    snapshot: Path, folder: Path, facts: Mapping[str, Any], layout: Layout, model_type: str
) -> None:
    """The tokenizer files, the end token in the post-processor, no custom class.

    A tokenizer without a token to pad with gets its end token for that: padding is masked.
    """
    for name in TOKENIZER_FILES:
        if (snapshot / name).is_file():
            shutil.copyfile(snapshot / name, folder / name)
    settings = json_object(snapshot / "tokenizer_config.json", {}) | layout.tokenizer
    custom = settings.pop("auto_map", None)
    path = folder / "tokenizer.json"
    lowercase = layout.lower_case
    # TokenizersBackend is transformers 5's name for what 4 and 5 both load under the older one;
    # a model's own class would build its normalizer anew, without the lower-casing.
    generic = settings.get("tokenizer_class") in (None, "TokenizersBackend") or lowercase
    if custom or (generic and path.is_file()):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    settings["padding_side"] = facts["padding_side"]
    if path.is_file():
        shipped = json_object(path)
        special = json_object(snapshot / "special_tokens_map.json", {})
        named = settings | special
        if named.get("pad_token") is None and (filler := filling_token(shipped, named)):
            settings["pad_token"] = filler
        staged = staged_tokenizer(shipped, facts["end_token"], lowercase, snapshot)
        if staged != shipped:
            write_text(path, json.dumps(staged, ensure_ascii=False))
    elif lowercase and model_type in WORDPIECE and not custom and facts["end_token"] is None:
        settings["do_lower_case"] = True
    elif facts["end_token"] is not None or lowercase or custom:
        what = (
            "the custom tokenizer class can't be replaced" if custom else "nothing to state it in"
        )
        raise UserError(f"{snapshot}: no tokenizer.json: {what}; save a fast tokenizer there")
    write_json(folder / "tokenizer_config.json", settings)


def filling_token(tokenizer: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """What pads where nothing is named for it: [PAD] by its name, or the end or unknown token."""
    named = (token_text(settings.get(name)) for name in ("eos_token", "unk_token"))
    for token in (*PADS, *named):
        if token and token_id(tokenizer, token) is not None:
            return token
    return None


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
