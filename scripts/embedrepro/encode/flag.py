"""FlagEmbedding's own classes on one device, behind the same interface as the packed engine."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from inspect import signature
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import UserError, printable
from ..models.architectures import packs
from ..models.facts_table import Role
from .batches import CPU_BUDGET, CUDA_BUDGET, Part, Sequences, padded_widths, step
from .engine import check_finite, cut_dimensions, pick_precision
from .facts import Facts
from .loading import check_lengths, give_padding, restore_direction
from .tokens import Tokeniser

WINDOW = 8  # chunks of texts that are sorted together


class FlagEngine:
    """`BaseEmbedder` (pooling cls, mean) or `BaseLLMEmbedder` (last_token) of FlagEmbedding.

    Pooling, instruction and its format, length, precision and normalisation are all passed
    explicitly. Its classes pad each batch to the longest text in it; here texts of one padded width
    go in together, filled up to a constant number, so that a vector doesn't depend on its
    neighbours. FlagEmbedding rounds weights to float16 and back on CPU when asked for float16.
    """

    name = "flagembedding"

    def __init__(
        self,
        facts: Facts,
        device: str,
        tokens_per_batch: int | None = None,
        compiled: bool = False,  # it never is
    ) -> None:
        from FlagEmbedding.inference.embedder.decoder_only import base as decoder
        from FlagEmbedding.inference.embedder.encoder_only import base as encoder

        for module in (decoder, encoder):  # one progress bar is enough
            module.tqdm = lambda items, *_, **__: items
            module.trange = lambda *ends, **_: range(*ends)

        self.facts = facts
        self.device = torch.device(device)
        self.precision = pick_precision(facts.dtype, self.device.type)
        self.remarks: dict[str, Any] = {}
        self.dimension = facts.hidden_size
        default = CUDA_BUDGET if self.device.type == "cuda" else CPU_BUDGET
        self.tokens_per_batch = tokens_per_batch or default
        last_token = facts.pooling == "last_token"
        embedder = decoder.BaseLLMEmbedder if last_token else encoder.BaseEmbedder
        self.takes = signature(embedder).parameters
        if facts.dtype == "bfloat16":
            self._refuse_old("use_bf16", "dtype: float16 or float32")
        self.embedder = embedder(
            str(facts.staged),
            normalize_embeddings=facts.normalize,
            use_fp16=facts.dtype == "float16",
            use_bf16=facts.dtype == "bfloat16",
            devices=[device],
            trust_remote_code=facts.trust_remote_code,
            **({} if last_token else {"pooling_method": facts.pooling}),
        )
        if facts.native and facts.architecture != "mpnet" and packs():
            from . import attention

            self.embedder.model.set_attn_implementation(attention.PADDED)
        self.tokenizer = self.embedder.tokenizer
        give_padding(self.tokenizer)
        restore_direction(self.embedder.model)
        check_lengths(self.embedder.model, facts)

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
        if kept < self.dimension:
            self._refuse_old("truncate_dim", "dimensions: [a list], which is cut afterwards")
        tokeniser = Tokeniser(self.tokenizer, self.facts, role, instruction, prompt)
        return self._parts(tokeniser, texts, kept)

    def _refuse_old(self, argument: str, hint: str) -> None:
        """Older versions take every argument, and those that they don't know have no effect."""
        if argument not in self.takes:
            raise UserError(
                f"{printable(self.facts.model_id)}: FlagEmbedding {version('FlagEmbedding')} in "
                f"its environment has no {argument}; set {hint}"
            )

    def _parts(self, tokeniser: Tokeniser, texts: Iterable[str], kept: int) -> Iterator[Part]:
        self.embedder.truncate_dim = kept
        held: list[str] = []

        def keeping() -> Iterator[str]:
            for text in texts:
                held.append(text)
                yield text

        chunks = tokeniser.chunks(keeping())
        first = 0
        while window := list(islice(chunks, WINDOW)):
            rows = int(window[-1].rows[-1]) + 1 - first
            some, held[:rows] = held[:rows], []
            yield from self._window(first, some, window, tokeniser)
            first += rows

    def _window(
        self, first: int, texts: list[str], window: list[Sequences], tokeniser: Tokeniser
    ) -> Iterator[Part]:
        lengths = np.concatenate([chunk.lengths for chunk in window])
        truncated = np.concatenate([chunk.truncated for chunk in window])
        widths = padded_widths(lengths, tokeniser.limit)
        groups: dict[int, list[int]] = defaultdict(list)
        for row, width in enumerate(widths):
            groups[int(width)].append(row)
        for width, rows in sorted(groups.items()):
            batch, multiple = max(1, self.tokens_per_batch // width), int(step(width))
            filled = rows + rows[:1] * (-len(rows) % batch)
            vectors = self.embedder.encode(
                [texts[row] for row in filled],
                batch_size=batch,
                max_length=tokeniser.limit,
                convert_to_numpy=True,
                instruction=tokeniser.prompt or None,
                instruction_format="{}{}",
                pad_to_multiple_of=multiple if width % multiple == 0 else None,
            )[: len(rows)]
            yield self._part(first, np.array(rows), vectors, lengths, truncated)

    def _part(
        self,
        first: int,
        rows: np.ndarray,
        vectors: np.ndarray,
        lengths: np.ndarray,
        truncated: np.ndarray,
    ) -> Part:
        check_finite(vectors, first + rows, self.facts, self.precision)
        return Part(
            first + rows,
            vectors.astype(self.precision.stored),
            int(lengths[rows].sum()),
            int(truncated[rows].sum()),
        )
