"""The numbers of an adapter that lies on the disk, read without loading its base model.

PEFT's files name the layers of the model themselves. Those of other tools are read over the modules of the base model,
which are built without weights.
"""

from __future__ import annotations

from rankwise.adapters.formats.dialects import detect
from rankwise.adapters.oddities import oddities
from rankwise.adapters.weights import AdapterWeights
from rankwise.methods.artifact import Artifact
from rankwise.models.skeleton import modules_without_weights
from rankwise.runs.records import Callback, StatusMessage, WarningMessage


def stored_weights(artifact: Artifact, callback: Callback) -> AdapterWeights:
    """What an artifact learned; ModelError where another tool's file needs a base model that nobody names."""
    dialect = detect(artifact.result)
    modules = None if dialect.is_peft else modules_without_weights(artifact.base, callback)
    weights = dialect.read(modules)
    for note in weights.notes:
        callback(StatusMessage(note))
    for warning in (*weights.warnings, *oddities(weights)):
        callback(WarningMessage(warning))
    return weights
