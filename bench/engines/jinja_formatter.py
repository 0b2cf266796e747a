"""Render Jinja templates with llama-cpp-python's own formatter. Runs in that engine's Python, not in rankwise's.

Standard input is a JSON list of {"template", "bos", "eos", "conversations": [{"messages", "tools"}]}; standard output
is a JSON list of lists of {"text"} or {"error"}.
"""

import json
import sys

from llama_cpp.llama_chat_format import Jinja2ChatFormatter

results = []
for job in json.load(sys.stdin):
    formatter = Jinja2ChatFormatter(job["template"], eos_token=job["eos"], bos_token=job["bos"])
    texts = []
    for one in job["conversations"]:
        try:
            texts.append({"text": formatter(messages=one["messages"], tools=one["tools"] or None).prompt})
        except Exception as error:  # a template can raise any error
            texts.append({"error": str(error)})
    results.append(texts)
json.dump(results, sys.stdout)
