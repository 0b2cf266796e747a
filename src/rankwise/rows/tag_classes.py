"""The tags of all training rows, which the head of a token classifier is built for.

Of BIO tags there are always O, and B-x and I-x of each type x, also where the rows have only one of the two. Classes
are in the order of data.labels, or else O comes first and the others are sorted by type.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from rankwise.config.base import shown
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.errors import ConfigError, DataError, together
from rankwise.rows.classes import MOST_CLASSES, examples_of, weights_of
from rankwise.rows.forms.proposals import NO_FORM
from rankwise.rows.forms.tagged_rows import TAGGED_FORMATS
from rankwise.rows.sources import open_source
from rankwise.rows.text.example import BEGIN, INSIDE, OUTSIDE, Example, label_in
from rankwise.rows.text.targets import tagged_in
from rankwise.runs.row_facts import TargetFacts

NAMES = (
    "\nToken classification needs the columns tokens and tags, or text and spans. Name yours with --set "
    "data.columns.tokens=COLUMN and --set data.columns.tags=COLUMN."
)
_OTHER_SCHEME = re.compile(r"[BIESLUM]-.+")


@dataclass
class _Tags:
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """The place of the first row with each tag."""

    def add(self, example: Example) -> None:
        for tag in tagged_in(example).tags:
            self.counts[tag] += 1
            self.first.setdefault(tag, example.where)


def holds_tags(spec: DataConfig) -> bool:
    """Whether the first rows of the data have tags or spans."""
    reading = open_source(spec, spec.all_sources[0].model_copy(update={"rows": None}))
    next(reading.chunks(), None)
    formats = {part.format for part in reading.parts} - {None}
    return bool(formats) and formats <= set(TAGGED_FORMATS)


def read_tags(spec: DataConfig, config: ClassificationConfig) -> TargetFacts:
    """DataError where rows have no tags, tags of two kinds, or nothing to tell apart."""
    _refuse_settings(config)
    tags, problems = _Tags(), list[str]()
    for example in examples_of(spec, problems):
        try:
            tags.add(example)
        except DataError as error:
            problems.append(str(error))
    wrong = _of_other_schemes(tags)
    if problems and (spec.on_bad_row == "stop" or not tags.counts):
        every = together([*problems, *wrong])
        raise DataError(f"{every}{NAMES if any(NO_FORM in why for why in problems) else ''}")
    sources = ", ".join(source.path for source in spec.all_sources)
    if not tags.counts:
        raise DataError(f"{sources}: has no rows.")
    if wrong:
        raise DataError(together(wrong))
    names = _ordered(tags, spec)
    if len(tags.counts) < 2:
        only = next(iter(tags.counts))
        raise DataError(
            f"{tags.first[only]}: every word of this and all other rows has the tag {shown(only)}, so there is nothing "
            "to learn. At least two tags are needed."
        )
    if len(names) > MOST_CLASSES:
        raise DataError(f"{sources}: has {len(names):,} different tags, and a classifier has at most {MOST_CLASSES:,}.")
    counts = tuple(tags.counts[name] for name in names)
    return TargetFacts(classes=names, counts=counts, weights=weights_of(names, counts, config), form="tags")


def _refuse_settings(config: ClassificationConfig) -> None:
    problems = []
    if config.targets == "numbers":
        problems.append("classification.targets is numbers, but tags are names. Leave it out.")
    if config.sampling == "balanced":
        problems.append("classification.sampling is balanced, which needs rows of one class each. Leave it out.")
    if problems:
        raise ConfigError(problems)


def _of_other_schemes(tags: _Tags) -> list[str]:
    """Tags that are no BIO among some that are, such as S-PER of BIOES."""
    bio = {tag for tag in tags.counts if tag.startswith((BEGIN, INSIDE))}
    others = [tag for tag in tags.counts if tag not in bio and tag != OUTSIDE]
    if not bio and not (others and all(map(_OTHER_SCHEME.fullmatch, others))):
        return []
    return [
        f"{tags.first[tag]}: the tag {shown(tag)} is not O, B-TYPE or I-TYPE, and other rows have such tags. Write a "
        "span of one word (S-, U-) as B-, and the last word of a longer one (E-, L-) as I-." for tag in others
    ]  # fmt: skip


def _ordered(tags: _Tags, spec: DataConfig) -> tuple[str, ...]:
    named = tuple(dict.fromkeys(name for source in spec.all_sources for name in source.labels))
    bio = [tag for tag in (*named, *tags.counts) if tag.startswith((BEGIN, INSIDE))]
    if bio:
        types = sorted({str(label_in(tag)) for tag in bio})
        every = [OUTSIDE, *(f"{prefix}{name}" for name in types for prefix in (BEGIN, INSIDE))]
    else:
        every = sorted(tags.counts, key=lambda tag: (tag != OUTSIDE, tag))
    if any(source.labels for source in spec.all_sources) and set(every) <= set(named):
        return named
    return tuple(dict.fromkeys([*(name for name in named if name in every), *every]))
