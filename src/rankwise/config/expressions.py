"""Names and regular expressions that select modules by their path, with limits on what an expression may cost.

A word of letters, digits, `_`, `.` and `-` is a name: it matches the end of a path after a dot. Anything else is a
regular expression, which must match the whole path or its end after a dot. An expression may come with somebody else's
adapter and never finish, as `(a+)+$` does, so each has a time limit: for one path where settings of our own are
matched, and for all paths together where a file's are. Processor time counts, so that a busy machine changes nothing.

Names that layers of vision models had before transformers 5 are understood too, for tutorials and adapter files:

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

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import regex

from rankwise.errors import TargetError, one_line, some

SECONDS_PER_MATCH = 0.05
SECONDS_PER_KEY, SECONDS_PER_PATTERN = 0.08, 0.4
"""For one expression of a file over all paths, and for all its expressions."""
LONGEST = 2000
"""Letters of an expression. Longer ones can take seconds to compile."""
Value = TypeVar("Value")
_NAME = regex.compile(r"[A-Za-z0-9_.-]+")


@lru_cache(maxsize=4096)
def matcher(pattern: str, setting: str) -> Callable[[str], bool]:
    """A function that says whether `pattern` matches a path. Messages name the `setting`."""
    name = _name_in(pattern)
    if name is not None:
        return lambda path: path == name or path.endswith(f".{name}")
    compiled = _compiled(pattern, setting)

    def matches(path: str) -> bool:
        try:
            return compiled.fullmatch(path, timeout=SECONDS_PER_MATCH) is not None
        except TimeoutError:
            raise _too_slow(pattern, setting) from None

    return matches


def matches_of(keys: Iterable[str], paths: Sequence[str], setting: str) -> dict[str, list[str]]:
    """The paths that each key of a file matches. TargetError where an expression is invalid or takes too long."""
    by_end = dict[str, list[str]]()
    for path in paths:
        for end in _ends(path):
            by_end.setdefault(end, []).append(path)
    matches, left = dict[str, list[str]](), SECONDS_PER_PATTERN
    for key in keys:
        name = _name_in(key)
        if name is not None:
            matches[key] = by_end.get(name, [])
        else:
            began = time.process_time()
            matches[key] = _matching(key, paths, setting, min(left, SECONDS_PER_KEY))
            left -= time.process_time() - began
    return matches


def first_matching(
    pattern: Mapping[str, Value], paths: Sequence[str], setting: str, otherwise: Value
) -> dict[str, Value]:
    """The value of the first key of `pattern` that matches each path, as in PEFT; for none of them `otherwise`."""
    values = dict.fromkeys(paths, otherwise)
    for key, matching in reversed(matches_of(pattern, paths, setting).items()):
        values |= dict.fromkeys(matching, pattern[key])
    return values


def _matching(key: str, paths: Sequence[str], setting: str, seconds: float) -> list[str]:
    compiled, ends, matching = _compiled(key, setting), time.process_time() + seconds, list[str]()
    for path in paths:
        try:
            left = ends - time.process_time()
            if left <= 0:
                raise TimeoutError
            if compiled.fullmatch(path, timeout=left) is not None:
                matching.append(path)
        except TimeoutError:
            raise _too_slow(key, setting) from None
    return matching


def _name_in(pattern: str) -> str | None:
    """The name that a pattern is, perhaps with its dots escaped."""
    name = pattern.replace(r"\.", ".")
    return name if _NAME.fullmatch(name) else None


def _ends(path: str) -> Iterator[str]:
    """A path, and its end after each dot."""
    while path:
        yield path
        path = path.partition(".")[2]


def _compiled(pattern: str, setting: str) -> regex.Pattern[str]:
    if len(pattern) > LONGEST:
        raise TargetError(f"{setting} has an expression of {len(pattern):,} letters; {LONGEST:,} are read at most.")
    try:
        return regex.compile(rf"(?:.*\.)?(?:{pattern})")
    except (regex.error, RecursionError, ValueError, OverflowError) as error:
        raise TargetError(f'{setting} "{one_line(pattern)}" is not a valid regular expression: {error}.') from None


def _too_slow(pattern: str, setting: str) -> TargetError:
    return TargetError(f'{setting} "{one_line(pattern)}" takes too long to match; write a simpler expression.')


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
