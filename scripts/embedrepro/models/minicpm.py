"""FlagEmbedding's layerwise MiniCPM reranker, mended for transformers 5.

FlagEmbedding 1.4.2's class was written for transformers 4. Version 5 gives every config a default
rotary scaling, which it takes for one that it doesn't know, wants the tied weights as a table, and
leaves its tables of rotations, which no checkpoint holds, unwritten. The arithmetic is its own.
"""

from typing import Any

import torch
from FlagEmbedding.inference.reranker.decoder_only import layerwise
from FlagEmbedding.inference.reranker.decoder_only.models.modeling_minicpm_reranker import (
    LayerWiseMiniCPMForCausalLM,
    MiniCPMRotaryEmbedding,
)


class MendedMiniCPM(LayerWiseMiniCPMForCausalLM):
    """See the module. Scores of each layer from the config's `start_layer` on."""

    _tied_weights_keys: dict[str, str] = {}

    def __init__(self, config: Any) -> None:
        scaling = getattr(config, "rope_scaling", None) or {}
        if scaling.get("rope_type", scaling.get("type")) == "default":
            config.rope_scaling = None
        config.use_cache = False  # its cache is transformers 4's
        super().__init__(config)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As the base class; the tables of rotations are written once the weights are there."""
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for module in model.modules():
            if isinstance(module, MiniCPMRotaryEmbedding):
                rates = torch.arange(0, module.dim, 2).float() / module.dim
                module.register_buffer("inv_freq", 1.0 / module.base**rates, persistent=False)
                longest, device = module.max_position_embeddings, module.inv_freq.device
                module._set_cos_sin_cache(longest, device, torch.float32)
        return loaded


def mend() -> None:
    """Have FlagEmbedding's LayerWiseFlagLLMReranker load the mended class."""
    layerwise.LayerWiseMiniCPMForCausalLM = MendedMiniCPM
