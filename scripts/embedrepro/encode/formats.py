"""A piece of any kind: which files an engine's parts go to.

Dense vectors are one `.npy` (see `vectors.dense`), sparse and token vectors several (see
`vectors.ragged`), all named after `output`. BGE-M3's pieces are three: dense at `output`, lexical
weights at `<stem>.sparse.npy`, token vectors at `<stem>.tokens.npy`.
"""

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import UserError
from ..files import TEMPORARY, read_json, remove
from ..vectors import multivector, sparse
from ..vectors.dense import ArrayWriter, load_array, seal_array, sidecar
from ..vectors.ragged import Ragged, file_of
from .batches import Part
from .engine import Engine, cut_dimensions

if TYPE_CHECKING:
    from .m3 import M3Engine, M3Part
    from .multivector import MultiVectorEngine, TokensPart
    from .sparse import SparseEngine, SparsePart


class PieceWriter(Protocol):
    """What takes the parts of one piece. A context: without `seal` nothing stays behind."""

    def put(self, part: Any) -> None:
        """Take a part of the engine's kind, its rows in any order."""
        ...

    def seal(self, **meta: Any) -> None:
        """Give the piece's files their sidecars with `meta`, then their names."""
        ...

    def __enter__(self) -> "PieceWriter": ...

    def __exit__(self, *failure: object) -> None: ...


class DensePiece:
    """A dense piece of `rows` vectors."""

    def __init__(
        self, engine: "Engine | M3Engine", output: Path, rows: int, dimensions: int | None
    ) -> None:
        width = cut_dimensions(engine.facts, engine.dimension, dimensions)
        output.parent.mkdir(parents=True, exist_ok=True)
        self.output = output
        self.temporary = output.parent / f"{TEMPORARY}{secrets.token_hex(4)}-{output.name[:100]}"
        self.writer = ArrayWriter(self.temporary, (rows, width), engine.precision.stored)

    def put(self, part: Part) -> None:
        self.writer.put(part.rows, part.vectors)

    def seal(self, **meta: Any) -> None:
        self.writer.__exit__(None)
        seal_array(self.temporary, self.output, **meta)

    def __enter__(self) -> "DensePiece":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.file.close()
        remove(self.temporary)


class SparsePiece:
    """A piece of `rows` sparse vectors."""

    def __init__(
        self, engine: "SparseEngine | M3Engine", output: Path, rows: int, _: int | None
    ) -> None:
        width = getattr(engine, "terms", engine.dimension)
        self.writer = sparse.SparseWriter(output, rows, width, engine.precision.stored)

    def put(self, part: "SparsePart") -> None:
        self.writer.put(part.rows, part.lengths, part.columns, part.values)

    def seal(self, **meta: Any) -> None:
        self.writer.seal(**meta)

    def __enter__(self) -> "SparsePiece":
        return self

    def __exit__(self, *failure: object) -> None:
        self.writer.__exit__(*failure)


class TokensPiece:
    """A piece of `rows` texts' token vectors."""

    def __init__(
        self, engine: "MultiVectorEngine | M3Engine", output: Path, rows: int, _: int | None
    ) -> None:
        dimension = getattr(engine, "token_dimension", engine.dimension)
        self.similarity = engine.similarity
        self.writer = multivector.TokenWriter(output, rows, dimension, engine.precision.stored)

    def put(self, part: "TokensPart") -> None:
        self.writer.put(part.rows, part.lengths, part.vectors)

    def seal(self, **meta: Any) -> None:
        self.writer.seal(**{"similarity": self.similarity} | meta)

    def __enter__(self) -> "TokensPiece":
        return self

    def __exit__(self, *failure: object) -> None:
        self.writer.__exit__(*failure)


class M3Piece:
    """BGE-M3's three pieces; the dense one gets its name last."""

    def __init__(self, engine: "M3Engine", output: Path, rows: int, dimensions: int | None) -> None:
        lexical, tokens = m3_outputs(output)
        with ExitStack() as opened:
            self.sparse = opened.enter_context(SparsePiece(engine, lexical, rows, None))
            self.tokens = opened.enter_context(TokensPiece(engine, tokens, rows, None))
            self.dense = opened.enter_context(DensePiece(engine, output, rows, dimensions))
            self.opened = opened.pop_all()

    def put(self, part: "M3Part") -> None:
        self.sparse.put(part.sparse)
        self.tokens.put(part.multivector)
        self.dense.put(part.dense)

    def seal(self, **meta: Any) -> None:
        self.sparse.seal(**meta)
        self.tokens.seal(**meta)
        beside = [path.name for path in m3_outputs(self.dense.output)]
        self.dense.seal(**{BESIDE: beside} | meta)

    def __enter__(self) -> "M3Piece":
        return self

    def __exit__(self, *failure: object) -> None:
        self.opened.close()


BESIDE = "beside"  # in a sidecar: further pieces that belong to this one
OPENERS: dict[str, Callable[..., Ragged]] = {
    sparse.KIND: sparse.SparseVectors,
    multivector.KIND: multivector.TokenVectors,
}
WRITERS: dict[str, Callable[..., PieceWriter]] = {
    "sparse": SparsePiece,
    "multivector": TokensPiece,
    "m3": M3Piece,
}


def open_piece(
    engine: Engine, output: Path, rows: int, dimensions: int | None = None
) -> PieceWriter:
    """The writer for what `engine` gives: by its name, dense unless it says otherwise."""
    return WRITERS.get(engine.name, DensePiece)(engine, output, rows, dimensions)


def m3_outputs(output: Path) -> tuple[Path, Path]:
    """Where BGE-M3's lexical weights and token vectors stand beside the dense `output`."""
    return output.with_suffix(".sparse.npy"), output.with_suffix(".tokens.npy")


def is_written(output: Path) -> bool:
    """Whether a whole piece of any kind stands at `output`; its bytes are not hashed."""
    try:
        meta = read_json(sidecar(output))
        if meta.get("format") in OPENERS:
            return _has_all_bytes(OPENERS[meta["format"]](output, verify=False))
        array, _ = load_array(output, verify=False)
    except UserError:
        return False
    size = output.stat().st_size
    whole = isinstance(array, np.memmap) and array.offset + array.nbytes == size
    return whole and all(is_written(output.with_name(name)) for name in meta.get(BESIDE, ()))


def _has_all_bytes(piece: Ragged) -> bool:
    sizes = [
        piece.begin(name) + int(piece.meta["files"][name]["shape"][0]) * field.bytes
        for name, field in piece.fields.items()
    ]
    places = [file_of(piece.path, name, piece.main) for name in piece.fields]
    return sizes == [place.stat().st_size for place in places]
