"""A JSON value as one word of a command line, in an alphabet that no shell reads anything into."""

import base64
import json
import zlib
from typing import Any


def pack(value: Any) -> str:
    return base64.b64encode(zlib.compress(json.dumps(value).encode(), 9)).decode()


def unpack(word: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(word)))
