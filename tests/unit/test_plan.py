"""The plan's arithmetic against figures worked out by hand."""

import pytest
from embedrepro import plan


def test_the_share_that_is_cached_is_not_counted_again(tmp_path):
    done, missing = tmp_path / "done", tmp_path / "missing"
    done.touch()
    step = {"step": "encode_corpus", "what": "x", "outputs": [str(done), str(missing)]}
    (counted,) = plan.count([step | {"bytes": 1000, "seconds": 7200.0}])
    assert (counted["cached"], counted["to_do"]) == (1, 1)
    assert (counted["bytes"], counted["seconds"]) == (500, 3600)
    text = plan.table([counted], 400)
    assert "1 outputs to make, 500 B to download, 60 min on one device at 400 TFLOP/s" in text


def test_device_time_of_ms_marco():
    # 8,841,823 passages x 90 tokens x 2 x 1.31e9 operations at 500 TFLOP/s = 4,170 s
    seconds = plan.encode_seconds(8_841_823, 1_310_000_000, 500)
    assert seconds == pytest.approx(4170, rel=0.01)
    # a small model waits for the tokenizer: 8,841,823 / 40,000
    assert plan.encode_seconds(8_841_823, 22_700_000, 500) == pytest.approx(221, rel=0.01)
    assert plan.encode_seconds(None, 1, 500) is None
