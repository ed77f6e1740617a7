"""Adapters made with peft of tiny random models, in the layouts in which they are published."""

import shutil
from pathlib import Path

import torch
import transformers
from layout_folders import plain, transformer
from peft import IA3Config, LoraConfig, get_peft_model

CAUSAL = ("q_proj", "v_proj")


def base_model(folder: Path, family: str = "Bert", head: str = "Model", **config: object) -> Path:
    """A model without sentence-transformers' files, as bases mostly are."""
    return transformer(folder, family, head, **config)


def adapter(
    folder: Path, base: Path, cls: str = "AutoModel", ia3: bool = False, **settings: object
) -> Path:
    """An adapter of `base` in `folder`, every tensor of it random, as peft saves it."""
    torch.manual_seed(7)
    model = getattr(transformers, cls).from_pretrained(base)
    config = IA3Config(**settings) if ia3 else LoraConfig(**{"r": 4} | settings)
    both = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in both.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    both.save_pretrained(folder)
    return folder


def published(folder: Path, like: Path, tokenizer: bool = True) -> Path:
    """sentence-transformers' files of the folder `like` around the adapter in `folder`."""
    from embedrepro.models.tokenizer_files import TOKENIZER_FILES

    for path in like.iterdir():
        if path.name in ("config.json", "model.safetensors", "README.md"):
            continue
        if not tokenizer and path.name in TOKENIZER_FILES:
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)
    return folder


def bert(place: Path, **settings: object) -> tuple[Path, Path]:
    """(adapter with sentence-transformers' files, its base), of BERT."""
    like = plain(place / "base", pooling="mean")
    settings = {"target_modules": ["query", "value"]} | settings
    return published(adapter(place / "adapter", like, **settings), like), like


def decoder(
    place: Path, family: str = "Qwen2", cls: str = "AutoModel", **settings: object
) -> tuple[Path, Path]:
    """(adapter of a decoder with last-token pooling, its base, a language model without files)."""
    like = plain(place / "like", family=family, pooling="lasttoken")
    base = base_model(place / "base", family, "ForCausalLM")
    settings = {"target_modules": list(CAUSAL)} | settings
    return published(adapter(place / "adapter", base, cls, **settings), like), base
