"""Batches on their way through a device: laid out by threads, run, fetched while the next runs."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch

from .ahead import ahead
from .batches import (
    Batch,
    Packer,
    PaddedPacker,
    Sequences,
    VarlenPacker,
    padded_arrays,
    varlen_arrays,
)

IN_FLIGHT = 2  # batches queued on the device before the host waits for the oldest
PartType = TypeVar("PartType")
Compute = Callable[[Batch, list[torch.Tensor]], Sequence[torch.Tensor]]
Finish = Callable[[Batch, list[np.ndarray]], PartType]


class Pipeline(Generic[PartType]):
    """`varlen`: sequences lie end to end, else rows are padded with `pad`.

    `budget`: tokens a batch; halved where memory runs out.
    """

    def __init__(self, device: torch.device, varlen: bool, pad: int, budget: int) -> None:
        self.device, self.varlen, self.pad, self.budget = device, varlen, pad, budget

    def parts(
        self,
        chunks: Iterable[Sequences],
        longest: int,
        compute: Compute,
        finish: Finish[PartType],
    ) -> Iterator[PartType]:
        """What `finish` makes, on the host, of what `compute` makes on the device of each batch.

        `chunks`: texts of a token or more, none longer than `longest`. `compute` gets the batch's
        arrays on the device: ids, positions, offsets of `varlen_arrays`, or ids and lengths of
        `padded_arrays`.
        """
        # A tenth of the usual: what feeds the device must not wait for the interpreter.
        sys.setswitchinterval(0.0005)
        packer = (VarlenPacker if self.varlen else PaddedPacker)(self.budget, longest)
        batches = pack(ahead(chunks, 2), packer)
        laid = ahead(((batch, self.lay(batch)) for batch in batches), 4)
        running: deque[tuple[Batch, list[torch.Tensor], torch.cuda.Event | None]] = deque()
        for batch, arrays in laid:
            for launched in self.launch(batch, arrays, packer, compute):
                running.append(launched)
                while len(running) > IN_FLIGHT:
                    yield self._finish(*running.popleft(), finish)
        while running:
            yield self._finish(*running.popleft(), finish)

    def lay(self, batch: Batch) -> list[torch.Tensor]:
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

    @torch.inference_mode()
    def compute(
        self, batch: Batch, arrays: list[torch.Tensor], compute: Compute
    ) -> Sequence[torch.Tensor]:
        """`compute` of the arrays, moved to the device."""
        return compute(batch, [array.to(self.device, non_blocking=True) for array in arrays])

    def launch(
        self, batch: Batch, arrays: list[torch.Tensor], packer: Packer, compute: Compute
    ) -> Iterator[tuple[Batch, list[torch.Tensor], torch.cuda.Event | None]]:
        """Start the batch, in parts where it is larger than the budget or memory runs out."""
        if batch.shape == packer.shape(batch.width):
            try:
                found = self.compute(batch, arrays, compute)
            except torch.OutOfMemoryError:
                self._halve(batch, packer)
            else:
                yield batch, *self._fetch(found)
                return
            torch.cuda.empty_cache()
        for part in packer.split(batch):
            yield from self.launch(part, self.lay(part), packer, compute)

    def _halve(self, batch: Batch, packer: Packer) -> None:
        """Halve the budget; raises the error at hand when one sequence alone doesn't fit."""
        if packer.budget // 2 < (packer.longest if self.varlen else batch.width):
            raise
        packer.budget //= 2
        self.budget = packer.budget
        print(f"out of memory: going on with {packer.budget} tokens a batch", file=sys.stderr)

    def _fetch(
        self, found: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
        """Start the copies to the host; the event says when they are done."""
        if self.device.type == "cpu":
            return list(found), None
        hosts = []
        for tensor in found:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            hosts.append(host.copy_(tensor, non_blocking=True))
        done = torch.cuda.Event(blocking=True)
        done.record()
        return hosts, done

    @staticmethod
    def _finish(
        batch: Batch,
        found: list[torch.Tensor],
        done: torch.cuda.Event | None,
        finish: Finish[PartType],
    ) -> PartType:
        if done is not None:
            done.synchronize()
        return finish(batch, [tensor.numpy() for tensor in found])


def pack(chunks: Iterable[Sequences], packer: Packer) -> Iterator[Batch]:
    """All of `chunks` in batches."""
    for chunk in chunks:
        yield from packer.add(chunk)
    yield from packer.flush()
