"""The layout of CUDA in half precision on a CPU, for models of sentence-transformers."""

import pytest
from embedrepro.encode import attention, features, flat
from encode_models import attend_each


def lay_end_to_end(monkeypatch: pytest.MonkeyPatch, budget: int) -> list[object]:
    """Passages as on CUDA in half precision, by plain arithmetic; returns the requests so run."""
    ran: list[object] = []
    parts = flat.Flat.parts

    def noted(self: flat.Flat, *given: object) -> object:
        ran.append(given)
        return parts(self, *given)

    monkeypatch.setattr(flat.Flat, "parts", noted)
    monkeypatch.setattr(features.ModuleEngine, "_can_varlen", lambda self: True)
    monkeypatch.setattr(attention, "varlen_attn", attend_each)
    monkeypatch.setattr(flat, "varlen_budget", lambda trunk, device: budget)
    return ran
