"""The words that families are described in: layers by path and size, and blocks that repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from rankwise.planning.shape import Layer


def linear(path: str, inputs: int, outputs: int, *, bias: bool = False, parts: tuple[int, ...] = ()) -> Layer:
    return Layer(path, "linear", inputs, outputs, outputs if bias else 0, parts=parts)


def conv1d(path: str, inputs: int, outputs: int, *, parts: tuple[int, ...] = ()) -> Layer:
    """GPT-2's linear layer, which always has a bias."""
    return Layer(path, "conv1d", inputs, outputs, outputs, parts=parts)


def conv2d(path: str, channels: int, outputs: int, kernel: tuple[int, int]) -> Layer:
    return Layer(path, "conv2d", channels * kernel[0] * kernel[1], outputs, outputs, kernel=kernel)


def table(path: str, rows: int, width: int, *, shares: str | None = None) -> Layer:
    return Layer(path, "embedding", rows, width, shares=shares)


def other(path: str, parameters: int) -> Layer:
    """What no adapter is laid over."""
    return Layer(path, "other", bias=parameters)


def norm(path: str, width: int, *, bias: bool = True) -> Layer:
    return other(path, 2 * width if bias else width)


def head(path: str, width: int, vocabulary: int, *, tied_to: str | None, bias: bool = False) -> Layer:
    return Layer(path, "linear", width, vocabulary, vocabulary if bias else 0, shares=tied_to)


def repeated(path: str, count: int, block: Iterable[Layer]) -> Iterator[Layer]:
    """`block`, whose paths begin inside it, `count` times."""
    once = list(block)
    for number in range(count):
        for layer in once:
            yield replace(layer, path=f"{path}.{number}.{layer.path}")


def inside(path: str, layers: Iterable[Layer]) -> Iterator[Layer]:
    for layer in layers:
        yield replace(layer, path=f"{path}.{layer.path}")
