"""What encoding cost, from the embeddings' sidecars."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from .collect import Model, Report


@dataclass(frozen=True)
class Cost:
    """Encoding of one model on one dataset, or on all (`dataset` None), queries included.

    `seconds` are summed over devices: two GPUs for one minute are 120.
    """

    model: Model
    dataset: str | None
    device: str
    docs: int
    tokens: int
    seconds: float
    peak_memory_mb: float | None
    truncated: int

    @property
    def docs_per_second(self) -> float | None:
        return self.docs / self.seconds if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None


def costs(report: Report) -> list[Cost]:
    """One entry for each model that was encoded, in the experiment's order."""
    return grouped(report, lambda embedding: None)


def dataset_costs(report: Report) -> list[Cost]:
    """One entry for each model and dataset."""
    return grouped(report, lambda embedding: embedding["dataset"])


def grouped(report: Report, dataset_of) -> list[Cost]:
    groups = defaultdict(list)
    for embedding in report.embeddings:
        groups[embedding["model"], dataset_of(embedding)].append(embedding)
    return [
        total(model, dataset, parts)
        for model in report.models
        for (slug, dataset), parts in groups.items()
        if slug == model.slug
    ]


def total(model: Model, dataset: str | None, parts: list[dict[str, Any]]) -> Cost:
    peaks = [part["peak_memory_mb"] for part in parts if part.get("peak_memory_mb") is not None]
    return Cost(
        model=model,
        dataset=dataset,
        device=", ".join(sorted({part["device"] for part in parts})),
        docs=sum(part["docs"] for part in parts),
        tokens=sum(part["tokens"] for part in parts),
        seconds=sum(part["seconds"] for part in parts),
        peak_memory_mb=max(peaks, default=None),
        truncated=sum(part.get("truncated") or 0 for part in parts),
    )
