"""The convolutions that the target `all-conv` means: every Conv2d that can be adapted, and which ones cannot.

Those that read the image, a network's stem or a patch embedding, are among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from rankwise.config.modules import ALL_CONV, ALL_LINEAR, Modules
from rankwise.errors import some


def convolutions(modules: Modules) -> list[str]:
    """What `all-conv` means."""
    return [path for path, seen in modules.items() if seen.kind == "conv2d"]


def left_out(paths: Iterable[str], modules: Modules) -> list[str]:
    """Which convolutions among `paths` cannot be adapted, and why."""
    problems: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        if modules[path].problem:
            problems[modules[path].problem].append(path)
    return [
        f"{len(layers)} convolution{'' if len(layers) == 1 else 's'} that cannot be adapted ({some(layers, 3)}): {why}"
        for why, layers in problems.items()
    ]


def no_convolution(modules: Modules) -> str:
    """Why `all-conv` matches nothing in this model."""
    if not (reasons := left_out(modules, modules)):
        return f'target "{ALL_CONV}" matches no layer of this model, which has no convolutions. Use {ALL_LINEAR}.'
    return f'target "{ALL_CONV}" matches no layer of this model: it leaves out {"; and ".join(reasons)}.'
