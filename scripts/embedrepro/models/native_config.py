"""config.json of models that came with code of their own, in the words of transformers' classes.

Some architectures were a repository's own code for years before transformers took them in, under
other names of settings. Its classes don't know the old names: they fall back on their defaults,
without a word, and read right only the one model that the defaults are of. So the old names are
translated here, those of settings that the native class hasn't got are refused.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import printable

Config = Mapping[str, Any]
# Old code's name of an architecture that transformers knows under another one.
RENAMED = {"new": "gte"}
GPT2_NAMES = "n_embd"  # nomic-bert's code takes GPT-2's config
ROUNDED = 256  # its gated layers are a multiple of this wide, whatever n_inner says
GATED = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"}


class Untranslatable(Exception):
    """A setting that transformers' class doesn't have: says which, and its value."""


def native_type(config: Config) -> str:
    """Under which model type transformers knows the architecture, if it does."""
    kind = str(config["model_type"])
    return RENAMED.get(kind, kind)


def native_config(config: Config) -> dict[str, Any]:
    """The config in transformers' words; as it is where it speaks them already.

    Raises `Untranslatable` for what its class would leave out.
    """
    kind = native_type(config)
    if kind == "gte" and "rope_parameters" not in config:
        return _gte(config)
    if kind == "nomic_bert" and GPT2_NAMES in config:
        return _nomic(config)
    return dict(config)


def untranslatable(config: Config) -> str:
    """The setting that keeps a config from transformers' class, or nothing."""
    try:
        native_config(config)
    except Untranslatable as error:
        return str(error)
    return ""


def _gte(config: Config) -> dict[str, Any]:
    """The code of Alibaba-NLP/new-impl and its copies: NTK's rope is a linear one of another base.

    Its defaults are stated too: they aren't those of transformers' class.
    """
    wanted = {"layer_norm_type": "layer_norm", "position_embedding_type": "rope", "pack_qkv": True}
    _only(config, wanted | {"logn_attention_scale": False})
    scaling = dict(config.get("rope_scaling") or {})
    theta = float(config.get("rope_theta", 10_000))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind != "ntk" or scaling.get("mixed_b") is not None:
            raise Untranslatable(f"rope_scaling: {printable(scaling)}")
        factor = float(scaling["factor"])
        size = config["hidden_size"] // config["num_attention_heads"]
        linear = {"rope_type": "linear", "factor": factor ** (2 / size)}
        rope = linear | {"rope_theta": theta * factor}
    defaults = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 1}
    kept = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    return defaults | kept | {"model_type": "gte", "rope_parameters": rope}


def _nomic(config: Config) -> dict[str, Any]:
    """The code of nomic-ai/nomic-bert-2048, whose settings are GPT-2's and its own."""
    plain = dict.fromkeys(
        ("prenorm", "parallel_block", "use_rms_norm", "causal", "norm_mlp"), False
    )
    plain |= dict.fromkeys(("rotary_emb_interleaved", "rotary_scaling_factor"), False)
    plain |= dict.fromkeys(("rotary_emb_scale_base", "num_heads_kv", "num_experts"), False)
    _only(config, plain)
    _only(config, {"rotary_emb_fraction": 1.0}, default=0.0)
    biases = dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False)
    _only(config, biases, default=True)
    activation = str(config.get("activation_function", "gelu_new"))
    if activation not in GATED:
        raise Untranslatable(f"activation_function: {printable(activation)}")
    multiple = config.get("pad_vocab_size_multiple") or 1
    width = config["n_embd"]
    ours: dict[str, tuple[str, Any]] = {
        "hidden_size": ("n_embd", width),
        "num_hidden_layers": ("n_layer", 12),
        "num_attention_heads": ("n_head", 12),
        "max_position_embeddings": ("n_positions", 1024),
        "layer_norm_eps": ("layer_norm_epsilon", 1e-5),
    }
    translated = {name: config.get(old, default) for name, (old, default) in ours.items()}
    translated["hidden_act"] = GATED[activation]
    inner = config.get("n_inner") or int(8 * width / 3)
    translated["intermediate_size"] = -(-inner // ROUNDED) * ROUNDED
    translated["vocab_size"] = -(-config["vocab_size"] // multiple) * multiple
    theta = float(config.get("rotary_emb_base", 10_000))
    translated["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    translated["type_vocab_size"] = config.get("type_vocab_size", 2)
    return dict(config) | translated


def _only(config: Config, values: Config, default: Any = None) -> None:
    """Refuse a setting that has another of the `values`; unset and None are as the code has it."""
    for name, value in values.items():
        found = config.get(name)
        if found is None:
            found = value if default is None else default
        if bool(found) != value if isinstance(value, bool) else found != value:
            raise Untranslatable(f"{name}: {printable(found)}")
