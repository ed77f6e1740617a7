"""What work costs: characters, tokens and seconds of one device, from what is known beforehand.

Only for cutting work into jobs and for telling people: no number of a result comes from here. But
for one: whether a corpus is computed in float32 or in a fast precision. So these estimates read the
config, the registry and the size of local files, never a clock or a device.
"""

from ..datasets.registry import Estimate
from .config import Model

PARAMETERS = 110_000_000  # assumed of a model that nobody knows: BERT-base
CHARACTERS_A_TOKEN = 4
BYTES_A_PARAMETER = 4  # most embedding models are published in float32
SHARE = 0.6  # of the matrix-product rate that encoding keeps up
TOKENS_A_SECOND = 4_000_000  # what the tokenizer does where the model is small
LITTLE = 5e14  # multiplications and additions; below, float32 costs seconds on one GPU
PIECE_SECONDS = 30.0  # device time of one piece of a corpus: what a killed job loses at most
JOB_SECONDS = 75.0  # device time of one job: starting up takes about ten
MOST_PIECES = 512


def parameters(model: Model) -> int:
    """As the registry says, or what a local folder's weights can hold in float32."""
    local = model.weight_bytes and model.weight_bytes // BYTES_A_PARAMETER
    return int(model.known.get("parameters") or local or PARAMETERS)


def encode_work(model: Model, chars: int) -> float:
    """Multiplications and additions of encoding `chars` characters: two a parameter and token."""
    return 2.0 * parameters(model) * chars / CHARACTERS_A_TOKEN


def encode_seconds(model: Model, chars: int, tflops: float) -> float:
    """Seconds of one device that keeps up `tflops`, or of its tokenizer where that is slower."""
    tokens = chars / CHARACTERS_A_TOKEN
    return max(encode_work(model, chars) / (tflops * 1e12 * SHARE), tokens / TOKENS_A_SECOND)


def search_seconds(documents: int) -> float:
    """Seconds of searching so many stored vectors: a disk's time to read them, at a guess."""
    return 0.05 + documents * 2000 / 1e9


def pieces(model: Model, size: Estimate, tflops: float) -> int:
    """How many pieces a corpus is cut into where the config doesn't say."""
    seconds = encode_seconds(model, size.characters, tflops)
    wanted = max(1, min(MOST_PIECES, round(seconds / PIECE_SECONDS)))
    # A guess could ask for more pieces than there are passages.
    return wanted if size.known else 1
