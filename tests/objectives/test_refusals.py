"""What is not done with a trained model is refused by its objective's and its method's own sentences."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import rankwise
from rankwise.commands.export import FORMATS
from rankwise.config.adapters import FullConfig, HeadConfig, LoraConfig
from rankwise.config.classification import PreferenceConfig
from rankwise.config.images import ImageProcessing
from rankwise.errors import RunError
from rankwise.methods.artifact import Artifact
from rankwise.objectives.objective import Facts
from rankwise.objectives.registry import objective_named
from rankwise.runs.row_facts import TargetFacts

CLASSES, POOLED = (
    objective_named("sequence-classification", Facts(TargetFacts(classes=("a", "b"), pooling=one)))
    for one in ("own", "mean")
)
SEVERAL = objective_named("sequence-classification", Facts(TargetFacts(classes=("a", "b"), form="several")))
PICTURES = objective_named(
    "image-classification",
    Facts(
        TargetFacts(classes=("a", "b")),
        ImageProcessing(size=8, resize=8, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)),
    ),
)
WHOLE = "peft", "merged"
PAIRS = objective_named("preference", Facts(preference=PreferenceConfig()))
REFUSED = [
    (CLASSES, LoraConfig(), {
        "generating": "F is a classifier, which writes no text. Ask it with: rankwise predict r --text",
        "measured at strengths": "F is a classifier",
        "served": "F is a classifier, which is served without", "asked beside others": "F is asked alone, since",
        "scaled": "--strength 0.5: F is a classifier", "weighted": "a classifier's new head has no base",
        "judged by engines": "The rules of engines", "gguf": "F is a classifier, and GGUF", "gguf-lora": "F is",
        "ollama": "F is a classifier, and Ollama", "extracted": "F trained an adapter",
    }),
    (POOLED, HeadConfig(), {
        "merged by files": "F has a head that reads the mean of all tokens", "portable": "F has no adapted layers",
    }),
    (objective_named("sequence-to-sequence"), LoraConfig(), {
        "served": "F is an encoder with a decoder", "asked beside others": "F is asked alone",
        "measured at strengths": "strength measures how a model continues a text, and F is",
        **{name: f"--format {name} is for decoders alone, and F is"
           for name in FORMATS if name not in WHOLE and name != "onnx"},
        "onnx": "--format onnx is for classifiers, and F writes text",
    }),
    (SEVERAL, LoraConfig(), {"advised on": ""}),
    (PICTURES, LoraConfig(), {"generating": "F classifies images and writes no text. Use: rankwise predict r --data"}),
    (PAIRS, LoraConfig(), {"measured at strengths": "F was trained on preference pairs"}),
    (objective_named("multiple-choice", Facts(TargetFacts(classes=("choice 0", "choice 1")))), LoraConfig(), {
        "measured at strengths": "F was trained on choices", "advised on": "advise compares answers",
        "computed by kernels": "the fused kernels do not compare",
    }),
    (objective_named("causal-lm"), FullConfig(), {
        "combined": "F is a result of full", "merged by files": "F is a result of full fine-tuning and has no",
        "judged by engines": "The whole model learned", "asked beside others": "F is asked alone",
        **dict.fromkeys(("peft", "portable", "mlx", "gguf-lora"), "F has no adapter, because it is a result"),
    }),
]  # fmt: skip


@pytest.mark.parametrize(("objective", "config", "sentences"), REFUSED)
def test_what_is_refused_is_refused_by_name(objective, config, sentences):
    artifact = Artifact("r", Path("F"), Path("F"), config, None, None, None)
    artifact.__dict__["objective"] = objective
    for activity, sentence in sentences.items():
        with pytest.raises(RunError, match=f"^{re.escape(sentence)}"):
            artifact.refuse(activity, "0.5")
    artifact.refuse("merged")


def test_every_activity_of_a_table_is_asked_for_and_every_other_is_a_format():
    files = [
        one for one in Path(rankwise.__file__).parent.rglob("*.py") if one.parts[-2] not in ("objectives", "config")
    ]
    trunk = [ast.parse(one.read_text(encoding="utf-8")) for one in files]
    texts = {one.value for tree in trunk for one in ast.walk(tree) if isinstance(one, ast.Constant)}
    named = {
        one.args[0].value
        for tree in trunk
        for one in ast.walk(tree)
        if isinstance(one, ast.Call) and one.args and isinstance(one.args[0], ast.Constant)
        if re.search(r"\.(refuse|why_not|cannot\.get)$", ast.unparse(one.func))
    }
    activities = {name for case in REFUSED for one in (case[0].words.cannot, case[1].cannot) for name in one} - set(
        FORMATS
    )
    assert activities <= texts and named <= activities
