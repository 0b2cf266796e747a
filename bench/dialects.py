"""Adapters made by other tools, read here: our logits and PEFT's after conversion, against the tool's own.

    python bench/dialects.py --python mlx=VENV/bin/python --python litgpt=… [--kohya SD-SCRIPTS] [--llama LLAMA.CPP]

Each tool makes, saves and loads an adapter in a process of its own (dialect_tools/), in float32, and writes its logits
for one text. A file that only pickles hold is rewritten by the command that our refusal names. Then `rankwise export`
converts the adapter to PEFT's format, and peft loads that. A difference is the largest of all logits, as a share of
the largest. A tool without an interpreter is left out and named. Needs peft.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from telling import parser_of, tell
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPTextConfig, CLIPTextModel, GPT2Config, GPTNeoXConfig

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft import lay, rewrite, write_peft
from rankwise.adapters.targets import host_view
from rankwise.commands.export import export
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import AdapterError
from rankwise.methods.inject import inject
from rankwise.models.sources import find

IDS = [504, 7361, 282, 4649, 314, 7042, 30, 198, 1780, 314]
TOOLS = Path(__file__).parent / "dialect_tools"
SMALL = [index % 90 for index in IDS]


class Bases:
    """The models that adapters are made for, as folders in float32."""

    def __init__(self, folder: Path, starter: str) -> None:
        self.folder, self._starter = folder, find(ModelConfig(name=starter), print).folder

    def folder_of(self, name: str) -> Path:
        folder = self.folder / name
        if folder.is_dir():
            return folder
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(self._starter)
        tokenizer.save_pretrained(folder)
        self._model(name).float().save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        if theta := config.get("rope_parameters", {}).get("rope_theta"):  # mlx-lm reads only the old place of the two
            (folder / "config.json").write_text(json.dumps(config | {"rope_theta": theta}))
        return folder

    def _model(self, name: str) -> Any:
        if name == "starter":
            return AutoModelForCausalLM.from_pretrained(self._starter, dtype=torch.float32)
        if name == "gpt2":
            return AutoModelForCausalLM.from_config(
                GPT2Config(vocab_size=96, n_positions=256, n_embd=64, n_layer=2, n_head=4)
            )
        if name == "neox":
            return AutoModelForCausalLM.from_config(GPTNeoXConfig(
                vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
                max_position_embeddings=256, tie_word_embeddings=False,
            ))  # fmt: skip
        config = CLIPTextConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                num_attention_heads=4, max_position_embeddings=32, eos_token_id=2)  # fmt: skip
        return CLIPTextModel(config)


def loaded(folder: Path) -> nn.Module:
    kind = CLIPTextModel if "clip" in folder.name else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def outputs(model: nn.Module, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        result = model(input_ids=torch.tensor([ids]))
    return (result.logits if hasattr(result, "logits") else result.last_hidden_state).double()


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def run(python: str, script: str, *words: object) -> None:
    done = subprocess.run([python, str(TOOLS / script), *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script}: {done.stderr[-3000:]}")


def rewritten(file: Path, *metadata: str) -> Path:
    """By the command that our own refusal names."""
    try:
        read_adapter(file)
    except AdapterError as error:
        command = re.search(r"python -c .+", str(error))
        assert command is not None, f"{error} names no command"
        written = command[0].replace("python", sys.executable, 1)
        subprocess.run([*shlex.split(written), *metadata], check=True, cwd=file.parent)
        return next(file.parent.glob("*.safetensors"))
    raise SystemExit(f"{file} was read")


def compared(adapter: Path, base: Path, out: Path, ids: list[int]) -> dict[str, Any]:
    """Our outputs and PEFT's after conversion, against those that the tool left in `out`."""
    tool, model = torch.from_numpy(np.load(out / "logits.npy")).double(), loaded(base)
    tool = tool[..., : outputs(model, ids).shape[-1]]
    plain = outputs(model, ids)
    weights = read_adapter(adapter, host_view(model))
    adapters = lay(model, weights)
    ours = outputs(model, ids)
    adapters.remove()
    folder = out / "converted"
    if "clip" in base.name:  # a text encoder is no base of ours, so its file is written without one
        rewrite(weights, folder, {})
    else:
        export(str(adapter), folder, "peft", base_model=str(base))
    peft = outputs(PeftModel.from_pretrained(loaded(base), folder), ids)
    change = far(plain, tool)
    return {"layers": len(weights.factors), "ours": far(ours, tool), "peft": far(peft, tool), "adapter_changes": change,
            "notes": weights.notes}  # fmt: skip


def prepared(root: Path, name: str, ids: list[int]) -> Path:
    (folder := root / name).mkdir()
    (folder / "ids.json").write_text(json.dumps(ids))
    return folder


def of_mlx(root: Path, bases: Bases, asked: argparse.Namespace, python: str) -> dict[str, Any]:
    found, base = {}, bases.folder_of("starter")
    for kind in ("lora", "dora"):
        out = prepared(root, f"mlx-{kind}", IDS)
        run(python, "on_mlx.py", base, out, kind)
        found[f"mlx-lm {kind}"] = compared(out, base, out, IDS)
    made = prepared(root, "mlx-made", IDS)
    made_here(
        base, made, targets=("q_proj", "o_proj", "down_proj"), rank_pattern={"o_proj": 2, "layers.3.mlp.down_proj": 7}
    )
    export(str(made / "made"), made / "given", "mlx", base_model=str(base))
    (made / "given" / "ids.json").write_text(json.dumps(IDS))
    run(python, "on_mlx.py", base, made / "given", "given")
    found["mlx-lm with ours"] = compared(made / "given", base, made / "given", IDS)
    return found


def made_here(base: Path, out: Path, **settings: Any) -> None:
    """An adapter of ours as `made`, and the model's logits with it."""
    model = loaded(base)
    adapters = inject(model, LoraConfig(rank=5, alpha=15, **settings))
    torch.manual_seed(3)
    for value in adapters.parameters():
        value.data = torch.randn_like(value) * 0.02
    write_peft(adapters, out / "made", base_model=str(base))
    np.save(out / "logits.npy", outputs(model, IDS).float().numpy())


def of_litgpt(root: Path, bases: Bases, asked: argparse.Namespace, python: str) -> dict[str, Any]:
    found = {}
    for name, model, ids in (("SmolLM2-135M-Instruct", "starter", IDS), ("neox", "neox", SMALL)):
        out, base = prepared(root, f"litgpt-{model}", ids), bases.folder_of(model)
        run(python, "on_litgpt.py", base, out, name)
        rewritten(out / "final" / "lit_model.pth.lora")
        found[f"LitGPT {model}"] = compared(out / "final", base, out, ids)
    return found


def of_loralib(root: Path, bases: Bases, asked: argparse.Namespace, python: str) -> dict[str, Any]:
    found = {}
    for model, ids, more in (("starter", IDS, ()), ("gpt2", SMALL, ("enable_lora=true,false,true",))):
        out, base = prepared(root, f"loralib-{model}", ids), bases.folder_of(model)
        run(python, "on_loralib.py", base, out, "lora")
        adapter = rewritten(out / "lora.pt", "lora_alpha=9", *more)
        found[f"loralib {model}"] = compared(adapter, base, out, ids)
    return found


def of_diffusers(root: Path, bases: Bases, asked: argparse.Namespace, python: str) -> dict[str, Any]:
    found, base = {}, bases.folder_of("clip")
    for name, kind in (("diffusers metadata", "metadata"), ("kohya", asked.kohya)):
        if kind:
            out = prepared(root, name, SMALL)
            run(python, "on_diffusers.py", base, out, kind)
            found[name] = compared(next(out.glob("*.safetensors")), base, out, SMALL)
            if kind != "metadata":
                theirs = torch.from_numpy(np.load(out / "kohya.npy")).double()
                found[name]["kohya_to_diffusers"] = far(torch.from_numpy(np.load(out / "logits.npy")).double(), theirs)
    return found


def of_llama(root: Path, bases: Bases, asked: argparse.Namespace, python: str) -> dict[str, Any]:
    """llama.cpp's own converter writes the file. Without llama-cpp-python the tool's logits are those of the adapter
    that was converted."""
    out, base = prepared(root, "gguf", IDS), bases.folder_of("starter")
    made_here(base, out, targets=("all-linear",))
    script, adapter = Path(asked.llama) / "convert_lora_to_gguf.py", out / "adapter.gguf"
    subprocess.run([python, str(script), "--base", str(base), "--outfile", str(adapter), str(out / "made")], check=True,
                   capture_output=True)  # fmt: skip
    found = {"llama.cpp converter": compared(adapter, base, out, IDS)}
    if asked.engine:
        script, whole = Path(asked.llama) / "convert_hf_to_gguf.py", out / "base.gguf"
        subprocess.run([python, str(script), "--outtype", "f32", "--outfile", str(whole), str(base)], check=True,
                       capture_output=True)  # fmt: skip
        run(asked.engine, "on_llama_cpp.py", whole, out, adapter)
        (out / "converted").rename(out / "converted-before")
        found["llama.cpp engine"] = compared(adapter, base, out, IDS)
    return found


KINDS: dict[str, Callable[[Path, Bases, argparse.Namespace, str], dict[str, Any]]] = {
    "mlx": of_mlx, "litgpt": of_litgpt, "loralib": of_loralib, "diffusers": of_diffusers, "llama": of_llama,
}  # fmt: skip


def show(found: dict[str, Any]) -> None:
    print(f"{'file':<24}{'layers':>8}{'ours':>12}{'peft':>12}{'adapter':>12}")
    for name, one in found["files"].items():
        print(f"{name:<24}{one['layers']:>8}{one['ours']:>12.1e}{one['peft']:>12.1e}{one['adapter_changes']:>12.1e}")
    if found["left_out"]:
        print(f"without an interpreter: {', '.join(found['left_out'])}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--python", action="append", default=[], help="NAME=INTERPRETER, for mlx, litgpt, loralib, …")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kohya", help="a checkout of kohya's sd-scripts")
    parser.add_argument("--llama", help="a folder with llama.cpp's converters")
    parser.add_argument("--engine", help="an interpreter with llama-cpp-python")
    asked = parser.parse_args()
    pythons = dict(one.split("=", 1) for one in asked.python)
    files: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        bases = Bases(Path(folder) / "bases", asked.model)
        for name, python in pythons.items():
            files |= KINDS[name](Path(folder), bases, asked, python)
    tell(asked, {"files": files, "left_out": sorted(KINDS.keys() - pythons.keys())}, show)


if __name__ == "__main__":
    main()
