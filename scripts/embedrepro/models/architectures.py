"""What the installed transformers and FlagEmbedding know, read from their source files.

Importing transformers' registries loads torch (seconds), importing FlagEmbedding's mapping loads
all of it; both are literal tables, so they are parsed instead.
"""

import ast
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError

AUTO = "models/auto/"
# Encoder-decoders of which sentence-transformers loads the encoder alone.
ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
}


def packs() -> bool:
    """Whether the installed transformers lets attention and its masks be replaced, since 4.53."""
    return (_package("transformers") / "masking_utils.py").is_file()


def dtype_name() -> str:
    """What `from_pretrained` calls the precision: before 4.56 it took only the older word."""
    major, minor = map(int, version("transformers").split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"{name} is not installed; install the project's dependencies")
    return Path(spec.origin).parent


@cache
def _tables(file: Path) -> dict[str, dict[str, str]]:
    """`NAME = OrderedDict([("key", "value" or ("value", …)), …])` at a file's top level."""
    tables: dict[str, dict[str, str]] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            rows = tables.setdefault(node.targets[0].id, {})
            for pair in ast.walk(node.value):
                if isinstance(pair, ast.Tuple) and len(pair.elts) == 2:
                    key, value = pair.elts
                    first = value.elts[0] if isinstance(value, ast.Tuple) else value
                    if isinstance(key, ast.Constant) and isinstance(first, ast.Constant):
                        rows[str(key.value)] = str(first.value)
    return tables


@cache
def native_class(model_type: str) -> str | None:
    """The class that transformers' AutoModel picks for a `model_type`, or None if it has none."""
    folder = _package("transformers") / AUTO
    places = (folder / "auto_mappings.py", folder / "configuration_auto.py")  # here until 5
    configs = _tables(next(filter(Path.is_file, places)))["CONFIG_MAPPING_NAMES"]
    models = _tables(folder / "modeling_auto.py")["MODEL_MAPPING_NAMES"]
    return models.get(model_type) if model_type in configs else None


def native_attention(model_type: str) -> str | None:
    """Attention direction of an architecture as built: "causal", "bidirectional", or None.

    A model with a masked-language-model head is an encoder; one with only a causal head a decoder.
    """
    tables = _tables(_package("transformers") / AUTO / "modeling_auto.py")
    if model_type in tables["MODEL_FOR_MASKED_LM_MAPPING_NAMES"]:
        return "bidirectional"
    if model_type in tables["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"]:
        return "causal"
    return None


@cache
def flagembedding_mapping() -> dict[str, dict[str, str]]:
    """FlagEmbedding's table: model basename -> {"class", "pooling", "format"}."""
    path = _package("FlagEmbedding") / "inference" / "embedder" / "model_mapping.py"
    table = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Tuple) and len(node.elts) == 2):
            continue
        name, call = node.elts
        if isinstance(name, ast.Constant) and isinstance(call, ast.Call):
            named = {keyword.arg: keyword.value for keyword in call.keywords}
            text: Any = named.get("query_instruction_format")
            words: list[Any] = call.args  # a class's name, PoolingMethod.CLS
            table[str(name.value)] = {
                "class": words[0].id,
                "pooling": words[1].attr.lower(),
                "format": text.value if text is not None else "{}{}",
            }
    return table


@cache
def native_head(model_type: str, task: str) -> str | None:
    """The class that transformers' auto class `task` picks for a `model_type`, or None."""
    tables = _tables(_package("transformers") / AUTO / "modeling_auto.py")
    table = {
        "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    }[task]
    return tables[table].get(model_type)


RERANKER_CLASSES = {
    "FlagReranker": "encoder-only-base",
    "FlagLLMReranker": "decoder-only-base",
    "LayerWiseFlagLLMReranker": "decoder-only-layerwise",
    "LightWeightFlagLLMReranker": "decoder-only-lightweight",
}


@cache
def flagembedding_rerankers() -> dict[str, str]:
    """FlagEmbedding's table of rerankers: basename -> how it scores, in FlagEmbedding's words."""
    path = _package("FlagEmbedding") / "inference" / "reranker" / "model_mapping.py"
    table = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            name, call = node.elts
            if isinstance(name, ast.Constant) and isinstance(call, ast.Call):
                words: list[Any] = call.args
                table[str(name.value)] = RERANKER_CLASSES[words[0].id]
    return table
