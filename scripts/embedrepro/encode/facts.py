"""What encoding needs to know about a staged model: its `stage.json`, and what one piece asks for.

stage.json has all that was stated and found; a piece chooses precision, cut and prompts, no more.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ..errors import UserError, printable
from ..files import read_json
from ..models.facts_table import (
    ROLES,
    Attention,
    Dtype,
    Engine,
    Kind,
    Pooling,
    Role,
    check,
    prompt_for,
)
from .families import PACKED_MODEL_TYPES

FAST = "fast"  # as a piece's dtype: what stage.json's fast_dtype names
# What may be laid over stage.json. `engine` and `max_length` are for tests and comparisons: the
# workflow states them to staging.
SETTINGS = (
    *("query_prompt", "passage_prompt", "max_length", "dtype", "engine", "dimensions"),
    "address",  # where a model on a server is now
)

SERVED = ("server", "address")  # facts of a model on a server alone


@dataclass(frozen=True)
class Facts:
    """One model as it is to be run.

    `max_length` counts tokens with prompt and special tokens. `modules` are the steps after the
    transformer in order, as staging describes them: {"type", "path", and sentence-transformers'
    keys of that module}; after them the vector is cut to `dimensions`, and normalised where
    `normalize` says so. `full_dimension`: its length before the cut. `server`: what was found out
    about the server of a model that has one, `address` where it is; what nobody says is None.
    """

    staged: Path
    model_id: str
    revision: str | None
    kind: Kind
    architecture: str
    native: bool
    trust_remote_code: bool
    attention: Attention | None
    end_token: str | None
    pooling: Pooling
    include_prompt: bool
    normalize: bool
    query_prompt: str | Mapping[str, str] | None
    passage_prompt: str | Mapping[str, str] | None
    max_length: Mapping[Role, int]
    dtype: Dtype
    engine: Engine
    dimensions: int | None
    full_dimension: int
    hidden_size: int
    modules: tuple[dict[str, Any], ...] = ()
    server: Mapping[str, Any] | None = None
    address: str | None = None

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.dimensions or self.full_dimension

    def prompt(self, role: Role, instruction: str | None) -> str:
        """What stands before each text; `{task}` is the dataset's instruction."""
        stated = self.query_prompt if role == "query" else self.passage_prompt
        prompt = prompt_for(stated)
        if prompt is None:
            raise UserError(
                f"{self.model_id}: nothing says what stands before a {role}; set {role}_prompt: "
                'under the model ("" for nothing)'
            )
        if "{task}" not in prompt:
            return prompt
        if instruction is None:
            raise UserError(
                f"{self.model_id}: the {role} prompt has {{task}} but the dataset has no "
                "instruction; give the dataset one or the model a prompt without {task}"
            )
        return prompt.replace("{task}", instruction)

    def record(self) -> dict[str, Any]:
        """The facts as JSON, for the sidecar."""
        facts = asdict(self)
        del facts["staged"]
        return facts if self.server else {k: v for k, v in facts.items() if k not in SERVED}


def resolve(staged: Path | str, settings: Mapping[str, Any]) -> Facts:
    """Read `stage.json` and lay a piece's `settings` over it.

    `settings`: dtype (float32, float16, bfloat16, fp8, or fast: what stage.json's `fast_dtype`
    names; without it what the user stated of the model, or float32), query_prompt and
    passage_prompt as they will be put, dimensions. None is no setting. `UserError` names the key.
    """
    staged = Path(staged)
    if not (staged / "stage.json").is_file():
        raise UserError(f"{staged}: no stage.json there; stage the model first")
    stage = read_json(staged / "stage.json")
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise UserError(
            f"{printable(unknown[0])}: not a setting of encoding; known: {', '.join(SETTINGS)}"
        )
    given = {key: value for key, value in settings.items() if value is not None}
    check({k: v for k, v in given.items() if v != FAST}, printable(stage["id"]))
    merged = stage | {key: value for key, value in given.items() if value != "auto"}
    facts = Facts(
        staged=staged,
        model_id=merged["id"],
        revision=merged.get("revision"),
        kind=merged.get("kind", "dense"),
        architecture=merged["architecture"],
        native=merged["native"],
        trust_remote_code=merged.get("trust_remote_code", False),
        attention=merged["attention"],
        end_token=merged.get("end_token"),
        pooling=merged["pooling"],
        include_prompt=merged.get("include_prompt", True),
        normalize=merged["normalize"],
        query_prompt=merged.get("query_prompt"),
        passage_prompt=merged.get("passage_prompt"),
        max_length=stage["max_length"] | _lengths(given.get("max_length", {})),
        dtype=_dtype(merged.get("dtype"), stage),
        engine=merged["engine"],
        dimensions=merged.get("dimensions"),
        full_dimension=merged.get("full_dimension", merged["hidden_size"]),
        hidden_size=merged["hidden_size"],
        modules=tuple(merged.get("modules", ())),
        server=merged.get("server"),
        address=merged.get("address"),
    )
    _check(facts)
    return facts


def _lengths(value: int | dict[Role, int]) -> dict[Role, int]:
    return value if isinstance(value, dict) else dict.fromkeys(ROLES, value)


def _dtype(wanted: str | None, stage: dict[str, Any]) -> Dtype:
    if wanted in (None, "auto"):
        return "float32"
    return cast(Dtype, stage.get("fast_dtype", "float16") if wanted == FAST else wanted)


def _check(facts: Facts) -> None:
    name = printable(facts.model_id)
    for fact, known in (("engine", Engine), ("dtype", Dtype), ("pooling", Pooling)):
        if getattr(facts, fact) not in get_args(known):
            choices = ", ".join(get_args(known))
            raise UserError(f"{name}: {fact} {getattr(facts, fact)!r}; use one of {choices}")
    if facts.engine == "packed" and not (facts.native and facts.architecture in PACKED_MODEL_TYPES):
        raise UserError(
            f"{name}: the packed engine can't take architecture {facts.architecture!r}"
            f"{'' if facts.native else ' with custom code'}; use engine: auto"
        )
    if facts.engine != "packed" and facts.dtype == "fp8":
        raise UserError(f"{name}: dtype fp8 needs engine: packed")
    if facts.dimensions is not None and not 0 < facts.dimensions <= facts.full_dimension:
        raise UserError(f"{name}: dimensions {facts.dimensions}; use 1 to {facts.full_dimension}")
