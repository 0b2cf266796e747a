"""k steps, a checkpoint, fresh objects and n - k steps are n steps, bit for bit; what is damaged is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import tiny_model
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import RunError, TrainingError
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.own_files import FACTS, TENSORS, hash_of
from rankwise.runs.records import StepRecord
from rankwise.system.files import sha256_of
from rankwise.training.checkpoints import restore, save, size_of
from rankwise.training.losses import Loss
from rankwise.training.state import TrainState, adamw
from rankwise.training.trainer import rate_factor

STEPS = 20
TARGETS = ["q_proj", "v_proj", "down_proj"]
LORA = LoraConfig(rank=3, dropout=0.2, targets=TARGETS)
ADALORA = AdaLoraConfig(
    budget=2, initial=2, dropout=0.2, targets=TARGETS, warmup=0.2, final=0.3, interval=2, importance="after"
)
MASKED = ADALORA.model_copy(update={"shrink": False})
BY_COST = ADALORA.model_copy(update={"budget_unit": "parameters", "importance": "before"})
WARMUP_ENDS, DECIDED = 4, 14
"""The final ranks are decided within the step that has done 14 before it."""


def random_rows(count):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(4, 40, (count,), generator=generator).tolist():
        ids = torch.randint(0, 96, (length,), generator=generator).tolist()
        rows.append(Tokens(tuple(ids), tuple(place >= length // 3 for place in range(length))))
    return rows


@dataclass
class Run:
    state: TrainState
    adapters: object
    loss_of: Loss
    batches: Batches

    def until(self, step):
        heard = []
        self.state.steps, asked = step, self.state.steps
        self.adapters.train()
        train(self.state, self.batches, loss_of=self.loss_of, callback=heard.append)
        self.adapters.train(False)
        self.state.steps = asked
        return [record.loss if isinstance(record, StepRecord) else record for record in heard]


def begun(spec, *, steps=STEPS, seed=0, architecture="llama", training=None):
    """All objects new, as in another process; torch's generator is somewhere else."""
    torch.manual_seed(99)
    training = training or TrainingConfig(weight_decay=0.01)
    model = tiny_model(architecture)
    adapters = inject(model, spec, seed=seed)
    fixed = isinstance(spec, LoraConfig)
    trainable = TrainableLoRA(adapters) if fixed else TrainableAdaLora(adapters, spec, steps)
    rate = 1e-2
    state = TrainState(
        trainable, adamw(trainable, training), lambda step: rate * rate_factor(training, step, steps), steps, 1.0,
        torch.device("cpu"),
    )  # fmt: skip
    return Run(state, adapters, summed(SupervisedLogits(model)), Batches(random_rows(11), 4, 60, 5))


def everything(run):
    """All that one can compare of a run, as tensors and values by name."""
    trainable = run.state.trainable
    held = trainable.state_dict()
    found = {f"held.{name}": value.clone() for name, value in held.tensors.items()} | dict(held.facts)
    for number, parameter in enumerate(run.state.parameters):
        for name, value in run.state.optimizer.state.get(parameter, {}).items():
            found[f"optimizer.{number}.{name}"] = value.clone()
    for path, adapter in run.adapters.adapters().items():
        found |= {f"{path}.{name}": value.detach().clone() for name, value in adapter.named_parameters()}
        found[f"{path}.rank"] = adapter.rank
    return found | {"random": torch.get_rng_state(), "step": run.state.step}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


@cache
def straight(name):
    """What the steps of a case give when nobody interrupts them, and the state at their end."""
    run = begun(CASES[name])
    torch.manual_seed(1)
    return run.until(STEPS), everything(run)


def straight_of(spec, **values):
    run = begun(spec, **values)
    torch.manual_seed(1)
    return run.until(STEPS), everything(run)


CASES = {"lora": LORA, "adalora": ADALORA, "masked": MASKED, "by cost": BY_COST}


@pytest.mark.parametrize(
    ("name", "step"),
    [("lora", 1), ("lora", STEPS - 1), *(("adalora", step) for step in (1, WARMUP_ENDS, 9, DECIDED, DECIDED + 1)),
     *(("masked", step) for step in (WARMUP_ENDS, DECIDED)), *(("by cost", step) for step in (9, DECIDED + 1))],
)  # fmt: skip
def test_k_and_then_n_minus_k_steps_are_n_steps_bit_for_bit(tmp_path, name, step):
    spec = CASES[name]
    wanted, end = straight(name)
    first = begun(spec)
    torch.manual_seed(1)
    heard = first.until(step)
    middle = everything(first)
    save(first.state, tmp_path / "c")
    assert_same(everything(first), middle)  # saving changes nothing
    second = begun(spec)
    restore(second.state, tmp_path / "c")
    assert_same(everything(second), middle)
    heard += second.until(STEPS)
    assert heard == wanted
    assert_same(everything(second), end)


def test_the_cases_reach_every_phase():
    run = begun(ADALORA)
    schedule = run.state.trainable.schedule
    assert (schedule.warmup, schedule.decided) == (WARMUP_ENDS, DECIDED)
    run.until(WARMUP_ENDS + 1)
    assert run.state.trainable.alive.all()
    run.until(9)
    assert not run.state.trainable.alive.all() and not run.state.trainable.final
    whole = len(run.state.trainable.triplets)
    run.until(DECIDED)
    assert len(run.state.trainable.triplets) == whole
    run.until(DECIDED + 1)
    assert run.state.trainable.final and len(run.state.trainable.triplets) < whole


@pytest.mark.parametrize("step", [9, DECIDED + 1])
def test_fused_layers_and_layers_that_lost_every_rank_are_restored(tmp_path, step):
    spec = AdaLoraConfig(budget="4 triplets", initial=3, targets=["c_attn", "c_proj"], interval=2, final=0.3)
    wanted, end = straight_of(spec, architecture="gpt2")
    first = begun(spec, architecture="gpt2")
    torch.manual_seed(1)
    heard = first.until(step)
    save(first.state, tmp_path / "c")
    second = begun(spec, architecture="gpt2")
    layers = len(second.adapters.adapters())
    restore(second.state, tmp_path / "c")
    assert heard + second.until(STEPS) == wanted
    assert_same(everything(second), end)
    assert len(second.adapters.adapters()) < layers


def test_a_layer_that_has_no_gradient_for_a_while_goes_on_by_its_moments(tmp_path):
    # its gradient is zeros and not nothing, so the optimizer moves it; a fresh one has none

    def rows(run):
        """From the third step on the loss does not reach the second adapter of the model."""
        for adapter in list(run.adapters.adapters().values())[-3:]:
            adapter.register_forward_hook(lambda _, __, y: y if run.state.step < 3 else y.detach() * 0)

    def fresh():
        run = begun(LORA)
        rows(run)
        return run

    run = fresh()
    torch.manual_seed(1)
    run.until(8)
    end = everything(run)
    first = fresh()
    torch.manual_seed(1)
    first.until(5)
    save(first.state, tmp_path / "c")
    second = fresh()
    restore(second.state, tmp_path / "c")
    second.until(8)
    assert_same(everything(second), end)


def test_two_checkpoints_of_one_state_are_the_same_bytes_and_hold_no_pickle(tmp_path):
    run = begun(ADALORA)
    run.until(7)
    for name in "ab":
        save(run.state, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted((FACTS, TENSORS)) == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_is_as_large_as_it_was_said_to_be(tmp_path, name):
    said = size_of(begun(CASES[name]).state)
    run = begun(CASES[name])
    run.until(2)
    save(run.state, tmp_path / "c")
    tensors = load_file(tmp_path / "c" / TENSORS)
    counted = sum(value.nbytes for key, value in tensors.items() if not key.startswith("random") and value.dim())
    assert said == counted > 0


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_is_as_large_as_a_plan_says(name):
    state = begun(CASES[name]).state
    trained = sum(parameter.numel() for parameter in state.parameters)
    mask = size_of(state) - 4 * trained * (3 + CASES[name].averages)
    assert 0 <= mask < trained, "one byte for each triplet"


def test_a_checkpoint_is_not_written_over_another(tmp_path):
    run = begun(LORA)
    run.until(2)
    save(run.state, tmp_path / "c")
    with pytest.raises(RunError, match="already exists"):
        save(run.state, tmp_path / "c")


# What is refused


@pytest.fixture(scope="module", params=["lora", "shrunk"])
def saved(request, tmp_path_factory):
    spec, step = {"lora": (LORA, 3), "shrunk": (ADALORA, DECIDED + 2)}[request.param]
    run = begun(spec)
    run.until(step)
    folder = tmp_path_factory.mktemp("saved") / "c"
    save(run.state, folder)
    return spec, folder


def refusal(spec, folder, **values):
    with pytest.raises(RunError) as caught:
        restore(begun(spec, **values).state, folder)
    return str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"targets": ["q_proj", "v_proj", "up_proj"]}, {"rank": 4, "initial": 3}, {"layers": "0"}],
    ids=str,
)
def test_a_checkpoint_of_other_adapters_is_refused(saved, change):
    spec, folder = saved
    given = spec.model_dump(exclude={"layers"} if spec.layers is None else set())
    other = type(spec)(**given | {key: value for key, value in change.items() if key in type(spec).model_fields})
    assert "other adapters" in refusal(other, folder)


def test_a_checkpoint_of_the_other_method_or_length_is_refused(saved):
    spec, folder = saved
    assert "other adapters" in refusal(LORA if spec is ADALORA else ADALORA, folder)
    assert f"{STEPS} steps" in refusal(spec, folder, steps=STEPS + 1)


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "one bit": lambda file: file.write_bytes(bytes([*file.read_bytes()[:-40], file.read_bytes()[-40] ^ 1,
                                                    *file.read_bytes()[-39:]])),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n1"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("file", [FACTS, TENSORS])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_its_name(tmp_path, saved, file, damage):
    spec, folder = saved
    copy = shutil.copytree(folder, tmp_path / "c")
    DAMAGES[damage](copy / file)
    message = refusal(spec, copy)
    assert file in message and "damaged" in message and "--restart" in message and len(message) < 500


def test_a_file_of_another_step_is_refused(tmp_path):
    run = begun(LORA)
    for step in (2, 3):
        run.until(step)
        save(run.state, tmp_path / str(step))
    shutil.copy(tmp_path / "2" / TENSORS, tmp_path / "3" / TENSORS)
    assert TENSORS in refusal(LORA, tmp_path / "3")


def rewritten(folder, tensors=None, **facts):
    """With hashes that agree: not damaged but wrong."""
    if tensors is not None:
        save_file(tensors, folder / TENSORS)
    old = json.loads((folder / FACTS).read_text())
    del old["sha256"]
    sizes = {"bytes": (folder / TENSORS).stat().st_size, "sha256": sha256_of(folder / TENSORS)}
    old |= {"files": {TENSORS: sizes}, **facts}
    (folder / FACTS).write_text(json.dumps(old | {"sha256": hash_of(old)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_neither_restored_nor_saved(tmp_path, saved, value):
    spec, folder = saved
    copy = shutil.copytree(folder, tmp_path / "c")
    for name in [name for name, tensor in load_file(copy / TENSORS).items() if tensor.is_floating_point()][::7]:
        tensors = load_file(folder / TENSORS)
        tensors[name].view(-1)[-1:] = value
        rewritten(copy, tensors)
        assert f"NaN or infinity in {name}" in refusal(spec, copy)
    run = begun(spec)
    run.until(2)
    with torch.no_grad():
        run.state.parameters[0].view(-1)[0] = value
    with pytest.raises(TrainingError, match="NaN or infinity"):
        save(run.state, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_tensors_missing_left_over_or_of_another_shape_are_refused(tmp_path, saved):
    spec, folder = saved
    whole = load_file(folder / TENSORS)
    held = next(name for name in whole if name.startswith("allocator."))
    moments = next(name for name in whole if name.endswith("exp_avg"))
    copy = shutil.copytree(folder, tmp_path / "c")
    for tensors, wanted in (
        ({name: value for name, value in whole.items() if name != held}, held.partition(".")[2]),
        (whole | {"allocator.foreign": torch.ones(2)}, "foreign"),
        (whole | {held: whole[held][:-1].clone()}, held.partition(".")[2]),
        (whole | {held: whole[held].double()}, held.partition(".")[2]),
        (whole | {moments: whole[moments].flatten()[:-1].clone()}, "exp_avg"),
        (whole | {"optimizer.99.exp_avg": torch.ones(2)}, "optimizer.99"),
        (whole | {"random.cuda": torch.zeros(16, dtype=torch.uint8)}, "another device"),
    ):
        rewritten(copy, tensors)
        assert wanted in refusal(spec, copy)


def test_another_format_and_impossible_ranks_are_refused(tmp_path, saved):
    spec, folder = saved
    copy = shutil.copytree(folder, tmp_path / "c")
    rewritten(copy, format=3)
    assert "format 3" in refusal(spec, copy)
    if spec is not ADALORA:
        return
    facts = json.loads((folder / FACTS).read_text())["allocator"]
    for ranks in ([99] * len(facts["ranks"]), [-1, *facts["ranks"][1:]], facts["ranks"][1:]):
        rewritten(copy, format=2, allocator=facts | {"ranks": ranks, "final": True})
        assert "does not fit" in refusal(spec, copy)
