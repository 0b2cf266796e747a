"""mlx-lm computes our model: its logits give our scores, and the answer up to where it parts from the given one.

Skipped where it is not installed; `RANKWISE_ENGINES` names interpreters of environments that have mlx-lm, separated as
in PATH.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from rankwise.base.rotary_names import write_older_names
from rankwise.exporting.engine_process import EngineReplies, ask, engines_for

PROMPT = [5, 9, 40, 22, 31]


def other_angles(tiny_folder, folder):
    """A tiny model with other angles than mlx-lm's default, as transformers 5 writes it and we complete it."""
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 20.0
    (folder / "config.json").write_text(json.dumps(config))
    write_older_names(folder)
    return folder


def test_every_given_answer_has_our_scores_however_the_written_one_goes_on(tiny_folder, tmp_path):
    pythons = [one for one in os.environ.get("RANKWISE_ENGINES", "").split(os.pathsep) if one]
    engines = [one for one in engines_for("merged", pythons) if one[0].name == "mlx-lm"]
    if not engines:
        pytest.skip("no interpreter has mlx-lm; RANKWISE_ENGINES names one")
    folder = other_angles(tiny_folder, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    greedy = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    own = greedy[0, len(PROMPT) :].tolist()
    given = {"own": own, "parted": [*own[:3], own[3] - 1, *own[4:]], "cut": own[:4], "one": own[:1], "empty": []}
    questions = [
        {"prompt": "a", "prompt_ids": PROMPT, "answer_ids": ids, "answer": "", "max_new_tokens": max(1, len(ids))}
        for ids in given.values()
    ]
    replies = ask(*engines[0], {"export": str(folder), "base": None, "format": "merged", "questions": questions})
    assert isinstance(replies, EngineReplies), replies
    for (kind, ids), reply in zip(given.items(), replies.replies, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 :][: len(ids)].double()
        chosen = torch.tensor(ids, dtype=torch.long)[:, None]
        for theirs, ours in ((reply.logits, logits), (reply.log_probabilities, logits.log_softmax(-1))):
            assert theirs == pytest.approx(ours.gather(1, chosen)[:, 0].tolist(), abs=1e-5), kind
        assert kind == "empty" or reply.answer_ids == (own[:4] if kind == "parted" else own[: len(ids)]), kind
