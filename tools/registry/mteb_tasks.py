"""Make `rules/registry/mteb_tasks.json` from the metadata of an installed mteb.

    python tools/registry/mteb_tasks.py rules/registry/mteb_tasks.json

Holds every task that ranks a corpus of texts for queries of text, also superseded ones: results for
them are published. Queries are counted as mteb's descriptive statistics of that version do: those
with at least one relevant passage, for the dataset's revision given beside them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

TYPES = ("Retrieval", "InstructionRetrieval")


def text_tasks() -> dict[str, Any]:
    """mteb's task classes by name."""
    from mteb.get_tasks import _TASKS_REGISTRY

    return {
        name: task
        for name, task in sorted(_TASKS_REGISTRY.items())
        if task.metadata.type in TYPES and set(task.metadata.modalities) == {"text"}
    }


def described(task: Any) -> dict[str, Any]:
    """type, instruction (the task's own or its class's; per role where mteb has both), source,
    splits, subsets, queries {split: {subset: count}}, superseded_by."""
    from mteb.abstasks.abstask import get_abstask_prompt

    meta = task.metadata
    entry: dict[str, Any] = {
        "type": meta.type,
        "instruction": meta.prompt,
        "fallback": get_abstask_prompt(meta.name),
        "source": {"hub": meta.dataset["path"], "revision": meta.dataset["revision"]},
        "splits": sorted(meta.eval_splits),
        "subsets": sorted(meta.hf_subsets),
        "queries": counts(meta),
    }
    if meta.superseded_by:
        entry["superseded_by"] = meta.superseded_by
    return {key: value for key, value in entry.items() if value not in (None, {})}


def counts(meta: Any) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for split, statistics in (meta.descriptive_stats or {}).items():
        parts = statistics.get("hf_subset_descriptive_stats") or {"default": statistics}
        for subset, part in parts.items():
            judged, relevant = part.get("relevant_docs_statistics"), None
            if judged:
                average = judged["average_relevant_docs_per_query"]
                relevant = round(judged["num_relevant_docs"] / average) if average else None
            if relevant:
                found.setdefault(split, {})[subset] = relevant
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    import mteb

    tasks = {name: described(task) for name, task in text_tasks().items()}
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False, sort_keys=True)}"
        for name, entry in tasks.items()
    )
    text = f'{{"mteb": {json.dumps(mteb.__version__)},\n"tasks": {{\n{lines}\n}}}}\n'
    arguments.output.write_text(text, encoding="utf-8")
    print(f"{arguments.output}: {len(tasks)} tasks of mteb {mteb.__version__}")


if __name__ == "__main__":
    main()
