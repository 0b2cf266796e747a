"""`train --from`: a training that begins with an adapter starts as that adapter, and goes on from it.

Nine kinds of adapters, ours and PEFT's: the first validation of the second round is the adapter's own, a step too
small to change a float32 number gives the adapter back, and five steps lower the loss.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from conftest import tiny_model
from kit.classifiers import encoder_folder, labelled, write_rows
from kit.command import done, printed, rankwise
from kit.library import rows
from kit.vision_models import save_folder
from rankwise.adapters.formats.peft_reader import WEIGHTS, read_weights
from rankwise.adapters.weights import AdapterWeights
from rankwise.commands.train import train
from rankwise.config.adapters import LoraConfig
from rankwise.config.reading import parse_setting, read_experiment
from rankwise.errors import Interrupted
from rankwise.inference.tuned_model import load_tuned
from rankwise.methods.artifact import open_artifact
from rankwise.methods.starting import continued
from rankwise.runs.manifest import EarlierRound
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.records import Event, StepRecord
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import sha256_of
from rankwise.training.extras import earlier_rounds as measuring

LAND = ("--data", "rows.jsonl", "--validation-data", "apart.jsonl")
WORDS = ("--data", "labelled.jsonl", "--validation-data", "labelled-apart.jsonl")
COLOURS = ("--data", "pictures", "--validation-data", "pictures-apart")
FIRST = ("--steps", "6", "--batch-size", "4", "--learning-rate", "0.01", "--set", "model.dtype=float32")
AGAIN = ("--steps", "5", "--batch-size", "4", "--learning-rate", "0.003", "--set", "model.dtype=float32")
STILL = ("--steps", "1", "--batch-size", "4", "--learning-rate", "1e-14", "--set", "model.dtype=float32")


def refused(*words: Any) -> str:
    """What a refusal says, in one message and with exit code 2."""
    result = rankwise(*words)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@dataclass(frozen=True)
class Kind:
    """`first` are the settings of our own first round; None where PEFT makes the adapter. The rows are `data`."""

    base: str
    first: tuple[str, ...] | None
    data: tuple[str, ...] = LAND
    allowed: float = 0.0
    """How much the first validation loss may differ from the adapter's last, relatively."""
    again: tuple[str, ...] = ()
    """Settings of the second round, for rows that small steps do not learn from."""


KINDS = {
    "patterns": Kind("tiny-llama", (
        "--rank", "4", "--set", "adapter.scaling=sqrt-rank",
        "--set", "adapter.rank_pattern={q_proj: 2, layers.1.mlp.up_proj: 6}",
        "--set", "adapter.alpha_pattern={k_proj: 5}")),
    "dora": Kind("tiny-llama", ("--rank", "4", "--set", "adapter.dora=true")),
    "adalora": Kind("tiny-llama", ("--method", "adalora", "--budget", "3"), allowed=1e-6),
    "embedding": Kind("tiny-llama", ("--rank", "4", "--targets", "embed_tokens,q_proj")),
    "fused": Kind("tiny-gpt2", ("--method", "adalora", "--budget", "2", "--targets", "c_attn"), allowed=1e-6),
    "conv2d": Kind("tiny-convnet", ("--rank", "2", "--targets", "all-conv"), COLOURS),
    "classifier": Kind("tiny-bert", ("--rank", "2"), WORDS, again=("--batch-size", "24")),
    "rank 0": Kind("tiny-llama", None),
    "peft": Kind("tiny-llama", None),
}  # fmt: skip


def pictures(folder: Path, count: int) -> None:
    from PIL import Image

    generator = torch.Generator().manual_seed(count)
    for number in range(count):
        name, colour = (("red", (220, 40, 40)), ("blue", (40, 40, 220)))[number % 2]
        noise = torch.randint(0, 30, (32, 32, 3), generator=generator, dtype=torch.uint8)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray((noise + torch.tensor(colour, dtype=torch.uint8)).numpy()).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, hub_tokenizer: Any) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("rounds")
    shutil.copytree(tiny_folder, folder / "tiny-llama")
    tiny_model("gpt2", vocab=len(hub_tokenizer)).save_pretrained(folder / "tiny-gpt2")
    hub_tokenizer.save_pretrained(folder / "tiny-gpt2")
    encoder_folder(folder / "tiny-bert")
    save_folder("resnet", folder / "tiny-convnet", labels=("blue", "red"))
    (folder / "rows.jsonl").write_text(rows(12))
    (folder / "apart.jsonl").write_text(rows(3, 20))
    write_rows(folder / "labelled.jsonl", labelled(24))
    write_rows(folder / "labelled-apart.jsonl", labelled(24))
    pictures(folder / "pictures", 12)
    pictures(folder / "pictures-apart", 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def adapter_of_peft(name: str, folder: Path) -> Path:
    """An adapter that PEFT makes and saves, with numbers in all its factors."""
    model = AutoModelForCausalLM.from_pretrained("tiny-llama", dtype=torch.float32)
    torch.manual_seed(1)
    if name == "peft":
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=r".*\.(q_proj|down_proj)", use_rslora=True,
                                 init_lora_weights=False, task_type="CAUSAL_LM")  # fmt: skip
        peft.get_peft_model(model, config).save_pretrained(folder)
        return folder
    config = peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, tinit=1, tfinal=1, lora_alpha=8,
                                target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / WEIGHTS)
    settings["rank_pattern"] = {}
    for path in {key.rpartition(".lora_")[0] for key in tensors if "lora_E" in key}:
        left = 0 if "layers.0" in path else 2
        settings["rank_pattern"][f"{path.removeprefix('base_model.model.')}.lora_E.default"] = [True] * left + (
            [False] * (3 - left)
        )
        for part in ("A", "E"):
            tensors[f"{path}.lora_{part}"] = tensors[f"{path}.lora_{part}"][:left].contiguous()
        tensors[f"{path}.lora_B"] = tensors[f"{path}.lora_B"][:, :left].contiguous()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def first(request: pytest.FixtureRequest, home: Path) -> tuple[str, Kind]:
    """The name of an adapter to begin with, and its kind."""
    name, kind = request.param, KINDS[request.param]
    if kind.first is None:
        return str(adapter_of_peft(name, home / f"of-{name.replace(' ', '-')}")), kind
    run = f"first-{name}"
    done("train", "--model", kind.base, *kind.data, "--run", run, *FIRST, *kind.first)
    return run, kind


def losses(run: str) -> list[float]:
    return [
        row["loss"] for row in read_metrics_log(Path("runs") / run / "metrics.jsonl") if row["kind"] == "validation"
    ]


def weights_of(name: str) -> AdapterWeights:
    return read_weights(open_artifact(name).result)


def earlier_rounds(run: str) -> tuple[EarlierRound, ...]:
    results = RunSnapshot.read(run).manifest.results
    assert results is not None
    return results.earlier_rounds


def second(name: str, kind: Kind, run: str, *words: str) -> Any:
    base = ("--model", kind.base) if kind.first is None else ()
    return done("train", "--from", name, *base, *kind.data, "--run", run, *words)


def largest_difference(one: AdapterWeights, other: AdapterWeights) -> float:
    """Of all numbers and scales; the two must have the same layers of the same ranks."""
    ours, theirs = ({p: f for p, f in weights.factors.items() if f.rank} for weights in (one, other))
    assert ours.keys() == theirs.keys()
    apart = [abs(ours[path].scale - theirs[path].scale) for path in ours]
    pairs = [pair for path in ours for pair in zip(ours[path].values, theirs[path].values, strict=True)]
    pairs += [(one.heads[name], other.heads[name]) for name in one.heads]
    assert one.heads.keys() == other.heads.keys()
    return max([*apart, *(float((a.float() - b.float()).abs().max()) for a, b in pairs)])


def outputs_in_peft(name: str, kind: Kind) -> torch.Tensor:
    """Logits of the adapter by PEFT and transformers, for something that the base can read."""
    folder = str(open_artifact(name).result)
    if kind.data == WORDS:
        base = AutoModelForSequenceClassification.from_pretrained(kind.base, num_labels=2, dtype=torch.float32)
        given = {"input_ids": torch.arange(5, 13)[None]}
    elif kind.data == COLOURS:
        base = AutoModelForImageClassification.from_pretrained(
            load_tuned(open_artifact(name)).model.source.folder, num_labels=2, ignore_mismatched_sizes=True
        )
        given = {"pixel_values": torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)}
    else:
        base = AutoModelForCausalLM.from_pretrained(kind.base, dtype=torch.float32)
        given = {"input_ids": torch.arange(5, 25)[None]}
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(base, folder).eval()(**given).logits


def test_a_round_starts_as_the_adapter_and_goes_on(first: tuple[str, Kind]) -> None:
    name, kind = first
    run = Path(name).name
    second(name, kind, f"{run}-still", *STILL)
    apart = largest_difference(weights_of(name), weights_of(f"{run}-still"))
    assert apart <= 1e-12, "a step of next to nothing gives the adapter back"
    second(name, kind, f"{run}-second", *AGAIN, *kind.again)
    begun = losses(f"{run}-second")
    of_start = losses(name)[-1] if kind.first is not None else losses(f"{run}-still")[0]
    relative = abs(begun[0] - of_start) / of_start
    assert relative <= kind.allowed
    assert begun[-1] < begun[0], "it learns"
    if kind.first is not None:  # both rounds have the same validation rows
        (earlier,) = earlier_rounds(f"{run}-second")
        assert earlier.name == name
        assert [earlier.before["loss"], earlier.after["loss"]] == pytest.approx([begun[0], begun[-1]], rel=1e-6)
    before, same, later = (outputs_in_peft(one, kind) for one in (name, f"{run}-still", f"{run}-second"))
    apart_in_peft = float((before - same).abs().max() / before.abs().max())
    assert apart_in_peft <= 1e-6, "PEFT reads the same model from both"
    assert not torch.equal(before, later)
    print(f"{run}: factors {apart:.1e}, first loss {relative:.1e}, in PEFT {apart_in_peft:.1e}, "
          f"loss {begun[0]:.4f} -> {begun[-1]:.4f}")  # fmt: skip


CITIES = ("--data", "cities.jsonl", "--prompt", "Where is {city}?", "--completion", "{land}")


def one_line_of(result: Any) -> str:
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def chain(home: Path) -> str:
    """Rounds "cities" and "lands", the first one evaluated by its answers; what the second one printed."""
    write_rows("cities.jsonl", [{"city": f"city {n}", "land": f"land {n % 3}"} for n in range(16)])
    write_rows("towns.jsonl", [{"city": f"town {n}", "land": f"land {n % 3}"} for n in range(4)])
    Path("right.yaml").write_text("data: towns.jsonl\nscore: [exact]\nprompt: '{city}'\ncompletion: '{land}'\n")
    done("train", "--model", "tiny-llama", *CITIES, "--held-out", "4", "--run", "cities", *FIRST, "--rank", "4")
    done("evaluate", "cities", "--task", "right.yaml", "--no-forgetting", "--no-base")
    return one_line_of(done("train", "--from", "cities", *LAND, "--run", "lands", *FIRST, "--learning-rate", "0.05"))


def test_what_becomes_of_earlier_rounds_is_measured(chain: str) -> None:
    (cities,) = earlier_rounds("lands")
    assert cities.before["loss"] == pytest.approx(losses("cities")[-1], rel=1e-6)
    assert cities.after["loss"] > cities.before["loss"] and cities.rows == cities.answers == 4
    assert set(cities.before) == {"loss", "exact"}
    assert "warning: an earlier round got worse: cities, on 4 of its validation rows:" in chain
    assert "--replay 0.3 --replay-data run:cities" in chain and "earlier round cities" in " ".join(chain.split())
    done("report", "lands")
    page = json.loads(Path("runs/lands/report.json").read_text())
    assert page["earlier"][0]["after"] == cities.after
    done("train", "--from", "lands", *LAND, "--run", "third", *STILL)
    assert [(one.name, one.rows) for one in earlier_rounds("third")] == [("lands", 3), ("cities", 4)]
    assert earlier_rounds("third")[1].before["loss"] == pytest.approx(cities.after["loss"], rel=1e-6)


def test_the_rows_of_all_earlier_rounds_together_are_bounded(chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MOST_ROWS", 4)
    done("train", "--from", "lands", *LAND, "--run", "bounded", *STILL)
    assert [(one.name, one.rows) for one in earlier_rounds("bounded")] == [("lands", 2), ("cities", 2)]


def test_replay_takes_the_training_rows_of_a_run(chain: str) -> None:
    words = ("train", "--from", "cities", *LAND, *FIRST, "--learning-rate", "0.05", "--replay", "0.5", "--replay-data")
    done(*words, "run:cities", "--run", "replayed")
    replay = RunSnapshot.read("replayed").manifest.replay
    assert replay is not None and replay.rows == 12 and replay.source == 'run "cities": cities.jsonl'
    done(
        "train", "--from", "cities", *CITIES, *STILL, "--replay", "0.5", "--replay-data", "run:lands", "--run", "other"
    )
    of_lands = RunSnapshot.read("other").manifest.replay
    assert of_lands is not None and of_lands.origins == (sha256_of(Path("rows.jsonl")),), "no validation file"
    assert earlier_rounds("replayed")[0].after["loss"] < earlier_rounds("lands")[0].after["loss"]
    planned = printed("plan", *words[1:], "run:cities")
    assert planned["replay_rows"] == 12
    assert "there is no run" in refused(*words, "run:nothing", "--run", "never")
    columns = ("--set", "training.replay.data={path: run:cities, prompt: '{a}', completion: '{b}'}")
    assert "leave out prompt" in refused(*words[:-1], *columns, "--run", "never")


def test_answers_are_measured_in_a_round_of_pairs_and_pairs_in_one_of_answers(chain: str) -> None:
    write_rows("pairs.jsonl", [{"prompt": f"What is land {n}?", "chosen": f"A town {n}.", "rejected": "A sea."}
                               for n in range(9)])  # fmt: skip
    pairs = ("--data", "pairs.jsonl", "--objective", "preference", "--held-out", "3", *AGAIN)
    done("train", "--from", "cities", *pairs, "--run", "dpo")
    assert earlier_rounds("dpo")[0].before["loss"] == pytest.approx(losses("cities")[-1], rel=1e-6)
    done("train", "--from", "dpo", *pairs, "--run", "orpo", "--preference-loss", "orpo")
    assert [one.name for one in earlier_rounds("orpo")] == ["cities"]
    said = one_line_of(done("train", "--from", "orpo", *LAND, "--run", "after", *STILL))
    assert "the earlier round dpo is not measured: the loss of its pairs is relative to another model" in said
    orpo, cities = earlier_rounds("after")
    assert orpo.before["loss"] == pytest.approx(losses("orpo")[-1], rel=1e-6)
    assert {"preference_accuracy", "margin"} <= orpo.before.keys()
    assert cities.before["loss"] == pytest.approx(earlier_rounds("orpo")[0].after["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda: Path("cities.jsonl").unlink(), "there is no such file"),
        (lambda: write_rows("cities.jsonl", [{"city": "Rome", "land": "Italy"}] * 9), "have changed"),
        (lambda: shutil.rmtree("runs/cities"), "there is no run"),
    ],
)
def test_a_round_whose_rows_are_gone_is_named(chain: str, spoil: Any, why: str) -> None:
    kept, run = Path("cities.jsonl").read_bytes(), shutil.copytree("runs/cities", "kept")
    spoil()
    text = one_line_of(done("train", "--from", "lands", *LAND, "--run", why.replace(" ", "-"), *STILL))
    Path("cities.jsonl").write_bytes(kept)
    shutil.copytree(run, "runs/cities", dirs_exist_ok=True)
    shutil.rmtree(run)
    assert "what becomes of the earlier round cities is not measured" in text and why in text


def test_the_fused_and_the_eager_backend_begin_alike(home: Path) -> None:
    done("train", "--model", "tiny-llama", *LAND, "--run", "base-round", *FIRST, "--rank", "4")
    for backend in ("eager", "fused"):
        done("train", "--from", "base-round", *LAND, "--run", f"by-{backend}", *AGAIN, "--backend", backend)
    eager, fused = losses("by-eager"), losses("by-fused")
    assert abs(eager[0] - fused[0]) <= 1e-6 * eager[0]
    assert RunSnapshot.read("by-fused").manifest.backend == "fused"


def test_rounds_are_recorded_and_shown(home: Path) -> None:
    done("train", "--model", "tiny-llama", *LAND, "--run", "one", *FIRST, "--rank", "4")
    told = done("train", "--from", "one", *LAND, "--run", "two", *AGAIN).output
    assert "begun with one (LoRA, 12 rows, 6 steps" in " ".join(told.split())
    shutil.copytree("runs/two/adapter", "copied")
    done("train", "--from", "copied", *LAND, "--run", "three", *AGAIN)
    rounds = RunSnapshot.read("three").manifest.lineage
    assert [one.name for one in rounds] == ["one", "copied"]
    two = RunSnapshot.read("two")
    assert two.manifest.result_sha256 is not None
    assert rounds[1].sha256[WEIGHTS] == two.manifest.result_sha256[f"adapter/{WEIGHTS}"]
    assert rounds[0].steps == 6 and rounds[0].rows == 12
    assert rounds[0].base_fingerprint == two.manifest.base_model.fingerprint
    assert rounds[0].data_sha256 == sha256_of(Path("runs/one/data_report.json"))
    card = Path("runs/three/adapter/README.md").read_text()
    assert "| rounds before this one | one" in card
    assert "before this round and" in card
    assert "rounds before" in Path("runs/three/report.html").read_text()
    shown = printed("inspect", "three")
    assert [one["name"] for one in shown["lineage"]] == ["one", "copied"]
    assert "begun with" in done("inspect", "three").output
    listed = printed("runs")["runs"]
    assert {run["name"]: run["rounds"] for run in listed}["three"] == 3
    assert "one (LoRA" in done("runs", "show", "three").output
    done("export", "two", "--to", "exported")
    assert [one["name"] for one in json.loads(Path("exported/lineage.json").read_text())["rounds"]] == ["one"]


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "another rank": (("--rank", "8"), "adapter.rank is 8, but the adapter has 4"),
    "another alpha": (("--alpha", "3"), "adapter.alpha is 3.0, but the adapter has 32.0"),
    "other layers": (("--targets", "q_proj"), "adapter.targets is q_proj, but the adapter has"),
    "other blocks": (("--layers", "0"), "adapter.layers is 0, but the adapter has layers already"),
    "AdaLoRA": (("--method", "adalora"), "the method adalora begins with new triplets"),
    "full": (("--method", "full"), "full fine-tuning cannot continue an adapter"),
    "EVA": (("--set", "adapter.start=eva"), "start eva chooses the ranks"),
    "DoRA": (("--set", "adapter.dora=true"), "adapter.dora is True, but the adapter has False"),
}


@pytest.fixture(scope="module")
def begun(home: Path) -> str:
    done("train", "--model", "tiny-llama", *LAND, "--run", "begun", *FIRST, "--rank", "4")
    return "begun"


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_contradict_the_adapter_are_refused(begun: str, name: str) -> None:
    words, text = REFUSED[name]
    assert text in refused("train", "--from", begun, *LAND, "--run", "never", *AGAIN, *words)
    assert not Path("runs/never").exists()


def test_settings_that_agree_or_belong_to_the_training_are_taken(begun: str) -> None:
    agreeing = ("--rank", "4", "--alpha", "32", "--targets", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj")
    done("train", "--from", begun, *LAND, "--run", "agreeing", *AGAIN, *agreeing, "--dropout", "0.1",
         "--set", "adapter.b_rate=4")  # fmt: skip
    adapter = RunSnapshot.read("agreeing").experiment.adapter.model_dump()
    assert (adapter["dropout"], adapter["b_rate"], adapter["rank"]) == (0.1, 4.0, 4)


def test_another_base_is_refused_unless_forced(begun: str) -> None:
    model = tiny_model("llama", vocab=AutoModelForCausalLM.from_pretrained("tiny-llama").config.vocab_size, seed=7)
    shutil.copytree("tiny-llama", "other-llama")
    model.save_pretrained("other-llama")
    words = ("train", "--from", begun, "--model", "other-llama", *LAND, *AGAIN)
    text = refused(*words, "--run", "never")
    assert "different weights" in text and "--force-base to train on it anyway" in text
    assert not Path("runs/never").exists()
    done(*words, "--run", "forced", "--force-base")


def test_other_shapes_are_refused(begun: str) -> None:
    folder = Path(shutil.copytree("runs/begun/adapter", "other-shape"))
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = tensors[key][:, :-1].contiguous()
    save_file(tensors, folder / WEIGHTS)
    text = refused("train", "--from", folder, *LAND, "--run", "never", *AGAIN)
    assert "but rank 4 on this layer needs" in text
    assert not Path("runs/never").exists()


def test_other_classes_and_other_tasks_are_refused(home: Path, begun: str) -> None:
    done("train", "--model", "tiny-bert", *WORDS, "--run", "of-words", *FIRST, "--rank", "2")
    text = refused("train", "--from", "of-words", *WORDS, "--run", "never", *AGAIN, "--method", "head")
    assert "adapter.method is head, but the adapter has the method lora" in text
    write_rows("others.jsonl", [row | {"label": f"very {row['label']}"} for row in labelled(24)])
    other = ("train", "--from", "of-words", *AGAIN, "--run", "never", "--data", "others.jsonl")
    assert "predicts the classes bad, good, but the training rows are for the classes very bad" in refused(*other)
    write_rows(
        "three.jsonl", [*labelled(24), {"text": "a plot", "label": "middling"}, {"text": "a", "label": "middling"}]
    )
    assert "A continued head keeps its classes" in refused(*other[:-1], "three.jsonl")
    done("train", "--model", "tiny-bert", *WORDS, "--run", "head-alone", *FIRST, "--method", "head")
    done("train", "--from", "head-alone", *WORDS, "--run", "head-again", *AGAIN)
    assert RunSnapshot.read("head-again").experiment.adapter.method == "head"
    assert losses("head-again")[0] == losses("head-alone")[-1]
    text = refused("train", "--from", "head-alone", "--method", "lora", *WORDS, "--run", "never", *AGAIN)
    assert "but the adapter has the method head" in text


def test_a_full_run_is_named_as_a_base(home: Path) -> None:
    done("train", "--model", "tiny-llama", *LAND, "--run", "whole", *FIRST, "--method", "full")
    text = refused("train", "--from", "whole", *LAND, "--run", "never", *AGAIN)
    assert "use --model runs/whole/model" in text
    assert "there is no run" in refused("train", "--from", "nothing-here", *LAND, "--run", "never", *AGAIN)


def test_the_plan_counts_the_given_adapter(home: Path) -> None:
    words = ("--rank", "4", "--set", "adapter.rank_pattern={q_proj: 2}")
    done("train", "--model", "tiny-llama", *LAND, "--run", "counted", *FIRST, *words)
    planned = printed("plan", "--from", "counted")
    assert planned["trainable_parameters"] == weights_of("counted").parameters


def interrupted(*words: str, after: int) -> None:
    """Ctrl-C after so many steps."""
    events: list[StepRecord] = []

    def stop(event: Event) -> None:
        if isinstance(event, StepRecord):
            events.append(event)
            if len(events) == after:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(read_experiment(None, list(map(parse_setting, words))), callback=stop)


@pytest.mark.parametrize("gone", [False, True])
def test_a_resumed_round_ends_with_the_same_bytes(begun: str, gone: bool) -> None:
    source = f"source-{gone}"
    shutil.copytree("runs/begun", f"runs/{source}")
    settings = (f"adapter.start_from={source}", "model=tiny-llama", "model.dtype=float32", "data.path=rows.jsonl",
                "data.validation=apart.jsonl", "adapter.dropout=0.2", "training.steps=9", "training.batch_size=4",
                "training.checkpoint_steps=4", "training.learning_rate=0.003")  # fmt: skip
    whole, parts = f"whole-{gone}", f"parts-{gone}"
    train(read_experiment(None, list(map(parse_setting, (*settings, f"run={whole}")))))
    interrupted(*settings, f"run={parts}", after=6)
    if gone:
        shutil.rmtree(f"runs/{source}")
    train(read_experiment(None, list(map(parse_setting, (*settings, f"run={parts}")))), resume=True)
    first, again = (RunSnapshot.read(run) for run in (whole, parts))
    assert (first.result / WEIGHTS).read_bytes() == (again.result / WEIGHTS).read_bytes()
    assert first.manifest.lineage == again.manifest.lineage
    assert earlier_rounds(parts) == (() if gone else earlier_rounds(whole))
    before = [row for row in read_metrics_log(again.directory.metrics) if row["kind"] == "earlier" and not row["step"]]
    assert len(before) == 1, "it was measured once"
    warned = any("goes on from its checkpoint" in text for text in again.manifest.warnings)
    assert warned == gone


def test_training_from_python_needs_no_model(begun: str) -> None:
    import rankwise as package

    run = package.train(start_from=begun, data="rows.jsonl", run="by-python", steps=2, batch_size=4, progress=False)
    assert run.manifest.lineage[0].name == begun
    with pytest.raises(package.RankwiseError, match=r"is for rankwise\.train"):
        package.inject(tiny_model("llama"), package.LoraConfig(start_from=begun))


def test_dropout_of_an_adapter_stays_where_nobody_names_another() -> None:
    adapter = LoraConfig(dropout=0.1)
    assert continued(LoraConfig(start_from="a"), adapter, "a").dropout == 0.1
    assert continued(LoraConfig(start_from="a", dropout=0.2), adapter, "a").dropout == 0.2
