"""Names that layers of vision models had before transformers 5, for tutorials and adapter files that use them.

    attention.attention.query    attention.q_proj, and so key and value    ViT, DeiT, BEiT, DINOv2
    attention.self.query         attention.q_proj, and so key and value    Swin
    attention.output.dense       attention.o_proj                          all of these
    intermediate.dense           mlp.fc1                                   ViT, DeiT, BEiT, Swin
    output.dense                 mlp.fc2                                   ViT, DeiT, BEiT, Swin
    encoder.layer.0              layers.0                                  ViT, DeiT, BEiT

ConvNeXt, CLIP and SigLIP kept their names. An old name counts only where no layer of the model has it today: BERT's
layers are called `query` to this day. The first number of a path stays, so block numbers mean what they meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import regex

from rankwise.errors import some

_PROJECTION = regex.compile(r"(?P<block>(?:.+\.)?)attention\.(?P<leaf>[qkv]_proj)")
_OTHER = regex.compile(r"(?P<block>(?:.+\.)?)(?P<leaf>attention\.o_proj|mlp\.fc[12])")
_LAYERS = regex.compile(r"(?:(?<=\.)|^)layers(?=\.\d+\.$)")
_LEAVES = {
    "q_proj": ("attention.attention.query", "attention.self.query"),
    "k_proj": ("attention.attention.key", "attention.self.key"),
    "v_proj": ("attention.attention.value", "attention.self.value"),
    "attention.o_proj": ("attention.output.dense",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}


def new_names(paths: Iterable[str]) -> dict[str, str]:
    """Today's path by each path that a layer may have had. Those that a layer has today are not among them."""
    listed = dict.fromkeys(paths)
    projections = {path: match for path in listed if (match := _PROJECTION.fullmatch(path))}
    blocks = {match["block"] for match in projections.values()}
    named: dict[str, str] = {}
    for path in listed:
        match = projections.get(path) or _OTHER.fullmatch(path)
        if match is not None and match["block"] in blocks:
            named |= {old: path for old in _old_names(match["block"], match["leaf"]) if old not in listed}
    return named


def _old_names(block: str, leaf: str) -> Iterator[str]:
    for before in dict.fromkeys((_LAYERS.sub("encoder.layer", block), block)):
        yield from (f"{before}{name}" for name in _LEAVES[leaf])
        if before != block:
            yield f"{before}{leaf if '.' in leaf else f'attention.{leaf}'}"


def once_matched(matches: Callable[[str], bool], paths: Iterable[str]) -> list[str]:
    """Today's paths of layers of which an old path matches, in the order of the model."""
    listed = list(paths)
    chosen = {new for old, new in new_names(listed).items() if matches(old)}
    return [path for path in listed if path in chosen]


def names_of(paths: Iterable[str]) -> str:
    """The last names of these layers."""
    return some(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def explained(old: str, paths: Iterable[str]) -> str:
    """A sentence for a message, about layers that were meant by an old name."""
    listed = list(paths)
    names, layers = names_of(listed), "1 layer" if len(listed) == 1 else f"{len(listed)} layers"
    return f'"{old}" is called {names} in transformers 5; using {names} ({layers})'
