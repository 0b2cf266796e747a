"""A part of a source's rows, encoded: the tokens, what the report counts, and what decides about each row.

A part follows from its raw rows alone, so any process can make it, at any time. As a file it is

    SHA-256 of the rest, the length of the facts, the facts as JSON, and the arrays that they name one after another

so a file that was cut short or damaged is noticed, and nothing in it is executed when it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from sys import intern
from typing import Any

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.data.duplicates import TextIndex
from rankwise.data.image_report import SeenImage
from rankwise.data.labels import Labels
from rankwise.data.report import Tally
from rankwise.data.row_names import RowNames
from rankwise.data.sequences import COLUMNS, EncodedRows
from rankwise.data.tally_facts import arrays_of, facts_of, restore
from rankwise.data.unused import Unused
from rankwise.text.example import Example, ImageRecord

SHA, LENGTH = 32, 8
"""Bytes."""


def compares(spec: DataConfig) -> bool:
    """Whether validation rows are compared with training rows."""
    return spec.may_hold_out or spec.validation is not None


@dataclass
class RowFacts:
    """What decides about the usable rows. Lists that are not needed are empty."""

    counts: list[int] = field(default_factory=list)
    """Number of sequences of each row."""
    prompts: TextIndex = field(default_factory=TextIndex)
    """What rows with the same question share: its text, or the hash of an image's pixels."""
    groups: list[str | None] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    images: list[SeenImage] = field(default_factory=list)

    def add(
        self, usable: Sequence[tuple[Sequence[Example], int, ImageRecord | None]], spec: DataConfig, *,
        classification: bool,
    ) -> None:  # fmt: skip
        """Add usable rows, each with the number of its sequences and what is known of its image."""
        self.counts.extend(sequences for _, sequences, _ in usable)
        self.images += [
            SeenImage(row[0].where, intern(row[0].messages[-1].content), image)
            for row, _, image in usable if image is not None
        ]  # fmt: skip
        if compares(spec):
            self.prompts.add([_question(row, image) for row, _, image in usable])
        if spec.group is not None:
            self.groups += [row[0].group for row, _, _ in usable]
        for row, _, _ in usable:
            self.labels.add(row, classification=classification)


@dataclass
class RowPart:
    rows: EncodedRows
    tally: Tally
    facts: RowFacts
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """`file:line` of each row that cannot be read, and the reason."""
    unused: dict[str, Unused] = field(default_factory=dict)
    """Unused columns of each file."""

    def to_bytes(self) -> bytes:
        assert not self.facts.images, "images lie in files of their own"
        rows, facts, labels = self.rows, self.facts, self.facts.labels
        known = {label: number for number, label in enumerate(labels.counts)}
        arrays = {name: getattr(rows, name) for name in (*COLUMNS, "starts", "targets")}
        if rows.names is not None:
            arrays |= {"letters": rows.names.letters, "name_starts": rows.names.starts}
        arrays |= arrays_of(self.tally) | {
            "counts": np.array(facts.counts, np.int32),
            "prompt_digests": facts.prompts.digests, "prompt_signatures": facts.prompts.signatures,
            "labels": np.array([known[label] for label in labels.of_rows], np.int32),
        }  # fmt: skip
        written = {
            "tally": facts_of(self.tally), "groups": facts.groups, "skipped": self.skipped,
            "unused": {name: unused.facts() for name, unused in self.unused.items()},
            "labels": {
                "first": {name: labels.first[name] for name in known}, "named": labels.named, "none": labels.none,
                "classified": labels.classified,
            },
        }  # fmt: skip
        return _packed(written, {name: np.asarray(one) for name, one in arrays.items() if one is not None})

    @classmethod
    def of_bytes(cls, content: bytes, empty: Tally) -> RowPart | None:
        """None where the bytes are not those that were written. `empty` is filled."""
        if not is_whole(content):
            return None
        written, arrays = _unpacked(memoryview(content)[SHA:])
        facts = RowFacts(arrays["counts"].tolist(), groups=written["groups"])
        facts.prompts.extend(arrays["prompt_digests"], arrays["prompt_signatures"])
        facts.labels = _labels(written["labels"], arrays["labels"])
        return cls(
            _rows(arrays), restore(empty, written["tally"], arrays), facts,
            [(where, why) for where, why in written["skipped"]],
            {name: Unused.of(unused) for name, unused in written["unused"].items()},
        )  # fmt: skip


def _question(row: Sequence[Example], image: ImageRecord | None) -> str:
    return "\n".join(example.prompt_text for example in row) if image is None else image.content.hex()


def is_whole(content: bytes) -> bool:
    """Whether the bytes of a part are those that were written."""
    return sha256(memoryview(content)[SHA:]).digest() == content[:SHA]


def _packed(facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    forms = [(name, one.dtype.str, one.shape) for name, one in arrays.items()]
    head = json.dumps(facts | {"arrays": forms}).encode()
    rest = b"".join([len(head).to_bytes(LENGTH), head, *(one.tobytes() for one in arrays.values())])
    return sha256(rest).digest() + rest


def _unpacked(rest: memoryview) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    begin = LENGTH + int.from_bytes(rest[:LENGTH])
    facts = json.loads(bytes(rest[LENGTH:begin]))
    arrays: dict[str, np.ndarray] = {}
    for name, dtype, shape in facts["arrays"]:
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(bytes(rest[begin : begin + size]), dtype, count).reshape(shape)
        begin += size
    return facts, arrays


def _rows(arrays: Mapping[str, np.ndarray]) -> EncodedRows:
    columns = {name: arrays.get(name) for name in (*COLUMNS, "starts", "targets")}
    names = RowNames(arrays["letters"], arrays["name_starts"]) if "letters" in arrays else None
    return EncodedRows(**columns, names=names)  # pyright: ignore[reportArgumentType]  ids, mask and starts are there


def _labels(facts: Mapping[str, Any], numbers: np.ndarray) -> Labels:
    names = list(facts["first"])
    of_rows = [names[number] for number in numbers.tolist()]
    labels = Labels(first=facts["first"], named=facts["named"], none=facts["none"], of_rows=of_rows)
    labels.counts.update(of_rows)
    labels.classified = facts["classified"]
    return labels
