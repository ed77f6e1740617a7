"""Passages of a sentence-transformers model end to end, as the packed engine runs its own.

On CUDA in half precision, where the trunk is of a family that the packed engine takes, and the
modules behind it look at each token alone, or know such batches themselves (SPLADE's pooling).
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer

from ..models.facts_table import Role
from . import attention
from .batches import Batch, Sequences
from .facts import Facts
from .families import PACKED_MODEL_TYPES, Family
from .packed import varlen_budget
from .pipeline import Finish, PartType, Pipeline
from .tokens import Tokeniser

TOKENWISE = ("Dense", "MultiVectorMask", "Normalize", "SpladePooling")
OUTPUTS = {"feature-extraction": "last_hidden_state", "fill-mask": "logits"}
# Whether texts are prepared as sentence-transformers prepares them shows on these.
PROBES = [
    "A plain sentence, with a comma.",
    " Leading, doubled  and trailing spaces, UPPER and Mixed Case ",
    "Ünïcödé naïve façade ﬁ ½ 東京都 привет שלום 🙂",
    "line\nbreaks\tand tabs - [MASK] <s> 3.14159",
    "long " * 9000,
]


def family_of(model: Any, facts: Facts) -> Family | None:
    """The family of a model whose passages can be run so; None for all others."""
    family = PACKED_MODEL_TYPES.get(facts.architecture)
    if family is None or family.layout != "varlen" or family.decoder:
        return None
    first, *rest = model
    if type(first) is not Transformer or first.transformer_task not in OUTPUTS:
        return None
    trunk = first.model
    native = type(trunk).__module__.startswith("transformers.models.")
    placed = "position_ids" in inspect.signature(trunk.forward).parameters
    plain = first.modality_config.get("text") == {
        "method": "forward",
        "method_output_name": OUTPUTS[first.transformer_task],
    }
    behind = all(
        type(module).__name__ in TOKENWISE
        and getattr(module, "module_input_name", "token_embeddings") == "token_embeddings"
        for module in rest
    )
    return family if native and placed and plain and behind else None


class Flat:
    """Runs `model` so, by `forward(features, role)`. `most`: tokens that a batch may have.

    `pooled`: the model makes one vector a text, from batches that say where each begins.
    """

    def __init__(
        self,
        model: Any,
        facts: Facts,
        family: Family,
        most: int | None,
        forward: Callable[[dict[str, Any], Role], dict[str, Any]],
    ) -> None:
        self.facts, self.trunk, self.forward = facts, model[0].model, forward
        # Its own, since sentence-transformers' calls leave their padding behind.
        self.tokenizer = copy.deepcopy(model.tokenizer)
        self.pooled = any(type(module).__name__ == "SpladePooling" for module in model)
        pad = self.tokenizer.pad_token_id or 0
        self.offset = self.trunk.config.pad_token_id + 1 if family.padding_offset else 0
        device = next(self.trunk.parameters()).device
        budget = varlen_budget(self.trunk, device)
        budget = max(min(budget, most or budget), *facts.max_length.values())
        self.pipeline: Pipeline[Any] = Pipeline(device, True, pad, budget)

    def tokeniser(self, role: Role, prompt: str, features: dict[str, Any]) -> Tokeniser | None:
        """What makes ids of texts; None where `features`, those of PROBES, have others."""
        tokeniser = Tokeniser(self.tokenizer, self.facts, role, None, prompt, reads_empty=True)
        (found,) = tokeniser.chunks(PROBES)
        mask = features["attention_mask"].bool()
        lengths = mask.sum(1).tolist()
        ids = features["input_ids"][mask].tolist()
        same = found.lengths.tolist() == lengths and found.ids.tolist() == ids
        return tokeniser if same else None

    def parts(
        self,
        tokeniser: Tokeniser,
        texts: Iterable[str],
        features: dict[str, Any],
        tensors: Any,
        finish: Finish[PartType],
        nothing: Callable[[np.ndarray], PartType],
    ) -> Iterator[PartType]:
        """Parts of passages; `tensors(features, n, used)` picks what is fetched of a batch of n
        texts with `used` tokens. `features`: the same for all texts. `nothing(rows)`: the part of
        texts without any token, which are not run."""

        def compute(batch: Batch, arrays: list[torch.Tensor]) -> list[torch.Tensor]:
            ids, positions, offsets = arrays
            self.follow(attention.VARLEN)
            attention.layout.offsets = offsets
            attention.layout.longest = batch.width
            ids = ids.long()[None]
            laid = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            laid["position_ids"] = (positions + self.offset).long()[None]
            if self.pooled:
                laid["cu_seq_lens_q"] = offsets
            sequences = batch.sequences
            found = self.forward(features | laid, "passage")
            return list(tensors(found, len(sequences.rows), len(sequences.ids)))

        without: list[np.ndarray] = []
        chunks = with_tokens(tokeniser.chunks(texts), without)
        yield from self.pipeline.parts(chunks, tokeniser.limit, compute, finish)
        for rows in without:
            yield nothing(rows)

    def follow(self, implementation: str) -> None:
        """Let the trunk attend in this way."""
        if self.trunk.config._attn_implementation != implementation:
            self.trunk.set_attn_implementation(implementation)


def with_tokens(chunks: Iterable[Sequences], without: list[np.ndarray]) -> Iterator[Sequences]:
    """The sequences that have a token; the others' rows (n,), where a chunk has any, go into
    `without`."""
    for chunk in chunks:
        some = chunk.lengths > 0
        if not some.all():
            without.append(chunk.rows[~some])
        if some.any():
            yield chunk.where(some)
