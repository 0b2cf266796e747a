"""A small real server of OpenAI's protocol over one model's folder: completions, chat completions and models."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server, for as long as the block runs."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def generated(ids: list[int], new: int) -> tuple[list[int], list[float]]:
        scores: list[float] = []
        written: list[int] = []
        while len(written) < new:
            logits = model(input_ids=torch.tensor([ids + written])).logits[0, -1].double().log_softmax(-1)
            written.append(int(logits.argmax()))
            scores.append(float(logits[written[-1]]))
            if written[-1] == model.generation_config.eos_token_id:
                break
        return written, scores

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say({"data": [{"id": "tiny"}]} if self.path == "/v1/models" else {}, 200)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with torch.inference_mode():
                self._say(_answer(self.path, body), 200)

        def _say(self, value: dict[str, Any], code: int) -> None:
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    def _answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/chat/completions":
            ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
            return {"choices": [], "usage": {"prompt_tokens": len(ids)}}
        ids = tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
        written, scores = generated(ids, body["max_tokens"])
        text = tokenizer.decode(written, skip_special_tokens=True)
        return {"choices": [{"text": text, "logprobs": {"token_logprobs": scores}}]}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
