"""Headers of safetensors files: names, shapes and dtypes of a folder's tensors, no tensor read."""

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import UserError

MOST = 100 * 2**20  # bytes of a header that is believed


def header(path: Path) -> dict[str, dict[str, Any]]:
    """{tensor: {"dtype", "shape", "data_offsets"}} of one file."""
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MOST:
                raise ValueError("its header is too long")
            table = json.loads(file.read(size))
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None
    table.pop("__metadata__", None)
    return dict(table)


def tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """The headers of all safetensors files of a folder together."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= header(path)
    return found


def shapes(folder: Path) -> dict[str, list[int]]:
    return {name: list(row["shape"]) for name, row in tensors(folder).items()}


def main_dtype(folder: Path) -> str | None:
    """What most numbers of a folder's weights are stored as, "BF16" say; None: no safetensors."""
    counts: Counter[str] = Counter()
    for row in tensors(folder).values():
        size = 1
        for length in row["shape"]:
            size *= length
        counts[row["dtype"]] += size
    return counts.most_common(1)[0][0] if counts else None
