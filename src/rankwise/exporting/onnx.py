"""A classifier as one ONNX file, with what reads its rows beside it, in the layout that transformers.js expects.

    onnx/model.onnx           from token ids, or from decoded pixels, to logits; any number of rows of any size
    config.json               the names of the classes, and what the logits are
    tokenizer.json, …         of texts, with the limit of the model at which longer ones are cut
    preprocessor_config.json  of images: nothing is left to do, since the graph resizes, crops and normalises

An adapter is in the weights, which are float32. Resizing is in the graph because every program does it in another way,
which moves probabilities (rows/images/processor.py).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.base.preprocessing import PREPROCESSOR
from rankwise.base.saving import save_reader, stored_as
from rankwise.config.images import GENERIC
from rankwise.errors import ExportError, RunError, first_line
from rankwise.exporting.merge import Order, extra_files
from rankwise.exporting.reference import open_for_export
from rankwise.kernels.quantized.tensor import unpack_weights
from rankwise.objectives.classifier import Graph, head_settings
from rankwise.runs.records import StatusMessage
from rankwise.system.extras import need_extra
from rankwise.system.files import need_space, published, write_json
from rankwise.system.foreign_json import read_json

LARGEST = 2**31
"""Bytes of one file of ONNX, at most."""
PLAIN = "PreTrainedTokenizerFast", "TokenizersBackend"
"""Names of tokenizers that give no token types in transformers.js."""
STEPS = "do_resize", "do_center_crop", "do_rescale", "do_normalize"


def export_onnx(order: Order) -> None:
    artifact, objective = order.artifact, order.artifact.objective
    need_extra("onnxscript", "--format onnx", "onnx", ExportError)
    trained = artifact.model
    size = 4 * stored_as(trained, order.callback)[1]
    if size >= LARGEST:
        raise RunError(
            f"{artifact.described} would take {size / 1e9:.1f} GB in float32, and a file of ONNX holds 2 GB. Use "
            "--format merged."
        )
    need_space(order.folder.absolute(), size)
    tuned = open_for_export(artifact, callback=order.callback)
    tuned.trainable.merge(order.strength, lambda: torch.empty(0))
    unpack_weights(tuned.model.module)
    assert objective.head is not None, "others refuse the format"
    graph = objective.head.graph(tuned.model, tuned.longest.tokens)
    runtime = {"model_type": graph.family, "transformers.js_config": {"dtype": "fp32"}}
    with published(order.folder) as temporary:
        order.callback(StatusMessage("Writing the graph"))
        try:
            _write(graph, temporary / "onnx")
        except Exception as error:  # of as many kinds as there are models
            why = first_line(error.__cause__ or error)
            raise ExportError(
                f"{artifact.described} is no graph for torch's exporter: {why}. Use --format merged."
            ) from error
        _save_reader(tuned.model, tuned.longest.tokens, temporary)
        files = extra_files(artifact, order.strength) | {
            "config.json": head_settings(objective.predicting.targets) | runtime
        }
        for file, value in files.items():
            write_json(temporary / file, value)


class _Forward(nn.Module):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.module, self.logits = graph.module, graph.logits

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.logits(*inputs)


def _write(graph: Graph, folder: Path) -> None:
    folder.mkdir()
    sizes = {at: torch.export.Dim(name) for at, name in graph.axes.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Forward(graph).eval(), tuple(graph.inputs.values()), folder / "model.onnx", dynamo=True, verbose=False,
            input_names=[*graph.inputs], output_names=["logits"], external_data=False,
            dynamic_shapes=(tuple(sizes for _ in graph.inputs),),
        )  # fmt: skip


def _save_reader(model: LoadedModel, limit: int, folder: Path) -> None:
    if model.text is None:
        write_json(folder / PREPROCESSOR, {"image_processor_type": GENERIC} | dict.fromkeys(STEPS, False))
    else:
        model.tokenizer.hub.model_max_length = limit
        model.tokenizer.hub.backend_tokenizer.enable_truncation(limit)
        save_reader(model, folder)
        settings = read_json(folder / "tokenizer_config.json")
        if model.tokenizer.reads_types and settings.get("tokenizer_class") in PLAIN:
            write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "BertTokenizer"})
