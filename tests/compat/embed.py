"""Run by the old environment's Python: embed.py MODEL TEXTS.json OUTPUT.npy DEVICE…"""

import json
import sys
from pathlib import Path

import numpy as np
from FlagEmbedding import FlagLLMModel


def main():
    model, texts, output, *devices = sys.argv[1:]
    embedder = FlagLLMModel(model, use_fp16=False, devices=devices, trust_remote_code=True)
    np.save(output, embedder.encode(json.loads(Path(texts).read_text())))
    embedder.stop_self_pool()


if __name__ == "__main__":
    main()
