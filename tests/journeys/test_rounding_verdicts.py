"""Half precision and a published float32 number: what rounding alone can explain is said to be it.

300 queries, as in the measured cases: there one swapped pair of neighbours is worth up to 0.0012 of
nDCG@10, beside which a tolerance of 0.0005 means nothing.
"""

import numpy as np
import oracle
import pytest
from drive import Results, snakemake, table
from stand_ins import Texts

pytestmark = pytest.mark.journey
COLUMNS = ["model_id", "dataset", "split", "metric", "value", "tolerance", "protocol", "source"]
ONE_SWAP = (1 - 1 / np.log2(3)) / 300  # of the first two, one of them relevant
NEAR = 2e-4  # scores that bfloat16 can't tell apart


def judged(run):
    """The first or, where it is nearly as good, the second passage of each query is relevant, so
    that swaps by rounding add up."""
    qrels, gaps = {}, {}
    for query, scores in run.items():
        (first, best), (second, next_best), *_ = scores.items()
        gaps[query] = best - next_best
        qrels[query] = {second if gaps[query] < NEAR else first: 1}
    assert sum(gap < NEAR for gap in gaps.values()) > 3
    return qrels


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """The float32 number by other means, and three rows that are held against it."""
    workdir = tmp_path_factory.mktemp("rounding")
    texts = Texts(5, passages=60, queries=300)
    vectors = [oracle.vectors(tiny / "bert", part) for part in (texts.queries, texts.joined())]
    run = oracle.search(*vectors)
    texts.qrels = judged(run)
    value = oracle.metric("nDCG@10", run, texts.qrels)
    texts.beir(workdir / "mine")
    rows = {"half": value, "brain": value, "exact": value, "far": 0.05}
    lines = [
        [f"me/{name}", "mine", "test", "nDCG@10", f"{number:.5f}", "0.0005", "trec_eval", "a paper"]
        for name, number in rows.items()
    ]
    text = "\n".join("\t".join(line) for line in [COLUMNS, *lines])
    (workdir / "published.tsv").write_text(f"{text}\n", encoding="utf-8")
    keys = {
        "half": {"dtype": "float16", "precision": "fast"},
        "brain": {"dtype": "bfloat16", "precision": "fast"},
        "exact": {},
        "far": {"dtype": "bfloat16", "precision": "fast"},
    }
    source = {"source": {"path": str(tiny / "bert")}}
    config = {
        "experiment": "x",
        "models": [{"id": f"me/{name}"} | source | keys[name] for name in keys],
        "datasets": [{"name": "mine", "source": {"beir": str(workdir / "mine")}}],
        "evaluate": {"metrics": ["nDCG@10"], "protocols": ["trec_eval"]},
        "published": "published.tsv",
    }
    done = snakemake(workdir, "--", "reproduce", config=config)
    folder = Results(workdir, "x").folder
    verdicts = {row["model_id"]: row for row in table(folder / "verdicts.tsv")}
    metrics = {row["model_id"]: row for row in table(folder / "metrics.tsv")}
    return workdir, config, value, done, verdicts, metrics


def test_float32_is_the_number(measured):
    _, _, value, _, verdicts, metrics = measured
    assert verdicts["me/exact"]["verdict"] == "reproduced"
    assert float(metrics["me/exact"]["value"]) == pytest.approx(value, abs=5e-6)
    ends = [float(metrics["me/exact"][f"rounding_{end}"]) for end in ("low", "high")]
    assert ends[1] - ends[0] <= 2 * ONE_SWAP


def test_half_precision_is_judged_with_what_rounding_can_move(measured):
    _, _, value, _, verdicts, metrics = measured
    for name in ("half", "brain"):
        row, told = metrics[f"me/{name}"], verdicts[f"me/{name}"]
        low, found, high = (float(row[k]) for k in ("rounding_low", "value", "rounding_high"))
        assert low - 5e-6 <= value <= high + 5e-6
        assert low <= found <= high
        off = abs(found - value) > 0.0005
        assert told["verdict"] == ("reproduced within rounding" if off else "reproduced")
        if off:
            assert "rounding alone moves this run's value between" in told["reason"]
    moved = float(metrics["me/brain"]["value"]) - value
    assert abs(moved) >= 0.9 * ONE_SWAP  # more than the tolerance, by rounding alone
    assert verdicts["me/brain"]["verdict"] == "reproduced within rounding"


def test_what_rounding_can_not_move_so_far_stays_off(measured):
    workdir, config, _, done, verdicts, _ = measured
    assert verdicts["me/far"]["verdict"] == "higher"
    assert done.status != 0 and "me/far" in done.screen
    fine = [model for model in config["models"] if model["id"] != "me/far"]
    done = snakemake(workdir, "--", "reproduce", config=config | {"models": fine}).ok()
    assert "within rounding" in done.screen
