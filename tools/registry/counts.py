"""Count how the models of the registry run here, and why the others don't.

    python tools/registry/counts.py [--models]

A dense model runs natively (`packed`) where its config.json names one of packed's families, which
the registry doesn't hold: such models are counted as native or general. `--models` lists each.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from embedrepro.encode.families import PACKED_MODEL_TYPES  # noqa: E402
from embedrepro.models.architectures import flagembedding_rerankers  # noqa: E402
from embedrepro.models.known import about, read_models  # noqa: E402

REGISTRY = ROOT / "rules" / "registry"
NATIVE = "native or general, as its config.json says"


def way_of(model_id: str, entry: dict[str, Any], told: dict[str, str]) -> tuple[str, str]:
    """(how a model runs, why so or what it needs)."""
    kind = entry.get("kind", told.get("kind", "dense"))
    code, loader = entry.get("custom_code"), told.get("why", "")
    if entry.get("unsupported"):
        return "not", entry["unsupported"]
    if told.get("runs") == "server":
        return "by a server only", loader
    if told.get("runs") == "none":
        return "not", loader
    if kind == "reranker":
        recipe = flagembedding_rerankers().get(model_id.rpartition("/")[2], "")
        if recipe == "decoder-only-lightweight":
            return "not", "FlagEmbedding's class for it needs transformers 4.46"
        return "as a reranker, by its recipe", recipe or loader
    if kind in ("sparse", "multivector"):
        return "general engine", f"{kind}; {loader}".rstrip("; ")
    if kind == "m3":
        return "native", "BGE-M3's own engine, in all three ways"
    if code == "native":
        return "native", "transformers has its class; its own code is left out"
    if code == "required" or loader.startswith("brings code"):
        return "own code, with trust_remote_code", "has to run under the installed transformers"
    if told.get("runs") == "sentence_transformers":
        return "general engine", loader
    return NATIVE, f"packed has {len(PACKED_MODEL_TYPES)} architectures, the rest are general"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", action="store_true", help="a line for each model as well")
    arguments = parser.parse_args()
    known = read_models(REGISTRY)
    ways = {name: way_of(name, entry, about(name, REGISTRY)) for name, entry in known.items()}
    left = {name: about(name, REGISTRY) for name in all_told() if name not in known}
    ways |= {name: way_of(name, {}, told) for name, told in left.items()}
    print(f"{len(ways)} models, {len(known)} of them with an entry; environment legacy: 0")
    for way, count in Counter(way for way, _ in ways.values()).most_common():
        print(f"{count:4}  {way}")
        reasons = Counter(why for other, why in ways.values() if other == way)
        for why, number in reasons.most_common():
            print(f"      {number:4}  {why or '-'}")
    for name, (way, why) in sorted(ways.items()) if arguments.models else ():
        print(f"{name}\t{way}\t{why}")


def all_told() -> list[str]:
    """The names of all models that MTEB's metadata tells of."""
    import json

    return list(json.loads((REGISTRY / "models.json").read_text(encoding="utf-8"))["about"])


if __name__ == "__main__":
    main()
