"""Whatever `SentenceTransformer` loads, on one device, with shapes that don't depend on neighbours.

Its own preprocessing and modules run: prompts, routes, pooling, projections, adapters, own code.
What is added is how texts come together. Features of tokens (batch, width) are cut to their tokens
and laid out again, as many rows of a few widths as a batch always holds. Static embeddings come as
one flat list of tokens, which needs no padding. What has other features runs one text at a time.
"""

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, printable
from ..models.facts_table import Role
from .ahead import ahead
from .batches import CPU_BUDGET, CUDA_BUDGET, Part, padded_widths
from .engine import check_finite, cut_dimensions, pick_precision
from .facts import Facts
from .loading import TASKS, check_routes, give_padding, restore_direction, round_parameters

CHUNK = 256  # texts that are tokenised at once


class Row(NamedTuple):
    """One text: its number, its features token by token, those of the whole text."""

    number: int
    tokens: dict[str, torch.Tensor]  # (length,) each
    others: dict[str, torch.Tensor]  # () each
    constants: dict[str, Any]
    truncated: bool

    @property
    def length(self) -> int:
        return len(self.tokens["input_ids"])


class Request(NamedTuple):
    """What one call of `encode` asks for."""

    role: Role
    prompt: str
    limit: int
    kept: int | None


class SentenceTransformersEngine:
    """See the module; `Engine` says what its attributes are."""

    name = "sentence_transformers"

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
        torch.backends.cuda.matmul.allow_tf32 = False
        self.model = self._load()
        # Without attention a text of no known word is nothing to add up, no mistake.
        self.reads_empty = not any(isinstance(m, PreTrainedModel) for m in self.model.modules())
        # Modules of a folder's own need not say how long a vector is.
        probe = Request("passage", "", facts.max_length["passage"], None)
        self.dimension = self._forward(probe, self._features(probe, ["a"])).shape[1]
        default = CUDA_BUDGET if self.device.type == "cuda" else CPU_BUDGET
        self.tokens_per_batch = max(tokens_per_batch or default, 2 * max(facts.max_length.values()))

    def _load(self) -> SentenceTransformer:
        arithmetic = getattr(torch, self.precision.arithmetic)
        try:
            model = SentenceTransformer(
                str(self.facts.staged),
                device=self.device.type,
                trust_remote_code=self.facts.trust_remote_code,
                local_files_only=True,
                model_kwargs={"dtype": arithmetic},
            )
        except (ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
            raise UserError(
                f"{printable(self.facts.model_id)}: sentence-transformers can't load it "
                f"({printable(error)})"
            ) from error
        model.eval()
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                restore_direction(module)
            if isinstance(module, Transformer):
                module.unpad_inputs = False
                module.register_forward_hook(_widen)
                give_padding(module.tokenizer)
        check_routes(model, self.facts)
        round_parameters(model, self.precision.dtype)
        return model

    def encode(
        self,
        texts: Iterable[str],
        role: Role,
        instruction: str | None = None,
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
    ) -> Iterator[Part]:
        if role not in TASKS:
            raise UserError(f"role {printable(role)}: use query or passage")
        if prompt is None:
            prompt = self.facts.prompt(role, instruction)
        kept = cut_dimensions(self.facts, self.dimension, dimensions)
        request = Request(role, prompt, self.facts.max_length[role], kept)
        self._check_prompt(request)
        return self._parts(request, texts)

    def _check_prompt(self, request: Request) -> None:
        """Raises `UserError` where the prompt alone fills the limit."""
        tokenizer = self.model.tokenizer
        if request.prompt and isinstance(tokenizer, PreTrainedTokenizerBase):
            taken = len(tokenizer(request.prompt)["input_ids"])
            if taken >= request.limit:
                raise UserError(
                    f"{self.facts.model_id}: the {request.role} prompt takes {taken} of "
                    f"max_length.{request.role} = {request.limit} tokens; raise the limit or "
                    "shorten the prompt"
                )

    def _parts(self, request: Request, texts: Iterable[str]) -> Iterator[Part]:
        gathered: dict[int, list[Row]] = {}
        for chunk in ahead(self._chunks(request, texts), 2):
            if not isinstance(chunk, list):
                yield self._run_whole(request, *chunk)
                continue
            lengths = np.array([max(1, row.length) for row in chunk])
            widths = padded_widths(lengths, request.limit)
            for row, width in zip(chunk, widths.tolist(), strict=True):
                rows = gathered.setdefault(width, [])
                rows.append(row)
                if len(rows) == self._rows(width):
                    yield self._run(request, gathered.pop(width), width)
        for width, rows in sorted(gathered.items()):
            yield self._run(request, rows, width)

    def _rows(self, width: int) -> int:
        """Texts in each batch of this width, beside the row that nobody reads."""
        return max(1, self.tokens_per_batch // width - 1)

    def _chunks(
        self, request: Request, texts: Iterable[str]
    ) -> Iterator[list[Row] | tuple[np.ndarray, dict[str, Any], np.ndarray]]:
        """Rows of tokens, or (numbers, features, lengths) of what is run as it is."""
        source, first = iter(texts), 0
        while some := list(islice(source, CHUNK)):
            features = self._features(request, some)
            if _is_flat(features):
                yield np.arange(first, first + len(some)), *_cut_flat(features, request.limit)
            elif _is_padded(features, len(some)):
                yield list(self._split(request, first, some, features))
            else:
                for number, text in enumerate(some, first):
                    yield np.array([number]), self._features(request, [text]), np.array([1])
            first += len(some)

    def _features(self, request: Request, texts: list[str]) -> dict[str, Any]:
        more: dict[str, Any] = {"task": TASKS[request.role]}
        for module in self.model.modules():
            if isinstance(module, Transformer):
                # Also where the folder states another length for one role.
                more["max_length"] = request.limit
        found: dict[str, Any] = dict(
            self.model.preprocess(texts, prompt=request.prompt or None, **more)
        )
        return found

    def _split(
        self, request: Request, first: int, texts: list[str], features: dict[str, Any]
    ) -> Iterator[Row]:
        width = features["input_ids"].shape[1]
        mask = features["attention_mask"].bool()
        tokens = {k: v for k, v in features.items() if _is_tensor(v, 2) and k != "attention_mask"}
        others = {k: v for k, v in features.items() if _is_tensor(v, 1)}
        constants = {k: v for k, v in features.items() if not isinstance(v, torch.Tensor)}
        starts, lengths = mask.int().argmax(1).tolist(), mask.sum(1).tolist()
        for i, (text, start, length) in enumerate(zip(texts, starts, lengths, strict=True)):
            if not length and self.reads_empty:
                start = 0
            elif not length:
                name = printable(self.facts.model_id)
                raise UserError(f"{name}: text {first + i} has no tokens; remove empty texts")
            place = slice(start, start + length)
            yield Row(
                first + i,
                {key: value[i, place].clone() for key, value in tokens.items()},
                {key: value[i].clone() for key, value in others.items()},
                constants | {"left": start > 0 or (length == width and self._pads_left())},
                length >= request.limit and self._is_longer(request, text),
            )

    def _pads_left(self) -> bool:
        return getattr(self.model.tokenizer, "padding_side", "right") == "left"

    def _is_longer(self, request: Request, text: str) -> bool:
        """Whether a text that fills the limit was cut."""
        tokenizer = self.model.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return True
        return len(tokenizer(request.prompt + text, verbose=False)["input_ids"]) > request.limit

    def _run(self, request: Request, rows: list[Row], width: int) -> Part:
        """One batch, or more where memory runs out."""
        numbers = np.array([row.number for row in rows])
        try:
            vectors = self._forward(request, self._lay(rows, width))[: len(rows)]
        except torch.OutOfMemoryError:
            if self._rows(width) == 1:
                raise
            torch.cuda.empty_cache()
            self.tokens_per_batch //= 2
            budget = self.tokens_per_batch
            print(f"out of memory: going on with {budget} tokens a batch", file=sys.stderr)
            step = self._rows(width)
            parts = [
                self._run(request, rows[i : i + step], width) for i in range(0, len(rows), step)
            ]
            vectors = np.concatenate([part.vectors for part in parts])
        else:
            check_finite(vectors, numbers, self.facts, self.precision)
        lengths = sum(row.length for row in rows)
        return Part(numbers, vectors, lengths, sum(row.truncated for row in rows))

    def _lay(self, rows: list[Row], width: int) -> dict[str, Any]:
        """Features of a constant shape: missing rows repeat the first.

        One row more shows its first token only. So there is always something to mask out, and
        neither a library nor a model's own code leaves the mask out and runs another kernel.
        """
        count, first = self._rows(width), rows[0]
        filled = [*rows, *[first] * (count + 1 - len(rows))]
        mask = torch.zeros((count + 1, width), dtype=torch.long)
        laid = {
            key: torch.full((count + 1, width), self._padding(key), dtype=value.dtype)
            for key, value in first.tokens.items()
        }
        for i, row in enumerate(filled):
            begin = width - row.length if row.constants["left"] else 0
            stop = begin + row.length
            mask[i, begin:stop] = 1
            for key, value in row.tokens.items():
                laid[key][i, begin:stop] = value
        if width > 1:
            seen = width - 1 if first.constants["left"] else 0
            mask[-1] = 0
            mask[-1, seen] = 1
        others = {key: torch.stack([row.others[key] for row in filled]) for key in first.others}
        constants = {key: value for key, value in first.constants.items() if key != "left"}
        return laid | others | constants | {"attention_mask": mask}

    def _padding(self, key: str) -> int:
        name = {"input_ids": "pad_token_id", "token_type_ids": "pad_token_type_id"}.get(key, "")
        return getattr(self.model.tokenizer, name, 0) or 0

    def _run_whole(
        self, request: Request, numbers: np.ndarray, features: dict[str, Any], lengths: np.ndarray
    ) -> Part:
        """A batch of features as they are."""
        vectors = self._forward(request, features)[: len(numbers)]
        check_finite(vectors, numbers, self.facts, self.precision)
        kept = np.minimum(lengths, request.limit)
        return Part(numbers, vectors, int(kept.sum()), int((lengths > request.limit).sum()))

    @torch.inference_mode()
    def _forward(self, request: Request, features: dict[str, Any]) -> np.ndarray:
        """(rows, kept) vectors."""
        on_device = {
            key: value.to(self.device) if isinstance(value, torch.Tensor) else value
            for key, value in features.items()
        }
        found = self.model(on_device, task=TASKS[request.role])["sentence_embedding"]
        found = found[:, : request.kept].float()
        if self.facts.normalize:
            found = torch.nn.functional.normalize(found, dim=-1)
        vectors: np.ndarray = found.cpu().numpy().astype(self.precision.stored)
        return vectors


def _widen(_: torch.nn.Module, __: Any, features: dict[str, Any]) -> dict[str, Any]:
    """What comes after the transformer computes in float32."""
    for key, value in features.items():
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            features[key] = value.float()
    return features


def _is_tensor(value: Any, dimensions: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == dimensions


def _is_flat(features: dict[str, Any]) -> bool:
    """Tokens end to end with offsets, as `StaticEmbedding` has them."""
    tensors = {key for key, value in features.items() if isinstance(value, torch.Tensor)}
    return tensors == {"input_ids", "offsets"} and features["input_ids"].ndim == 1


def _is_padded(features: dict[str, Any], count: int) -> bool:
    """Rows of tokens with a mask, and nothing of a shape that can't be laid out again."""
    if not {"input_ids", "attention_mask"} <= set(features):
        return False
    shape = features["input_ids"].shape
    return all(
        value.shape in (shape, (count,))
        for value in features.values()
        if isinstance(value, torch.Tensor)
    )


def _cut_flat(features: dict[str, Any], limit: int) -> tuple[dict[str, Any], np.ndarray]:
    """Each text's first `limit` tokens, and the lengths (n,) before the cut."""
    ids, offsets = features["input_ids"], features["offsets"]
    lengths = torch.diff(offsets, append=torch.tensor([len(ids)]))
    if (lengths > limit).any():
        inside = torch.arange(len(ids)) - torch.repeat_interleave(offsets, lengths) < limit
        cut = lengths.clamp(max=limit)
        ids, offsets = ids[inside], cut.cumsum(0) - cut
    # As many texts in the last batch as in the others: the missing ones have no tokens.
    filled = torch.nn.functional.pad(offsets, (0, CHUNK - len(offsets)), value=len(ids))
    return features | {"input_ids": ids, "offsets": filled}, lengths.numpy()
