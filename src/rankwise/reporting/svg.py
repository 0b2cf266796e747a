"""Inline SVG from matplotlib, reduced to known elements and attributes, with colours as classes of the style sheet.

Charts are drawn in placeholder colours, one for each role. Here each placeholder becomes a class of the style sheet. So
charts follow the page's dark mode, contain no styles of their own and refer to no other file.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from rankwise.reporting.markup import Markup, element

ROLES = {
    "ink": "#010101", "quiet": "#010102", "rule": "#010103", "tuned": "#010104", "base": "#010105", "paper": "#010106",
    "good": "#010107", "bad": "#010108", "third": "#010109", "fourth": "#01010a",
}  # fmt: skip
"""Roles of colours, with their placeholder colours."""
OF_COLOUR = {colour: role for role, colour in ROLES.items()}
ELEMENTS = frozenset({"svg", "g", "path", "use", "defs", "text"})
ATTRIBUTES = ("d", "x", "y", "transform", "id", "href")
STYLES = (
    "opacity", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "fill-opacity",
    "stroke-opacity", "font-size", "font-weight", "text-anchor",
)  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_IDLE = re.compile(r"rotate\(-?0(?:\.0)? [^)]*\)")


def inline(drawing: str, name: str, label: str, variant: str) -> Markup:
    """Convert a drawing; `name` makes its internal references unique on the page."""
    tree = ElementTree.fromstring(drawing)
    children = [_cleaned(child, name) for child in tree]
    return element(
        "svg", children, class_=f"chart {variant}", viewBox=tree.get("viewBox"), role="img", aria_label=label
    )


def _cleaned(node: ElementTree.Element, name: str) -> Markup:
    tag = _local(node.tag)
    if tag not in ELEMENTS:
        return Markup("")
    children = [_cleaned(child, name) for child in node]
    if tag in ("g", "defs") and not node.attrib.keys() - {"id"}:  # drop groups that only have an id
        return Markup("".join(children)) if tag == "g" else element("defs", children)
    attributes = _attributes(node, name)
    return element(tag, node.text or "" if tag == "text" else "", children, **attributes)


def _attributes(node: ElementTree.Element, name: str) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for key, value in node.attrib.items():
        key = _local(key)
        if key in ATTRIBUTES:
            attributes[key] = _short(_own(key, value, name))
    styles = _styles(node.get("style", ""))
    classes = [
        f"{prefix}-{role}"
        for style, prefix in (("fill", "f"), ("stroke", "s"))
        if (role := OF_COLOUR.get(styles.get(style, "")))
    ]
    if styles.get("fill") == "none":
        classes.append("f-none")
    if classes:
        attributes["class"] = " ".join(classes)
    return {key: value for key, value in attributes.items() if value} | {
        style: _short(styles[style].removesuffix("px")) for style in STYLES if style in styles
    }


def _styles(written: str) -> dict[str, str]:
    pairs = (entry.partition(":") for entry in written.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}" if value.startswith("#") else ""
    return _IDLE.sub("", value) if key == "transform" else value


def _short(value: str) -> str:
    """Round numbers to a hundredth of a pixel."""
    return _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), " ".join(value.split()))


def _local(name: str) -> str:
    return name.rpartition("}")[2]
