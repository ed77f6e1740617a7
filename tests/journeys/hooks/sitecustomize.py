"""In every Python process of a journey: write down its command line.

With JOURNEYS_IR_DATASETS=folder, ir_datasets serves the stand-ins that lie there: one JSON file for
each id, {"docs": [[id, text]…], "queries": [[id, text]…], "qrels": [[query, doc, grade]…]}.
"""

import json
import os
import sys

if record := os.environ.get("JOURNEYS_PROCESSES"):
    line = (json.dumps(sys.orig_argv) + "\n").encode()
    file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line)
    os.close(file)


def serve_stand_ins(module):
    """Replace ir_datasets' registry by what lies in the folder; an id's folder parts are its."""
    from pathlib import Path

    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import (
        BaseDocs,
        BaseQrels,
        BaseQueries,
        GenericDoc,
        GenericQuery,
        TrecQrel,
    )

    folder = Path(os.environ["JOURNEYS_IR_DATASETS"])

    def load(name):
        path = folder / f"{name}.json"
        if not path.is_file():
            raise KeyError(name)
        held = json.loads(path.read_text(encoding="utf-8"))

        class Docs(BaseDocs):
            def docs_iter(self):
                return iter([GenericDoc(*row) for row in held["docs"]])

            def docs_count(self):
                return len(held["docs"])

        class Queries(BaseQueries):
            def queries_iter(self):
                return iter([GenericQuery(*row) for row in held["queries"]])

        class Qrels(BaseQrels):
            def qrels_iter(self):
                return iter([TrecQrel(*row, "0") for row in held["qrels"]])

        kinds = {"docs": Docs, "queries": Queries, "qrels": Qrels}
        return Dataset(*(kind() for part, kind in kinds.items() if held.get(part)))

    module.load = load


class Finder:
    """Lets ir_datasets be imported as always, then puts the stand-ins in."""

    def find_spec(self, name, path=None, target=None):
        if name != "ir_datasets":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            serve_stand_ins(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("JOURNEYS_IR_DATASETS"):
    sys.meta_path.insert(0, Finder())
