"""What becomes of a run that diverged: it goes back to a checkpoint, or to the beginning, with half the learning rate.

Going back is resuming, from an earlier checkpoint than the newest. How often it happened is in the manifest, so that a
run which is killed at any moment afterwards ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.errors import RunError
from rankwise.runs.directory import SETTINGS, RunDirectory
from rankwise.runs.manifest import BackOff, Manifest
from rankwise.runs.own_files import read_json
from rankwise.runs.records import WarningMessage
from rankwise.training.finite import Diverged
from rankwise.training.loss_watch import RECENT
from rankwise.training.state import TrainState
from rankwise.training.world import World

MOST = 3
SHARE = 0.5
"""Of the learning rate before."""


def last_before(saved: Sequence[int], step: int) -> int:
    """The newest of these steps that was well before `step`; 0 for the beginning."""
    return max((one for one in saved if one <= step - RECENT), default=0)


def ways_back(saved: Sequence[int], step: int) -> list[int]:
    """The step to go back to from `step`, and the one that takes its place later."""
    first = last_before(saved, step)
    return [first, *(one for one in saved if one > first)][:2]


def by_steps(saved: Sequence[int], interval: int | None) -> list[int]:
    """Those that no clock and no stop decided, so that a run goes back to the same step each time."""
    return [step for step in saved if interval is None or step % interval == 0]


def back_off(run: RunDirectory, config: TrainingConfig, error: Diverged) -> tuple[BackOff, ...]:
    """Those of a run that has just failed, with a new one, which its manifest records; none where it is to stop."""
    if config.on_divergence == "stop":
        return ()
    saved = run.steps_saved
    try:
        manifest = run.manifest()
        begun_with = read_json(run.folder / SETTINGS, Experiment).training.on_divergence
        if saved and begun_with == "back-off":
            saved = by_steps(saved, config.checkpoint_interval(run.checkpoints.facts(saved[0])["steps"]))
    except RunError:
        return ()
    if len(manifest.back_offs) >= MOST:
        return ()
    rate = manifest.learning_rate * SHARE ** (len(manifest.back_offs) + 1)
    to = last_before(saved, error.begun)
    every = (*manifest.back_offs, BackOff(begun=error.begun, to=to, learning_rate=rate))
    run.write_manifest(manifest.model_copy(update={"back_offs": every}))
    run.checkpoints.forget(but=[step for step in run.steps_saved if step <= to])
    return every


def back_off_together(world: World, run: RunDirectory, config: TrainingConfig, error: Diverged) -> tuple[BackOff, ...]:
    """The same in several processes, which have all seen the divergence: the first one goes back, for all."""
    every = world.share(lambda: [one.model_dump() for one in back_off(run, config, error)])
    return tuple(BackOff(**one) for one in every)


def with_ways_on(error: Diverged, run: RunDirectory, config: TrainingConfig, earlier: Sequence[BackOff]) -> Diverged:
    """The same with what to do, or what was done, about it."""
    to = last_before(run.steps_saved, error.begun)
    where, how = f"step {to}" if to else "the beginning", "--resume" if run.steps_saved else "--restart"
    if earlier:
        way = (
            f"It went back {len(earlier)} times, the last time with the learning rate {earlier[-1].learning_rate:.2g}."
        )
    elif config.on_divergence == "stop":
        way = f"Or {how} with --set training.on_divergence=back-off: it goes on from {where} with half the rate."
    else:
        return error
    return Diverged(f"{error} {way}", error.begun)


def slowed(state: TrainState, manifest: Manifest) -> None:
    """Set the learning rate of a run that went back."""
    share, rate = SHARE ** len(manifest.back_offs), state.rate
    if manifest.back_offs:
        state.rate = lambda step: share * rate(step)


def warning_of(one: BackOff) -> WarningMessage:
    where = f"step {one.to}" if one.to else "the beginning"
    return WarningMessage(
        f"training diverged from step {one.begun} on and went back to {where}, with the learning rate "
        f"{one.learning_rate:.2g} from there (training.on_divergence)"
    )
