"""The classes of labelled rows, the range of their numbers, or the tags of their words, which a classifier's head is
built for.

All training rows are read once for this before a model is loaded, those that will be held out included. Labels are
numbers where all of them are and one has decimals, and names of classes elsewhere. Classes are in the order of
data.labels, or sorted: as numbers if all are whole numbers, as text elsewhere. Of BIO tags there are always O, and B-x
and I-x of each type x, also where the rows have only one of the two; O comes first and the others are sorted by type.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from shlex import quote

from rankwise.config.base import shown
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.errors import ConfigError, DataError, did_you_mean, joined_problems, some
from rankwise.rows.forms.proposals import NO_FORM, guessed
from rankwise.rows.forms.tagged_rows import TAGGED_FORMATS
from rankwise.rows.sources import first_rows, open_source
from rankwise.rows.text.example import BEGIN, INSIDE, OUTSIDE, Example, label_in
from rankwise.rows.text.targets import label_of, labels_of, number_of, tagged_in
from rankwise.runs.row_facts import TargetFacts

MOST_CLASSES = 1000
NAMES = "\nA classifier needs the columns text and label. Name yours with --text COLUMN and --label COLUMN"
OF_TAGS = (
    "\nToken classification needs the columns tokens and tags, or text and spans. Name yours with --set "
    "data.columns.tokens=COLUMN and --set data.columns.tags=COLUMN."
)
_OTHER_SCHEME = re.compile(r"[BIESLUM]-.+")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass
class _Labels:
    """The labels or tags that were read, with the place of the first row of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    sets: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Where rows have several labels: those of each row."""

    def add(self, names: Sequence[str], where: str) -> None:
        self.counts.update(names)
        for name in names:
            self.first.setdefault(name, where)


def read_targets(data: DataConfig, config: ClassificationConfig) -> TargetFacts:
    """DataError where rows have no label, too few classes, or labels of two kinds, with the first such row."""
    labels, problems, several = _Labels(), list[str](), None
    for example in examples_of(data, problems):
        if several is None:
            several = config.targets == "several" or (config.targets == "auto" and example.labels is not None)
        try:
            if several and config.targets == "auto" and example.labels is None:
                raise DataError(
                    f"{example.where}: the label is one name, and other rows have lists of names. Write a list, or set "
                    "classification.targets to several."
                )
            names = labels_of(example) if several else (label_of(example),)
            labels.sets.update([tuple(sorted(names))] if several else [])
            labels.add(names, example.where)
        except DataError as error:
            problems.append(str(error))
    if problems and (data.on_bad_row == "stop" or not (labels.counts or labels.sets)):
        unknown = any(NO_FORM in why for why in problems)
        every = joined_problems([re.split(" Name the columns| Known formats", why)[0] for why in problems])
        raise DataError(f"{every}{NAMES + _guess(data) if unknown else ''}")
    if not labels.counts and not labels.sets:
        raise DataError(f"{', '.join(source.path for source in data.all_sources)}: has no rows.")
    if labels.sets:
        return _several(labels, data, config)
    return _numbers(labels, data, config) if _are_numbers(labels, config) else _classes(labels, data, config)


def _guess(data: DataConfig) -> str:
    """The columns to name, by the first source's own words."""
    rows = first_rows(open_source(data, data.all_sources[0]))
    guess = guessed(rows[0], rows) if rows else None
    if guess is None:
        return "."
    text = max(guess[0], key=lambda name: len(str(rows[0][name])))
    return f"; a guess is --text {quote(text)} --label {quote(guess[1])}."


def examples_of(config: DataConfig, problems: list[str]) -> Iterator[Example]:
    """All training rows that can be read; what is wrong with the others is added to the problems."""
    for source in config.all_sources:
        reading = open_source(config, source)
        for chunk in reading.chunks():
            yield from (example for row in chunk for example in row)
        problems += [why for _, why in reading.skipped]


def _are_numbers(labels: _Labels, config: ClassificationConfig) -> bool:
    if config.targets != "auto":
        return config.targets == "numbers"
    numbers = {label: number_of(label) for label in labels.counts}
    fractions = [label for label, value in numbers.items() if value is not None and not value.is_integer()]
    others = [label for label, value in numbers.items() if value is None]
    if fractions and others:
        known = _first_row_of(labels, fractions[0])
        raise DataError(
            f"{labels.first[others[0]]}: the label is {shown(others[0])}, which is not a finite number; other labels "
            f"are numbers with decimals ({known}). Correct it, or set classification.targets to "
            "classes; or to numbers, and --on-bad-row skip leaves such rows out."
        )
    return bool(fractions)


def _several(labels: _Labels, data: DataConfig, config: ClassificationConfig) -> TargetFacts:
    names, path = _ordered(labels, data), ", ".join(source.path for source in data.all_sources)
    idle = ["class_weights"] * (config.class_weights is not None) + ["sampling"] * (config.sampling == "balanced")
    if idle:
        raise ConfigError([f"classification.{name} needs rows of one class each, and these have several. Leave it out."
                           for name in idle])  # fmt: skip
    if len(labels.counts) < 2:
        only = f"only the label {shown(next(iter(labels.counts)))}" if labels.counts else "no label"
        raise DataError(f"{path}: {only} is in any row, so there is nothing to learn. At least two classes are needed.")
    if len(labels.sets) < 2:
        raise DataError(f"{path}: every row has the same labels, so there is nothing to learn.")
    if len(names) > MOST_CLASSES:
        raise DataError(f"{path}: has {len(names):,} labels, and a classifier has at most {MOST_CLASSES:,} classes.")
    return TargetFacts(classes=names, counts=tuple(labels.counts[name] for name in names), form="several")


def _numbers(labels: _Labels, data: DataConfig, config: ClassificationConfig) -> TargetFacts:
    values: dict[str, float | None] = {label: number_of(label) for label in labels.counts}
    wrong = next((label for label, value in values.items() if value is None), None)
    numbers = [value for value in values.values() if value is not None]
    if wrong is not None and (data.on_bad_row == "stop" or not numbers):
        raise DataError(f"{labels.first[wrong]}: the label is {shown(wrong)}; a finite number is expected.")
    if len(set(numbers)) < 2:
        raise DataError(
            f"{next(iter(labels.first.values()))}: this and all other rows have the label {shown(next(iter(values)))}, "
            "so there is nothing to learn. At least two different numbers are needed."
        )
    if config.class_weights is not None:
        raise ConfigError(["classification.class_weights has no effect, since the labels are numbers. Leave it out."])
    if config.sampling == "balanced":
        raise ConfigError([
            "classification.sampling is balanced, which needs classes, and the labels are numbers. Leave it out, or "
            "set classification.targets to classes."
        ])  # fmt: skip
    return TargetFacts(low=min(numbers), high=max(numbers))


def _classes(labels: _Labels, data: DataConfig, config: ClassificationConfig) -> TargetFacts:
    names = _ordered(labels, data)
    if len(labels.counts) < 2:
        only = next(iter(labels.counts))
        raise DataError(
            f"{labels.first[only]}: this and all other rows have the label {shown(only)}, so there is nothing to "
            "learn. At least two classes are needed."
        )
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{labels.first[names[0]]}: its label {shown(names[0])} is one of {len(names):,} different ones, and a "
            f"classifier has at most {MOST_CLASSES:,} classes. For numbers on a scale, set classification.targets to "
            "numbers."
        )
    counts = tuple(labels.counts[name] for name in names)
    weights, balanced = weights_of(names, counts, config), config.sampling == "balanced"
    return TargetFacts(classes=names, counts=counts, weights=weights, balanced=balanced)


def _named(config: DataConfig) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for source in config.all_sources for name in source.labels))


def _ordered(labels: _Labels, config: DataConfig) -> tuple[str, ...]:
    named = _named(config)
    others = [label for label in labels.counts if label not in named]
    whole = all(_INTEGER.fullmatch(label) for label in others)
    return (*named, *sorted(others, key=(lambda label: (int(label), label)) if whole else None))


def balanced_weights(counts: tuple[int, ...]) -> tuple[float, ...]:
    """n / (classes * n of the class), so that the mean over all rows is 1."""
    present = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (present * count) if count else 1.0 for count in counts)


def weights_of(names: tuple[str, ...], counts: tuple[int, ...], config: ClassificationConfig) -> tuple[float, ...]:
    if config.class_weights is None:
        return ()
    if config.class_weights == "balanced":
        return balanced_weights(counts)
    unknown = [name for name in config.class_weights if name not in names]
    if unknown:
        raise ConfigError([
            f"classification.class_weights names {shown(unknown[0])}, which is no class of these rows; they are "
            f"{some(map(shown, names), 8)}.{did_you_mean(unknown[0], names)}"
        ])  # fmt: skip
    return tuple(float(config.class_weights.get(name, 1.0)) for name in names)


def _first_row_of(labels: _Labels, label: str) -> str:
    return f"{shown(label)} in {labels.first[label]}"


def holds_tags(config: DataConfig) -> bool:
    """Whether the first rows of the data have tags or spans."""
    reading = open_source(config, config.all_sources[0].model_copy(update={"rows": None}))
    next(reading.chunks(), None)
    formats = {part.format for part in reading.parts} - {None}
    return bool(formats) and formats <= set(TAGGED_FORMATS)


def read_tags(data: DataConfig, config: ClassificationConfig) -> TargetFacts:
    """The tags of the training rows. DataError where rows have none, mix two schemes of tags, or have one tag alone."""
    _refuse_settings(config)
    tags, problems = _Labels(), list[str]()
    for example in examples_of(data, problems):
        try:
            tags.add(tagged_in(example).tags, example.where)
        except DataError as error:
            problems.append(str(error))
    wrong = _of_other_schemes(tags)
    if problems and (data.on_bad_row == "stop" or not tags.counts):
        every = joined_problems([*problems, *wrong])
        raise DataError(f"{every}{OF_TAGS if any(NO_FORM in why for why in problems) else ''}")
    sources = ", ".join(source.path for source in data.all_sources)
    if not tags.counts:
        raise DataError(f"{sources}: has no rows.")
    if wrong:
        raise DataError(joined_problems(wrong))
    names = _ordered_tags(tags, data)
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


def _of_other_schemes(tags: _Labels) -> list[str]:
    """Tags that are no BIO among some that are, such as S-PER of BIOES."""
    bio = {tag for tag in tags.counts if tag.startswith((BEGIN, INSIDE))}
    others = [tag for tag in tags.counts if tag not in bio and tag != OUTSIDE]
    if not bio and not (others and all(map(_OTHER_SCHEME.fullmatch, others))):
        return []
    return [
        f"{tags.first[tag]}: the tag {shown(tag)} is not O, B-TYPE or I-TYPE, and other rows have such tags. Write a "
        "span of one word (S-, U-) as B-, and the last word of a longer one (E-, L-) as I-." for tag in others
    ]  # fmt: skip


def _ordered_tags(tags: _Labels, config: DataConfig) -> tuple[str, ...]:
    named = _named(config)
    bio = [tag for tag in (*named, *tags.counts) if tag.startswith((BEGIN, INSIDE))]
    if bio:
        types = sorted({str(label_in(tag)) for tag in bio})
        every = [OUTSIDE, *(f"{prefix}{name}" for name in types for prefix in (BEGIN, INSIDE))]
    else:
        every = sorted(tags.counts, key=lambda tag: (tag != OUTSIDE, tag))
    if named and set(every) <= set(named):
        return named
    return tuple(dict.fromkeys([*(name for name in named if name in every), *every]))
