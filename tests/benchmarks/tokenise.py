"""Token ids put together from words, beside the tokenizer asked for every text, on one core.

    python tests/benchmarks/tokenise.py --tokenizer FOLDER [--texts FILE] [--rounds 3]

FILE holds a passage a line. Without it: English of 55 words a passage from the docstrings of what
is installed, which holds many new words. Both ways in turn, with no word known at first and with
all known; the ids must be the same. The ratios come last.
"""

import argparse
import os
import random
import re
import sys
import time
from pathlib import Path
from statistics import median

os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
from embedrepro.encode.token_ids import TokenIds, splits_at_spaces  # noqa: E402
from embedrepro.encode.tokens import CHUNK  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

WORDS, PASSAGES, LIMIT = 55, 50_000, 256


def docstrings() -> list[str]:
    """Passages of `WORDS` words, in no order."""
    found: dict[str, None] = {}
    for path in sorted(Path(pa.__file__).parents[1].rglob("*.py")):
        for text in re.findall(r'"""(.*?)"""', path.read_text("utf8", "ignore"), re.DOTALL):
            words = text.split()
            for at in range(0, len(words) - WORDS // 2, WORDS):
                found[" ".join(words[at : at + WORDS])] = None
        if len(found) > PASSAGES:
            break
    texts = list(found)
    random.Random(1).shuffle(texts)
    return texts


def timed(made: TokenIds, chunks: list[list[str]]) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    ids = [made("", LIMIT, "right", chunk)[0] for chunk in chunks]
    return time.perf_counter() - began, np.concatenate(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(given.tokenizer / "tokenizer.json"))
    if not splits_at_spaces(tokenizer):
        sys.exit(f"{given.tokenizer}: looks across spaces, and is asked for every text")
    texts = given.texts.read_text("utf8").splitlines() if given.texts else docstrings()
    chunks = [texts[at : at + CHUNK] for at in range(0, len(texts), CHUNK)]
    pa.set_cpu_count(1)
    seconds: dict[str, list[float]] = {"asked": [], "words new": [], "words known": []}
    for _ in range(given.rounds):
        asked = TokenIds(tokenizer)
        asked.words = None
        took, expected = timed(asked, chunks)
        seconds["asked"].append(took)
        made = TokenIds(tokenizer)
        for state in ("words new", "words known"):
            took, ids = timed(made, chunks)
            seconds[state].append(took)
            assert np.array_equal(ids, expected), "other ids"
    print(f"{len(texts):,} texts, {len(expected):,} tokens, {given.rounds} rounds")
    for state, some in seconds.items():
        rate = len(expected) / median(some)
        ratio = median(a / b for a, b in zip(seconds["asked"], some, strict=True))
        print(f"{state:12} {rate:12,.0f} tokens/s   {ratio:5.2f} x")


if __name__ == "__main__":
    main()
