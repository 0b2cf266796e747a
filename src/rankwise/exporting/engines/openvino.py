"""OpenVINO GenAI: a portable adapter over its base, or a merged folder as a model.

GenAI reads OpenVINO's own format (IR). Another folder is converted by optimum-intel, in float32, into a temporary
folder; "ir" in the request names one that was converted before. Everything is computed in float32. The number that an
adapter is multiplied by is 1: GenAI reads no alpha, so that only a portable adapter is right there.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rankwise.exporting.engines.engine import Engine, Package, adalora, convolutions, embeddings, heads, magnitudes

MODEL = "openvino_model.xml"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
CACHE_GIGABYTES = 1
SCORED = 10
"""Questions whose log-probabilities are computed, since each token of an answer takes a call."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import openvino_genai  # pyright: ignore[reportMissingImports]

    adapter = request["format"] == "portable"
    with tempfile.TemporaryDirectory() as temporary:
        folder = _ir(request, request["base"] if adapter else request["export"], temporary)
        options: dict[str, Any] = {**EXACT, "INFERENCE_NUM_THREADS": request["threads"]}
        if adapter:
            file = str(Path(request["export"]) / "adapter_model.safetensors")
            options["adapters"] = openvino_genai.AdapterConfig(openvino_genai.Adapter(file), 1.0)
        engine = Pipeline(openvino_genai, folder, options)
        return {
            "engine": "openvino-genai",
            "version": openvino_genai.__version__,
            "end_id": engine.tokenizer.get_eos_token_id(),
            "stop_ids": None if adapter else engine.stop_ids,
            "conversations": [
                engine.rendered(messages, request.get("thinks", False)) for messages in request.get("conversations", ())
            ],
            "replies": [engine.reply(one, at < SCORED) for at, one in enumerate(request["questions"])],
        }


def _ir(request: dict[str, Any], folder: str, temporary: str) -> str:
    """The folder itself, if it is of OpenVINO's format, or a converted copy."""
    if (Path(folder) / MODEL).is_file():
        return folder
    if (Path(request.get("ir") or "") / MODEL).is_file():
        return request["ir"]
    words = [
        sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", folder,
        "--weight-format", "fp32", "--task", "text-generation-with-past", temporary,
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if not (Path(temporary) / MODEL).is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"optimum-intel could not convert {folder}: {last}")
    return temporary


class Pipeline:
    """A pipeline with its tokenizer, asked one prompt at a time."""

    def __init__(self, genai: Any, folder: str, options: dict[str, Any]) -> None:
        scheduler, self.package = genai.SchedulerConfig(), importlib.import_module("openvino")
        scheduler.cache_size, scheduler.enable_prefix_caching = CACHE_GIGABYTES, True
        self.pipeline = genai.LLMPipeline(folder, "CPU", **options, scheduler_config=scheduler)
        self.tokenizer = self.pipeline.get_tokenizer()
        self.settings = self.pipeline.get_generation_config()  # with where to stop
        self.settings.do_sample, self.settings.logprobs, self.settings.repetition_penalty = False, 1, 1.0

    @property
    def stop_ids(self) -> list[int]:
        return sorted({self.settings.eos_token_id, *self.settings.stop_token_ids} - {-1})

    def rendered(self, messages: list[dict[str, str]], thinks: bool) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, extra_context={"enable_thinking": thinks}
        )
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()

    def reply(self, question: dict[str, Any], scored: bool) -> dict[str, Any]:
        ids, _ = self._generated(question["prompt_ids"], question["max_new_tokens"])
        return {
            "prompt_ids": self._ids(question["prompt"]),
            "answer_ids": ids,
            "log_probabilities": self._log_probabilities(question) if scored else None,
        }

    def _log_probabilities(self, question: dict[str, Any]) -> list[float] | None:
        """The log-probability of each token of the given answer. GenAI scores only what it generates, so the tokens are
        generated one at a time; None if one is not the given token."""
        prompt, given, scores = question["prompt_ids"], question["answer_ids"], list[float]()
        for at, token in enumerate(given):
            ids, score = self._generated(prompt + given[:at], 1)
            if ids != [token]:
                return None
            scores.append(score)
        return scores

    def _generated(self, ids: list[int], new: int) -> tuple[list[int], float]:
        """The greedy tokens and the sum of their log-probabilities."""
        import numpy as np

        self.settings.max_new_tokens = new
        results = self.pipeline.generate(self.package.Tensor(np.array([ids], dtype=np.int64)), self.settings)
        return list(results.tokens[0]), results.scores[0]


ENGINE = Engine(
    "OpenVINO GenAI", "da1db86", "src/cpp/src/lora/adapter.cpp", "one",
    (adalora, partial(magnitudes, does="drops DoRA's magnitudes"), partial(heads, does="drops"),
     partial(embeddings, does="drops"), partial(convolutions, does="has no layer for")),
    package=Package("openvino-genai", __name__, ("openvino_genai", "optimum"), ("portable", "merged")),
)  # fmt: skip
