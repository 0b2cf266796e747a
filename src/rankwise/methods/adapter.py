"""What LoRA, AdaLoRA and VeRA share: adapters over a base whose weights stay, written in PEFT's format.

Heads of a new task are trained whole beside the adapters (adapters/heads.py) and written with them. However an adapter
was trained, it is written as LoRA, and an adapter that is read learns on as LoRA.

How much an adapter changes a layer is said as a share of the size of its weights,

    ||s B A|| / ||W||,   ||B A||^2 = trace((A A^T) (B^T B))

by Frobenius' norm, in float64 and from matrices of the rank's size, so that the change is never written out. DoRA's
change is not a product alone and is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from rankwise.adapters.adapter import Adapter
from rankwise.adapters.base_layers import weight_of
from rankwise.adapters.formats.peft import Stored, new_adapter, stored_lora, task_type_of, weights_of
from rankwise.adapters.lora import LoRA
from rankwise.adapters.set import AdapterSet, merge
from rankwise.adapters.targets import notes_about
from rankwise.adapters.token_rows import tables_of_tokens
from rankwise.base.loaded import LoadedModel
from rankwise.base.saving import save_reader
from rankwise.base.sources import FROM_GGUF, Source
from rankwise.base.split import gathered
from rankwise.config.adapters import HeadConfig
from rankwise.config.method import MethodConfig
from rankwise.errors import ConfigError, TrainingError
from rankwise.methods.method import Method, ResultFolder, Setup
from rankwise.methods.trainable import Trainable
from rankwise.runs.records import Callback, RankRecord, StatusMessage

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

    @contextmanager
    def saving(
        self, trainable: AdapterTrainable, model: LoadedModel, folder: Path, revision: str | None, callback: Callback
    ) -> Iterator[ResultFolder]:
        adapters, name, base = trainable.adapters, trainable.name, model.source.name_for_peft
        ranks = tuple(adapter.rank for adapter in adapters.adapters(name).values() if adapter.rank)
        task_type = task_type_of(adapters.model)
        with new_adapter(
            self.stored(trainable), folder, base_model_name_or_path=base, revision=revision, task_type=task_type
        ) as temporary:
            save_reader(model, temporary)
            yield ResultFolder(temporary, ranks)
        for note in (*notes_on_tokens(adapters), *notes_on_gguf(model.source)):
            callback(StatusMessage(note))

    def stored(self, trainable: AdapterTrainable) -> Stored:
        """The settings and tensors of PEFT's files: those of a LoRA."""
        return stored_lora(weights_of(trainable.adapters, trainable.name))


class TrainableHead(AdapterTrainable):
    unit = "heads"

    def check_change(self, rate: float) -> str | None:
        """A head that was drawn anew has no base to compare with."""
        return None


class HeadMethod(AdapterMethod[HeadConfig]):
    """A classifier's new head is trained whole, and the pretrained model stays as it is: the cheapest classifier, and
    the baseline that every adapter should beat. It is written as an adapter without factors."""

    def attach_to(self, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> TrainableHead:
        if not setup.heads:
            raise ConfigError([
                f"adapter.method is head, but {model.config.name} has no new head to train. Choose another method."
            ])  # fmt: skip
        return TrainableHead(adapters)


def decayed_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and the gains of norms without, as is usual since GPT-2."""
    every = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [one for one in every if one.dim() > 1], "rate": 1.0},
        {"params": [one for one in every if one.dim() <= 1], "rate": 1.0, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def notes_on_tokens(adapters: AdapterSet) -> list[str]:
    """What other programs cannot read of the rows that are written."""
    if all(getattr(rows.base_layer, "bias", None) is None for rows in adapters.token_rows().values()):
        return []
    return [
        "this model's output head has a bias, which PEFT (0.21) leaves out where rows of new tokens are trained: for "
        "other programs, use rankwise export --format merged"
    ]


def notes_on_gguf(source: Source) -> list[str]:
    """How an adapter over the weights of a GGUF file is used elsewhere."""
    if source.mapped_file is not None:
        return [
            "PEFT cannot read GGUF files: for llama.cpp, use rankwise export --format gguf-lora; for others, "
            "--format merged"
        ]
    return [
        f"PEFT cannot read GGUF files: adapter_config.json names {source.folder}, which holds the base model converted "
        "to safetensors. For other machines, use rankwise export --format merged"
    ] if source.where == FROM_GGUF else []  # fmt: skip


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
