"""Whether the shapes of a file's factors fit the rank that its settings declare, and the layer where it is known.

Without a model the file's own widths are the layer's. Shapes are in the header, so no tensor is read for this.
"""

from __future__ import annotations

import regex
from torch import nn

from rankwise.adapters.base_layers import experts_of, features_of, is_conv2d, is_transposed, weight_of

Shape = tuple[int, ...]
UNSWAPPED = (0, 19)
"""Since this version PEFT asks a module of experts which way round its weights lie."""


def misfitting(path: str, shapes: list[Shape], rank: int, parts: str, layer: nn.Module | None) -> list[str]:
    """What is wrong with the shapes of a layer's factors. `parts` are those that the file has of each layer: A, B, and
    DoRA's magnitude (m) or AdaLoRA's singular values (E)."""
    A, B = shapes[:2]
    if layer is None:
        inside, outside, is_filter = A[1:], B[0] if B else 0, len(A) == 4
    else:  # PEFT's AdaLoRA flattens the filters of a convolution
        (width, outside), is_filter = features_of(layer), is_conv2d(layer) and "E" not in parts
        inside = tuple(weight_of(layer).shape[1:]) if is_filter else (width,)
    third = {"m": (outside,), "E": (rank, 1)}
    fitting = [(rank, *inside), (outside, rank, *((1, 1) if is_filter else ()))]
    fitting += [third[part] for part in parts[2:]]
    if shapes == fitting and len(A) in (2, 4):
        return []
    noun = "triplets" if "E" in parts else "factors"
    has = f'"{path}" has {noun} of shape {" and ".join(map(str, shapes))}'
    if layer is None:
        return [f"{has}, but its rank is {rank}"]
    return [f"{has}, but rank {rank} on this layer needs {' and '.join(map(str, fitting))}"]


def misfitting_experts(
    path: str, shapes: list[Shape], rank: int, host: nn.Module | None, version: str | None
) -> list[str]:  # fmt: skip
    """The same of the stored matrices of experts, which PEFT of this version wrote."""
    A, B, *others = shapes
    has = f'"{path}" has factors of experts of shape {" and ".join(map(str, shapes))}'
    if host is None:
        fits = not others and len(A) == len(B) == 2 and A[0] == B[1] and A[0] > 0 and A[0] % rank == 0
        return [] if fits else [f"{has}, but its rank is {rank}"]
    (inside, outside), rows = features_of(host), experts_of(host) * rank
    swapped = [(rows, outside), (inside, rows)]
    if not is_transposed(host) and shapes == swapped and (inside != outside or _swaps(version)):
        return [f"{has}: PEFT before {'.'.join(map(str, UNSWAPPED))} took their inputs for outputs. Merge it with PEFT"]
    if shapes == [(rows, inside), (outside, rows)]:
        return []
    return [f"{has}, but rank {rank} on this parameter needs {(rows, inside)} and {(outside, rows)}"]


def _swaps(version: str | None) -> bool:
    numbers = regex.match(r"(\d+)\.(\d+)", version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < UNSWAPPED
