"""YAML 1.2 read as plain values: `1e-4` is a number and `on` is a text.

Refused are a key given twice, a tag that would create an object, a directive, and aliases that expand to too many
values.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from itertools import accumulate
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from rankwise.config.base import Location
from rankwise.errors import ConfigError

MOST_VALUES, DEEPEST = 10_000, 100
MOST_OPEN = 1000
"""Brackets that are open at once, those in texts included: the reader's time grows with their square."""
PLAIN_TAGS = {"str", "int", "float", "bool", "null", "map", "seq"}


def load_yaml(text: str, name: str) -> Any:
    if text.lstrip().startswith("%"):
        raise ConfigError([f"{name}: begins with a directive (%…), which is refused; remove the line."])
    if _open_at_most(text) > MOST_OPEN:
        raise ConfigError(
            [f"{name}: more than {MOST_OPEN:,} brackets are open at once, where settings need a few. Close them."]
        )
    try:
        return YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = (error.problem or str(error)).splitlines()[0]
        raise ConfigError([f"{name}{line}: {problem}."]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            [f"{name}: is not YAML ({str(error).splitlines()[0] if str(error) else type(error).__name__})."]
        ) from None


def _open_at_most(text: str) -> int:
    steps = ((char in "[{") - (char in "]}") for char in text if char in "[]{}")
    return max(accumulate(steps), default=0)


def plain(
    node: Any, origins: dict[Location, str], name: str, location: Location = (), count: _Count | None = None
) -> Any:
    """Convert ruamel's annotated nodes to plain Python values, and record the line of every key in `origins`."""
    count = count or _Count()
    count.up(name, len(location))
    _refuse_tag(node, name)
    if isinstance(node, CommentedMap):
        for key in node:
            line = (node.lc.data or {}).get(key)  # a key that was merged in has none of its own
            if name and line:
                origins[(*location, str(key))] = f"{name}:{line[0] + 1}"
        return {str(key): plain(item, origins, name, (*location, str(key)), count) for key, item in node.items()}
    if isinstance(node, list):
        return [plain(item, origins, name, (*location, index), count) for index, item in enumerate(node)]
    if isinstance(node, bool | ScalarBoolean):
        return bool(node)
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return None if node is None else str(node)


def dump_yaml(value: dict[str, Any]) -> str:
    """Write YAML that reads back as the same value, with its keys in their order."""
    yaml, written = YAML(typ="rt", pure=True), StringIO()
    yaml.default_flow_style = False
    yaml.width = 10_000
    yaml.dump(value, written)
    return written.getvalue()


@dataclass
class _Count:
    """A limit on the number of values: nested aliases can expand to more than fits into memory."""

    values: int = 0

    def up(self, name: str, depth: int) -> None:
        """`depth` has no end where an alias stands inside of itself."""
        self.values += 1
        if depth > DEEPEST:
            raise ConfigError([f"{name or '--set'}: is nested more than {DEEPEST} deep, or has itself as a part."])
        if self.values > MOST_VALUES:
            raise ConfigError([f"{name or '--set'}: expands to more than {MOST_VALUES:,} values."])


def _refuse_tag(node: Any, name: str) -> None:
    tag = getattr(getattr(node, "tag", None), "value", None)
    if isinstance(tag, str) and tag.removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS:
        raise ConfigError(
            [f'{name or "--set"}: the tag "{tag}" would create an object; only plain values are allowed.']
        )
