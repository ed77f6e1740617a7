"""From the states of a text's tokens to its vector: pooling, then the modules that follow it.

All of it in float32, as sentence-transformers' modules of the same names compute it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError, printable
from .facts import Facts
from .loading import round_parameters

NAMES = {"lasttoken": "last_token"}  # sentence-transformers' name: ours
SINGLE = ("cls", "last_token")  # read one position of a text
BLOCK = 1024  # rows of `in_blocks`


class Steps:
    """`dimension`: length of the vectors that come out. `modes`: of pooling, joined in order."""

    def __init__(self, facts: Facts, hidden: int, device: torch.device) -> None:
        pooling = next((row for row in facts.modules if row["type"] == "Pooling"), {})
        modes = [facts.pooling]
        if facts.pooling == "modules":
            modes = [NAMES.get(mode, mode) for mode in pooling.get("pooling_mode", [])]
        self.modes = modes
        self.include_prompt = facts.include_prompt
        self.dimension = hidden * len(modes)
        rows = [row for row in facts.modules if row["type"] not in ("Pooling", "Dropout")]
        # Where facts.normalize says it, it is done last, after a cut.
        while facts.normalize and rows and rows[-1]["type"] == "Normalize":
            rows.pop()
        self.modules: list[Callable[[torch.Tensor], torch.Tensor]] = []
        for row in rows:
            module = self._module(facts, row).to(device).eval()
            round_parameters(module, facts.dtype if facts.dtype != "fp8" else "bfloat16")
            self.modules.append(module)

    def _module(self, facts: Facts, row: dict[str, Any]) -> nn.Module:
        kind, folder = row["type"], facts.staged / row["path"]
        if kind == "Normalize":
            return Normalize()
        module: nn.Module
        if kind == "Dense":
            module = Dense(row)
            self.dimension = row["out_features"]
        elif kind == "LayerNorm":
            module = LayerNorm(row["dimension"])
        else:
            name = printable(facts.model_id)
            raise UserError(f"{name}: the packed engine has no module {kind}; use engine: auto")
        module.load_state_dict(weights_of(folder))
        return module

    @property
    def single(self) -> str | None:
        """The mode, where one position of a text is all that is read."""
        return self.modes[0] if len(self.modes) == 1 and self.modes[0] in SINGLE else None

    def finish(self, pooled: torch.Tensor) -> torch.Tensor:
        """(n, dimension) of pooled states (n, …)."""
        for module in self.modules:
            pooled = module(pooled.float())
        return pooled

    def padded(self, hidden: torch.Tensor, lengths: torch.Tensor, skipped: int) -> torch.Tensor:
        """Pool states (rows, width, size) whose texts begin at column 0.

        `lengths`: (rows,). `skipped`: tokens of a prompt that pooling leaves out.
        """
        column = torch.arange(hidden.shape[1], device=hidden.device)[None, :]
        mask = (column < lengths[:, None]) & (column >= skipped)
        row = torch.arange(len(hidden), device=hidden.device)
        found = []
        for mode in self.modes:
            if mode == "cls":
                found.append(hidden[row, torch.clamp(lengths - 1, max=skipped)])
            elif mode == "last_token":
                found.append(hidden[row, lengths - 1])
            elif mode == "max":
                found.append(hidden.float().masked_fill(~mask[..., None], -torch.inf).amax(1))
            else:
                weights = mask.float()
                if mode == "weightedmean":
                    weights = weights * (column + 1)
                summed = (hidden * weights[..., None]).sum(1)
                total = weights.sum(1)[:, None].clamp(min=1e-9)
                found.append(summed / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total))
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def varlen(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        offsets: torch.Tensor,
        used: int,
        skipped: int,
    ) -> torch.Tensor:
        """Pool states (tokens, size) of sequences end to end.

        `positions` (tokens,) restart at 0; `offsets` (n + 1,) are the sequences' bounds, the last
        of them `used`.
        """
        ends = offsets.long()
        found = []
        for mode in self.modes:
            if mode in SINGLE:
                found.append(hidden[single_positions(mode, offsets, skipped)].float())
                continue
            some, place = hidden[:used].float(), positions[:used, None]
            # Unlike an atomic sum, these add in the order of the tokens.
            if mode == "max":
                some = some.masked_fill(place < skipped, -torch.inf)
                found.append(torch.segment_reduce(some, "max", offsets=ends, unsafe=True))
                continue
            if mode == "mean" and not skipped:
                found.append(torch.segment_reduce(some, "mean", offsets=ends, unsafe=True))
                continue
            weights = (place >= skipped).float()
            if mode == "weightedmean":
                weights = weights * (place + 1)
            summed = torch.segment_reduce(some * weights, "sum", offsets=ends, unsafe=True)
            total = torch.segment_reduce(weights, "sum", offsets=ends, unsafe=True).clamp(min=1e-9)
            found.append(summed / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total))
        return found[0] if len(found) == 1 else torch.cat(found, 1)


def single_positions(mode: str, offsets: torch.Tensor, skipped: int) -> torch.Tensor:
    """(n,) the positions that `cls` or `last_token` reads of sequences end to end."""
    last = offsets[1:] - 1
    return last if mode == "last_token" else torch.minimum(offsets[:-1] + skipped, last)


def in_blocks(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """`function` of `rows` (n, …), a constant number of them at a time.

    For as many rows as happen to come together: on a device their number decides which kernel runs,
    and in which order it adds.
    """
    blocks = []
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        padding = (0, 0) * (some.ndim - 1) + (0, BLOCK - len(some))
        blocks.append(function(nn.functional.pad(some, padding))[: len(some)])
    return torch.cat(blocks) if blocks else function(rows)


class Normalize(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(vectors, dim=-1)


class Dense(nn.Module):
    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__()
        size, out = row["in_features"], row["out_features"]
        self.linear = nn.Linear(size, out, bias=row.get("bias", True))
        name = row.get("activation_function", "torch.nn.modules.activation.Tanh")
        self.activation: nn.Module = getattr(nn, name.rpartition(".")[2])()
        self.residual: nn.Module | None = None
        if row.get("use_residual"):
            self.residual = nn.Identity() if size == out else nn.Linear(size, out, bias=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.activation(self.linear(vectors))
        return found if self.residual is None else found + self.residual(vectors)


class LayerNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(vectors)
        return found


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a module's folder, in float32."""
    from safetensors.torch import load_file

    if (folder / "model.safetensors").is_file():
        tensors = load_file(folder / "model.safetensors")
    else:
        tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: tensor.float() for name, tensor in tensors.items()}
