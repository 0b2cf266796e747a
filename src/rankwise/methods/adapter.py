"""What LoRA and AdaLoRA share: adapters over a base whose weights stay, written and read in PEFT's format.

Heads of a new task are trained whole beside the adapters (adapters/heads.py) and written with them. However an adapter
was trained, it is written as LoRA, and an adapter that is read learns on as LoRA.

How much an adapter changes a layer is said as a share of the size of its weights,

    ||s B A|| / ||W||,   ||B A||^2 = trace((A A^T) (B^T B))

by Frobenius' norm, in float64 and from matrices of the rank's size, so that the change is never written out. DoRA's
change is not a product alone and is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from rankwise.adapters.adapter import Adapter
from rankwise.adapters.base_layers import weight_of
from rankwise.adapters.formats.dialects import detect
from rankwise.adapters.formats.peft import Stored, as_lora, lay_peft, write_peft
from rankwise.adapters.lora import LoRA
from rankwise.adapters.set import AdapterSet, merge
from rankwise.adapters.targets import notes_about
from rankwise.adapters.token_rows import tables_of_tokens
from rankwise.adapters.weights import AdapterWeights
from rankwise.base.loaded import LoadedModel
from rankwise.base.saving import save_reader
from rankwise.base.sources import FROM_GGUF, Source
from rankwise.base.split import gathered
from rankwise.config.method import MethodConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError, RunError, TrainingError, some
from rankwise.methods.artifact import BASE_FACTS, Artifact, base_facts, stored_weights
from rankwise.methods.method import Contents, Method, SavedRecord, Setup
from rankwise.methods.trainable import Trainable
from rankwise.runs.data_report import DATA_REPORT
from rankwise.runs.directory import CARD
from rankwise.runs.lineage import LINEAGE, Lineage
from rankwise.runs.records import Callback, RankRecord, StatusMessage
from rankwise.system.files import write_atomic

TOKEN_RATE = 1.0
"""Learning rate of the rows, as a multiple of the adapter's."""


class AdapterTrainable(Trainable):
    """One adapter of a set."""

    unit = "adapted layers"

    def __init__(self, adapters: AdapterSet, name: str = "default", ranks: RankRecord | None = None) -> None:
        self.adapters, self.name, self.model = adapters, name, adapters.model
        self.initial_ranks = ranks

    @property
    def scale_setting(self) -> str:
        """The setting that makes the change larger, for messages."""
        return "adapter.scale"

    @property
    def names(self) -> list[str]:
        return [*self.adapters.adapters(self.name), *self.adapters.trained_heads(self.name)]

    @property
    def extra_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        return self.adapters.parameters(self.name)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self.adapters.named_parameters(self.name)

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the heads and of the rows of new tokens, by their names in the model."""
        heads = self.adapters.trained_heads(self.name)
        whole = {f"{path}.{own}": value for path, head in heads.items() for own, value in head.named_parameters()}
        return whole | {f"{path}.weight": value for path, value in self._rows().items()}

    def _rows(self) -> dict[str, nn.Parameter]:
        return {path: rows.of(self.name) for path, rows in self.adapters.token_rows(self.name).items()}

    def head_groups(self) -> list[dict[str, Any]]:
        """Biases, the gains of norms and the rows of new tokens do without weight decay."""
        rows = list(self._rows().values())
        tokens = [{"params": rows, "rate": TOKEN_RATE, "weight_decay": 0.0}] if rows else []
        heads = [value for head in self.adapters.trained_heads(self.name).values() for value in head.parameters()]
        return decayed_groups(heads) + tokens

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Heads alone; a method with factors puts these first."""
        return self.head_groups()

    def without_gradient(self, optimizer: torch.optim.Optimizer) -> list[str]:
        adapters, heads = self.adapters.adapters(self.name), self.adapters.trained_heads(self.name)
        return _idle({**adapters, **heads}, optimizer)

    def idle_heads(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Heads that never got a gradient."""
        return _idle(self.adapters.trained_heads(self.name), optimizer)

    def train(self, mode: bool = True) -> None:
        self.adapters.train(mode)

    def finish(self) -> None:
        """The adapter is LoRA from here on, without layers of rank 0."""
        self.adapters.settle(self.name)

    def check_change(self, rate: float) -> str | None:
        return effect_of(self.adapters, self.name).check(f"training.learning_rate ({rate:g}) or {self.scale_setting}")

    def base(self) -> AbstractContextManager[None]:
        return self.adapters.base()

    def scaled(self, factor: float) -> AbstractContextManager[None]:
        return self.adapters.scaled(factor)

    @torch.no_grad()
    def weaken(self, factor: float) -> None:
        for adapter in self.adapters.adapters(self.name).values():
            assert isinstance(adapter, LoRA) and adapter.additive, "a budget of forgetting is refused for DoRA"
            adapter.grown.mul_(factor)

    def merge(self, factor: float, outputs: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
        with self.scaled(factor):
            tuned = outputs()
            with self.base():
                base = outputs()
            merge(self.adapters, self.name)
        return tuned, base

    def remove(self) -> None:
        self.adapters.remove()


def _idle(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> list[str]:
    return [path for path, module in modules.items() if not any(one in optimizer.state for one in module.parameters())]


Settings = TypeVar("Settings", bound=MethodConfig)


class AdapterMethod(Method, ABC, Generic[Settings]):
    """Everything but `attach_to`, which is where the methods differ."""

    def __init__(self, config: Settings) -> None:
        self.config = config

    @abstractmethod
    def attach_to(self, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> AdapterTrainable:
        """Add the adapter to a set that has the heads already."""

    def attach(self, model: LoadedModel, setup: Setup) -> AdapterTrainable:
        adapters = AdapterSet(model.module)
        try:
            adapters.add_heads(setup.heads)
            if model.text is not None and (new := model.tokenizer.new.ids):
                adapters.add_token_rows(dict.fromkeys(tables_of_tokens(model.module), sorted(new.values())))
            continues = self.config.start_from is not None
            notes = [] if continues else notes_about(model.module, self.config)
            trainable = self.attach_to(adapters, model, setup)
            if setup.start is not None:
                setup.start.fill(adapters)
            for note in (*notes, *adapters.notes):
                setup.callback(StatusMessage(note))
            return trainable
        except BaseException:
            adapters.remove()
            raise

    def save(self, trainable: AdapterTrainable, model: LoadedModel, folder: Path, record: SavedRecord) -> None:
        facts = base_facts(model)
        ranks = [adapter.rank for adapter in trainable.adapters.adapters(trainable.name).values() if adapter.rank]

        def fill(temporary: Path) -> None:
            save_reader(model, temporary)
            write_atomic(temporary / CARD, record.card(facts, ranks).encode())
            record.write_training(temporary)

        write_peft(
            trainable.adapters, folder, base_model=model.source.name_for_peft, name=trainable.name,
            revision=record.revision, fill=fill, stored=self.stored(trainable),
            extra_files={DATA_REPORT: record.data_report, BASE_FACTS: facts.model_dump(mode="json"), **_rounds(record)},
        )  # fmt: skip
        for note in notes_on_tokens(trainable.adapters):
            record.callback(StatusMessage(note))
        if model.source.mapped_file is not None:
            record.callback(StatusMessage(
                "PEFT cannot read GGUF files: for llama.cpp, use rankwise export --format gguf-lora; for others, "
                "--format merged"
            ))  # fmt: skip
        elif model.source.where == FROM_GGUF:
            record.callback(StatusMessage(
                f"PEFT cannot read GGUF files: adapter_config.json names {model.source.folder}, which holds the base "
                "model converted to safetensors. For other machines, use rankwise export --format merged"
            ))  # fmt: skip

    def stored(self, trainable: AdapterTrainable) -> Stored | None:
        """What PEFT's files hold of it; None for a LoRA."""
        return None

    def model_of(self, artifact: Artifact) -> ModelConfig:
        return artifact.base

    def load(self, artifact: Artifact, config: ModelConfig, callback: Callback) -> tuple[LoadedModel, AdapterTrainable]:
        model = _load_base(artifact, config, callback)
        artifact.check_base(model.source, "apply the adapter", callback)
        adapters = lay_peft(model.module, artifact.result, callback=callback)
        check_tokens(adapters, model, artifact)
        return model, self.trainable(adapters)

    def trainable(self, adapters: AdapterSet) -> AdapterTrainable:
        """Wrap an adapter that was read from its files."""
        return AdapterTrainable(adapters)

    def adapter_over(self, source: Source, artifact: Artifact, callback: Callback) -> AdapterWeights:
        artifact.check_base(source, "export", callback)
        return as_lora(stored_weights(artifact, callback))

    def contents(self, folder: Path) -> Contents:
        dialect = detect(folder)
        weights = dialect.read()
        return Contents(
            weights.parameters, dialect.source.tensors.stat().st_size, weights.ranks, dialect.label, weights.notes
        )


def _rounds(record: SavedRecord) -> dict[str, Any]:
    """The file that names the rounds before this one, where there are any."""
    return {LINEAGE: Lineage(rounds=record.lineage).model_dump(mode="json")} if record.lineage else {}


def decayed_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and the gains of norms without, as is usual since GPT-2."""
    every = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [one for one in every if one.dim() > 1], "rate": 1.0},
        {"params": [one for one in every if one.dim() <= 1], "rate": 1.0, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _load_base(artifact: Artifact, config: ModelConfig, callback: Callback) -> LoadedModel:
    try:
        return artifact.objective.load(config, callback, checked=False)
    except ModelError as error:
        if type(error) is not ModelError:
            raise
        raise ModelError(
            f"{error} It is the base model of {artifact.described}; use --base-model to name another one."
        ) from None


def check_tokens(adapters: AdapterSet, model: LoadedModel, artifact: Artifact) -> None:
    """RunError where a tokenizer gave the new tokens other ids than those whose rows were trained."""
    trained = {number for rows in adapters.token_rows().values() for number in rows.ids}
    new = model.tokenizer.new if model.text is not None else None
    if new is not None and (other := set(new.ids.values()) - trained):
        raise RunError(
            f"{artifact.described} trained the rows of {len(trained)} new tokens, but {model.source.name} from "
            f"{model.source.where} gives them other ids ({some(map(str, sorted(other)), 4)}). Use the base model that "
            "it was trained on."
        )


def notes_on_tokens(adapters: AdapterSet) -> list[str]:
    """What other programs cannot read of the rows that are written."""
    if all(getattr(rows.base_layer, "bias", None) is None for rows in adapters.token_rows().values()):
        return []
    return [
        "this model's output head has a bias, which PEFT (0.21) leaves out where rows of new tokens are trained: for "
        "other programs, use rankwise export --format merged"
    ]


@dataclass(frozen=True)
class Effect:
    """`share` is the largest of all layers, at `path`, whose weights are stored with the precision `rounding`; without
    a path where no layer has a rank."""

    path: str | None
    share: float
    rounding: float

    def check(self, settings: str) -> str | None:
        """TrainingError where not even float32 would tell the adapted model from its base; a warning where the base's
        own number format may not. `settings` are those that decide of it, with their values."""
        change = f'the adapter changes "{self.path}" most, by {self.share:.2g} of the norm of its weights'
        if self.path is None:
            raise TrainingError(f"nothing was learned: all layers have rank 0. Raise {settings}.")
        advice = f"Raise {settings}, or train for more steps."
        if self.share < torch.finfo(torch.float32).eps:
            raise TrainingError(f"nothing was learned: {change}, which is below the precision of float32. {advice}")
        if self.share < self.rounding:
            return f"{change}, less than the rounding of the base model's weights ({self.rounding:.2g}). {advice}"
        return None


@torch.no_grad()
def effect_of(adapters: AdapterSet, name: str = "default") -> Effect:
    if name not in adapters.names:
        return Effect(None, 0.0, 0.0)
    found = [_effect(adapters, path, adapter) for path, adapter in adapters.adapters(name).items()]
    return max(found, key=lambda item: item.share)


def _effect(adapters: AdapterSet, path: str, adapter: Adapter) -> Effect:
    weight = weight_of(adapters.base_layer(path))
    norm = torch.linalg.vector_norm(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    whole = gathered(norm).item()
    change = _size(adapter)
    share = change / whole if whole else float("inf") if change else 0.0
    return Effect(path, share, torch.finfo(weight.dtype).eps / 2)


def _size(adapter: Adapter) -> float:
    if not adapter.additive:
        return torch.linalg.vector_norm(adapter.delta()).item()
    A, B = (factor.double() for factor in adapter.factors())
    return abs(adapter.scale) * ((A @ A.mT) * (B.mT @ B)).sum().clamp_min(0.0).sqrt().item()
