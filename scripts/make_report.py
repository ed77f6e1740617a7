"""Write the report of one experiment: report.html, report.md, report.tex, *.tsv, provenance.json.

`--inputs` is a JSON file that lists the result files:
{"scores": [...], "per_query": [...], "runs": [...], "verdicts": path, "comparisons": path,
 "stages": [...], "embeddings": [sidecars], "datasets": [dataset.json...], "parity": path or null}
"parity", "verdicts" and "comparisons" may be left out.
"""

import argparse
from pathlib import Path

from embedrepro.errors import run_cli
from embedrepro.report.write import write_report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", type=Path, required=True, help="the experiment's JSON file")
    parser.add_argument("--inputs", type=Path, required=True, help="JSON list of result files")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args()
    print(write_report(arguments.spec, arguments.inputs, arguments.output_dir))


if __name__ == "__main__":
    run_cli(main)
