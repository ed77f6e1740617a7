"""sentence-transformers' own models on batches of constant shape.

What `preprocess` makes of a text is cut to one of a few widths and run beside a constant number of
others, so that neither a text's vector nor the kernels that compute it depend on its neighbours.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel

from ..errors import UserError, printable
from ..models.facts_table import ROLES, Role
from . import attention
from .ahead import ahead
from .batches import CPU_BUDGET, CUDA_BUDGET, Batch, padded_widths
from .engine import pick_precision
from .facts import Facts
from .flat import PROBES, Flat, family_of
from .loading import TASKS, check_routes, give_padding, restore_direction
from .tokens import Tokeniser

CHUNK = 256  # texts tokenised at once
POSITIONS = "query_expansion_positions"
PartType = TypeVar("PartType")


class Rows(NamedTuple):
    """Tokenised texts: `rows` (n,) which they are, `features` each (n, width), `cut` (n,) bool."""

    rows: np.ndarray
    features: dict[str, torch.Tensor]
    tokens: np.ndarray
    cut: np.ndarray

    def take(self, chosen: np.ndarray) -> "Rows":
        """Those at `chosen`; a place may come twice."""
        places = torch.from_numpy(chosen)
        features = {name: tensor[places] for name, tensor in self.features.items()}
        return Rows(self.rows[chosen], features, self.tokens[chosen], self.cut[chosen])


def join(parts: list[Rows]) -> Rows:
    """One after the other, all of one width."""
    features = {name: torch.cat([p.features[name] for p in parts]) for name in parts[0].features}
    others = (np.concatenate([getattr(p, key) for p in parts]) for key in ("rows", "tokens", "cut"))
    rows, tokens, cut = others
    return Rows(rows, features, tokens, cut)


class RowPacker:
    """Texts of one width together; each width has its own constant number, `budget // width`."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._open: dict[int, list[Rows]] = {}

    def add(self, width: int, rows: Rows) -> Iterator[Rows]:
        """The batches that are full now."""
        self._open.setdefault(width, []).append(rows)
        size = self.size(width)
        if sum(len(part.rows) for part in self._open[width]) >= size:
            held = join(self._open.pop(width))
            full = len(held.rows) // size * size
            for start in range(0, full, size):
                yield held.take(np.arange(start, start + size))
            if full < len(held.rows):
                self._open[width] = [held.take(np.arange(full, len(held.rows)))]

    def flush(self) -> Iterator[Rows]:
        """What is left."""
        for width in sorted(self._open):
            yield join(self._open[width])
        self._open.clear()

    def size(self, width: int) -> int:
        """Texts in a batch of this width."""
        return max(1, self.budget // width)


class ModuleEngine(Generic[PartType]):
    """A model of sentence-transformers behind `Engine`'s interface. `_part` is left to subclasses.

    Lengths are the facts'. A prompt that no fact states is the one that the model's files name for
    the role.
    """

    name: str

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
        self.model = self._load({"dtype": getattr(torch, self.precision.dtype)})
        self._set_dtypes()
        for module in self.model.modules():
            if isinstance(module, Transformer):
                module.unpad_inputs = False
                give_padding(module.tokenizer)
            if isinstance(module, PreTrainedModel):
                self._prepare(module)
        check_routes(self.model, self.facts)
        default = CUDA_BUDGET if self.device.type == "cuda" else CPU_BUDGET
        most = self._most_tokens()
        self.tokens_per_batch = tokens_per_batch or min(default, most or default)
        family = family_of(self.model, facts) if self._can_varlen() else None
        given = tokens_per_batch or most, self._forward
        self.flat = Flat(self.model, facts, family, *given) if family else None
        self._flat_inputs: dict[str, tuple[Tokeniser, dict[str, Any]] | None] = {}

    def _prepare(self, trunk: PreTrainedModel) -> None:
        restore_direction(trunk)
        # A mask that is left out where nothing is padded would run another kernel.
        if getattr(trunk, "_supports_sdpa", False):
            trunk.set_attn_implementation(attention.PADDED)

    def _load(self, model_kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _set_dtypes(self) -> None:
        """Round what comes after the transformers as their weights are; widen all on a CPU."""
        trunks = [m for m in self.model.modules() if isinstance(m, PreTrainedModel)]
        theirs = {id(parameter) for trunk in trunks for parameter in trunk.parameters()}
        for parameter in self.model.parameters():
            if id(parameter) not in theirs:
                parameter.data = parameter.data.to(getattr(torch, self.precision.dtype))
        if self.precision.arithmetic == "float32":
            self.model.float()
        self.model.eval()

    def _can_varlen(self) -> bool:
        return self.device.type == "cuda" and self.precision.arithmetic != "float32"

    def _most_tokens(self) -> int | None:
        """How many tokens a batch may have, where something limits that."""
        return None

    def _part(self, features: dict[str, Any], batch: Rows, n: int) -> PartType:
        """What the first `n` texts of a batch become, from the model's features."""
        raise NotImplementedError

    def _flat_tensors(self, features: dict[str, Any], n: int, used: int) -> list[torch.Tensor]:
        """What is fetched of a batch of `n` texts whose `used` tokens lie end to end."""
        raise NotImplementedError

    def _flat_part(self, batch: Batch, arrays: list[np.ndarray]) -> PartType:
        """What its texts become, from what was fetched."""
        raise NotImplementedError

    def _empty_part(self, rows: np.ndarray) -> PartType:
        """What texts `rows` (n,) without any token become: nothing."""
        raise NotImplementedError

    def encode(
        self,
        texts: Iterable[str],
        role: Role,
        instruction: str | None = None,
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
    ) -> Iterator[PartType]:
        """Parts of `texts` as they are done (see `Engine.encode`)."""
        if role not in ROLES:
            raise UserError(f"role {printable(role)}: use query or passage")
        if dimensions or self.facts.dimensions:
            raise UserError(f"{printable(self.facts.model_id)}: {self.name} knows no dimensions")
        if prompt is None:
            prompt = self._prompt(role, instruction)
        self._check_prompt(role, prompt)
        return self._parts(texts, role, prompt)

    def _prompt(self, role: Role, instruction: str | None) -> str:
        stated = self.facts.query_prompt if role == "query" else self.facts.passage_prompt
        own = self.model.prompts.get(TASKS[role])
        if stated is None and own is not None:
            return str(own)
        return self.facts.prompt(role, instruction)

    def _check_prompt(self, role: Role, prompt: str) -> None:
        """Refuse a prompt that leaves no room for a text."""
        taken = len(self.model.tokenizer(prompt)["input_ids"]) if prompt else 0
        if taken >= self._longest(role):
            raise UserError(
                f"{printable(self.facts.model_id)}: the {role} prompt takes {taken} of "
                f"{self._longest(role)} tokens; raise max_length.{role} or shorten the prompt"
            )

    def _parts(self, texts: Iterable[str], role: Role, prompt: str) -> Iterator[PartType]:
        if self.flat and role == "passage":  # queries are few, and may be expanded
            if prompt not in self._flat_inputs:
                self._flat_inputs[prompt] = self._compared(self.flat, role, prompt)
            if inputs := self._flat_inputs[prompt]:
                tokeniser, fixed = inputs
                given = self._flat_tensors, self._flat_part, self._empty_part
                yield from self.flat.parts(tokeniser, texts, fixed, *given)
                return
        packer, fixed = RowPacker(self.tokens_per_batch), {}
        for width, rows, fixed in ahead(self._rows(texts, role, prompt), 2):
            for batch in packer.add(width, rows):
                yield from self._run(batch, role, fixed, packer)
        for batch in packer.flush():
            yield from self._run(batch, role, fixed, packer)

    def _compared(
        self, flat: Flat, role: Role, prompt: str
    ) -> tuple[Tokeniser, dict[str, Any]] | None:
        """What makes ids of texts with this prompt, and what `preprocess` says besides; None where
        it makes other ids."""
        fixed, tensors = self._told_apart(self._preprocess(PROBES, role, prompt))
        tokeniser = flat.tokeniser(role, prompt, tensors)
        return (tokeniser, fixed) if tokeniser else None

    def _rows(
        self, texts: Iterable[str], role: Role, prompt: str
    ) -> Iterator[tuple[int, Rows, dict[str, Any]]]:
        """(Width, texts of that width, what `preprocess` says besides) of all texts."""
        source, first = iter(texts), 0
        while chunk := list(islice(source, CHUNK)):
            features = self._preprocess(chunk, role, prompt)
            fixed, tensors = self._told_apart(features)
            mask = tensors["attention_mask"].bool()
            used = (mask | tensors[POSITIONS]) if POSITIONS in tensors else mask
            lengths = used.sum(1).numpy()
            widths = padded_widths(np.maximum(lengths, 1), self._longest(role))
            cut = self._cut(chunk, role, prompt, mask.sum(1).numpy())
            left = getattr(self.model.tokenizer, "padding_side", "right") == "left"
            for width in np.unique(widths).tolist():
                some = np.flatnonzero(widths == width)
                fitted = {
                    name: self._fit(tensor[torch.from_numpy(some)], width, name, left)
                    for name, tensor in tensors.items()
                }
                yield width, Rows(first + some, fitted, lengths[some], cut[some]), fixed
            first += len(chunk)

    def _told_apart(
        self, features: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What is the same for all texts, and what each token has."""
        fixed, tensors = {}, {}
        for name, value in features.items():
            if not isinstance(value, torch.Tensor):
                fixed[name] = value
            elif value.shape == features["attention_mask"].shape:
                # A list without any token becomes a tensor of floats.
                tensors[name] = value if value.numel() else value.long()
            else:
                raise UserError(
                    f"{printable(self.facts.model_id)}: its texts come with {name} of shape "
                    f"{list(value.shape)}, which can't be cut to constant batches"
                )
        return fixed, tensors

    def _preprocess(self, texts: list[str], role: Role, prompt: str) -> dict[str, Any]:
        text = {} if self._filled_up(role) else {"max_length": self.facts.max_length[role]}
        features: dict[str, Any] = self.model.preprocess(
            texts, prompt=prompt or None, task=TASKS[role], processing_kwargs={"text": text}
        )
        return features

    def _expansion(self, role: Role) -> dict[str, Any] | None:
        """How the model's queries are expanded by further tokens."""
        return getattr(self.model[0], "query_expansion", None) if role == "query" else None

    def _filled_up(self, role: Role) -> bool:
        """Whether texts get a length that the model's files say, whatever the facts."""
        expansion = self._expansion(role)
        return expansion is not None and expansion["strategy"] == "fixed"

    def _longest(self, role: Role) -> int:
        """The widest that a text can be."""
        expansion, limit = self._expansion(role), self.facts.max_length[role]
        if expansion is None:
            return limit
        length = int(expansion["length"])
        return length if self._filled_up(role) else max(limit, length)

    def _cut(self, texts: list[str], role: Role, prompt: str, lengths: np.ndarray) -> np.ndarray:
        """(n,) bool: which texts are longer than what was kept of them."""
        limit, found = self._longest(role), np.zeros(len(texts), bool)
        full = np.flatnonzero(lengths >= limit)
        if not len(full):
            return found
        whole = self.model.tokenizer(
            [prompt + texts[i] for i in full.tolist()], truncation=False, verbose=False
        )["input_ids"]
        found[full] = [len(ids) > limit for ids in whole]
        return found

    def _fit(self, tensor: torch.Tensor, width: int, name: str, left: bool) -> torch.Tensor:
        """(n, width): padding taken away, or added."""
        if tensor.shape[1] >= width:
            return tensor[:, -width:] if left else tensor[:, :width]
        pad = (self.model.tokenizer.pad_token_id or 0) if name == "input_ids" else 0
        missing = width - tensor.shape[1]
        return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing), value=pad)

    def _run(
        self, batch: Rows, role: Role, fixed: dict[str, Any], packer: RowPacker
    ) -> Iterator[PartType]:
        """Run a batch, filled up to its number of texts; in halves where memory runs out."""
        n, width = batch.features["attention_mask"].shape
        size = packer.size(width)
        for start in range(0, n, size):
            chosen = np.arange(start, start + size)
            some = batch.take(np.where(chosen < n, chosen, start))
            try:
                yield self._computed(some, role, fixed, min(size, n - start))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                packer.budget = self.tokens_per_batch = packer.budget // 2
                print(f"out of memory: going on with {packer.budget} tokens", file=sys.stderr)
                torch.cuda.empty_cache()
                yield from self._run(batch.take(np.arange(start, n)), role, fixed, packer)
                return

    @torch.inference_mode()
    def _computed(self, batch: Rows, role: Role, fixed: dict[str, Any], n: int) -> PartType:
        if self.flat:
            self.flat.follow(attention.PADDED)
        moved = {name: tensor.to(self.device) for name, tensor in batch.features.items()}
        return self._part(self._forward(fixed | moved, role), batch, n)

    def _forward(self, features: dict[str, Any], role: Role) -> dict[str, Any]:
        """The model's features of a batch, however it is laid out."""
        found: dict[str, Any] = self.model(features, task=TASKS[role], **self._forward_options())
        return found

    def _forward_options(self) -> dict[str, Any]:
        """What the model is called with besides."""
        return {}


def listed_modules(folder: Path) -> list[str]:
    """The module types of a folder's modules.json, their last names; [] without one."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    listed = json.loads(path.read_text(encoding="utf-8"))
    return [module["type"].rpartition(".")[2] for module in listed]


def architectures(folder: Path) -> list[str]:
    """What a folder's config.json says it holds."""
    path = folder / "config.json"
    if not path.is_file():
        return []
    return json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
