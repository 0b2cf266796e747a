"""Fine-tune language models with LoRA and AdaLoRA, correctly, on the machine you have.

The public surface: verbs and their nouns. Names resolve on first use, so `import rankwise` costs nothing and
brings no torch.

    load        a base model by starter name, hub id, folder or GGUF file
    inject      lay an adapter over a module; the AdapterSet it returns takes it out again
    eva_choices     ranks and a start for it from inputs that the model gets
    plan        what a training would take, before anything is loaded
    train       an Experiment into a finished run
    generate    one answer from a run
    evaluate    a run beside its base, or a model, by a task: numbers with intervals
    inspect     the ranks of a run's adapter
    compare     evaluated runs with each other, item against item
    report      a run as a page, or several side by side
    strength    what a run gains and forgets as its adapter is turned up
    export      what a run trained as a folder for other programs
    read_peft, write_peft   an adapter in PEFT's file format
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.adapters.adapter_set import AdapterSet as AdapterSet
    from rankwise.adapters.adapter_set import inject as inject
    from rankwise.adapters.allocation import RankAllocator as RankAllocator
    from rankwise.adapters.eva import eva_choices as eva_choices
    from rankwise.adapters.peft_format import read_peft as read_peft
    from rankwise.adapters.peft_format import write_peft as write_peft
    from rankwise.errors import RankwiseError as RankwiseError
    from rankwise.models.loaded import LoadedModel as LoadedModel
    from rankwise.models.loading import load as load
    from rankwise.spec.adapters import AdaLora as AdaLora
    from rankwise.spec.adapters import AdaLoraSpec as AdaLoraSpec
    from rankwise.spec.adapters import FullSpec as FullSpec
    from rankwise.spec.adapters import LoraSpec as LoraSpec
    from rankwise.spec.data import DataSpec as DataSpec
    from rankwise.spec.experiment import Experiment as Experiment
    from rankwise.spec.generation import GenerationSpec as GenerationSpec
    from rankwise.spec.models import ModelSpec as ModelSpec
    from rankwise.spec.planning import Planned as Planned
    from rankwise.spec.tasks import TaskSpec as TaskSpec
    from rankwise.spec.training import TrainingSpec as TrainingSpec
    from rankwise.verbs.ask import open_for_asking as open_for_asking
    from rankwise.verbs.compare import compare as compare
    from rankwise.verbs.demo import demo as demo
    from rankwise.verbs.evaluate import evaluate as evaluate
    from rankwise.verbs.export import export as export
    from rankwise.verbs.generate import generate as generate
    from rankwise.verbs.inspect import inspect as inspect
    from rankwise.verbs.plan import plan as plan
    from rankwise.verbs.report import report as report
    from rankwise.verbs.strength import strength as strength
    from rankwise.verbs.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "AdaLora": "rankwise.spec.adapters",
    "AdaLoraSpec": "rankwise.spec.adapters",
    "AdapterSet": "rankwise.adapters.adapter_set",
    "DataSpec": "rankwise.spec.data",
    "Experiment": "rankwise.spec.experiment",
    "FullSpec": "rankwise.spec.adapters",
    "GenerationSpec": "rankwise.spec.generation",
    "LoadedModel": "rankwise.models.loaded",
    "LoraSpec": "rankwise.spec.adapters",
    "ModelSpec": "rankwise.spec.models",
    "Planned": "rankwise.spec.planning",
    "RankAllocator": "rankwise.adapters.allocation",
    "RankwiseError": "rankwise.errors",
    "TrainingSpec": "rankwise.spec.training",
    "compare": "rankwise.verbs.compare",
    "demo": "rankwise.verbs.demo",
    "TaskSpec": "rankwise.spec.tasks",
    "eva_choices": "rankwise.adapters.eva",
    "evaluate": "rankwise.verbs.evaluate",
    "export": "rankwise.verbs.export",
    "generate": "rankwise.verbs.generate",
    "inject": "rankwise.adapters.adapter_set",
    "inspect": "rankwise.verbs.inspect",
    "load": "rankwise.models.loading",
    "open_for_asking": "rankwise.verbs.ask",
    "plan": "rankwise.verbs.plan",
    "read_peft": "rankwise.adapters.peft_format",
    "report": "rankwise.verbs.report",
    "strength": "rankwise.verbs.strength",
    "train": "rankwise.verbs.train",
    "write_peft": "rankwise.adapters.peft_format",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
