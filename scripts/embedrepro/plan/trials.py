"""Settings to try where published numbers weren't reproduced: rows more, in the same plan.

What is off is read from the scores of a finished experiment; `evaluation.suspects` names settings,
here each becomes a row of its own, made like any other: cached, sharing what it can. Two settings
that come to the same run are tried once, under the name of the first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluation import published
from ..evaluation.suspects import (
    NOT_TRIED,
    Answer,
    Question,
    Suspect,
    answer,
    cheapest,
    of_revision,
    questions,
    suspects,
)
from ..files import digest, read_json
from .artifacts import Catalogue, key_in
from .build import Scope, read_scope
from .compile import Trial, compile_plan, wider_catalogue
from .config import Model
from .plan import Plan, is_made
from .show import reason

VARIED = ("dense", "sparse", "multivector")  # kinds of rows whose settings can be varied


@dataclass(frozen=True)
class Attempt:
    """A setting for a number: the row that tries it, by name, or the reason why none does."""

    question: Question
    suspect: Suspect
    row: str | None
    why_not: str = ""


@dataclass(frozen=True)
class Inquiry:
    """What to try for the numbers of a plan: the plan with rows for it, and what each is for."""

    plan: Plan
    attempts: Sequence[Attempt]

    def answers(self) -> list[Answer]:
        """What was found, the settings of each number sorted, the likeliest first."""
        scores = {
            a.spec["model"]: path for path, a in self.plan.artifacts.items() if a.step == "score"
        }
        found: dict[int, list[Answer]] = {}
        for attempt in self.attempts:
            told = answer(attempt.question, attempt.suspect, self.outcome(attempt, scores))
            found.setdefault(id(attempt.question), []).append(told)
        return [a for some in found.values() for a in sorted(some, key=lambda a: a.distance)]

    def outcome(self, attempt: Attempt, scores: Mapping[str, str]) -> Mapping[str, Any] | str:
        if attempt.row is None:
            return f"{NOT_TRIED}: {attempt.why_not}"
        path = scores[attempt.row]
        if not Path(path).exists():
            return reason(self.plan, path)
        found: Mapping[str, Any] = read_json(path)
        return found


def inquire(plan: Plan, repository: Path) -> Inquiry | None:
    """What to try for the numbers of a plan's finished report; None where all are reproduced."""
    spec = plan.artifacts[plan.report].spec
    scored = [read_json(row["scores"]) for row in spec["rows"] if Path(row["scores"]).exists()]
    table = published.load(
        Path(spec["registry"]),
        [Path(path) for path in spec["published"]],
        {scores["model_id"] for scores in scored},
        {scores["dataset"] for scores in scored},
    )
    asked = questions(scored, table)
    if not asked:
        return None
    scope = read_scope(dict(plan.config), repository)
    sizes = {name: size.documents for name, size in scope.outside.sizes.items()}
    found = _Trials(scope, Catalogue(scope.experiment, scope.outside))
    attempts = [one for question in cheapest(asked, sizes) for one in found.of(question)]
    trials = [trial for trial in found.rows.values() if trial]
    wider = compile_plan(scope.experiment, scope.outside, plan.repeat, trials=trials)
    return Inquiry(replace(wider, config=plan.config), attempts)


class _Trials:
    """The rows that try settings, by the key of the run that they come to."""

    def __init__(self, scope: Scope, catalogue: Catalogue) -> None:
        self.scope, self.catalogue = scope, catalogue
        self.models = {model.slug: model for model in scope.experiment.models}
        self.datasets = {dataset.name: dataset for dataset in scope.experiment.datasets}
        self.rows: dict[tuple[str, str], Trial] = {}

    def of(self, question: Question) -> Iterator[Attempt]:
        model, row = self.models[question.model], question.row
        if model.kind not in VARIED:
            return
        base = self.run_key(Trial(model, self.datasets[row.dataset], row.split))
        seen = {base}
        for suspect in suspects(
            row,
            question.scores,
            model.known,
            model.facts.keys(),
            lambda revision: self.fetched(self.variant(model, of_revision(revision))),
        ):
            try:
                trial = self.trial(model, suspect, row.dataset, row.split)
                key = self.run_key(trial)
            except UserError as error:
                yield Attempt(question, suspect, None, str(error))
                continue
            if not self.fetched(trial.model):
                yield Attempt(question, suspect, None, "that revision is not in the store")
            elif key not in seen or not (suspect.model or suspect.dataset):
                seen.add(key)
                tried = self.rows.setdefault((question.model, key), trial)
                yield Attempt(question, suspect, tried.model.slug)

    def trial(self, model: Model, suspect: Suspect, dataset: str, split: str) -> Trial:
        changed = replace(self.datasets[dataset], **suspect.dataset)
        return Trial(self.variant(model, suspect.model, suspect.dataset), changed, split)

    def variant(
        self, model: Model, changed: Mapping[str, Any], dataset: Mapping[str, Any] | None = None
    ) -> Model:
        name = digest([model.slug, dict(changed), dict(dataset or {})], 8)
        return self.scope.variant(model, changed, f"{model.slug}__why_{name}")

    def run_key(self, trial: Trial) -> str:
        catalogue = wider_catalogue(self.catalogue, [trial])
        catalogue.preflight(trial.model)  # refuses what the plan would refuse
        return key_in(catalogue.run(trial.model, trial.dataset, trial.split).path)

    def fetched(self, model: Model) -> bool:
        """Whether a model's files are there: another revision is not downloaded for a trial."""
        needed = [model, *([model.base] if model.base else [])]
        return all(is_made(self.catalogue.download(one)) for one in needed)
