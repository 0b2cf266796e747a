"""python on_mlx.py BASE OUT KIND: an adapter that mlx-lm makes or loads, and its logits. KIND: lora, dora or given."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import save_config

base, out, kind = sys.argv[1:4]
mx.set_default_device(mx.cpu)
ids = json.loads((Path(out) / "ids.json").read_text())
if kind != "given":
    model, _ = load(base)
    model.set_dtype(mx.float32)
    model.freeze()
    parameters = {
        "rank": 6,
        "scale": 20.0,
        "dropout": 0.0,
        "keys": ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"],
    }
    linear_to_lora_layers(model, 4, parameters, use_dora=kind == "dora")
    mx.random.seed(1)
    model.update(tree_map(lambda value: mx.random.normal(value.shape) * 0.02 if value.ndim == 2 else value * 1.1,
                          model.trainable_parameters()))  # fmt: skip
    mx.save_safetensors(str(Path(out) / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    save_config({"model": base, "fine_tune_type": kind, "num_layers": 4, "lora_parameters": parameters, "iters": 1},
                Path(out) / "adapter_config.json")  # fmt: skip
model, _ = load(base, adapter_path=out)
model.set_dtype(mx.float32)
np.save(Path(out) / "logits.npy", np.array(model(mx.array([ids]))))
plain, _ = load(base)
plain.set_dtype(mx.float32)
np.save(Path(out) / "base.npy", np.array(plain(mx.array([ids]))))
