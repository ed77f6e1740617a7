"""What encoding needs to know about a staged model: `stage.json` with the user's overrides."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import read_json
from .families import PACKED_MODEL_TYPES

ROLES = ("query", "passage")
DTYPES = ("auto", "float32", "bfloat16", "float16", "fp8")
OVERRIDES = ("query_prompt", "passage_prompt", "max_length", "dtype", "engine", "dimensions")


@dataclass(frozen=True)
class Facts:
    """One model as it is to be run. `max_length` counts tokens with prompt and special tokens."""

    staged: Path
    model_id: str
    revision: str | None
    architecture: str
    native: bool
    trust_remote_code: bool
    attention: str
    end_token: str | None
    pooling: str
    normalize: bool
    query_prompt: str | None
    passage_prompt: str | None
    max_length: dict[str, int]
    dtype: str
    engine: str
    dimensions: int | None
    hidden_size: int

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.dimensions or self.hidden_size

    def prompt(self, role: str, instruction: str | None) -> str:
        """What stands before each text; `{task}` is the dataset's instruction."""
        prompt = self.query_prompt if role == "query" else self.passage_prompt
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
        return facts


def resolve(staged: Path | str, settings: dict[str, Any]) -> Facts:
    """Read `stage.json`, lay `settings` over it and check the result; `UserError` names the key."""
    staged = Path(staged)
    if not (staged / "stage.json").is_file():
        raise UserError(f"{staged}: no stage.json there; stage the model first")
    stage = read_json(staged / "stage.json")
    unknown = sorted(set(settings) - set(OVERRIDES))
    if unknown:
        raise UserError(
            f"{printable(unknown[0])}: not a setting of encoding; known: {', '.join(OVERRIDES)}"
        )
    given = {key: value for key, value in settings.items() if value is not None}
    merged = stage | given
    merged["max_length"] = stage["max_length"] | given.get("max_length", {})
    if merged["engine"] in (None, "auto"):
        merged["engine"] = stage["engine"]
    facts = Facts(
        staged=staged,
        model_id=merged["id"],
        revision=merged.get("revision"),
        architecture=merged["architecture"],
        native=merged["native"],
        trust_remote_code=merged.get("trust_remote_code", False),
        attention=merged["attention"],
        end_token=merged.get("end_token"),
        pooling=merged["pooling"],
        normalize=merged["normalize"],
        query_prompt=merged.get("query_prompt"),
        passage_prompt=merged.get("passage_prompt"),
        max_length=merged["max_length"],
        dtype=merged.get("dtype") or "auto",
        engine=merged["engine"],
        dimensions=merged.get("dimensions"),
        hidden_size=merged["hidden_size"],
    )
    _check(facts)
    return facts


def _check(facts: Facts) -> None:
    name = printable(facts.model_id)
    if facts.engine not in ("packed", "flagembedding"):
        raise UserError(f"{name}: engine {facts.engine!r}; use packed, flagembedding or auto")
    if facts.dtype not in DTYPES:
        raise UserError(f"{name}: dtype {facts.dtype!r}; use one of {', '.join(DTYPES)}")
    if facts.pooling not in ("cls", "mean", "last_token"):
        raise UserError(f"{name}: pooling {facts.pooling!r}; use cls, mean or last_token")
    if facts.engine == "packed" and not (facts.native and facts.architecture in PACKED_MODEL_TYPES):
        raise UserError(
            f"{name}: the packed engine can't take architecture {facts.architecture!r}"
            f"{'' if facts.native else ' with custom code'}; use engine: flagembedding"
        )
    if facts.engine == "flagembedding" and facts.dtype == "fp8":
        raise UserError(f"{name}: dtype fp8 needs engine: packed")
    if facts.dimensions is not None and not 0 < facts.dimensions <= facts.hidden_size:
        raise UserError(f"{name}: dimensions {facts.dimensions}; use 1 to {facts.hidden_size}")
    for role in ROLES:
        if not facts.max_length.get(role, 0) > 0:
            raise UserError(f"{name}: max_length.{role} is missing or not positive; set it")
