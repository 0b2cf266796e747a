"""A request to stop that code below Python has swallowed still stops a training, one step later at most."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest
import torch

from conftest import tiny_model
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.cli.failures import report_failures
from rankwise.config.adapters import LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import StepRecord
from rankwise.system.signals import forget, raise_if_requested
from rankwise.training.state import TrainState, adamw


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    forget()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_request_that_was_swallowed_is_heeded(number, code, capsys):
    with pytest.raises(SystemExit) as left, report_failures(as_json=False):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            pass  # as a guard of compiled code does
        else:
            pytest.fail("nothing was raised where the signal came")
        raise_if_requested()
    assert left.value.code == code
    assert capsys.readouterr().err.startswith("rankwise: ")


def test_a_request_to_an_earlier_command_stops_no_later_one():
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(SystemExit), report_failures(as_json=False):
            signal.raise_signal(number)
        with report_failures(as_json=False):
            raise_if_requested()


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a shell does this for what it starts in the background
    with report_failures(as_json=False):
        signal.raise_signal(signal.SIGINT)
        raise_if_requested()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_whose_step_swallows_the_request_ends_after_that_step(number):
    model = tiny_model("llama")
    trainable = TrainableLoRA(inject(model, LoraConfig(rank=2)))
    state = TrainState(trainable, adamw(trainable, TrainingConfig()), lambda step: 1e-3, 9, 1.0, torch.device("cpu"))
    plain, heard = summed(SupervisedLogits(model)), []

    def loss_of(batch):
        if state.step == 2:
            with suppress(KeyboardInterrupt):  # as a guard of compiled code does
                signal.raise_signal(number)
        return plain(batch)

    rows = [Tokens((5, 6, 7, 8), (False, True, True, True))] * 4
    with pytest.raises(SystemExit), report_failures(as_json=False):
        train(state, Batches(rows, 2, 64, 0), loss_of=loss_of, callback=heard.append)
    assert [record.step for record in heard if isinstance(record, StepRecord)] == [1, 2, 3]
