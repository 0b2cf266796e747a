"""onnxruntime, with the tokenizers library for texts and Pillow for images: nothing of the model's own code."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from rankwise.exporting.engines.engine import Engine, Package, decoded, probabilities


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    folder, options, tokenizer = Path(request["export"]), onnxruntime.SessionOptions(), None
    options.intra_op_num_threads = request["threads"]
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
    config, names = json.loads((folder / "config.json").read_text("utf-8")), [one.name for one in session.get_inputs()]
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    replies, seconds = list[dict[str, Any]](), list[float]()
    for one in request["questions"]:
        picture, ids = decoded(one["image"]) if tokenizer is None else None, None
        began = time.perf_counter()
        if tokenizer is None:
            inputs = {"pixel_values": np.asarray(picture, np.float32).transpose(2, 0, 1)[None]}
        else:
            row = tokenizer.encode(one["text"], one["pair"])
            given = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
            inputs, ids = {name: np.array([given[name]]) for name in names}, row.ids
        logits: Any = session.run(None, inputs)[0]
        seconds.append(time.perf_counter() - began)
        replies.append({"prompt_ids": ids, "outputs": probabilities(logits[0], config, one, request["classes"])})
    told = {"engine": "onnxruntime", "version": onnxruntime.__version__, "milliseconds": 1000 * median(seconds)}
    return {**told, "replies": replies}


ENGINE = Engine(
    "onnxruntime", "1.32.0", "onnxruntime/python/onnxruntime_inference_collection.py", "",
    uses={"onnx": 'onnxruntime.InferenceSession("FOLDER/onnx/model.onnx")'},
    aliases=dict.fromkeys(("onnxruntime", "ort"), "onnx"),
    package=Package("onnxruntime", __name__, ("onnxruntime",), ("onnx",)),
)  # fmt: skip
