"""Make results/<experiment>/ the view of the report, and print the verdicts and where it lies."""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import printable, run_cli
from embedrepro.evaluation.verdicts import failures
from embedrepro.plan.plan import read_plan
from embedrepro.plan.show import holes
from embedrepro.report.write import show, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's file, in .embed-repro/")
    parser.add_argument("--reference", action="store_true", help="with FlagEmbedding's own numbers")
    parser.add_argument(
        "--partial", action="store_true", help="report what is there, and why the rest isn't"
    )
    parser.add_argument(
        "--require",
        action="store_true",
        help="exit with status 1 if a comparable number is higher or lower than published, or none "
        "is reproduced",
    )
    options = parser.parse_args()
    plan = read_plan(options.plan)
    with_reference = plan.report_with_reference
    path = plan.report
    if with_reference and (options.reference or Path(with_reference).exists()):
        path = with_reference
    spec, results = plan.artifacts[path].spec, Path(plan.results)
    if options.partial:
        missing = holes(plan, spec["rows"])
        if not missing:
            return
        parity = spec["parity"] if spec["parity"] and Path(spec["parity"]).exists() else None
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "report"
            write_report({**spec, "parity": parity, "holes": missing}, folder)
            print(show(folder, spec["rows"], results))
        for reason in dict.fromkeys(row["reason"] for row in missing):
            print(f"error: {printable(reason, 2000)}", file=sys.stderr)
        return
    print(show(Path(path).parent, spec["rows"], results))
    if options.require:
        lines = failures(results / "verdicts.tsv")
        for line in lines:
            print(f"not reproduced: {printable(line, 500)}", file=sys.stderr)
        sys.exit(1 if lines else 0)


if __name__ == "__main__":
    run_cli(main)
