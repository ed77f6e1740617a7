"""What work costs: characters, tokens and seconds of one device, from what is known beforehand.

Only for cutting work into jobs and for telling people: no number of a result comes from here. But
for two: whether a corpus is computed in float32 or in a fast precision, and how much of it may be
encoded again. So these estimates read the config, the registry and the size of local files, never a
clock or a device.
"""

from ..datasets.registry import Estimate
from .config import Model

PARAMETERS = 110_000_000  # assumed of a model that nobody knows: BERT-base
CHARACTERS_A_TOKEN = 4
ADAPTED = 0.02  # of a model's weights that an adapter holds, at a guess
BYTES_A_PARAMETER = 4  # most embedding models are published in float32
SHARE = 0.6  # of the matrix-product rate that encoding keeps up
TOKENS_A_SECOND = 5_000_000  # where the model is small: read, tokenised, written by few cores
SERVER_CHARACTERS = 200_000  # a second that a server takes: some hundred passages, at a guess
LITTLE = 5e14  # multiplications and additions; below, float32 costs seconds on one GPU
PIECES = 64  # of a large corpus, so that many devices come out even
PIECE_SECONDS = (15.0, 35.0)  # least and most device time of a piece: what a killed job may lose
JOB_SECONDS = 70.0  # device time of a job, a seventh of it start-up (see also encode.claims)
TFLOPS, FLOAT32_TFLOPS = 650.0, 50.0  # an H100's or H200's products (tests/benchmarks/products.py)
QUARTER = 0.25  # of the fast pass: what making ranks after the first exact may cost
COMPILE_SECONDS = 75.0  # device time above which compiling saves more than it takes
SHARED_SECONDS = 15.0  # device time of a job that is over before it has started up, nearly
START_SECONDS = 12.0  # until a process that computes has imported everything
MODEL_SECONDS, ROW_SECONDS = 3.0, 0.15  # loading and proving a small model; a small file of vectors
SHARED_PARAMETERS = 600_000_000  # … and of a model of which several fit on any device
MOST_PIECES = 512


def parameters(model: Model) -> int:
    """As the registry says, or what a local folder's weights can hold in float32; of an adapter
    those of the model that it changes."""
    if model.base:
        return parameters(model.base)
    local = model.weight_bytes and model.weight_bytes // BYTES_A_PARAMETER
    return int(model.known.get("parameters") or local or PARAMETERS)


def download_bytes(model: Model) -> float:
    """What fetching a model takes from a network, at a guess; 0 of one that needs none."""
    if {"path", "demo", "server"} & model.source.keys():
        return 0.0
    share = ADAPTED if model.base else 1.0
    return share * parameters(model) * BYTES_A_PARAMETER


def encode_work(model: Model, chars: int) -> float:
    """Multiplications and additions of encoding `chars` characters: two a parameter and token."""
    return 2.0 * parameters(model) * chars / CHARACTERS_A_TOKEN


def encode_seconds(model: Model, chars: int, tflops: float) -> float:
    """Seconds of one device that keeps up `tflops`, or of its tokenizer where that is slower."""
    if model.served:
        return chars / SERVER_CHARACTERS
    return max(device_seconds(model, chars, tflops), host_seconds(chars))


def device_seconds(model: Model, chars: int, tflops: float) -> float:
    """Seconds that the device itself is busy with `chars` characters."""
    return encode_work(model, chars) / (tflops * 1e12 * SHARE)


def host_seconds(chars: int) -> float:
    """Seconds of reading, tokenising and writing beside it."""
    return chars / CHARACTERS_A_TOKEN / TOKENS_A_SECOND


def compiling_pays(model: Model, chars: int, tflops: float) -> bool:
    """Whether compiling a model's layers saves more than it takes: where its device is waited for.

    Of no device that is there, since bytes depend on it.
    """
    seconds = device_seconds(model, chars, tflops)
    return not model.served and seconds > max(COMPILE_SECONDS, host_seconds(chars))


def again_share(model: Model) -> float:
    """The share of a corpus that may be encoded again in float32 for ranks after the first.

    `precision: exact`: what costs a quarter of the fast pass; of no device, since it decides which
    ranks are exact. `full`: all that it takes.
    """
    if model.precision == "full":
        return 1.0
    fast, exact = (encode_seconds(model, 10**9, rate) for rate in (TFLOPS, FLOAT32_TFLOPS))
    return round(QUARTER * fast / exact, 4)


def search_seconds(documents: int) -> float:
    """Seconds of searching so many stored vectors: a disk's time to read them, at a guess."""
    return 0.05 + documents * 2000 / 1e9


def pieces(model: Model, size: Estimate, tflops: float) -> int:
    """How many pieces a corpus is cut into where the config doesn't say."""
    seconds = encode_seconds(model, size.characters, tflops)
    least, most = PIECE_SECONDS
    wanted = max(1, min(MOST_PIECES, round(seconds / min(max(seconds / PIECES, least), most))))
    # A guess could ask for more pieces than there are passages.
    return wanted if size.known else 1
