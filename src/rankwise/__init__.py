"""Fine-tune language models with LoRA and AdaLoRA, correctly, on the machine you have.

The public surface: verbs and their nouns. Names resolve on first use, so `import rankwise` costs nothing and
brings no torch.

    load        a base model by starter name, hub id, folder or GGUF file
    inject      lay an adapter over a module; the AdapterSet it returns takes it out again
    add_adapter     another adapter in such a set
    eva_choices     ranks and a start for it from inputs that the model gets
    plan        what a training would take, before anything is loaded
    advise      whether to train, to prompt with examples, or neither, measured on held-out rows
    train       an Experiment into a finished run
    generate    one answer from a run
    predict     the rows of a table, each with the answer of a run
    evaluate    a run beside its base, or a model, by a task: numbers with intervals
    inspect     the ranks of a run's adapter
    compare     evaluated runs with each other, item against item
    report      a run as a page, or several side by side
    strength    what a run gains and forgets as its adapter is turned up
    export      what a run trained as a folder for other programs
    merge       adapters in the weights of their base, file by file
    extract     an adapter out of full fine-tuning
    read_peft, write_peft   an adapter in PEFT's file format
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.adapters.eva import eva_choices as eva_choices
    from rankwise.adapters.formats.peft import read_peft as read_peft
    from rankwise.adapters.formats.peft import write_peft as write_peft
    from rankwise.adapters.set import AdapterSet as AdapterSet
    from rankwise.base.loaded import LoadedModel as LoadedModel
    from rankwise.base.loading import load as load
    from rankwise.commands.compare import compare as compare
    from rankwise.commands.demo import demo as demo
    from rankwise.commands.evaluate import evaluate as evaluate
    from rankwise.commands.export import export as export
    from rankwise.commands.extract import extract as extract
    from rankwise.commands.generate import generate as generate
    from rankwise.commands.inspect import inspect as inspect
    from rankwise.commands.merge import merge as merge
    from rankwise.commands.predict import predict as predict
    from rankwise.commands.report import report as report
    from rankwise.commands.strength import strength as strength
    from rankwise.config.adapters import AdaLora as AdaLora
    from rankwise.config.adapters import AdaLoraConfig as AdaLoraConfig
    from rankwise.config.adapters import FullConfig as FullConfig
    from rankwise.config.adapters import LoraConfig as LoraConfig
    from rankwise.config.data import DataConfig as DataConfig
    from rankwise.config.experiment import Experiment as Experiment
    from rankwise.config.experiment import Planned as Planned
    from rankwise.config.generation import GenerationConfig as GenerationConfig
    from rankwise.config.models import ModelConfig as ModelConfig
    from rankwise.config.tasks import TaskConfig as TaskConfig
    from rankwise.config.training import TrainingConfig as TrainingConfig
    from rankwise.errors import RankwiseError as RankwiseError
    from rankwise.inference.tuned_model import load_tuned as load_tuned
    from rankwise.methods.adalora import TrainableAdaLoRA as TrainableAdaLoRA
    from rankwise.methods.inject import add_adapter as add_adapter
    from rankwise.methods.inject import inject as inject
    from rankwise.python.advise import advise as advise
    from rankwise.python.advise import plan as plan
    from rankwise.python.run import Run as Run
    from rankwise.python.run import load_run as load_run
    from rankwise.python.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "AdaLora": "rankwise.config.adapters",
    "AdaLoraConfig": "rankwise.config.adapters",
    "AdapterSet": "rankwise.adapters.set",
    "DataConfig": "rankwise.config.data",
    "Experiment": "rankwise.config.experiment",
    "FullConfig": "rankwise.config.adapters",
    "GenerationConfig": "rankwise.config.generation",
    "LoadedModel": "rankwise.base.loaded",
    "LoraConfig": "rankwise.config.adapters",
    "Run": "rankwise.python.run",
    "ModelConfig": "rankwise.config.models",
    "Planned": "rankwise.config.experiment",
    "TrainableAdaLoRA": "rankwise.methods.adalora",
    "RankwiseError": "rankwise.errors",
    "TrainingConfig": "rankwise.config.training",
    "add_adapter": "rankwise.methods.inject",
    "advise": "rankwise.python.advise",
    "compare": "rankwise.commands.compare",
    "demo": "rankwise.commands.demo",
    "TaskConfig": "rankwise.config.tasks",
    "eva_choices": "rankwise.adapters.eva",
    "evaluate": "rankwise.commands.evaluate",
    "export": "rankwise.commands.export",
    "extract": "rankwise.commands.extract",
    "generate": "rankwise.commands.generate",
    "inject": "rankwise.methods.inject",
    "inspect": "rankwise.commands.inspect",
    "load": "rankwise.base.loading",
    "load_run": "rankwise.python.run",
    "load_tuned": "rankwise.inference.tuned_model",
    "merge": "rankwise.commands.merge",
    "plan": "rankwise.python.advise",
    "predict": "rankwise.commands.predict",
    "read_peft": "rankwise.adapters.formats.peft",
    "report": "rankwise.commands.report",
    "strength": "rankwise.commands.strength",
    "train": "rankwise.python.train",
    "write_peft": "rankwise.adapters.formats.peft",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
