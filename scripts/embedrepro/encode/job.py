"""What a job calls: a list of pieces to `.npy` files with their sidecars, one model loaded once."""

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import UserError, printable
from ..models.facts_table import ROLES, Role
from . import import_libraries, load_engine, turn_engine
from .claims import share
from .engine import DTYPES, ENGINES, Engine, engine_of
from .facts import FAST, Facts, resolve
from .formats import is_written, open_piece


@dataclass(frozen=True)
class Piece:
    """Rows of a corpus, or a split's queries, and the file that their vectors go to.

    `texts`: a prepared corpus.parquet or queries.parquet, `role` query or passage. The piece is
    shard `shard` (from 0) of `of`. `dtype`: float32, bfloat16, float16, fp8, or fast for the one
    that stage.json names. `prompt`: what stands before each text; None is the staged prompt, with
    `instruction` for its {task}. `title`: join or drop. `dimensions`: None is as staged.
    `compiled`: whether the model's layers are compiled. `address`: where a model on a server is
    now. Bytes depend on all of these but `of`, `shard` and `address`, and on nothing else.
    """

    texts: Path
    role: Role
    shard: int
    of: int
    output: Path
    dtype: str
    prompt: str | None = None
    instruction: str | None = None
    title: str = "join"
    dimensions: int | None = None
    compiled: bool = False
    address: str | None = None


def encode_pieces(
    staged: Path,
    pieces: Sequence[Piece],
    device: str = "auto",
    tokens_per_batch: int | None = None,
    on_model: Callable[[Engine], None] | None = None,
    others: Sequence[Piece] = (),
) -> None:
    """Encode each piece whose output is not there and whole.

    `others`: pieces of other jobs of the same model; those that nobody has begun are made as well,
    in this order, where this job had something to make on the same loaded model.

    Those of one precision run one after the other, float32 first and queries first, on one loaded
    model. `on_model` gets the model in float32 before it encodes anything, where one is loaded. A
    piece that can't be encoded for a mistake in its own data doesn't keep the others from it; the
    first such `UserError` is raised at the end. Where nothing is left to do nothing is imported.
    """
    staged = Path(staged)
    left = [piece for piece in pieces if not is_written(piece.output)]
    if not left:
        return
    facts = resolve(staged, {})
    dtypes = {piece: _check(piece, facts) for piece in left}
    errors: list[UserError] = []
    with ThreadPoolExecutor(1) as pool:  # hashing leaves the interpreter to imports and loading
        verified = pool.submit(_verify, staged)
        import_libraries(engine_of(facts))
        engine: Engine | None = None
        for dtype, compiled in _models(dtypes):
            mine = [piece for piece in left if (dtypes[piece], piece.compiled) == (dtype, compiled)]
            settings = {"dtype": dtype, "address": left[0].address}
            if engine and not turn_engine(engine, settings, compiled):
                engine = None
                _collect()
            if engine is None:
                try:
                    engine = load_engine(staged, settings, device, tokens_per_batch, compiled)
                finally:
                    verified.result()  # damage is told as such, whatever loading made of it
            if on_model and engine.precision.dtype == "float32":
                on_model(engine)
            on_model = None  # float32 comes first
            errors += _encode_with(engine, mine, matching(others, facts, dtype, compiled))
    engine = None
    _collect()
    if errors:
        raise errors[0]


def matching(others: Sequence[Piece], facts: Facts, dtype: str, compiled: bool) -> list[Piece]:
    """Those of `others` that are computed like this."""
    stated = {piece.dtype for piece in others}  # few, of many pieces; each reads stage.json
    meant = {name for name in stated if resolve(facts.staged, {"dtype": name}).dtype == dtype}
    return [piece for piece in others if piece.compiled == compiled and piece.dtype in meant]


def _encode_with(engine: Engine, pieces: list[Piece], others: list[Piece]) -> list[UserError]:
    """Encode pieces of the engine's precision."""
    errors = []

    def make(piece: Piece, held: ExitStack) -> Callable[[], None] | None:
        try:
            return held.enter_context(computed_piece(engine, piece))[1]
        except UserError as error:
            if piece in pieces:  # another job's it will say itself
                print(f"{label(engine, piece)}: {printable(error, 2000)}", file=sys.stderr)
                errors.append(error)
            return None

    mine = sorted(pieces, key=lambda piece: piece.role != "query")
    share(mine, others, lambda piece: piece.output, lambda piece: is_written(piece.output), make)
    return errors


def _check(piece: Piece, facts: Facts) -> str:
    """The dtype that is meant; raises `UserError` for what can be seen before a model is loaded."""
    from .texts import row_range  # pyarrow

    if piece.role not in ROLES:
        raise UserError(f"role {printable(piece.role)}: use query or passage")
    if piece.dtype not in (*DTYPES, FAST):
        choices = ", ".join((*DTYPES, FAST))
        raise UserError(f"dtype {printable(piece.dtype)}: use one of {choices}")
    row_range(piece.texts, piece.shard, piece.of)
    if piece.prompt is None:
        facts.prompt(piece.role, piece.instruction)
    return resolve(facts.staged, {"dtype": piece.dtype}).dtype


def _verify(staged: Path) -> None:
    from ..models.staged import verify_staged

    verify_staged(staged)


def _models(dtypes: dict[Piece, str]) -> list[tuple[str, bool]]:
    """(dtype, compiled) of each model that is needed, float32 first."""
    found = {(dtype, piece.compiled) for piece, dtype in dtypes.items()}
    return sorted(found, key=lambda model: (DTYPES.index(model[0]), model[1]))


def _collect() -> None:
    """Give a model's memory back before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def encode_piece(engine: Engine, piece: Piece) -> dict[str, Any]:
    """Encode one piece; returns the sidecar's own facts.

    Vectors go straight to a temporary file, which gets its name when it is whole. Progress goes to
    stderr. Raises `UserError` for a file, shard or setting that doesn't fit.
    """
    with computed_piece(engine, piece) as (meta, seal):
        seal()
    return meta


@contextmanager
def computed_piece(
    engine: Engine, piece: Piece
) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """`encode_piece` but for what seals the file, which needs no device: that is handed out."""
    from .texts import read_texts, row_range

    start, stop = row_range(piece.texts, piece.shard, piece.of)
    prompt = piece.prompt
    if prompt is None:
        prompt = engine.facts.prompt(piece.role, piece.instruction)
    source = read_texts(piece.texts, start, stop, piece.role, piece.title)
    parts = engine.encode(source, piece.role, prompt=prompt, dimensions=piece.dimensions)
    began = time.perf_counter()
    totals = {"docs": stop - start, "tokens": 0, "truncated": 0}
    with open_piece(engine, piece.output, stop - start, piece.dimensions) as writer:
        with Progress(stop - start, label(engine, piece)) as progress:
            for part in parts:
                writer.put(part)
                totals["tokens"] += part.tokens
                totals["truncated"] += part.truncated
                progress.update(len(part.rows), totals["tokens"])
        meta = totals | {"seconds": round(time.perf_counter() - began, 4)}
        meta |= {"rows": [start, stop]} | describe(engine, piece, prompt)
        yield meta, partial(writer.seal, **meta)


def label(engine: Engine, piece: Piece) -> str:
    """What progress calls a piece: the model, then the dataset's folder and the file."""
    dataset = piece.output.parent.parent.name
    return f"{printable(engine.facts.model_id)}: {printable(dataset)} {piece.output.stem}"


class Progress:
    """A bar on a terminal; elsewhere a line at the start and one at the end."""

    def __init__(self, total: int, name: str) -> None:
        self.total, self.name, self.tokens = total, name, 0
        self.began = time.perf_counter()
        self.bar: tqdm | None = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=name, unit=" texts", mininterval=0.5)
        else:
            print(f"{name}: {total:,} texts", file=sys.stderr, flush=True)

    def update(self, count: int, tokens: int) -> None:
        self.tokens = tokens
        if self.bar is not None:
            self.bar.set_postfix(tokens=tokens, refresh=False)
            self.bar.update(count)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
            seconds = time.perf_counter() - self.began
            rates = f"{self.total / seconds:,.0f} texts/s, {self.tokens / seconds:,.0f} tokens/s"
            print(f"{self.name}: done in {seconds:.1f} s, {rates}", file=sys.stderr, flush=True)


def describe(engine: Engine, piece: Piece, prompt: str) -> dict[str, Any]:
    """What produced the vectors, for the sidecar."""
    import torch

    cuda = engine.device.type == "cuda"
    device = torch.cuda.get_device_name(engine.device) if cuda else "cpu"
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = torch.cuda.max_memory_allocated(engine.device) / 2**20 if cuda else host
    settings = engine.facts.record()
    if piece.prompt is not None:
        settings[f"{piece.role}_prompt"] = piece.prompt
    if piece.dimensions is not None:
        settings["dimensions"] = piece.dimensions
    return {
        "model_id": engine.facts.model_id,
        "engine": engine.name,
        "asked_dtype": piece.dtype,
        "compute_dtype": engine.precision.dtype,
        "arithmetic_dtype": engine.precision.arithmetic,
        "compiled": piece.compiled,
        "device": device,
        "peak_memory_mb": round(peak, 1),
        "peak_host_memory_mb": round(host, 1),
        "tokens_per_batch": engine.tokens_per_batch,
        "role": piece.role,
        "instruction": piece.instruction,
        "prompt": prompt,
        "title": piece.title,
        "settings": settings,
        "versions": {name: version(name) for name in ENGINES[engine.name].packages},
    } | engine.remarks
