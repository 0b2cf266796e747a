"""PEFT's adapters whose factors alone do not say the change: read as a difference, or refused with the way to convert.

PiSSA, OLoRA and CorDA begin with factors A0, B0 that are no zero change, and take them out of the base's weights:

    W  =  (W0 - s B0 A0) + s B A        change of W0:  s B A - s B0 A0  =  [s B, -s B0] [A; A0]

PEFT's examples save A0 and B0 as a folder such as `pissa_init` inside the adapter's folder. With it the adapter is read
as that difference, of twice the rank. Without it, and for forms that change other things than the weights of layers,
the setting is named.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rankwise.adapters.formats.imported import Modules
from rankwise.adapters.formats.peft_config import check_config, read_settings, settings_of
from rankwise.adapters.formats.peft_reader import CONFIG, read_weights
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.errors import AdapterError

TAKEN_OUT = ("pissa", "olora", "corda")
OTHER_STARTS = ("loftq", "lora_ga")
INITIAL = ("pissa_init", "olora_init", "corda_init")
FORMS = {
    "lora_bias": "has biases beside its factors, which no other program reads",
    "layer_replication": "repeats layers of the base model",
    "alora_invocation_tokens": "is an activated LoRA, which acts only after certain tokens",
}
MERGE = "Merge it with PEFT (merge_and_unload) and use the merged model."


def read_peft_folder(folder: Path, modules: Modules | None = None) -> AdapterWeights:
    """A folder of PEFT's; AdapterError where its form needs more than factors."""
    settings = read_settings(folder / CONFIG)
    check_form(settings, folder)
    adapter = read_weights(folder, modules, form_settings(settings))
    initial = _initial(folder) if _start(settings).startswith(TAKEN_OUT) else None
    return adapter if initial is None else _difference(adapter, initial, modules)


def peft_base(folder: Path) -> tuple[str | None, str | None, list[int]]:
    """The base model that PEFT would load, its revision, and the tokens whose rows were trained."""
    settings = read_settings(folder / CONFIG)
    check_form(settings, folder)
    config = check_config(form_settings(settings), folder / CONFIG)
    return config.base_model_name_or_path or None, config.revision, config.trained_tokens


def check_form(settings: dict[str, Any], folder: Path) -> None:
    for key, meaning in FORMS.items():
        if settings.get(key):
            raise AdapterError(f"{folder / CONFIG} sets {key}: the adapter {meaning}. It is not read. {MERGE}")
    start = _start(settings)
    if start.startswith(OTHER_STARTS) or (start.startswith(TAKEN_OUT) and _initial(folder) is None):
        raise AdapterError(
            f'{folder / CONFIG} sets init_lora_weights to "{start}": training began by changing weights of the base '
            "model, so the factors alone are not the change. Save it again with PEFT as a plain LoRA: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=INITIAL), where INITIAL is the adapter as it "
            "was before training."
        )


def form_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """As a plain LoRA."""
    return {**settings, "init_lora_weights": True} if _start(settings).startswith(TAKEN_OUT) else settings


def _start(settings: dict[str, Any]) -> str:
    start = settings.get("init_lora_weights")
    return start.lower() if isinstance(start, str) else ""


def _initial(folder: Path) -> Path | None:
    return next((folder / name for name in INITIAL if (folder / name / CONFIG).is_file()), None)


def _difference(trained: AdapterWeights, initial: Path, modules: Modules | None) -> AdapterWeights:
    folder, begun = initial.parent, read_weights(initial, modules, form_settings(read_settings(initial / CONFIG)))
    if trained.factors.keys() != begun.factors.keys() or trained.is_dora:
        raise AdapterError(f"{initial} is not the start of the adapter in {folder}: it has other layers, or is DoRA.")
    factors = {path: _minus(part, begun.factors[path], path, initial) for path, part in trained.factors.items()}
    layers = {path: modules[path] for path in factors} if modules is not None else {}
    own = settings_of(factors, layers, modules if modules is not None else list(factors))
    remark = f"{folder} is read as the difference from its start in {initial.name}, so its ranks are twice as large"
    changed = {key: own[key] for key in ("alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora")}
    return replace(
        trained, settings={**trained.settings, **changed}, factors=factors, remarks=(*trained.remarks, remark)
    )


def _minus(part: Factors, begun: Factors, path: str, initial: Path) -> Factors:
    if part.experts:
        raise AdapterError(f'"{path}" are experts, whose start inside the base\'s weights is not read. {MERGE}')
    if part.A.shape != begun.A.shape or part.B.shape != begun.B.shape:
        raise AdapterError(f'{initial} is not the start of this adapter: "{path}" has factors of another shape.')
    A = torch.cat([part.A.float(), begun.A.float()])
    B = torch.cat([part.B.float() * part.scale, begun.B.float() * -begun.scale], 1)
    return replace(part, A=A, B=B, scale=1.0)
