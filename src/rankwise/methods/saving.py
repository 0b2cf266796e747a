"""The result of a run: what its method saves, and beside it the data report, the model card and how it was trained.

All of it lies in the folder at once, or none of it does.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path, PurePath

from rankwise.base.loaded import LoadedModel
from rankwise.base.sources import Source
from rankwise.base.starters import STARTERS
from rankwise.config.base import JsonObject
from rankwise.config.experiment import places_in
from rankwise.methods.artifact import BASE_FACTS, BaseFacts
from rankwise.methods.method import Method
from rankwise.methods.model_card import CardFacts, card
from rankwise.methods.trainable import Trainable
from rankwise.rows.files.licences import find_licence
from rankwise.runs.data_report import DATA_REPORT
from rankwise.runs.directory import CARD
from rankwise.runs.lineage import LINEAGE, Lineage
from rankwise.runs.manifest import TRAINING, Manifest, TrainingFacts
from rankwise.runs.records import Callback
from rankwise.system.files import sha256_of, write_atomic, write_json


def save_result(
    method: Method, trainable: Trainable, model: LoadedModel, folder: Path, facts: CardFacts, *,
    training: TrainingFacts, revision: str | None, callback: Callback,
) -> None:  # fmt: skip
    """Write what was learned and what is recorded beside it. `facts` are those of the card, without the ranks, which
    the method knows, and the licence of the base, whose revision is `revision`."""
    with method.saving(trainable, model, folder, revision, callback) as saved:
        write_json(saved.folder / DATA_REPORT, facts.data_report.model_dump(mode="json"))
        if saved.ranks is not None:
            _write_about_adapter(saved.folder, replace(facts, ranks=saved.ranks), licence_of(model.source))
        hashes = {file.name: sha256_of(file) for file in sorted(saved.folder.glob("*.safetensors"))}
        training = training.model_copy(update={"weights": hashes})
        write_json(saved.folder / TRAINING, training.model_dump(mode="json"))


def _write_about_adapter(folder: Path, facts: CardFacts, licence: str) -> None:
    base = BaseFacts(**facts.base.model_dump(), licence=licence)
    write_json(folder / BASE_FACTS, base.model_dump(mode="json"))
    if facts.lineage:
        write_json(folder / LINEAGE, Lineage(rounds=facts.lineage).model_dump(mode="json"))
    write_atomic(folder / CARD, card(replace(facts, base_licence=licence)).encode())


def licence_of(source: Source) -> str:
    """The licence of a base model, where it is stated."""
    starter = next((one.licence for one in STARTERS.values() if one.hub_id == source.name), None)
    return starter or find_licence(source.folder)


def training_facts(settings: JsonObject, manifest: Manifest) -> TrainingFacts:
    """How a result was trained, by the settings of its run as JSON. Of a path there is the last part alone, since the
    others may name a person."""
    settings = deepcopy(settings)
    for part, key in places_in(settings):
        if isinstance(part[key], str) and os.path.exists(os.path.expanduser(part[key])):  # noqa: PTH110, PTH111
            part[key] = PurePath(part[key]).name
    base = manifest.base_model.model_copy(update={"name": settings["model"]["name"]})
    facts = {name: getattr(manifest, name) for name in ("learning_rate", "backend", "versions", "machine")}
    return TrainingFacts(settings=settings, base_model=base, **facts)
