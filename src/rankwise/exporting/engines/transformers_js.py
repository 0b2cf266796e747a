"""transformers.js under node, which runs a graph in onnxruntime with a tokenizer of its own.

An environment has it where node's packages lie in its folder `transformers_js`, beside its packages of Python, among
them numpy and Pillow. Images are decoded here: how a browser or node decodes a file is its own affair.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any

from rankwise.exporting.engines.engine import Engine, Package, decoded, probabilities

HOME = "transformers_js"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    node, home = shutil.which("node"), importlib.util.find_spec(HOME)
    if node is None or home is None or not home.submodule_search_locations:
        raise ConnectionError("node is not installed here")
    config = json.loads((Path(request["export"]) / "config.json").read_text("utf-8"))
    asked = request | {"questions": [_with_pixels(one) for one in request["questions"]]}
    words = [node, str(Path(__file__).with_suffix(".mjs")), str(home.submodule_search_locations[0])]
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, check=False, encoding="utf-8")
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "node ended without a message").splitlines()[-1])
    said = json.loads(done.stdout.splitlines()[-1])
    for reply, question in zip(said["replies"], request["questions"], strict=True):
        reply["outputs"] = probabilities(reply.pop("logits"), config, question, request["classes"])
    return said


def _with_pixels(question: dict[str, Any]) -> dict[str, Any]:
    if "image" not in question:
        return question
    picture = decoded(question["image"])
    return {"width": picture.width, "height": picture.height, "rgb": b64encode(picture.tobytes()).decode()}


ENGINE = Engine(
    "transformers.js", "4.3.2", "src/pipelines/text-classification.js", "",
    uses={"onnx": 'pipeline("TASK", "FOLDER")'},
    aliases=dict.fromkeys(("transformers.js", "js", "node", "browser", "web"), "onnx"),
    package=Package("transformers.js", __name__, (HOME,), ("onnx",)),
)  # fmt: skip
