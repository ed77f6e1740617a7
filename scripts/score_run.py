"""Score one run file: every metric, per query and mean with an interval, under each protocol.

spec.json: {"model_id", "model", "revision", "dataset", "split", "metrics": [...],
"default_protocol", "protocols": [...], "ignore_identical_ids", "relevance_threshold", "facts": {}}.
May be left out: default_protocol (trec_eval), protocols (no further one), ignore_identical_ids and
relevance_threshold (what dataset.json says), facts (nothing known; verdicts.py says what counts).
"""

import argparse

from embedrepro import scoring
from embedrepro.errors import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="TREC run, six columns")
    parser.add_argument("--dataset", required=True, help="folder of a prepared dataset")
    parser.add_argument("--split", required=True)
    parser.add_argument("--spec", required=True, help="JSON, see above")
    parser.add_argument("--output", required=True, help="scores, .json")
    parser.add_argument("--per-query", required=True, help="query_id metric value, .tsv")
    args = parser.parse_args()
    scoring.score_run(args.run, args.dataset, args.split, args.spec, args.output, args.per_query)


if __name__ == "__main__":
    run_cli(main)
