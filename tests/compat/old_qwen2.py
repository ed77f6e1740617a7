"""A tiny random model in gte-Qwen2's shape, with code of its own in plain torch.

Its config says `is_causal: false` while its code is causal; its tokenizer class appends the end
token, which `tokenizer.json` does not. Tensor names are those of transformers' own Qwen2Model.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

END = "<|endoftext|>"
HIDDEN, INNER, HEADS, KEY_HEADS, LAYERS, VOCABULARY = 32, 48, 4, 2, 2, 300

MODELING = '''
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config
from transformers.modeling_outputs import BaseModelOutput


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def rotate(x, positions, theta):
    """x (batch, heads, length, size); positions (batch, length)"""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = (positions[:, None, :, None] * frequencies).repeat(1, 1, 1, 2)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos() + turned * angles.sin()


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = config.hidden_size // self.heads
        self.theta = config.rope_theta
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.size)
        self.k_proj = nn.Linear(config.hidden_size, self.key_heads * self.size)
        self.v_proj = nn.Linear(config.hidden_size, self.key_heads * self.size)
        self.o_proj = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)

    def forward(self, x, hidden, positions):
        batch, length, _ = x.shape
        q, k, v = (
            f(x).view(batch, length, -1, self.size).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, positions, self.theta), rotate(k, positions, self.theta)
        repeats = self.heads // self.key_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = (q @ k.transpose(2, 3) / self.size**0.5).masked_fill(hidden, -1e30)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))


class Inner(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), Inner(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, hidden, positions):
        x = x + self.self_attn(self.input_layernorm(x), hidden, positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2Model(PreTrainedModel):
    config_class = Qwen2Config

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, is_causal=True, **kwargs):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = attention_mask[:, None, None] == 0
        if is_causal:
            length = input_ids.shape[1]
            hidden = hidden | torch.ones(length, length, dtype=torch.bool).triu(1)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, hidden, positions)
        return BaseModelOutput(last_hidden_state=self.norm(x))
'''

TOKENIZATION = """
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


class EndTokenizer(PreTrainedTokenizerFast):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        end = self.eos_token
        self._tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, self.convert_tokens_to_ids(end))]
        )
"""


def build(folder: Path, seed: int = 0) -> Path:
    """Write the model's folder, as a hub repository holds it."""
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(tensors(seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "modeling_qwen.py").write_text(MODELING, encoding="utf-8")
    (folder / "tokenization_qwen.py").write_text(TOKENIZATION, encoding="utf-8")
    for name, value in settings().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    return folder


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    size = HIDDEN // HEADS
    found = {"embed_tokens.weight": random(VOCABULARY, HIDDEN), "norm.weight": 1 + random(HIDDEN)}
    for layer in range(LAYERS):
        part = f"layers.{layer}."
        for name, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS)):
            found[f"{part}self_attn.{name}_proj.weight"] = random(heads * size, HIDDEN)
            found[f"{part}self_attn.{name}_proj.bias"] = random(heads * size)
        found[f"{part}self_attn.o_proj.weight"] = random(HIDDEN, HIDDEN)
        found[f"{part}mlp.gate_proj.weight"] = random(INNER, HIDDEN)
        found[f"{part}mlp.up_proj.weight"] = random(INNER, HIDDEN)
        found[f"{part}mlp.down_proj.weight"] = random(HIDDEN, INNER)
        for name in ("input", "post_attention"):
            found[f"{part}{name}_layernorm.weight"] = 1 + random(HIDDEN)
    return found


def settings() -> dict[str, object]:
    kinds = ("Transformer", "Pooling", "Normalize")
    return {
        "config.json": {
            "architectures": ["Qwen2Model"],
            "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"},
            "model_type": "qwen2",
            "is_causal": False,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_HEADS,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "torch_dtype": "float32",
            "vocab_size": VOCABULARY,
        },
        "tokenizer_config.json": {
            "auto_map": {"AutoTokenizer": [None, "tokenization_qwen.EndTokenizer"]},
            "tokenizer_class": "EndTokenizer",
            "eos_token": END,
            "pad_token": END,
            "add_eos_token": True,
            "model_max_length": 512,
            "model_input_names": ["input_ids", "attention_mask"],
        },
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ],
        "1_Pooling/config.json": {"pooling_mode_lasttoken": True},
    }
