"""The weights of a DINOv2 inside an ONNX file. The file is read as data; no graph of it runs.

    initialiser                              parameter
    backbone.NAME                            NAME
    right operand W of the MatMul /A/B/C     A.B.C.weight = Wᵀ, because a linear layer computes x Wᵀ
    constant operand of Concat and Reshape   position_embeddings = [CLS token's position | positions of the patches]

An exporter keeps the name of what it stores as it was, and loses the name of what it folds or transposes. For those,
the node that reads the constant says which module it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import ModelError, first_line, some
from rankwise.system.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

BACKBONE, EMBEDDINGS = "backbone.", "/backbone/embeddings/"
HEAD_WIDTH = 64
"""The width of an attention head in every DINOv2."""
PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
    "image_processor_type": "BitImageProcessor",
}
"""Settings of the image processor that DINOv2 was published with; 3 is bicubic."""


def convert_dinov2(file: Path, folder: Path) -> None:
    """Write config, weights and image processor of the DINOv2 in `file` into `folder`, and check that they load."""
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    weights = dinov2_weights(file)
    width, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    config = Dinov2Config(
        hidden_size=width,
        num_attention_heads=width // HEAD_WIDTH,
        num_hidden_layers=sum(name.endswith(".norm1.weight") for name in weights),
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        image_size=patch * isqrt(weights["embeddings.position_embeddings"].shape[1] - 1),
        patch_size=patch,
        use_mask_token=False,  # a token for pre-training, which the file lacks
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    _check_it_loads(file, folder)


def dinov2_weights(file: Path) -> dict[str, Tensor]:
    """Read the weights of the backbone, under the names that the hub's DINOv2 folders use."""
    import onnx
    import torch
    from onnx import numpy_helper

    try:
        graph: Any = onnx.load(str(file), load_external_data=False).graph
        arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    except Exception as error:
        raise ModelError(f"{file} cannot be read as an ONNX file: {first_line(error)}") from None
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    weights = {name.removeprefix(BACKBONE): one for name, one in tensors.items() if name.startswith(BACKBONE)}
    for module, name in _linear_operands(graph):
        if name in tensors:
            weights[f"{module}.weight"] = tensors[name].T.contiguous()
    weights["embeddings.position_embeddings"] = _positions(file, graph, tensors)
    return weights


def _linear_operands(graph: Any) -> Iterator[tuple[str, str]]:
    """Modules of the backbone that multiply by a matrix, with the name of the right operand."""
    for node in graph.node:
        path = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul" and path.startswith(BACKBONE):
            yield path.removeprefix(BACKBONE).removesuffix(".MatMul"), node.input[1]


def _positions(file: Path, graph: Any, tensors: dict[str, Tensor]) -> Tensor:
    """The positions of the CLS token and of the patches, which the exporter stores apart."""
    import torch

    parts: list[Tensor] = []
    for kind in ("Concat", "Reshape"):
        constants = [
            tensors[name]
            for node in graph.node if node.op_type == kind and node.name.startswith(EMBEDDINGS)
            for name in node.input if name in tensors and tensors[name].ndim == 3
        ]  # fmt: skip
        if len(constants) != 1:
            raise ModelError(f"{file} has {len(constants)} position tables in its {kind} nodes; expected one.")
        parts += constants
    return torch.cat(parts, dim=1)


def _check_it_loads(file: Path, folder: Path) -> None:
    """Refuse weights that are missing, since they would be random, and weights that the model does not have."""
    import torch
    from transformers import Dinov2Model

    loaded: Any = Dinov2Model.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = [
        f"{kind.removesuffix('_keys')}: {some(sorted(str(one) for one in loaded[1][kind]), 4)}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if loaded[1][kind]
    ]  # fmt: skip
    if problems:
        raise ModelError(f"{file} is not a complete DINOv2. Weights {'; '.join(problems)}.")
