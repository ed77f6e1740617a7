"""Adapters made with peft of tiny random models, in the layouts in which they are published.

Each maker puts the adapter into `folder` and the model that it changes beside it, into `base`.
"""

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from embedrepro.models.tokenizer_files import TOKENIZER_FILES
from layout_folders import plain, tokenizer, transformer
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)

TARGETS = {"Bert": ["query", "value"], "Qwen2": ["q_proj", "v_proj", "down_proj"]}
TARGETS |= {"Mistral": ["q_proj", "gate_proj"], "XLMRoberta": ["query", "dense"]}


def trained(
    folder: Path, base: Path, cls: str = "AutoModel", ia3: bool = False, **settings: object
) -> Path:
    """An adapter of `base` in `folder`, all of it random, as peft saves it."""
    torch.manual_seed(7)
    extra = {"num_labels": 1} if "Sequence" in cls else {}
    model = getattr(transformers, cls).from_pretrained(base, **extra)
    config = IA3Config(**settings) if ia3 else LoraConfig(**{"r": 4} | settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in both.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        both.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def split(folder: Path, place: str = "", tokenizer: bool = True) -> Path:
    """Move the model of a whole folder beside it, its sentence-transformers files stay; a tokenizer
    has the base in any case."""
    base = folder.with_name("base")
    base.mkdir(exist_ok=True)
    for path in [p for p in (folder / place).iterdir() if p.is_file()]:
        weights = path.name.endswith((".safetensors", "config.json")) and path.name[0] == "m"
        if path.name == "config.json" or weights and path.name != "modules.json":
            path.rename(base / path.name)
        elif path.name in TOKENIZER_FILES:
            shutil.copyfile(path, base / path.name)
            if not tokenizer:
                path.unlink()
    return base


def adapted(
    maker: Callable[[Path], Path], place: str = "", tokenizer: bool = True, **settings: object
) -> Callable[[Path], Path]:
    """A maker of whole folders, made one of adapters."""

    def make(folder: Path) -> Path:
        maker(folder)
        trained(folder / place, split(folder, place, tokenizer), **settings)
        return folder

    return make


def of(family: str, pooling: str = "mean", **settings: object) -> Callable[[Path], Path]:
    """An adapter with sentence-transformers' files."""
    targets = {"target_modules": TARGETS[family]}
    return adapted(lambda f: plain(f, family=family, pooling=pooling), **targets | settings)


def language(family: str = "Qwen2", **settings: object) -> Callable[[Path], Path]:
    """An adapter with last-token pooling of a language model, whose head nobody needs."""

    def make(folder: Path) -> Path:
        plain(folder, family=family, pooling="lasttoken")
        shutil.rmtree(split(folder))
        base = transformer(folder.with_name("base"), family, "ForCausalLM")
        return trained(folder, base, **{"target_modules": TARGETS[family]} | settings)

    return make


def bare(family: str = "Bert", words: bool = False, **settings: object) -> Callable[[Path], Path]:
    """Nothing but the adapter: its tokenizer is its base's, but for one that has `words`."""

    def make(folder: Path) -> Path:
        base = transformer(folder.with_name("base"), family)
        trained(folder, base, **{"target_modules": TARGETS[family]} | settings)
        if words:
            tokenizer(folder)
        return folder

    return make


def reranker(family: str = "Bert", **settings: object) -> Callable[[Path], Path]:
    """A classification head and an adapter, of a model without a head."""

    def make(folder: Path) -> Path:
        head = "ForCausalLM" if family in ("Qwen2", "Mistral") else "Model"
        base = transformer(folder.with_name("base"), family, head)
        given = {"target_modules": TARGETS[family], "task_type": "SEQ_CLS"} | settings
        return trained(folder, base, "AutoModelForSequenceClassification", **given)

    return make


def prompts(folder: Path) -> Path:
    base = transformer(folder.with_name("base"), "Qwen2", "ForCausalLM")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def enlarged(folder: Path) -> Path:
    """Trained after tokens were added to the model, all embeddings saved with it."""
    base = transformer(folder.with_name("base"), "Qwen2")
    model = transformers.AutoModel.from_pretrained(base)
    model.resize_token_embeddings(310)
    grown = folder.with_name("grown")
    model.save_pretrained(grown)
    tokenizer(grown)
    return trained(folder, grown, target_modules=["q_proj"], modules_to_save=["embed_tokens"])


# What sentence-transformers itself gets wrong.


def magnitudes(peer: Any) -> None:
    """transformers 5.23 doesn't find DoRA's magnitudes in the file, and says nothing."""
    folder = peer[0].auto_model.peft_config["default"].base_model_name_or_path
    tensors = load_peft_weights(str(Path(folder).with_name("snapshot")), device="cpu")
    assert not set_peft_model_state_dict(peer[0].auto_model, tensors).unexpected_keys


def scored(snapshot: Path, pairs: Sequence[tuple[str, str]], settings: Any) -> list[float]:
    """Logits of peft's own unmerged model, pair by pair."""
    base = snapshot.with_name("base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    both = PeftModel.from_pretrained(model, snapshot).eval()
    words = transformers.AutoTokenizer.from_pretrained(base)
    found = []
    for query, passage in pairs:
        cut = {"truncation": "longest_first", "max_length": settings["max_length"]}
        given = words(query, passage, return_tensors="pt", **cut)
        with torch.no_grad():
            found.append(float(both(**given).logits[0, 0]))
    return found
