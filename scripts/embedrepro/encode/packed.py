"""The packed engine: native transformers models on batches of constant shape.

On CUDA sequences lie end to end, without padding, and in half precision one compiled layer serves
all layers. Everywhere else rows are padded to a few widths. Host and device overlap: threads read,
tokenise (or hand that to processes) and lay out batches, the device runs, finished vectors are
handed out while it does.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer

from ..errors import UserError
from ..models.facts_table import Role
from . import attention
from .batches import CPU_BUDGET, CUDA_BUDGET, Batch, Part
from .engine import Precision, check_finite, cut_dimensions, pick_precision
from .facts import Facts
from .families import PACKED_MODEL_TYPES
from .loading import OWN_WAY, cast, check_lengths, restore_direction, round_parameters
from .pipeline import Pipeline
from .steps import Steps, in_blocks, single_positions
from .tokens import Tokeniser

MOST_TOKENS = 131_072  # more brings nothing
BATCH_FLOPS = 1e14  # nor does a batch of more work than this


class Wanted(NamedTuple):
    """Of one request: how many numbers of a vector are kept, prompt tokens that pooling skips."""

    kept: int
    skipped: int


class PackedEngine:
    """See the module; `Engine` says what its attributes are."""

    name = "packed"

    def __init__(
        self,
        facts: Facts,
        device: str,
        tokens_per_batch: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.family = PACKED_MODEL_TYPES[facts.architecture]
        self.tokenizer = AutoTokenizer.from_pretrained(facts.staged)
        self.asked = tokens_per_batch
        torch.backends.cuda.matmul.allow_tf32 = False
        self.precision = pick_precision(facts.dtype, self.device.type, fp8=True)
        self.model = self._load(facts)
        check_lengths(self.model, facts)
        self._settle(facts, compiled)

    def _settle(self, facts: Facts, compiled: bool) -> None:
        """Get ready to compute in the precision of `facts`, which the weights are in."""
        self.facts = facts
        self.remarks: dict[str, Any] = {}
        if self.precision.arithmetic == "float32":
            round_parameters(self.model, self.precision.dtype)
        self.varlen = self._can_varlen()
        if self.family.layout == "varlen":
            self.model.set_attn_implementation(
                attention.VARLEN if self.varlen else attention.PADDED
            )
        self.steps = Steps(facts, facts.hidden_size, self.device)
        self.dimension = self.steps.dimension
        self.compiled = compiled and self.varlen
        self.narrow = self.varlen and self.family.prenorm and self.steps.single is not None
        self._rounded = facts.dtype != "fp8"  # to float8, with the first batch
        if self._rounded:
            self._prepare_layers()
        budget = max(self.asked or self._estimate(), *facts.max_length.values())
        pad = self.tokenizer.pad_token_id or 0
        self.pipeline: Pipeline[Part] = Pipeline(self.device, self.varlen, pad, budget)

    def turn(self, facts: Facts, compiled: bool) -> bool:
        """Compute in another precision from now on; False where weights must be read again.

        In float32 every number of a checkpoint is there, so that rounding it is what loading does.
        """
        precision = pick_precision(facts.dtype, self.device.type, fp8=True)
        if self.precision.dtype != "float32" or not cast(self.model, loaded_as(precision)):
            return False
        self.precision = precision
        self._settle(facts, compiled)
        return True

    @property
    def tokens_per_batch(self) -> int:
        """Lower than at first where memory ran out."""
        return self.pipeline.budget

    def encode(
        self,
        texts: Iterable[str],
        role: Role,
        instruction: str | None = None,
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
    ) -> Iterator[Part]:
        kept = cut_dimensions(self.facts, self.dimension, dimensions)
        tokeniser = Tokeniser(self.tokenizer, self.facts, role, instruction, prompt)
        skipped = 0 if self.steps.include_prompt else tokeniser.prompt_length
        wanted = Wanted(kept, skipped)
        return self._parts(tokeniser, texts, wanted)  # a mistake shows before anything is asked for

    def _parts(self, tokeniser: Tokeniser, texts: Iterable[str], wanted: Wanted) -> Iterator[Part]:
        def compute(batch: Batch, arrays: list[torch.Tensor]) -> list[torch.Tensor]:
            if not self._rounded:
                self._to_fp8(batch, arrays, wanted)
            return [self._run(batch, arrays, wanted)]

        chunks = tokeniser.chunks(texts)
        return self.pipeline.parts(chunks, tokeniser.limit, compute, self._finish)

    def _to_fp8(self, batch: Batch, arrays: list[torch.Tensor], wanted: Wanted) -> None:
        """Change the layers to float8, and note what that does to the vectors of this batch."""
        from .fp8 import replace_linear  # needs Triton

        before = self._run(batch, arrays, wanted).float()
        with torch.inference_mode(False):
            replace_linear(layers_of(self.model), getattr(self.model.config, "hidden_act", None))
        after = self._run(batch, arrays, wanted).float()
        cosine = torch.nn.functional.cosine_similarity(before, after)
        self.remarks["fp8_effect"] = {
            "texts": len(cosine),
            "cosine_to_bfloat16_mean": round(cosine.mean().item(), 6),
            "cosine_to_bfloat16_min": round(cosine.min().item(), 6),
        }
        self._rounded = True
        self._prepare_layers()

    def _prepare_layers(self) -> None:
        layers = layers_of(self.model)
        if self.narrow:
            layers[-1].forward = partial(narrow_forward, layers[-1])
        if self.compiled:  # a layer that is narrowed would take longer to compile than it saves
            from .compiling import compile_layers

            compile_layers(layers[:-1] if self.narrow else layers)

    def _can_varlen(self) -> bool:
        on_device = self.family.layout == "varlen" and self.device.type == "cuda"
        half = self.precision.arithmetic != "float32"
        return on_device and (half or attention.sees_all(self.model.config))

    def _load(self, facts: Facts) -> Any:
        cls = getattr(transformers, self.family.cls or "AutoModel")
        model, found = cls.from_pretrained(
            facts.staged,
            dtype=getattr(torch, loaded_as(self.precision)),
            attn_implementation=attention.PADDED if self.family.layout == "varlen" else "eager",
            local_files_only=True,
            output_loading_info=True,
        )
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise UserError(
                f"{facts.model_id}: its weights lack {len(missing)} tensors of the model "
                f"({missing[0]}, …); the snapshot is not whole or not of this architecture"
            )
        if self.family.decoder:
            set_direction(model, facts.attention == "causal")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output is not used
        return model.to(self.device).eval()

    def _estimate(self) -> int:
        """Tokens a batch."""
        if self.varlen and self.precision.arithmetic != "float32":
            return varlen_budget(self.model, self.device)
        return CUDA_BUDGET if self.device.type == "cuda" else CPU_BUDGET

    def _run(self, batch: Batch, arrays: list[torch.Tensor], wanted: Wanted) -> torch.Tensor:
        """(n, kept) vectors of a batch's n sequences, on the device."""
        finish = partial(self._vectors, kept=wanted.kept)
        run: Callable[..., torch.Tensor] = self._run_varlen if self.varlen else self._run_padded
        pooled = run(*arrays, batch, wanted.skipped)
        if self.varlen:
            return in_blocks(finish, pooled)
        return finish(pooled)[: len(batch.sequences.rows)]

    def _vectors(self, pooled: torch.Tensor, kept: int) -> torch.Tensor:
        """(rows, kept) of pooled states (rows, …)."""
        vectors = self.steps.finish(pooled)[:, :kept].float()
        if self.facts.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.to(torch.float32 if self.precision.dtype == "float32" else torch.float16)

    def _run_varlen(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        offsets: torch.Tensor,
        batch: Batch,
        skipped: int,
    ) -> torch.Tensor:
        attention.layout.offsets = offsets
        attention.layout.longest = batch.width
        bounds = offsets[: len(batch.sequences.rows) + 1]
        if self.steps.single is not None:
            attention.layout.pooled = single_positions(self.steps.single, bounds, skipped)
        offset = self.model.config.pad_token_id + 1 if self.family.padding_offset else 0
        hidden = self.model(
            input_ids=ids.long()[None],
            position_ids=(positions + offset).long()[None],
            **self._no_cache(),
        ).last_hidden_state[0]
        if len(hidden) != len(ids):  # narrowed to what is read
            return hidden
        return self.steps.varlen(hidden, positions, bounds, len(batch.sequences.ids), skipped)

    def _run_padded(
        self, ids: torch.Tensor, lengths: torch.Tensor, batch: Batch, skipped: int
    ) -> torch.Tensor:
        mask = torch.arange(batch.shape[1], device=ids.device) < lengths[:, None]
        hidden = self.model(
            input_ids=ids.long(), attention_mask=mask.long(), **self._no_cache()
        ).last_hidden_state
        return self.steps.padded(hidden, lengths, skipped)

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if self.family.decoder else {}

    def _finish(self, batch: Batch, found: list[np.ndarray]) -> Part:
        rows, (vectors,) = batch.sequences.rows, found
        check_finite(vectors, rows, self.facts, self.precision)
        return Part(rows, vectors, len(batch.sequences.ids), int(batch.sequences.truncated.sum()))


def varlen_budget(model: torch.nn.Module, device: torch.device) -> int:
    """Tokens a batch without padding: enough to fill the device, no more than fit."""
    config: Any = model.config
    wide = getattr(config, "intermediate_size", 0) or 4 * config.hidden_size
    bytes_per_token = 4 * (10 * config.hidden_size + 4 * wide)
    free, _ = torch.cuda.mem_get_info(device)
    flops_per_token = 2 * sum(p.numel() for p in layers_of(model).parameters())
    enough = max(16_384, BATCH_FLOPS / flops_per_token)
    most = min(enough, MOST_TOKENS, 0.8 * free / bytes_per_token)
    return 2 ** int(math.log2(max(most, 1)))


def loaded_as(precision: Precision) -> str:
    """The dtype that weights are loaded in; float8 is made of it."""
    return "bfloat16" if precision.arithmetic == "fp8" else precision.arithmetic


def layers_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The stack of a transformer's layers: its longest list of modules."""
    return max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)


def set_direction(model: torch.nn.Module, causal: bool) -> None:
    """Make a decoder's attention causal or not, for its masks and for its attention function."""
    config = model.config
    flag = getattr(config, "use_bidirectional_attention", False)
    if flag and config.model_type.startswith(OWN_WAY):
        if causal:
            raise UserError(
                f"{config.name_or_path}: attention is causal by its facts, but its config says "
                "use_bidirectional_attention; set attention: bidirectional"
            )
        restore_direction(model)
    else:
        config.is_causal = causal
    for module in layers_of(model).modules():
        if hasattr(module, "is_causal"):
            module.is_causal = causal


def narrow_forward(layer: torch.nn.Module, hidden: torch.Tensor, **given: Any) -> torch.Tensor:
    """The last layer's forward where only `layout.pooled` positions are read.

    Its feed-forward part runs on those alone.
    """
    attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **given)
    pooled = attention.layout.pooled
    assert pooled is not None  # who narrows lays it out so

    def read(some: torch.Tensor) -> torch.Tensor:
        block = hidden[:, some] + attended[:, some]
        found: torch.Tensor = block + layer.mlp(layer.post_attention_layernorm(block))
        return found[0]

    return in_blocks(read, pooled)[None]
