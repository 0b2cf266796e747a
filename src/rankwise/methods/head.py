"""The method head: a classifier's new head is trained whole, and the pretrained model stays as it is.

The cheapest classifier, and the baseline that every adapter should beat. It is written as an adapter without factors.
"""

from __future__ import annotations

from rankwise.adapters.set import AdapterSet
from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import HeadConfig
from rankwise.errors import ConfigError
from rankwise.methods.adapter import AdapterMethod, AdapterTrainable
from rankwise.methods.method import Setup


class TrainableHead(AdapterTrainable):
    unit = "heads"

    def check_change(self, rate: float) -> str | None:
        """A head that was drawn anew has no base to compare with."""
        return None


class HeadMethod(AdapterMethod[HeadConfig]):
    def attach_to(self, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> TrainableHead:
        if not setup.heads:
            raise ConfigError([
                f"adapter.method is head, but {model.config.name} has no new head to train. Choose another method."
            ])  # fmt: skip
        return TrainableHead(adapters)

    def trainable(self, adapters: AdapterSet) -> TrainableHead:
        return TrainableHead(adapters)
