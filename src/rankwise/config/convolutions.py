"""The convolutions that the target `all-conv` means: every Conv2d that can be adapted, but those that read the image.

A stem or a patch embedding reads the image, as the head writes the logits: `all-conv` leaves the one alone as
`all-linear` does the other. Both can be named. On EfficientNet-Lite0 at 112 pixels, an adapter over the stem too saves
11 % more activations and takes 28 % more time, since the gradient then goes through the largest images. Its accuracy
was better in three seeds at 64 pixels, by 1.7 to 3.7 points, and worse in three at 112, by 0.3, 3.7 and 26.
"""

from __future__ import annotations

from collections import defaultdict

from rankwise.config.modules import ALL_CONV, ALL_LINEAR, Modules
from rankwise.errors import some

MOST_CHANNELS = 4
"""Channels that an image may have."""


def inner_convolutions(modules: Modules) -> list[str]:
    reading = set(image_readers(modules))
    return [path for path, seen in modules.items() if seen.kind == "conv2d" and path not in reading]


def image_readers(modules: Modules) -> list[str]:
    """Convolutions with as many input channels as the first one of the model, where these can be an image's."""
    channels = {path: seen.channels for path, seen in modules.items() if seen.kind == "conv2d"}
    first = next(iter(channels.values()), 0)
    return [path for path, count in channels.items() if count == first] if first <= MOST_CHANNELS else []


def left_out(paths: list[str], modules: Modules) -> list[str]:
    """Which convolutions among `paths` cannot be adapted, and why."""
    problems: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        if modules[path].problem:
            problems[modules[path].problem].append(path)
    return [
        f"{_counted(layers)} that cannot be adapted ({some(layers, 3)}): {problem}"
        for problem, layers in problems.items()
    ]


def left_out_of_all(paths: list[str], modules: Modules) -> list[str]:
    """The same for `all-conv`, which leaves out what reads the image too."""
    here = set(paths)
    reading = [path for path in image_readers(modules) if path in here]
    image = [f"{_counted(reading)} that {'reads' if len(reading) == 1 else 'read'} the image ({some(reading, 3)})"]
    return (image if reading else []) + left_out(paths, modules)


def no_inner_convolution(modules: Modules) -> str:
    """Why `all-conv` matches nothing in this model."""
    reasons = left_out_of_all(list(modules), modules)
    if not reasons:
        return f'target "{ALL_CONV}" matches no layer of this model, which has no convolutions. Use {ALL_LINEAR}.'
    return (
        f'target "{ALL_CONV}" matches no layer of this model: it leaves out {"; and ".join(reasons)}. Use {ALL_LINEAR}.'
    )


def _counted(paths: list[str]) -> str:
    return f"{len(paths)} convolution{'' if len(paths) == 1 else 's'}"
