"""The address of a server, as a config may give it. Imports nothing heavy."""

from typing import Literal, get_args
from urllib.parse import urlsplit

from ..errors import UserError

Api = Literal["openai", "tei"]
APIS: tuple[Api, ...] = get_args(Api)
KEY = "EMBED_REPRO_SERVER_KEY"  # the environment's variable; its value is never written anywhere


def check_url(url: str, where: str) -> None:
    """Refuse what is no plain address; what stands in one is written to files."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, whole = urlsplit(""), False
    if parts.username or parts.password:
        raise UserError(f"{where}: server: holds a password; give the key in {KEY} instead")
    if not whole or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise UserError(f"{where}: server: needs an address like http://host:8080, no more")
