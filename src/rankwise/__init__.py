"""Fine-tune language models and classifiers with LoRA, AdaLoRA or full fine-tuning on your own machine.

Names are imported on first use, so `import rankwise` is fast and doesn't import torch.

    train       fine-tune a model and return the finished run
    load_run    open a run to predict, generate, evaluate, plot or export
    plan        estimate memory, time and cost before training
    advise      fine-tune, prompt with examples, or neither? Measured on held-out rows
    generate    generate one answer with a run
    predict     answer the rows of a table with a run
    evaluate    score a run against its base model, or a single model, with confidence intervals
    compare     compare evaluated runs item by item
    report      write a run's report page, or one that compares several runs
    strength    measure gain and forgetting at several adapter scales
    inspect     show the ranks of a run's adapter
    export      export an adapter or model for other programs
    merge       merge adapters into their base model
    extract     extract a LoRA adapter from a fully fine-tuned model
    load        load a base model by starter name, Hugging Face id, folder or GGUF file
    inject      add an adapter to a model; the AdapterSet it returns can remove it again
    add_adapter     add another adapter to such a set
    eva_choices     choose an adapter's ranks and initial values from the model's inputs
    read_peft, write_peft   read and write adapters in PEFT's file format
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
    from rankwise.config.models import ModelConfig as ModelConfig
    from rankwise.config.tasks import TaskConfig as TaskConfig
    from rankwise.config.training import TrainingConfig as TrainingConfig
    from rankwise.config.validation import GenerationConfig as GenerationConfig
    from rankwise.errors import RankwiseError as RankwiseError
    from rankwise.inference.tuned_model import load_tuned as load_tuned
    from rankwise.methods.adalora import TrainableAdaLora as TrainableAdaLora
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
    "GenerationConfig": "rankwise.config.validation",
    "LoadedModel": "rankwise.base.loaded",
    "LoraConfig": "rankwise.config.adapters",
    "Run": "rankwise.python.run",
    "ModelConfig": "rankwise.config.models",
    "Planned": "rankwise.config.experiment",
    "TrainableAdaLora": "rankwise.methods.adalora",
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
