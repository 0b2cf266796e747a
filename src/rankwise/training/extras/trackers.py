"""The run's records for TensorBoard, W&B, MLflow and trackio, while it trains (tracking.py)."""

from __future__ import annotations

from rankwise.config.experiment import TrackingConfig
from rankwise.errors import RankwiseError, some
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import WarningMessage
from rankwise.tracking import Following
from rankwise.training.training import Extra, Training


class Trackers(Extra):
    def __init__(self, config: TrackingConfig) -> None:
        self.config = config
        self._trackers: Following | None = None

    def follow(self, training: Training, log: MetricsLog, *, went_back: bool) -> None:
        """What they report is shown and not stored, since it says nothing about the run."""
        session, show = training.session, training.session.callback.callback
        names = self.config.log_to if session.world.is_first else ()

        def report(text: str) -> None:
            show(WarningMessage(text))

        try:
            self._trackers = Following(session.run, names, self.config.project, report, went_back)
        except (RankwiseError, OSError) as error:
            report(f"nothing is logged to {some(names)}: {error}")
            return
        log.follow = self._trackers if self._trackers.active else None

    def end(self, seconds: float | None = None) -> None:
        if self._trackers is not None:
            self._trackers.end(*(() if seconds is None else (seconds,)))
