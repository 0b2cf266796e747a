"""python on_llama_cpp.py BASE.gguf OUT ADAPTER.gguf: logits of llama.cpp with an adapter over a base."""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

base, out, adapter = sys.argv[1:4]
ids = json.loads((Path(out) / "ids.json").read_text())
model = Llama(
    base, lora_path=adapter, lora_scale=1.0, logits_all=True, n_ctx=64, n_threads=1, verbose=False, type_k=0, type_v=0
)  # keys and values in float32
model.eval(ids)
np.save(Path(out) / "logits.npy", np.array(model.scores[: len(ids)], np.float32)[None])
