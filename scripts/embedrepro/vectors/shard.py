"""The stored vectors of one shard, read block by block or by row."""

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .dense import verify_array
from .embeddings import not_finite, open_embeddings


class Shard:
    """The stored vectors (n, dim) of one shard, read from disk block by block.

    On a CPU the rows can also be fetched in any order through a memory map. On CUDA they can when
    all of them fit in half of the free memory: then the first pass leaves them there.
    """

    def __init__(self, path: Path | str, device: str):
        array, self.meta = open_embeddings(path, verify=False)
        assert isinstance(array, np.memmap)
        self.path, self.device = path, device
        self.rows, self.dim = array.shape
        self.dtype = torch.float16 if array.dtype == np.float16 else torch.float32
        self.offset = array.offset
        self.verified = False
        self.resident: torch.Tensor | None = None  # (n, dim) on the device
        self.norm: float | None = None  # the largest of all rows, once all were read
        if device == "cpu":
            self.random_access = True
        else:
            self.random_access = array.nbytes <= torch.cuda.mem_get_info()[0] // 2
        self._mapped: np.ndarray | None = None

    def __len__(self) -> int:
        return self.rows

    def blocks(self, size: int) -> Iterator[tuple[int, torch.Tensor, float]]:
        """Yield (first row, up to `size` rows on the device, their largest norm), in order.

        On a CPU rows come widened to float32. A yielded tensor is overwritten later, so use it
        before asking for the next. The first pass checks the file's digests meanwhile.
        """
        if self.resident is not None and self.norm is not None:
            for first in range(0, self.rows, size):
                yield first, self.resident[first : first + size], self.norm
            return
        if self.device == "cuda" and self.random_access:
            self.resident = torch.empty((self.rows, self.dim), dtype=self.dtype, device="cuda")
        largest = 0.0
        with ThreadPoolExecutor(1) as pool:
            check = None if self.verified else pool.submit(verify_array, self.path, self.meta)
            for first, host, copied in self._stream(size):
                block = self._upload(first, host, copied)
                norm = self._largest_norm(first, block)
                largest = max(largest, norm)
                yield first, block, norm
            if check:
                check.result()
        self.norm, self.verified = largest, True

    def _upload(
        self, first: int, host: torch.Tensor, copied: "torch.cuda.Event | None"
    ) -> torch.Tensor:
        if copied is None:
            return host.float()
        if self.resident is None:
            block = host.to("cuda", non_blocking=True)
        else:
            block = self.resident[first : first + len(host)].copy_(host, non_blocking=True)
        copied.record()
        return block

    def _largest_norm(self, first: int, block: torch.Tensor) -> float:
        norms = torch.linalg.vector_norm(block, dim=1, dtype=torch.float32)
        largest = float(norms.max())
        if not np.isfinite(largest):
            row = first + int((~torch.isfinite(norms)).nonzero()[0])
            raise not_finite(self.path, row)
        return largest

    def _stream(self, size: int) -> Iterator[tuple[int, torch.Tensor, "torch.cuda.Event | None"]]:
        """Read ahead into three buffers: one in use, one ready, one being read."""
        cuda = self.device == "cuda"
        shape = (min(size, self.rows), self.dim)
        buffers = [torch.empty(shape, dtype=self.dtype, pin_memory=cuda) for _ in range(3)]
        copied = [torch.cuda.Event() if cuda else None for _ in range(3)]
        starts = range(0, self.rows, size)
        with open(self.path, "rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:
            file.seek(self.offset)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

            def read(number: int) -> torch.Tensor:
                before = copied[number % 3] if number >= 3 else None
                if before is not None:
                    before.synchronize()
                block = buffers[number % 3][: min(size, self.rows - starts[number])]
                read_whole(file, memoryview(block.numpy()).cast("B"), self.path)
                return block

            pending = [reader.submit(read, number) for number in range(min(2, len(starts)))]
            for number, first in enumerate(starts):
                yield first, pending.pop(0).result(), copied[number % 3]
                if number + 2 < len(starts):
                    pending.append(reader.submit(read, number + 2))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The stored vectors of `rows`, sorted upwards (CPU) or in any order (CUDA)."""
        if self.resident is not None:
            return self.resident[rows]
        if self._mapped is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            kind = np.float16 if self.dtype == torch.float16 else np.float32
            flat = np.frombuffer(self._map, kind, self.rows * self.dim, self.offset)
            self._mapped = flat.reshape(self.rows, self.dim)
        found = torch.from_numpy(self._mapped[rows.numpy()])
        self._map.madvise(mmap.MADV_DONTNEED)  # give the pages back: memory stays bounded
        return found


def read_whole(file, view: memoryview, path: Path | str) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise UserError(f"{path}: ends early; delete it and run again")
        view = view[count:]
