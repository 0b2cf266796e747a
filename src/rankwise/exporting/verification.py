"""An export is opened by somebody else's loader, asked what our own model was asked, and compared with it.

    1  ours      up to twenty held-out prompts, answered greedily in float32 (reference.py)
    2  theirs    each engine that reads this format and is here, in a process of its own (engine_process.py)
    3  verdict   token ids, answers and log-probabilities within the tolerance of the number format (agreement.py)

Verification is on by default where an engine is at hand and the model is small enough to be asked in a minute or two.
An export is called done once no engine at hand objects: until then it lies under a hidden name beside its own, so if an
engine says something else than the trained model, or the process ends, nothing lies under the name that was asked for.
The figures go into the model card.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from rankwise.base.cached import is_here
from rankwise.base.saving import stored_as
from rankwise.errors import ConfigError, ExportError, ModelError, RankwiseError, RunError
from rankwise.exporting.agreement import (
    ClassReference,
    EngineVerdict,
    Figures,
    class_reference_of,
    compare,
    compare_classes,
)
from rankwise.exporting.engine_process import EngineFailure, ask, engines_for, interpreters
from rankwise.exporting.engines.engine import Package
from rankwise.exporting.engines.openai_server import SERVER
from rankwise.exporting.reference import QUESTIONS, Reference, mean_difference, open_for_export, reference_of, scored
from rankwise.methods.artifact import Artifact
from rankwise.objectives.classifier import TOLERANCES
from rankwise.runs.directory import CARD
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.system.files import move, write_atomic

Wish = Literal["auto", "yes", "no"]
LARGEST = 2_000_000_000
"""Parameters of a model that is verified without being asked to: at twenty answers it takes minutes."""
FEWER = 300_000_000
"""Parameters from which fewer prompts are asked without being asked to, in proportion."""
FEWEST = 3
ADAPTERS = ("peft", "portable", "mlx")
"""Formats under which an engine loads the base's own files."""
WITH_PREPROCESSING = ("onnx",)
"""Formats that hold the preprocessing of images too, so that every program sees the pixels that training saw."""
ROOM = 1.4
"""Memory in which a model in float32 is asked, as a multiple of its weights."""
HEADING = "## Verified in"


@dataclass(frozen=True)
class Verifying:
    """What is to be verified, and by what."""

    wish: Wish = "auto"
    pythons: Sequence[Path | str] = ()
    """Interpreters of environments with engines, beside our own."""
    rows: str | None = None
    """A file of questions, in place of the run's rows."""
    url: str | None = None
    """The address of a server that serves the export."""
    server_model: str | None = None
    """By which name it serves it."""


@dataclass(frozen=True)
class Export:
    """What was written, for the engines."""

    path: str
    format: str
    number_format: str = "float32"
    strength: float = 1.0


@dataclass(frozen=True)
class BaseShift:
    """How far log-probabilities are apart over the quantised base of the training and over the full one, in nats."""

    stored_as: str
    mean_difference: float | None
    """None for a classifier, where it is not measured."""
    max_difference: float | None = None

    def line(self) -> str:
        about = f"it was trained over {self.stored_as} weights, and was compared over the full ones"
        if self.mean_difference is None:
            return f"{about}, where its outputs are others"
        return (
            f"{about}, where its own log-probabilities differ by {self.mean_difference:.2g} on average and "
            f"{self.max_difference:.2g} at most"
        )


@dataclass(frozen=True)
class Verification:
    about: str = ""
    """What was asked, such as "20 validation rows"."""
    verdicts: tuple[EngineVerdict, ...] = ()
    why_not: str | None = None
    """Why nothing was run."""
    change: float | None = None
    """By how much the adapter changes the log-probabilities, on average."""
    base_shift: BaseShift | None = None
    """How the outputs of an adapter trained over a quantised base differ over the full base, which engines load."""

    @property
    def wrong(self) -> list[EngineVerdict]:
        """What an engine itself said; a rule alone stops no export."""
        return [one for one in self.verdicts if one.status == "wrong" and one.by == "run"]

    @property
    def max_difference(self) -> float | None:
        """The largest difference of a log-probability, or of a classifier's output, in any engine."""
        return self._largest(lambda figures: figures.max_difference)

    @property
    def max_logit_difference(self) -> float | None:
        """The largest difference of a logit of our answers' tokens, in any engine that gives them."""
        return self._largest(lambda figures: figures.max_logit_difference)

    def _largest(self, value_of: Callable[[Figures], float | None]) -> float | None:
        values = [value_of(one.figures) for one in self.verdicts if one.figures is not None]
        return max((value for value in values if value is not None), default=None)

    def summary(self) -> dict[str, Any]:
        """What `rankwise export --json` prints of it."""
        return {
            "max_log_probability_difference": self.max_difference,
            "max_logit_difference": self.max_logit_difference,
            "template_parity": None,
            "engines": {one.engine: one.summary() for one in self.verdicts},
            "verified_with": self.about or None,
            "not_verified": self.why_not,
        } | ({} if self.base_shift is None else {"base_shift": asdict(self.base_shift)})

    def lines(self) -> list[str]:
        """For people."""
        why_not = [] if self.why_not is None else [f"not verified by an engine: {self.why_not}"]
        ran = [f"{one.line()}; asked: {self.about}" for one in self.verdicts if one.by == "run"]
        ruled = [one for one in self.verdicts if one.by == "rule"]
        right = [one.engine for one in ruled if one.status == "right"]
        by_rule = [f"by their rules, not run: {', '.join(right)} should read it as it was trained"] if right else []
        shift = [] if self.base_shift is None else [self.base_shift.line()]
        return why_not + ran + shift + by_rule + [one.line() for one in ruled if one.status != "right"]


BY_DEFAULT, NOT_VERIFIED = Verifying(), Verification()


def verify(artifact: Artifact, export: Export, how: Verifying, callback: Callback = silent) -> Verification:
    """Ask every engine at hand. RankwiseError where verification was asked for and there is nothing to ask with."""
    if how.wish == "no":
        return Verification(why_not="--no-verify was given")
    engines = [(SERVER, sys.executable)] if how.url else engines_for(export.format, interpreters(how.pythons))
    if not engines:
        return Verification(why_not=f"no engine that reads {export.format} is installed here")
    files = _files(artifact, export)
    if export.format == "gguf-lora" and "base" not in files and not how.url:
        return Verification(why_not="the base model is no GGUF file to lay the adapter over; --base-model names one")
    try:
        count = _questions(artifact, how, callback)
        full = _over_full(artifact, export)
        reference = _reference(full or artifact, export, how, count, callback)
        shift = None if full is None else _shift(artifact, export, reference)
    except (RankwiseError, OSError) as error:
        if how.wish == "yes":
            raise
        return Verification(why_not=str(error).splitlines()[0].rstrip("."))
    if reference is None:
        return Verification(why_not="the images of the run are no files that could be shown to an engine")
    verdicts = tuple(_verdict(*one, reference, export, how, files, callback) for one in engines)
    return Verification(reference.about, verdicts, change=reference.change, base_shift=shift)


def with_rules(verification: Verification, reasons: Mapping[str, str | None]) -> Verification:
    """Add what is known of other engines by their rules: why one would be wrong, or None, by the engine's name. A rule
    never replaces what an engine itself said."""
    ran = {one.engine.lower().replace(" ", "-") for one in verification.verdicts}
    ruled = tuple(
        EngineVerdict(engine, "right" if why is None else "wrong", why, "rule")
        for engine, why in reasons.items()
        if engine.lower().replace(" ", "-") not in ran
    )
    return replace(verification, verdicts=(*verification.verdicts, *ruled))


def require(verification: Verification, name: str) -> None:
    """ExportError where an engine says something else than our own model."""
    if wrong := verification.wrong:
        reasons = "\n".join(f"  {one.line()}" for one in wrong)
        raise ExportError(
            f"{name} is not what was trained, as other software reads it; nothing was left there.\n{reasons}\n"
            "--no-verify writes it without asking an engine."
        )


def _questions(artifact: Artifact, how: Verifying, callback: Callback) -> int:
    """How many prompts to ask. ModelError where a model is too large to be asked without being told to."""
    if how.wish == "yes":
        return QUESTIONS
    spec = artifact.model
    if not is_here(spec):
        raise ModelError(f'the base model "{spec.name}" is not on this machine; --verify fetches it')
    _, numbers = stored_as(spec, callback)
    need, free = ROOM * 4 * numbers, psutil.virtual_memory().available
    if numbers > LARGEST or need > free:
        raise ModelError(
            f"the model has {numbers / 1e9:.1f} billion parameters, which take {need / 1e9:,.0f} GB in float32 and "
            "some minutes; --verify does it"
        )
    return max(FEWEST, min(QUESTIONS, QUESTIONS * FEWER // max(1, numbers)))


def _reference(
    artifact: Artifact, export: Export, how: Verifying, count: int, callback: Callback
) -> Reference | ClassReference | None:
    """The model that it is asked of is freed before an engine loads its own."""
    tuned = open_for_export(artifact)
    try:
        if tuned.objective.head is not None:
            return class_reference_of(tuned.objective, tuned, count, how.rows)
        return reference_of(tuned, count=count, rows=how.rows, strength=export.strength, callback=callback)
    finally:
        del tuned
        gc.collect()


def _over_full(artifact: Artifact, export: Export) -> Artifact | None:
    """An adapter as engines load it, over the full weights of its base; None where it was trained over them or the
    export holds the base itself."""
    named = artifact.base_named
    if export.format not in ADAPTERS or named is None or named.packed_format is None:
        return None
    return replace(artifact, base_named=named.model_copy(update={"quantize": "none"}))


def _shift(artifact: Artifact, export: Export, over_full: Reference | ClassReference | None) -> BaseShift:
    stored = artifact.base.packed_format
    assert stored is not None, "asked by the caller"
    if not isinstance(over_full, Reference):
        return BaseShift(stored, None)
    tuned = open_for_export(artifact)
    with tuned.trainable.scaled(export.strength):
        ours = [scored(tuned.model, one.prompt_ids, one.answer_ids)[0] for one in over_full.questions]
    theirs = [one.log_probabilities for one in over_full.questions]
    apart = [abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    return BaseShift(stored, mean_difference(theirs, ours), max(apart, default=0.0))


def _files(artifact: Artifact, export: Export) -> dict[str, str]:
    """What an engine opens: a folder, or the GGUF file in it, and under an adapter the base's own GGUF file."""
    path = Path(export.path)
    if export.format not in ("gguf", "gguf-lora"):
        return {"export": export.path}
    files = {"export": str(path if path.is_file() else next(iter(sorted(path.glob("*.gguf"))), path))}
    base = artifact.model.name
    return files | ({"base": str(Path(base).expanduser().absolute())} if base.lower().endswith(".gguf") else {})


def _verdict(
    engine: Package, python: str, reference: Reference | ClassReference, export: Export, how: Verifying,
    files: dict[str, str], callback: Callback,
) -> EngineVerdict:  # fmt: skip
    callback(StatusMessage(f"Asking {how.url or engine.name}"))
    request = {"format": export.format, **reference.request, **({"export": how.url} if how.url else files)}
    replies = ask(engine, python, request | ({"model": how.server_model} if how.url else {}))
    if isinstance(replies, EngineFailure):
        return EngineVerdict(engine.name, "wrong" if replies.refused else "not run", replies.why)
    if isinstance(reference, ClassReference):
        if export.format in WITH_PREPROCESSING:
            reference = replace(reference, tolerances=TOLERANCES)
        return compare_classes(reference, replies, export.number_format)
    return compare(reference, replies, export.number_format)


def refuse_unverifiable(how: Verifying, folder: Path) -> None:
    """All that is wrong with the wishes, before anything is written."""
    problems = []
    if how.rows is not None and not os.path.exists(how.rows):  # noqa: PTH110  it may be no path
        problems.append(f"--verify-data {how.rows}: there is no such file.")
    if how.wish == "no" and (how.pythons or how.rows or how.url):
        problems.append("--no-verify runs no engine, so --engine-python, --verify-data and an address are of no use.")
    if how.url is not None and not how.url.startswith(("http://", "https://")):
        problems.append(f"--verify {how.url}: is no address. Give one such as http://localhost:8000, or leave it out.")
    if how.server_model is not None and how.url is None:
        problems.append("--server-model is the name by which a server knows the model; give its address with --verify.")
    if problems:
        raise ConfigError(problems)
    if how.url is not None and not os.path.lexists(folder):
        raise RunError(
            f"{folder} does not exist. Export it first, start the server with it, and then compare the server: "
            f"--verify {how.url}."
        )


def arrived(artifact: Artifact, export: Export, how: Verifying, callback: Callback) -> Verification:
    """Verify what was just written. ExportError, and nothing left, where it is not what was trained."""
    folder = Path(export.path)
    with _hidden(folder) as hidden:
        verification = verify(artifact, replace(export, path=str(hidden.absolute())), how, callback)
        require(verification, str(folder))
        _add_to_card(hidden / CARD, verification)
    return verification


def served(artifact: Artifact, export: Export, how: Verifying, callback: Callback) -> Verification:
    """Compare what a server answers. ExportError where it is not what was trained; the folder stays as it is."""
    verification = verify(artifact, export, replace(how, wish="yes"), callback)
    if verification.wrong:
        raise ExportError(f"{how.url} does not answer as {artifact.described} does: {verification.wrong[0].why}.")
    unasked = next((one for one in verification.verdicts if one.status == "not run"), None)
    if unasked is not None:
        raise ExportError(f"{how.url} could not be compared with {artifact.described}: {unasked.why}.")
    return verification


@contextmanager
def _hidden(folder: Path) -> Iterator[Path]:
    """Another name for as long as the block runs, and none at all if it fails. A file lies in a hidden folder, so that
    it keeps its ending and is cleared away as other temporary folders are (system/files.py)."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    hidden = temporary / folder.name if folder.is_file() else temporary
    if hidden != temporary:
        temporary.mkdir()
    move(folder, hidden)
    try:
        yield hidden
        move(hidden, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _add_to_card(card: Path, verification: Verification) -> None:
    """What the engines said, for whoever reads the folder later."""
    ran = [one for one in verification.verdicts if one.by == "run"]
    if not ran or not card.is_file():
        return
    text = card.read_text(encoding="utf-8", errors="replace").partition(f"\n{HEADING}")[0].rstrip("\n")
    rows = "\n".join(f"- {one.line()}" for one in ran)
    asked = f"Asked: {verification.about}; compared with the trained model in float32."
    write_atomic(card, f"{text}\n\n{HEADING} other software\n\n{asked}\n\n{rows}\n".encode())
