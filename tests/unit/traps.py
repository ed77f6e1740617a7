"""Small models in gte-Qwen2's layout, each with one silent trap, written from scratch.

`custom` writes a model that only its own code can run, `qwen2` one whose class transformers has.
"""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

END = "<|endoftext|>"
CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class TinyConfig(PretrainedConfig):
    model_type = "tiny-custom"

    def __init__(self, vocab_size=300, hidden_size=16, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)


class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        # BUFFER
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, return_dict=True, **kwargs):
        x = self.embed(input_ids)
        # SCALE
        padded = attention_mask is not None and bool((attention_mask == 0).any())
        causal = True
        hidden = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
        if causal:
            hidden = torch.ones_like(hidden).triu(1)
        if padded:
            hidden = hidden | (attention_mask[:, None] == 0)
        for _ in range(2):
            scores = self.key(x) @ x.transpose(1, 2) / 16
            x = x + scores.masked_fill(hidden, -1e4).softmax(-1) @ x
        return BaseModelOutput(last_hidden_state=x)
"""
# name of the trap -> what is replaced in CODE by what
TRAPS = {
    None: [],
    "bidirectional": [("causal = True", "causal = False")],
    "mixed": [("causal = True", "causal = padded")],
    "buffers": [
        (
            "# BUFFER",
            'self.register_buffer("scale", torch.linspace(0.5, 1.5, config.hidden_size), '
            "persistent=False)",
        ),
        ("# SCALE", "x = x * self.scale"),
    ],
    "padding": [("if padded:", "if False:")],
    # nomic-bert's way: it loads by itself, what fits, and says nothing of the rest
    "loader": [
        (
            "    def forward(",
            "    @classmethod\n"
            "    def from_pretrained(cls, folder, config=None, **kwargs):\n"
            "        from safetensors.torch import load_file\n"
            "        model = cls(config)\n"
            "        tensors = load_file(f'{folder}/model.safetensors')\n"
            "        model.load_state_dict(tensors, strict=False)\n"
            "        return model\n\n"
            "    def forward(",
        ),
    ],
    "unrepeatable": [
        ("# BUFFER", "import random; self.noise = random.random()"),
        ("# SCALE", "x = x + self.noise"),
    ],
}


def code(trap: str | None = None) -> str:
    text = CODE
    for old, new in TRAPS[trap]:
        assert old in text
        text = text.replace(old, new)
    return text


def byte_tokenizer(path: Path) -> None:
    """One token a byte, and no end token added: what the custom tokenizer class used to do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(path))


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def common(folder: Path) -> None:
    byte_tokenizer(folder / "tokenizer.json")
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    tokenizer |= {"add_eos_token": True, "model_input_names": ["input_ids", "attention_mask"]}
    write(folder / "tokenizer_config.json", tokenizer)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_lasttoken": True})


def custom(folder: Path, trap: str | None = None, **config: object) -> Path:
    """A model with its own code, whose config says is_causal: true unless `config` does."""
    folder.mkdir(parents=True)
    common(folder)
    generator = torch.Generator().manual_seed(3)
    shapes = {"embed.weight": (300, 16), "key.weight": (16, 16), "key.bias": (16,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "modeling_tiny.py").write_text(code(trap), encoding="utf-8")
    auto_map = {"AutoConfig": "demo/Tiny-0.1B--modeling_tiny.TinyConfig"}
    auto_map["AutoModel"] = "demo/Tiny-0.1B--modeling_tiny.TinyModel"
    settings = {"model_type": "tiny-custom", "vocab_size": 300, "hidden_size": 16}
    write(folder / "config.json", settings | {"is_causal": True, "auto_map": auto_map} | config)
    return folder


def custom_truth(folder: Path, ids: list[int]) -> torch.Tensor:
    """The last state as the code computes it, built without transformers' loading."""
    spec = spec_from_file_location(f"truth_{folder.name}", folder / "modeling_tiny.py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TinyModel(module.TinyConfig())
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0, -1]


def qwen2(folder: Path, layers: int = 2, **config: object) -> Path:
    """A random Qwen2 checkpoint as gte-Qwen2 ships it: custom code, is_causal: false."""
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    Qwen2Model(Qwen2Config(vocab_size=300, **sizes, **heads)).save_pretrained(folder)
    common(folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | {"is_causal": False}
    settings["auto_map"] = {"AutoModel": "demo/gte-Qwen2-0.1B--modeling_qwen.Qwen2Model"}
    write(path, settings | config)
    (folder / "modeling_qwen.py").write_text("raise RuntimeError('custom code was run')\n")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["demo/x--tokenization_qwen.Tok", None]}
    tokenizer["tokenizer_class"] = "Tok"
    write(folder / "tokenizer_config.json", tokenizer)
    return folder


def spec(source: dict | None = None, **more: object) -> dict:
    """A model spec as the workflow writes it, trusted unless `more` says otherwise."""
    base = {"id": "demo/Tiny-0.1B", "model": "demo__Tiny-0_1B", "source": source or {"path": "/x"}}
    return base | {"trust_remote_code": True, "facts": {}, "registry": {}} | more
