"""BGE-M3: a dense vector, lexical weights and token vectors of each text from one forward pass.

The arithmetic is FlagEmbedding's (`M3Embedder`): the dense vector is the first token's state, a
term's weight the largest of its tokens' (a linear layer, then ReLU; special tokens have none), and
every token but the first has a vector (another linear layer). Dense and token vectors have length
1. Token vectors are compared by `meanmaxsim`, lexical weights by dot product.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from ..errors import UserError, printable
from ..models.facts_table import Role
from . import attention
from .ahead import ahead
from .batches import CPU_BUDGET, CUDA_BUDGET, Batch, PaddedPacker, Part, padded_arrays
from .engine import check_finite, cut_dimensions, pick_precision
from .facts import Facts
from .multivector import TokensPart
from .sparse import SparsePart
from .tokens import Tokeniser

SPECIAL = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


class M3Part(NamedTuple):
    """The same texts three times."""

    dense: Part
    sparse: SparsePart
    multivector: TokensPart

    @property
    def rows(self) -> np.ndarray:
        """(n,) int64: which texts."""
        return self.dense.rows

    @property
    def tokens(self) -> int:
        """Tokens run."""
        return self.dense.tokens

    @property
    def truncated(self) -> int:
        """Texts cut."""
        return self.dense.truncated


class M3Engine:
    """A folder with XLM-RoBERTa and the heads `sparse_linear` and `colbert_linear`."""

    name = "m3"
    similarity = "meanmaxsim"

    def __init__(
        self,
        facts: Facts,
        device: str,
        tokens_per_batch: int | None = None,
        compiled: bool = False,  # it never is
    ) -> None:
        self.facts = facts
        self.device = torch.device(device)
        self.precision = pick_precision(facts.dtype, self.device.type)
        self.remarks: dict[str, Any] = {}
        self.tokenizer = AutoTokenizer.from_pretrained(facts.staged)
        self.model = self._load_trunk()
        config = self.model.config
        self.dimension, self.terms = int(config.hidden_size), int(config.vocab_size)
        self.sparse_linear = self._load_head("sparse_linear")
        self.colbert_linear = self._load_head("colbert_linear")
        self.token_dimension = self.colbert_linear.out_features
        self.special = [getattr(self.tokenizer, name) for name in SPECIAL]
        self.pad = self.tokenizer.pad_token_id or 0
        default = CUDA_BUDGET if self.device.type == "cuda" else CPU_BUDGET
        self.tokens_per_batch = tokens_per_batch or default

    def _load_trunk(self) -> Any:
        torch.backends.cuda.matmul.allow_tf32 = False
        model, found = AutoModel.from_pretrained(
            self.facts.staged,
            dtype=getattr(torch, self.precision.dtype),
            attn_implementation=attention.PADDED,
            local_files_only=True,
            output_loading_info=True,
        )
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise UserError(
                f"{printable(self.facts.model_id)}: its weights lack {len(missing)} tensors of the "
                f"model ({missing[0]}, …); the snapshot is not whole or not of this architecture"
            )
        return model.to(self.device, getattr(torch, self.precision.arithmetic)).eval()

    def _load_head(self, name: str) -> torch.nn.Linear:
        weights = read_head(self.facts.staged, name)
        rows, columns = weights["weight"].shape
        if columns != self.dimension:
            raise UserError(
                f"{self.facts.staged}: {name} is for {columns} numbers, the model's states have "
                f"{self.dimension}; the snapshot is not whole"
            )
        layer = torch.nn.Linear(columns, rows)
        layer.load_state_dict(weights)
        layer.to(getattr(torch, self.precision.dtype))
        return layer.to(self.device, getattr(torch, self.precision.arithmetic)).eval()

    def encode(
        self,
        texts: Iterable[str],
        role: Role,
        instruction: str | None = None,
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
    ) -> Iterator[M3Part]:
        """Parts of `texts` as they are done (see `Engine.encode`). `dimensions`: all, or None."""
        if cut_dimensions(self.facts, self.dimension, dimensions) != self.dimension:
            raise UserError(f"{printable(self.facts.model_id)}: m3 knows no dimensions")
        return self._parts(Tokeniser(self.tokenizer, self.facts, role, instruction, prompt), texts)

    def _parts(self, tokeniser: Tokeniser, texts: Iterable[str]) -> Iterator[M3Part]:
        packer = PaddedPacker(self.tokens_per_batch, tokeniser.limit)
        for chunk in ahead(tokeniser.chunks(texts), 2):
            yield from map(self._run, packer.add(chunk))
        yield from map(self._run, packer.flush())

    @torch.inference_mode()
    def _run(self, batch: Batch) -> M3Part:
        laid, lengths = padded_arrays(batch, self.pad)
        n, width = len(batch.sequences.rows), batch.shape[1]
        mask = np.arange(width) < lengths[:, None]
        ids = torch.from_numpy(laid).long().to(self.device)
        given = torch.from_numpy(mask).to(self.device)
        hidden = self.model(input_ids=ids, attention_mask=given.long()).last_hidden_state
        rows, cut = batch.sequences.rows, int(batch.sequences.truncated.sum())
        tokens = len(batch.sequences.ids)
        weights = torch.relu(self.sparse_linear(hidden)).squeeze(-1)[:n].float().cpu().numpy()
        dense = torch.nn.functional.normalize(hidden[:, 0], dim=-1)[:n].float().cpu().numpy()
        vectors = torch.nn.functional.normalize(self.colbert_linear(hidden[:, 1:]), dim=-1)[:n]
        kept = mask[:n, 1:]
        each = vectors[torch.from_numpy(kept).to(self.device)].float().cpu().numpy()
        counts, stored = kept.sum(1), self.precision.stored
        check_finite(dense, rows, self.facts, self.precision)
        check_finite(each, np.repeat(rows, counts), self.facts, self.precision)
        lexical = lexical_weights(laid[:n], weights, mask[:n], self.special)
        return M3Part(
            Part(rows, dense.astype(stored), tokens, cut),
            SparsePart(rows, lexical[0], lexical[1], lexical[2].astype(stored), tokens, cut),
            TokensPart(rows, counts, each.astype(stored), tokens, cut),
        )


def lexical_weights(
    ids: np.ndarray, weights: np.ndarray, mask: np.ndarray, special: list[int | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Terms of each text with their largest weight: lengths (n,), terms and weights end to end.

    `ids`, `weights`, `mask` (n, width). Special terms and weights of 0 are left out.
    """
    used = mask & (weights > 0) & ~np.isin(ids, [term for term in special if term is not None])
    row, _ = np.nonzero(used)
    terms, values = ids[used].astype(np.int64), weights[used]
    order = np.lexsort((terms, row))
    row, terms, values = row[order], terms[order], values[order]
    first = np.r_[True, (row[1:] != row[:-1]) | (terms[1:] != terms[:-1])][: len(row)]
    starts = np.flatnonzero(first)
    largest = np.maximum.reduceat(values, starts) if len(starts) else values
    return np.bincount(row[starts], minlength=len(ids)), terms[starts].astype(np.int32), largest


def read_head(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A linear layer's tensors, from `<name>.safetensors` or else `<name>.pt`.

    A `.pt` is read as tensors only: nothing in it is run.
    """
    if (folder / f"{name}.safetensors").is_file():
        return load_file(folder / f"{name}.safetensors")
    path = folder / f"{name}.pt"
    if not path.is_file():
        raise UserError(f"{folder}: has no {name}.pt, which BGE-M3 has; use kind: dense")
    try:
        found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = printable(str(error).splitlines()[0])
        raise UserError(f"{path}: not a file of tensors ({why}); download it again") from None
    return found
