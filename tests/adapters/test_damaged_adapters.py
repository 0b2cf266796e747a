"""What is damaged is refused or said, never loaded in silence; what is accepted is what the header says."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import tiny_model
from kit import damaged
from kit.damaged import CONFIG, DAMAGES, EXTRA, REGEXES, WEIGHTS, Damage
from rankwise.adapters.formats.peft import lay_peft, write_peft
from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.adapters.formats.tensors import refuse_pickle
from rankwise.adapters.weights import missing_blocks
from rankwise.config.adapters import LoraConfig
from rankwise.config.expressions import SECONDS_PER_KEY, SECONDS_PER_PATTERN
from rankwise.errors import AdapterError, RankwiseError
from rankwise.methods.inject import inject
from rankwise.runs.records import WarningMessage


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "adapter"
    adapters = inject(tiny_model("llama"), LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj")))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    write_peft(adapters, folder, base_model="tiny")
    return folder


def copy_of(good: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes((good / name).read_bytes())
    return folder


@pytest.mark.parametrize("damage", [*DAMAGES, *EXTRA], ids=lambda damage: damage.name)
def test_a_damaged_folder_is_refused_in_one_line_as_far_as_it_can_be_known(damage: Damage, good: Path, tmp_path: Path):
    damage.apply(copy_of(good, tmp_path))
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if damage.known:
        with pytest.raises(RankwiseError) as caught:
            lay_peft(model, tmp_path)
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    else:
        lay_peft(model, tmp_path).remove()
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_good_folder_is_read_without_a_warning(good: Path):
    heard: list[object] = []
    lay_peft(tiny_model("llama"), good, callback=heard.append)
    assert heard == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damaged.config(alpha_pattern={"q_proj": 1e8}), "unusual scale, such as 2.5e+07"),
        (damaged.config(use_something=3, peft_version="9.9"), "'use_something', which this version"),
        (lambda folder: (folder / "adapter_model.bin").write_bytes(b"x"), "adapter_model.bin, which is a pickle"),
    ],
)
def test_what_is_odd_is_said(change, said: str, good: Path, tmp_path: Path):
    change(copy_of(good, tmp_path))
    heard: list[object] = []
    lay_peft(tiny_model("llama"), tmp_path, callback=heard.append)
    assert any(isinstance(one, WarningMessage) and said in one.text for one in heard), heard


def test_a_block_without_a_layer_that_its_neighbours_have_is_named(good: Path):
    weights = read_weights(good)
    one = weights.factors["model.layers.0.self_attn.q_proj"]
    paths = [f"model.layers.{block}.self_attn.{leaf}" for block in range(5) for leaf in ("q_proj", "v_proj")]
    whole = type(weights)(weights.settings, dict.fromkeys(paths, one))
    assert not any(missing_blocks(whole).values())
    part = type(weights)(weights.settings, dict.fromkeys([p for p in paths if p != paths[4]], one))
    assert missing_blocks(part)["self_attn.q_proj"] == [2] and missing_blocks(part)["self_attn.v_proj"] == []


def mutant(chance: random.Random, config: bytes, weights: bytes) -> tuple[bytes, bytes]:
    """One change of the header's bytes, of the settings, or of a key's name."""
    (length,) = struct.unpack("<Q", weights[:8])
    kind = chance.choice(["header", "length", "settings", "value", "key", "entry"])
    if kind in ("header", "length"):
        changed, at = bytearray(weights), chance.randrange(8) if kind == "length" else 8 + chance.randrange(length)
        changed[at] = chance.randrange(256)
        return config, bytes(changed)
    if kind == "settings":
        changed = bytearray(config)
        at = chance.randrange(len(changed))
        changed[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
        return bytes(changed), weights
    if kind == "value":
        settings = json.loads(config)
        values = [None, True, -1, 0, 1, 10**400, 1.5, "x", "\udfff", [], {}, [[]], {"a": {}}, ["q_proj"], {"(a+)+$": 3}]
        settings[chance.choice([*settings, "new_key"])] = chance.choice(values)
        return json.dumps(settings).encode(), weights
    header, numbers = damaged.header_of(weights)
    name = chance.choice([key for key in header if key != "__metadata__"])
    if kind == "key":
        at = chance.randrange(len(name))
        other = (
            name[:at]
            + chance.choice(["", ".", "Z", "\u0410", "\n", "..", "0", "lora_B"])
            + name[at + chance.randrange(2) :]
        )
        header[other] = header.pop(name)
    else:
        part = chance.choice(["dtype", "shape", "data_offsets"])
        values = [
            "F16",
            "BF16",
            "F64",
            "EVIL",
            [],
            [4],
            [0, 32],
            [-1, 32],
            [32, 4],
            [0, 0],
            [0, 512],
            [2**60, 2**61],
            None,
            {},
        ]
        header[name] = header[name] | {part: chance.choice(values)}
    text = json.dumps(header, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return config, damaged.with_header(text, numbers)


def assert_sound(folder: Path) -> bool:
    """Whether the mutant is accepted; then its tensors are those that the parsed header describes."""
    try:
        weights = read_weights(folder)
    except RankwiseError:
        return False
    header, numbers = damaged.header_of((folder / WEIGHTS).read_bytes())
    read = {f"{path}.lora_{part}": value for path, one in weights.factors.items()
            for part, value in (("A", one.A), ("B", one.B))}  # fmt: skip
    described = {key: entry for key, entry in header.items() if key != "__metadata__"}
    assert len(read) == len(described)
    for key, entry in described.items():
        value = read[key.removeprefix(damaged.PREFIX).removesuffix(".weight")]
        begin, end = entry["data_offsets"]
        assert list(value.shape) == entry["shape"]
        assert value.contiguous().view(torch.uint8).numpy().tobytes() == numbers[begin:end]
    return True


def test_a_mutant_is_refused_with_an_error_of_ours_or_is_what_its_header_says(good: Path, tmp_path: Path):
    config, weights = (good / CONFIG).read_bytes(), (good / WEIGHTS).read_bytes()
    chance, accepted = random.Random(26), 0
    for _ in range(400):
        (tmp_path / CONFIG).write_bytes((parts := mutant(chance, config, weights))[0])
        (tmp_path / WEIGHTS).write_bytes(parts[1])
        accepted += assert_sound(tmp_path)
    assert 0 < accepted < 300


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "target_modules"])
def test_an_expression_without_end_costs_a_tenth_of_a_second(key: str, good: Path, tmp_path: Path):
    copy_of(good, tmp_path)
    for pattern in REGEXES:
        damaged.config(**{key: [pattern] if key == "target_modules" else {pattern: 4}})(tmp_path)
        began = time.process_time()
        try:
            read_weights(tmp_path)
        except RankwiseError as error:
            assert "takes too long" in str(error) or "has no factors" in str(error)
        assert time.process_time() - began < SECONDS_PER_PATTERN + 0.2 and SECONDS_PER_KEY < 0.1, pattern


def test_many_slow_expressions_cost_no_more_together(good: Path, tmp_path: Path):
    slow = {rf"(?:.|.){{14}}[xyz]|x{at}": 4 for at in range(500)}  # each takes some milliseconds for a path
    damaged.config(rank_pattern=slow)(copy_of(good, tmp_path))
    began = time.process_time()
    with pytest.raises(RankwiseError, match="takes too long"):
        read_weights(tmp_path)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "nowhere"])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, name: str, good: Path, tmp_path: Path):
    copy_of(good, tmp_path)
    file = tmp_path / name
    file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "loop":
            file.symlink_to(file)
        case _:
            file.symlink_to(tmp_path / "gone")
    with pytest.raises(AdapterError):
        read_weights(tmp_path)


def test_a_link_to_a_regular_file_is_followed_as_in_the_hub_s_cache(good: Path, tmp_path: Path):
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).symlink_to(good / name)
    assert read_weights(tmp_path).ranks == read_weights(good).ranks


PAYLOADS = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.ckpt", "weights.pkl",
            "x.joblib", "x.npy", "renamed", "renamed-zip", "training_args.bin", "zip-bomb",
            "renamed-protocol-2")  # fmt: skip
CHILD = """
import sys
heard = []
def hook(event, details):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "marshal.loads") and heard is not None:
        heard.append(event)
from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.adapters.formats.tensors import refuse_pickle
from rankwise.errors import RankwiseError
from pathlib import Path
sys.addaudithook(hook)
for name in sys.argv[1:]:
    path = Path(name)
    try:
        refuse_pickle(path)
        read_weights(path if path.is_dir() else path.parent)
        print("loaded", name)
    except RankwiseError as error:
        print("refused", str(error).replace(chr(10), " "))
print("heard", heard)
"""


class Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def payload(name: str, folder: Path, canary: Path) -> Path:
    """A folder, or a file, that runs a command if it is unpickled."""
    protocol = 2 if name == "renamed-protocol-2" else 4
    content = pickle.dumps(Canary(canary), protocol=protocol)
    if name in ("renamed-zip", "zip-bomb"):
        archive = folder / "archive.zip"
        import zipfile

        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data.pkl", content if name == "renamed-zip" else bytes(5_000_000))
        content = archive.read_bytes()
        archive.unlink()
    target = WEIGHTS if "renamed" in name or name == "zip-bomb" else name
    (folder / target).write_bytes(content)
    if target in (WEIGHTS, "adapter_model.bin", "training_args.bin"):
        return folder
    return folder / target


def test_no_pickle_is_opened_under_any_name(good: Path, tmp_path: Path):
    canary, paths = tmp_path / "canary", []
    for name in PAYLOADS:
        folder = copy_of(good, tmp_path / name.replace(".", "-"))
        (folder / WEIGHTS).unlink()
        paths.append(payload(name, folder, canary))
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(PAYLOADS) + 1 and all(line.startswith("refused") for line in lines[:-1]), done.stdout
    assert lines[-1] == "heard []" and not canary.exists()
    assert all("save_file" in line for line in lines[:-2] if "training_args" not in line), "the conversion is named"
    pickle.loads(pickle.dumps(Canary(canary)))  # noqa: S301
    assert canary.exists(), "the canary works"


def test_a_pickle_is_refused_by_its_name_alone(tmp_path: Path):
    (tmp_path / "a.PTH").write_bytes(b"")
    with pytest.raises(AdapterError, match="is a pickle"):
        refuse_pickle(tmp_path / "a.PTH")
    refuse_pickle(tmp_path / "not-there.pt")
    refuse_pickle("\0.pt")
