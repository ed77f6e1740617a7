"""Vectors from a server: OpenAI's /v1/embeddings or TEI's /embed, behind the engines' interface."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import UserError, printable
from ..models.facts_table import Role
from ..sources.server import Refused, Server, opened
from .batches import Part
from .engine import Precision, cut_dimensions
from .facts import Facts


class HttpEngine:
    """A model on a server, asked for some texts at a time, several requests under way.

    Prompts are put before the texts here, and vectors are cut and scaled here: the server only
    embeds. In what precision, and which texts it cuts, is known as far as it says.
    """

    name = "http"

    def __init__(
        self,
        facts: Facts,
        device: str,
        tokens_per_batch: int | None = None,
        compiled: bool = False,  # it never is
    ) -> None:
        assert facts.server is not None and facts.address is not None
        self.facts, self.server, self.address = facts, facts.server, facts.address
        self.device = torch.device("cpu")  # of this process
        self.precision = Precision("float32", "float32")  # in which its vectors are stored
        self.dimension = facts.full_dimension
        self.tokens_per_batch = None
        dtype = self.server["said"].get("dtype")
        self.remarks: dict[str, Any] = {
            "pinned": False,
            "device": "server",
            "compute_dtype": dtype,
            "arithmetic_dtype": dtype,
            "truncated": None,
        }

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
        if prompt is None:
            prompt = self.facts.prompt(role, instruction)
        return self._parts(prompt, texts, kept)

    def _parts(self, prompt: str, texts: Iterable[str], kept: int) -> Iterator[Part]:
        try:
            yield from self._asked(prompt, texts, kept)
        except UserError as error:
            raise UserError(f"{printable(self.facts.model_id)}: {error}") from None

    def _asked(self, prompt: str, texts: Iterable[str], kept: int) -> Iterator[Part]:
        with opened(self.server, self.address) as server:

            def embed(batch: tuple[int, list[str]]) -> Part:
                first, some = batch
                return self._embed(server, first, [prompt + text for text in some], kept)

            yield from server.each(_batches(texts, server.batch), embed)

    def _embed(self, server: Server, first: int, texts: list[str], kept: int) -> Part:
        """The vectors of `texts`, of which the first has the number `first`."""
        try:
            answer = server.embed(texts, self.server["cut"] or {})
        except Refused as error:
            if len(texts) == 1:
                raise UserError(
                    f"text {first} ({len(texts[0]):,} characters) is refused by its server: {error}"
                ) from None
            half = len(texts) // 2  # one of them is too long, or there are too many together
            parts = [
                self._embed(server, first, texts[:half], kept),
                self._embed(server, first + half, texts[half:], kept),
            ]
            rows, vectors = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
            return Part(rows, vectors, sum(part.tokens for part in parts), 0)
        rows = np.arange(first, first + len(texts))
        return Part(rows, self._finish(answer.vectors, rows, kept), answer.tokens, 0)

    def _finish(self, vectors: np.ndarray, rows: np.ndarray, kept: int) -> np.ndarray:
        """Checked, cut and scaled vectors."""
        if vectors.shape[1] != self.dimension:
            raise UserError(
                f"its server answers text {rows[0]} with {vectors.shape[1]} numbers, it had "
                f"{self.dimension} when it was staged"
            )
        vectors = vectors[:, :kept]
        if self.facts.normalize:
            with np.errstate(all="ignore"):
                wide = vectors.astype(np.float64)
                wide /= np.linalg.norm(wide, axis=1, keepdims=True)
                vectors = wide.astype(np.float32)
        bad = ~np.isfinite(vectors).all(1)
        if bad.any():
            raise UserError(f"its server answers text {rows[bad][0]} with NaN, Inf or nothing")
        return vectors


def _batches(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """(number of the first, texts) of each request."""
    source, first = iter(texts), 0
    while some := list(islice(source, size)):
        yield first, some
        first += len(some)
