"""FlagEmbedding's own classes on one device, behind the same interface as the packed engine."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm, trange

from ..errors import UserError
from . import attention
from .batches import Part, Sequences, padded_widths, step
from .engine import Engine
from .facts import Facts
from .tokens import Tokeniser

CPU_BUDGET, CUDA_BUDGET = 1024, 32_768  # padded tokens a batch
WINDOW = 8  # chunks of texts that are sorted together


class FlagEngine(Engine):
    """`BaseEmbedder` (pooling cls, mean) or `BaseLLMEmbedder` (last_token) of FlagEmbedding.

    Pooling, instruction and its format, length, precision and normalisation are all passed
    explicitly. Its classes pad each batch to the longest text in it; here texts of one padded width
    go in together, filled up to a constant number, so that a vector doesn't depend on its
    neighbours. FlagEmbedding rounds weights to float16 and back on CPU when asked for float16.
    """

    name = "flagembedding"

    def __init__(self, facts: Facts, device: str, tokens_per_batch: int | None = None) -> None:
        from FlagEmbedding.inference.embedder.decoder_only import base as decoder
        from FlagEmbedding.inference.embedder.encoder_only import base as encoder

        for module in (decoder, encoder):  # one progress bar is enough
            module.tqdm = partial(tqdm, disable=True)
            module.trange = partial(trange, disable=True)

        self.facts = facts
        self.device = torch.device(device)
        auto = "bfloat16" if self.device.type == "cuda" else "float32"
        self.compute_dtype = auto if facts.dtype == "auto" else facts.dtype
        default = CUDA_BUDGET if self.device.type == "cuda" else CPU_BUDGET
        self.tokens_per_batch = tokens_per_batch or default
        last_token = facts.pooling == "last_token"
        self.embedder = (decoder.BaseLLMEmbedder if last_token else encoder.BaseEmbedder)(
            str(facts.staged),
            normalize_embeddings=facts.normalize,
            use_fp16=self.compute_dtype == "float16",
            use_bf16=self.compute_dtype == "bfloat16",
            devices=[device],
            trust_remote_code=facts.trust_remote_code,
            truncate_dim=facts.dimensions,
            **({} if last_token else {"pooling_method": facts.pooling}),
        )
        if facts.native and facts.architecture != "mpnet":
            self.embedder.model.set_attn_implementation(attention.PADDED)
        self.tokenizer = self.embedder.tokenizer

    def _parts(self, tokeniser: Tokeniser, texts: Iterable[str]) -> Iterator[Part]:
        kept: list[str] = []

        def keeping() -> Iterator[str]:
            for text in texts:
                kept.append(text)
                yield text

        chunks = tokeniser.chunks(keeping())
        first = 0
        while window := list(islice(chunks, WINDOW)):
            rows = int(window[-1].rows[-1]) + 1 - first
            some, kept[:rows] = kept[:rows], []
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
        bad = ~np.isfinite(vectors).all(1)
        if bad.any():
            raise UserError(
                f"{self.facts.model_id}: text {first + rows[bad][0]} has NaN or Inf in its vector "
                f"(computed in {self.compute_dtype}); try dtype: float32"
            )
        return Part(
            first + rows,
            vectors.astype(self.array_dtype),
            int(lengths[rows].sum()),
            int(truncated[rows].sum()),
        )
