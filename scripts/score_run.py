"""Score one run file: every metric, per query and mean with an interval, under each protocol.

spec.json: {"model_id", "model", "revision", "dataset", "split", "metrics": [...],
"default_protocol": "trec_eval", "protocols": [...], "ignore_identical_ids", "relevance_threshold",
"top_k", "facts": {}}. From default_protocol on all may be left out: no further protocol, what
dataset.json says, the run's depth, facts as --encoded and dataset.json tell (see verdicts.py).
"""

import argparse

from embedrepro.errors import run_cli
from embedrepro.evaluation import scoring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="TREC run, six columns")
    parser.add_argument("--dataset", required=True, help="folder of a prepared dataset")
    parser.add_argument("--split", required=True)
    parser.add_argument("--spec", required=True, help="JSON, see above")
    parser.add_argument("--output", required=True, help="scores, .json")
    parser.add_argument("--per-query", required=True, help="query_id metric value, .tsv")
    parser.add_argument(
        "--encoded",
        nargs="*",
        default=[],
        metavar="SIDECAR",
        help="sidecars of the query and passage embeddings that the run was made from",
    )
    args = parser.parse_args()
    outputs = args.output, args.per_query
    scoring.score_run(args.run, args.dataset, args.split, args.spec, *outputs, args.encoded)


if __name__ == "__main__":
    run_cli(main)
