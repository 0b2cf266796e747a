"""Adapters made by other tools, read here: our logits and PEFT's after conversion, against the tool's own.

    python bench/dialects.py --python mlx=VENV/bin/python --python llama=VENV/bin/python [--llama LLAMA.CPP]

Each tool makes, saves and loads an adapter in a process of its own (dialect_tools/), in float32, and writes its logits
for one text. Then `rankwise export` converts the adapter to PEFT's format, and peft loads that. A difference is the
largest of all logits, as a share of the largest. A tool without an interpreter is left out and named. Needs peft.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from telling import parser_of, tell
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft import lay, write_peft
from rankwise.adapters.targets import host_view
from rankwise.base.sources import find
from rankwise.commands.export import export
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.methods.inject import inject

IDS = [504, 7361, 282, 4649, 314, 7042, 30, 198, 1780, 314]
TOOLS = Path(__file__).parent / "dialect_tools"


def base_in(folder: Path, starter: str) -> Path:
    """The model that adapters are made for, in float32."""
    source = find(ModelConfig(name=starter), print).folder
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if theta := config.get("rope_parameters", {}).get("rope_theta"):  # mlx-lm reads only the old place of the two
        (folder / "config.json").write_text(json.dumps(config | {"rope_theta": theta}))
    return folder


def loaded(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def outputs(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        result = model(input_ids=torch.tensor([IDS]))
    return result.logits.double()


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def run(python: str, script: str, *words: object) -> None:
    done = subprocess.run([python, str(TOOLS / script), *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script}: {done.stderr[-3000:]}")


def compared(adapter: Path, base: Path, out: Path) -> dict[str, Any]:
    """Our outputs and PEFT's after conversion, against those that the tool left in `out`."""
    tool, model = torch.from_numpy(np.load(out / "logits.npy")).double(), loaded(base)
    tool = tool[..., : outputs(model).shape[-1]]
    plain = outputs(model)
    weights = read_adapter(adapter, host_view(model))
    adapters = lay(model, weights)
    ours = outputs(model)
    adapters.remove()
    folder = out / "converted"
    export(str(adapter), folder, "peft", base_model=str(base))
    peft = outputs(PeftModel.from_pretrained(loaded(base), folder))
    change = far(plain, tool)
    return {"layers": len(weights.factors), "ours": far(ours, tool), "peft": far(peft, tool), "adapter_changes": change,
            "notes": weights.notes}  # fmt: skip


def prepared(root: Path, name: str) -> Path:
    (folder := root / name).mkdir()
    (folder / "ids.json").write_text(json.dumps(IDS))
    return folder


def of_mlx(root: Path, base: Path, asked: argparse.Namespace, python: str) -> dict[str, Any]:
    found = {}
    for kind in ("lora", "dora"):
        out = prepared(root, f"mlx-{kind}")
        run(python, "on_mlx.py", base, out, kind)
        found[f"mlx-lm {kind}"] = compared(out, base, out)
    made = prepared(root, "mlx-made")
    made_here(
        base, made, targets=("q_proj", "o_proj", "down_proj"), rank_pattern={"o_proj": 2, "layers.3.mlp.down_proj": 7}
    )
    export(str(made / "made"), made / "given", "mlx", base_model=str(base))
    (made / "given" / "ids.json").write_text(json.dumps(IDS))
    run(python, "on_mlx.py", base, made / "given", "given")
    found["mlx-lm with ours"] = compared(made / "given", base, made / "given")
    return found


def made_here(base: Path, out: Path, **settings: Any) -> None:
    """An adapter of ours as `made`, and the model's logits with it."""
    model = loaded(base)
    adapters = inject(model, LoraConfig(rank=5, alpha=15, **settings))
    torch.manual_seed(3)
    for value in adapters.parameters():
        value.data = torch.randn_like(value) * 0.02
    write_peft(adapters, out / "made", base_model=str(base))
    np.save(out / "logits.npy", outputs(model).float().numpy())


def of_llama(root: Path, base: Path, asked: argparse.Namespace, python: str) -> dict[str, Any]:
    """llama.cpp's own converter writes the file. Without llama-cpp-python the tool's logits are those of the adapter
    that was converted."""
    out = prepared(root, "gguf")
    made_here(base, out, targets=("all-linear",))
    script, adapter = Path(asked.llama) / "convert_lora_to_gguf.py", out / "adapter.gguf"
    subprocess.run([python, str(script), "--base", str(base), "--outfile", str(adapter), str(out / "made")], check=True,
                   capture_output=True)  # fmt: skip
    found = {"llama.cpp converter": compared(adapter, base, out)}
    if asked.engine:
        script, whole = Path(asked.llama) / "convert_hf_to_gguf.py", out / "base.gguf"
        subprocess.run([python, str(script), "--outtype", "f32", "--outfile", str(whole), str(base)], check=True,
                       capture_output=True)  # fmt: skip
        run(asked.engine, "on_llama_cpp.py", whole, out, adapter)
        (out / "converted").rename(out / "converted-before")
        found["llama.cpp engine"] = compared(adapter, base, out)
    return found


KINDS: dict[str, Callable[[Path, Path, argparse.Namespace, str], dict[str, Any]]] = {"mlx": of_mlx, "llama": of_llama}


def show(found: dict[str, Any]) -> None:
    print(f"{'file':<24}{'layers':>8}{'ours':>12}{'peft':>12}{'adapter':>12}")
    for name, one in found["files"].items():
        print(f"{name:<24}{one['layers']:>8}{one['ours']:>12.1e}{one['peft']:>12.1e}{one['adapter_changes']:>12.1e}")
    if found["left_out"]:
        print(f"without an interpreter: {', '.join(found['left_out'])}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--python", action="append", default=[], help="NAME=INTERPRETER, for mlx and llama")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--llama", help="a folder with llama.cpp's converters")
    parser.add_argument("--engine", help="an interpreter with llama-cpp-python")
    asked = parser.parse_args()
    pythons = dict(one.split("=", 1) for one in asked.python)
    files: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        base = base_in(Path(folder) / "base", asked.model)
        for name, python in pythons.items():
            files |= KINDS[name](Path(folder), base, asked, python)
    tell(asked, {"files": files, "left_out": sorted(KINDS.keys() - pythons.keys())}, show)


if __name__ == "__main__":
    main()
