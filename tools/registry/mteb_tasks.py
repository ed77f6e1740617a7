"""Make `rules/registry/mteb_tasks.json` from the metadata of an installed mteb.

    python tools/registry/mteb_tasks.py rules/registry/mteb_tasks.json
    python tools/registry/mteb_tasks.py rules/registry/mteb_tasks.json --datasets-only

tasks: every task that ranks a corpus of texts for queries of text, also superseded ones: results
for them are published. Queries are counted as mteb's descriptive statistics of that version do:
those with at least one relevant passage, for the dataset's revision given beside them.

datasets: for each dataset of `rules/registry/datasets.yaml` and split the tasks' places,
[task, subset, split], whose results are about it; from its `mteb` entries and the overrides. Any
other task is called as mteb calls it, `<task>` or `<task>/<subset>`. --datasets-only makes this
part anew and needs no mteb.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from embedrepro.datasets.registry import read_registry  # noqa: E402

REGISTRY = ROOT / "rules" / "registry"

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


def dataset_places(overrides: dict[str, Any]) -> dict[str, dict[str, list[list[str]]]]:
    found: dict[str, dict[str, list[list[str]]]] = {}
    known = read_registry(REGISTRY / "datasets.yaml")
    stated = [(name, entry.get("mteb", {})) for name, entry in known.items()]
    for name, splits in [*stated, *overrides["places"].items()]:
        for split, place in splits.items():
            row = [place["task"], place.get("subset") or "default", place["split"]]
            found.setdefault(name, {}).setdefault(split, []).append(row)
    return found


def text_of(made: dict[str, Any]) -> str:
    """JSON with one task or dataset a line, so that a change is a line."""
    parts = []
    for key, value in made.items():
        if key in ("tasks", "datasets"):
            lines = ",\n".join(
                f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False, sort_keys=True)}"
                for name, entry in value.items()
            )
            parts.append(f"{json.dumps(key)}: {{\n{lines}\n}}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}")
    return "{" + ",\n".join(parts) + "}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--datasets-only", action="store_true")
    arguments = parser.parse_args()
    overrides = yaml.safe_load((REGISTRY / "mteb_overrides.yaml").read_text(encoding="utf-8"))
    if arguments.datasets_only:
        made = json.loads(arguments.output.read_text(encoding="utf-8"))
    else:
        import mteb

        tasks = {name: described(task) for name, task in text_tasks().items()}
        made = {"mteb": mteb.__version__, "tasks": tasks}
    made["datasets"] = dataset_places(overrides)
    made["same_data"] = overrides["same_data"]
    made["notes"] = overrides["notes"]
    arguments.output.write_text(text_of(made), encoding="utf-8")
    tasks, datasets = len(made["tasks"]), len(made["datasets"])
    print(f"{arguments.output}: {tasks} tasks of mteb {made['mteb']}, {datasets} datasets")


if __name__ == "__main__":
    main()
