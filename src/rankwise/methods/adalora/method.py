"""The method adalora: attaches triplets, and leaves plain LoRA whose ranks went where they pay."""

from __future__ import annotations

from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import Choice, check_choices
from rankwise.config.adapters import AdaLoraConfig
from rankwise.methods.adalora.trainable import TrainableAdaLoRA
from rankwise.methods.adapter import AdapterMethod
from rankwise.methods.method import Setup
from rankwise.models.loaded import LoadedModel


class AdaLoraMethod(AdapterMethod[AdaLoraConfig]):
    def __init__(self, config: AdaLoraConfig) -> None:
        self.config = config

    def add_to(self, adapters: AdapterSet, name: str, seed: int, choices: list[Choice] | None = None) -> None:
        check_choices(choices, needed=False)
        adapters.attach_triplets(self.config, name, seed)

    def attach_to(self, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> TrainableAdaLoRA:
        self.add_to(adapters, "default", setup.training.seed)
        return TrainableAdaLoRA(adapters, self.config, setup.steps)
