"""The packed engine: native transformers models on batches of constant shape.

On CUDA in half precision sequences lie end to end, without padding, and one compiled layer serves
all layers. Everywhere else rows are padded to a few widths. Host and device overlap: threads read,
tokenise (or hand that to processes) and lay out batches, the device runs, finished vectors are
handed out while it does.
"""

import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from ..errors import UserError
from ..models.facts_table import Role
from . import attention
from .batches import (
    Batch,
    Packer,
    PaddedPacker,
    Part,
    Sequences,
    VarlenPacker,
    ahead,
    padded_arrays,
    varlen_arrays,
)
from .engine import Precision, check_finite, cut_dimensions, pick_precision
from .facts import Facts
from .families import PACKED_MODEL_TYPES
from .tokens import Tokeniser

CPU_BUDGET = 1024  # tokens a batch: more is no faster there, and part-filled batches cost more
IN_FLIGHT = 2  # batches queued on the device before the host waits for the oldest
MOST_TOKENS = 131_072  # more brings nothing
NARROW_ROWS = 1024  # rows of a narrowed layer's products
BATCH_FLOPS = 1e14  # nor does a batch of more work than this


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
        self.facts = facts
        self.device = torch.device(device)
        self.precision = pick_precision(facts.dtype, self.device.type, fp8=True)
        self.remarks: dict[str, Any] = {}
        self.family = PACKED_MODEL_TYPES[facts.architecture]
        self.varlen = self._can_varlen()
        self.tokenizer = AutoTokenizer.from_pretrained(facts.staged)
        torch.backends.cuda.matmul.allow_tf32 = False
        self.model = self._load()
        self.dimension = facts.hidden_size
        self.pad = self.tokenizer.pad_token_id or 0
        self.compiled = compiled and self.varlen
        self.narrow = self.varlen and self.family.prenorm and facts.pooling != "mean"
        self._rounded = facts.dtype != "fp8"  # to float8, with the first batch
        if self._rounded:
            self._prepare_layers()
        budget = tokens_per_batch or self._estimate()
        self.tokens_per_batch = max(budget, *facts.max_length.values())

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
        return self._parts(tokeniser, texts, kept)  # a mistake shows before anything is asked for

    def _parts(self, tokeniser: Tokeniser, texts: Iterable[str], kept: int) -> Iterator[Part]:
        packer = (VarlenPacker if self.varlen else PaddedPacker)(
            self.tokens_per_batch, tokeniser.limit
        )
        chunks = ahead(tokeniser.chunks(texts), 2)
        laid = ahead(((batch, self._lay(batch)) for batch in _pack(chunks, packer)), 4)
        running: deque[tuple[Batch, torch.Tensor, Any]] = deque()
        for batch, arrays in laid:
            if not self._rounded:
                self._to_fp8(batch, arrays)
            for launched in self._launch(batch, arrays, packer, kept):
                running.append(launched)
                while len(running) > IN_FLIGHT:
                    yield self._finish(*running.popleft())
        while running:
            yield self._finish(*running.popleft())

    def _to_fp8(self, batch: Batch, arrays: list[torch.Tensor]) -> None:
        """Change the layers to float8, and note what that does to the vectors of this batch."""
        from .fp8 import replace_linear  # needs Triton

        before = self._run(batch, arrays, self.dimension).float()
        replace_linear(layers_of(self.model), getattr(self.model.config, "hidden_act", None))
        after = self._run(batch, arrays, self.dimension).float()
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
        if self.compiled:
            compile_layers(layers[:-1] if self.narrow else layers)
            if self.narrow:
                compile_layers([layers[-1].self_attn, layers[-1].input_layernorm])

    def _can_varlen(self) -> bool:
        half = self.precision.arithmetic != "float32"
        return self.family.layout == "varlen" and self.device.type == "cuda" and half

    def _load(self) -> torch.nn.Module:
        if self.family.layout == "padded":
            implementation = "eager"
        else:
            implementation = attention.VARLEN if self.varlen else attention.PADDED
        arithmetic = self.precision.arithmetic
        dtype = "bfloat16" if arithmetic == "fp8" else arithmetic
        model, found = AutoModel.from_pretrained(
            self.facts.staged,
            dtype=getattr(torch, dtype),
            attn_implementation=implementation,
            local_files_only=True,
            output_loading_info=True,
        )
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise UserError(
                f"{self.facts.model_id}: its weights lack {len(missing)} tensors of the model "
                f"({missing[0]}, …); the snapshot is not whole or not of this architecture"
            )
        if self.family.decoder:
            set_direction(model, self.facts.attention == "causal")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output is not used
        round_weights(model, self.precision)
        return model.to(self.device).eval()

    def _estimate(self) -> int:
        """Tokens a batch: enough to fill the device, no more than fit. A power of two on CUDA."""
        if self.device.type == "cpu":
            return CPU_BUDGET
        config = self.model.config
        wide = getattr(config, "intermediate_size", 0) or 4 * config.hidden_size
        bytes_per_token = 4 * (10 * config.hidden_size + 4 * wide)
        free, _ = torch.cuda.mem_get_info(self.device)
        flops_per_token = 2 * sum(p.numel() for p in layers_of(self.model).parameters())
        enough = max(16_384, BATCH_FLOPS / flops_per_token)
        most = min(enough, MOST_TOKENS, 0.8 * free / bytes_per_token)
        return 2 ** int(math.log2(max(most, 1)))

    def _lay(self, batch: Batch) -> list[torch.Tensor]:
        """The batch's arrays, in pinned memory where they go to a device."""
        arrays = (varlen_arrays if self.varlen else padded_arrays)(batch, self.pad)
        tensors = [torch.from_numpy(array) for array in arrays]
        if self.device.type == "cpu":
            return tensors
        pinned = [torch.empty_like(tensor, pin_memory=True) for tensor in tensors]
        for place, array in zip(pinned, arrays, strict=True):
            # torch's own copy would keep a thread spinning on every core that tokenising needs.
            place.numpy()[...] = array
        return pinned

    def _launch(
        self, batch: Batch, arrays: list[torch.Tensor], packer: Packer, kept: int
    ) -> Iterator[tuple[Batch, torch.Tensor, Any]]:
        """Start the batch, in parts where it is larger than the budget or memory runs out."""
        if batch.shape == packer.shape(batch.width):
            try:
                vectors = self._run(batch, arrays, kept)
            except torch.OutOfMemoryError:
                self._halve(batch, packer)
            else:
                yield batch, *self._fetch(vectors)
                return
            torch.cuda.empty_cache()
        for part in packer.split(batch):
            yield from self._launch(part, self._lay(part), packer, kept)

    def _halve(self, batch: Batch, packer: Packer) -> None:
        """Halve the budget; raises the error at hand when one sequence alone doesn't fit."""
        if packer.budget // 2 < (packer.longest if self.varlen else batch.width):
            raise
        packer.budget //= 2
        self.tokens_per_batch = packer.budget
        print(f"out of memory: going on with {packer.budget} tokens a batch", file=sys.stderr)

    @torch.inference_mode()
    def _run(self, batch: Batch, arrays: list[torch.Tensor], kept: int) -> torch.Tensor:
        """(n, kept) vectors of a batch's n sequences, on the device."""
        arrays = [array.to(self.device, non_blocking=True) for array in arrays]
        pooled = (self._run_varlen if self.varlen else self._run_padded)(*arrays, batch)
        pooled = pooled[:, :kept].float()
        if self.facts.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return pooled.to(torch.float32 if self.precision.dtype == "float32" else torch.float16)

    def _run_varlen(
        self, ids: torch.Tensor, positions: torch.Tensor, offsets: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        attention.layout.offsets = offsets
        attention.layout.longest = batch.width
        if self.family.padding_offset:
            positions = positions + (self.model.config.pad_token_id + 1)
        n = len(batch.sequences.rows)
        first, last = offsets[:n], offsets[1 : n + 1] - 1
        attention.layout.pooled = pooled = first if self.facts.pooling == "cls" else last
        hidden = self.model(
            input_ids=ids.long()[None], position_ids=positions.long()[None], **self._no_cache()
        ).last_hidden_state[0]
        if len(hidden) != len(ids):  # narrowed to what is read
            return hidden
        if self.facts.pooling != "mean":
            return hidden[pooled]
        used = len(batch.sequences.ids)
        # Unlike an atomic sum, this one adds in the order of the tokens.
        return torch.segment_reduce(
            hidden[:used].float(), "mean", offsets=offsets[: n + 1].long(), unsafe=True
        )

    def _run_padded(self, ids: torch.Tensor, lengths: torch.Tensor, batch: Batch) -> torch.Tensor:
        rows, width = batch.shape
        mask = torch.arange(width, device=ids.device) < lengths[:, None]
        hidden = self.model(
            input_ids=ids.long(), attention_mask=mask.long(), **self._no_cache()
        ).last_hidden_state
        if self.facts.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.facts.pooling == "last_token":
            pooled = hidden[torch.arange(rows, device=ids.device), lengths - 1]
        else:
            # As FlagEmbedding and sentence-transformers: the masked sum over the number of tokens.
            pooled = (hidden * mask[..., None].float()).sum(1) / lengths[:, None]
        return pooled[: len(batch.sequences.rows)]

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if self.family.decoder else {}

    def _fetch(self, vectors: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Start the copy to the host; the event says when it is done."""
        if self.device.type == "cpu":
            return vectors, None
        host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        host.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event(blocking=True)
        done.record()
        return host, done

    def _finish(self, batch: Batch, vectors: torch.Tensor, done: Any) -> Part:
        if done is not None:
            done.synchronize()
        rows = batch.sequences.rows
        found = vectors.numpy()
        check_finite(found, rows, self.facts, self.precision)
        return Part(rows, found, len(batch.sequences.ids), int(batch.sequences.truncated.sum()))


def _pack(chunks: Iterable[Sequences], packer: Packer) -> Iterator[Batch]:
    for chunk in chunks:
        yield from packer.add(chunk)
    yield from packer.flush()


def round_weights(model: torch.nn.Module, precision: Precision) -> None:
    """Round the weights where the arithmetic doesn't do it."""
    if precision.dtype == precision.arithmetic:
        return
    dtype = getattr(torch, precision.dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


def layers_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The stack of a transformer's layers: its longest list of modules."""
    return max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)


def set_direction(model: torch.nn.Module, causal: bool) -> None:
    """Make a decoder's attention causal or not, for its masks and for its attention function."""
    if not getattr(model.config, "use_bidirectional_attention", False):  # Gemma's own way
        model.config.is_causal = causal
    elif causal:
        raise UserError(
            f"{model.config.name_or_path}: attention is causal by its facts, but its config says "
            "use_bidirectional_attention; set attention: bidirectional"
        )
    for module in layers_of(model).modules():
        if hasattr(module, "is_causal"):
            module.is_causal = causal


def narrow_forward(layer: torch.nn.Module, hidden: torch.Tensor, **given: Any) -> torch.Tensor:
    """The last layer's forward where only `layout.pooled` positions are read.

    Its feed-forward part runs on those alone, in blocks of a constant number of rows.
    """
    attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **given)
    pooled = attention.layout.pooled
    blocks = []
    for start in range(0, len(pooled), NARROW_ROWS):
        some = pooled[start : start + NARROW_ROWS]
        some = torch.nn.functional.pad(some, (0, NARROW_ROWS - len(some)))
        block = hidden[:, some] + attended[:, some]
        blocks.append(block + layer.mlp(layer.post_attention_layernorm(block)))
    return torch.cat(blocks, 1)[:, : len(pooled)]


def compile_layers(layers: Iterable[torch.nn.Module]) -> None:
    """Compile each module's forward; modules of one kind share what was compiled."""
    # No timing on the device decides which kernel runs: two processes get the same bytes.
    torch._inductor.config.deterministic = True
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False, fullgraph=True)
