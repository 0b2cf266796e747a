"""adapter_config.json as data: only the keys that say what a LoRA does, each checked, nothing imported from it.

The file has a schema of its own here: every known key has one type, and "32" as text is no number. Settings that would
change the meaning of the factors and are not supported (biases, other methods) are refused by name. A key that no known
version of PEFT writes is never used, and is said. Patterns are the file's own expressions and have a time limit. For
factors that are known, `settings_of` writes the file, from the rank and scale of each layer.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import regex
from pydantic import BaseModel, ConfigDict, Field, StrictBool
from torch import nn

from rankwise.adapters.base_layers import kind_of
from rankwise.adapters.formats.tensors import check_there, validated
from rankwise.adapters.weights import Factors
from rankwise.config.adapters import Rank
from rankwise.config.base import Number
from rankwise.config.expressions import first_matching, matches_of
from rankwise.errors import AdapterError, one_line, some
from rankwise.kernels.linear import is_conv1d
from rankwise.system.foreign_json import GivenTwice, once

NO_TARGETS = "dummy-target-modules"
"""PEFT's target of an adapter that has no factors."""
WrittenAlpha = Annotated[Number, Field(gt=0, le=1e8)]
"""Scale times rank: more than an alpha that is asked for, where it was divided by less than the rank."""
HARMLESS = {"ensure_weight_tying", "eva_config", "layers_pattern", "qalora_group_size"}
"""Keys that record how an adapter was made."""
HARMLESS_TO_ADALORA = HARMLESS | {
    "alpha_pattern", "beta1", "beta2", "deltaT", "orth_reg_weight", "r", "target_r", "tfinal", "tinit", "total_step",
    "use_rslora",
}  # fmt: skip
MERGE = "It is not read. Merge it with PEFT (merge_and_unload) and use the merged model."
FORMS = {
    "lora_bias": "has biases beside its factors, which no other program reads",
    "layer_replication": "repeats layers of the base model",
    "alora_invocation_tokens": "is an activated LoRA, which acts only after certain tokens",
}
"""Settings of what factors do not carry."""
INSIDE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that change weights of the base model."""
UNSUPPORTED = {
    "arrow_config", "corda_config", "kasa_config", "loftq_config", "lora_ga_config", "megatron_config",
    "monteclora_config", "runtime_config", "use_bdlora", "use_qalora", "velora_config",
}  # fmt: skip
"""Keys of PEFT up to 0.21 that change what the factors mean, or the base model."""
TokenIndices = list[Annotated[int, Field(ge=0, lt=1 << 31)]]
TaskType = Literal["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]
_SINGULAR_VALUES = regex.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_E(?:\.[^.]+)?")


class _Common(BaseModel):
    """The settings of both methods."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)

    base_model_name_or_path: str | None = None
    revision: str | None = None
    """The base model's revision."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | str | None = None
    bias: Literal["none"] = "none"
    modules_to_save: list[Annotated[str, Field(min_length=1)]] | None = None
    """Modules that were trained whole."""
    trainable_token_indices: TokenIndices | dict[str, TokenIndices] | None = None
    """Tokens whose rows were trained: in the embedding, or by the name of a table or a head."""
    target_parameters: list[Annotated[str, Field(min_length=1)]] | None = None
    """Parameters that stack the weights of experts, whose factors lie beside those of layers."""
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    """Blocks that have adapters. The factors say it too."""
    task_type: TaskType | None = None
    inference_mode: bool = True
    fan_in_fan_out: bool = False
    megatron_core: Literal["megatron.core"] | None = None
    auto_mapping: dict[str, str | None] | None = None
    """The class of the base model. PEFT imports it; nothing is imported here."""
    peft_version: str | None = None

    def tokens_of(self, path: str) -> list[int] | None:
        """The tokens whose rows were trained in the module at this path."""
        indices = self.trainable_token_indices
        if not isinstance(indices, dict):
            return indices
        return next((ids for name, ids in indices.items() if f".{path}".endswith(f".{name}")), None)

    @property
    def trained_tokens(self) -> list[int]:
        indices = self.trainable_token_indices or []
        every = indices.values() if isinstance(indices, dict) else [indices]
        return sorted({number for ids in every for number in ids})

    @property
    def layers(self) -> list[str]:
        """The targets that are layers."""
        return [] if self.target_modules == "all-linear" else self._targets

    @property
    def _targets(self) -> list[str]:
        return [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules or []

    def meant(self, paths: list[str]) -> set[str]:
        """The paths of a model's layers that the targets select; empty where the settings alone do not tell."""
        if self._targets in ([], ["all-linear"], [NO_TARGETS]) or self.exclude_modules:
            return set()
        if self.layers_to_transform is not None:
            return set()
        outside = [path for path in paths if not any(is_inside(path, name) for name in self.modules_to_save or [])]
        return {path for matching in matches_of(self._targets, outside, "target_modules").values() for path in matching}

    def unmatched(self, paths: list[str]) -> list[str]:
        """List declared targets that have no factors, and factors that no target declares."""
        targets = self._targets
        if self.target_modules in (None, "all-linear") or (targets == [NO_TARGETS] and not paths):
            return []
        matches = matches_of(targets, paths, "target_modules")
        missing = [
            f'the target "{one_line(name)}" has no factors'
            for name, matching in matches.items()
            if not self.exclude_modules and not matching
        ]
        declared = {path for matching in matches.values() for path in matching}
        return missing + [f'"{path}" is not among the targets' for path in paths if path not in declared]


class PeftLoraConfig(_Common):
    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: WrittenAlpha
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, WrittenAlpha] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Literal[True, False, "gaussian", "eva", "orthogonal", "mica"] | None = True
    """The other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights as well."""

    @property
    def parts(self) -> str:
        """What the file has of each layer: A, B, and DoRA's magnitude."""
        return "ABm" if self.use_dora else "AB"

    def ranks_of(self, paths: list[str]) -> tuple[dict[str, int], list[str]]:
        return first_matching(self.rank_pattern or {}, paths, "rank_pattern", self.r), []

    def scales_of(self, paths: list[str]) -> dict[str, float]:
        ranks, _ = self.ranks_of(paths)
        alphas = first_matching(self.alpha_pattern or {}, paths, "alpha_pattern", self.lora_alpha)
        return {path: alphas[path] / (math.sqrt(rank) if self.use_rslora else rank) for path, rank in ranks.items()}


class PeftAdaLoraConfig(_Common):
    """rsLoRA and alpha_pattern have no effect on PEFT's AdaLoRA, and have none here."""

    peft_type: Literal["ADALORA"]
    init_r: Rank
    lora_alpha: float = Field(ge=-1e6, le=1e6)
    rank_pattern: dict[str, list[StrictBool]] | None = None
    """By `<path>.lora_E`: which of the init_r rows are left. Saving takes the others out."""
    use_dora: Literal[False] = False
    init_lora_weights: Literal[True, False] | None = True
    target_parameters: Annotated[list[str], Field(max_length=0)] | None = None
    parts: ClassVar[str] = "ABE"

    def scales_of(self, paths: list[str]) -> dict[str, float]:
        """The scale of the trained model, whatever is left of its ranks; init_r stands in for an alpha of 0 or less."""
        scale = (self.lora_alpha if self.lora_alpha > 0 else self.init_r) / (self.init_r + 1e-5)
        return dict.fromkeys(paths, scale)

    def ranks_of(self, paths: list[str]) -> tuple[dict[str, int], list[str]]:
        """Return what is left of each layer's rank, and what is wrong with the pattern that says so."""
        ranks, problems = dict.fromkeys(paths, self.init_r), []
        for key, rows in (self.rank_pattern or {}).items():
            match = _SINGULAR_VALUES.fullmatch(key)
            if match is None or match["path"] not in ranks:
                problems.append(f'rank_pattern "{key}" is for a layer that has no weights in the file')
            elif len(rows) != self.init_r:
                problems.append(f'rank_pattern "{key}" has {len(rows)} entries, but init_r is {self.init_r}')
            else:
                ranks[match["path"]] = sum(rows)
        return ranks, problems


PeftConfig = PeftLoraConfig | PeftAdaLoraConfig


def is_inside(path: str, module: str) -> bool:
    """Whether a path leads through a module of this name, or is one: `a.b` is inside `a`, `b` and `a.b`."""
    return f".{module}." in f".{path}."


def tidy(alpha: float) -> float | int:
    """alpha as the user gave it: an integer where it is one (some engines read nothing else)."""
    rounded = round(alpha, 9)
    return int(rounded) if rounded == int(rounded) else alpha


def commonest(values: dict[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def pattern_of(values: dict[str, Any]) -> dict[str, Any]:
    """Whole paths as expressions, longer ones first, since a short path may be the end of a longer one."""
    return {path.replace(".", r"\."): values[path] for path in sorted(values, key=lambda path: (-len(path), path))}


def read_settings(file: Path) -> dict[str, Any]:
    """The file as it stands, as long as it is one of PEFT's."""
    check_there(file, "; an adapter is a folder with this file and adapter_model.safetensors.")
    try:
        raw: Any = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once)
    except GivenTwice as error:
        raise AdapterError(f"{file} has the key {one_line(str(error))} twice, so it is unclear which counts.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{file} is not JSON ({type(error).__name__}).") from None
    if not isinstance(raw, dict) or "peft_type" not in raw:
        raise AdapterError(f"{file} has no peft_type, so this is not a PEFT adapter.")
    return raw


def check_config(settings: dict[str, Any], file: Path) -> PeftConfig:
    if (form := next((key for key in FORMS if settings.get(key)), None)) is not None:
        raise AdapterError(f"{file} sets {form}: the adapter {FORMS[form]}. {MERGE}")
    if (start := str(settings.get("init_lora_weights"))).lower().startswith(INSIDE):
        raise AdapterError(
            f'{file} sets init_lora_weights to "{one_line(start)}": training began by changing weights of the base '
            "model, so the factors alone are not the change. Save it again with PEFT as a plain LoRA: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=INITIAL), where INITIAL is the adapter as it "
            "was before training."
        )
    kind = PeftAdaLoraConfig if settings["peft_type"] == "ADALORA" else PeftLoraConfig
    unsupported = sorted(key for key in UNSUPPORTED if settings.get(key))
    if unsupported:
        raise AdapterError(
            f"{file} sets {some(map(repr, unsupported))}, which rankwise does not support, so the adapter is not used."
        )
    return validated(kind, settings, str(file))


def unknown_keys(settings: dict[str, Any], config: PeftConfig) -> list[str]:
    """A warning for the keys that are set and that no known version of PEFT writes."""
    harmless = HARMLESS_TO_ADALORA if isinstance(config, PeftAdaLoraConfig) else HARMLESS
    known = harmless | UNSUPPORTED | FORMS.keys() | type(config).model_fields.keys()
    unknown = [repr(one_line(key, 40)) for key, value in settings.items() if value and key not in known]
    if not unknown:
        return []
    version = f" (it was written by PEFT {one_line(config.peft_version, 20)})" if config.peft_version else ""
    return [
        f"adapter_config.json sets {some(unknown, 4)}, which this version of rankwise does not know and does not "
        f"use{version}; if that changes what the adapter means, its answers will be wrong"
    ]


COMMON: dict[str, Any] = {
    "alpha_pattern": {}, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layers_pattern": None, "layers_to_transform": None, "peft_type": "LORA", "rank_pattern": {}, "use_dora": False,
    "use_rslora": False,
}  # fmt: skip


def settings_of(
    factors: Mapping[str, Factors], layers: Mapping[str, nn.Module], modules: Collection[str]
) -> dict[str, Any]:
    """`layers` are those with factors, and `modules` the paths of all. `r` is the largest rank, since engines make room
    by it, and `lora_alpha` that of a layer which has it: lora_alpha / r, all that some engines read, is then the scale
    wherever all layers have one. Stacked experts are named as `target_parameters`."""
    if not factors:  # PEFT lays no factors for a target of this name, and reads the heads alone
        return {**COMMON, "lora_alpha": 1, "r": 1, "target_modules": NO_TARGETS}
    ranks = {path: part.rank for path, part in factors.items()}
    alphas = {path: tidy(part.scale * part.rank) for path, part in factors.items()}
    rank = max(ranks.values())
    alpha = commonest({path: alphas[path] for path in ranks if ranks[path] == rank})
    experts = [path for path, part in factors.items() if part.experts]
    named = {"target_parameters": _parameter_names(experts, modules)} if experts else {}
    linear = modules
    if isinstance(modules, Mapping):
        linear = [path for path, module in modules.items() if kind_of(module) != "experts"]
    return {
        **COMMON,
        "alpha_pattern": pattern_of({path: value for path, value in alphas.items() if value != alpha}),
        "fan_in_fan_out": all(map(is_conv1d, layers.values())),
        "lora_alpha": alpha,
        "r": rank,
        "rank_pattern": pattern_of({path: value for path, value in ranks.items() if value != rank}),
        "target_modules": _target_names([path for path in factors if path not in experts], linear),
        "use_dora": any(part.magnitude is not None for part in factors.values()),
        **named,
    }


def settings_after(settings: Mapping[str, Any], factors: Mapping[str, Factors]) -> dict[str, Any]:
    """PEFT's settings after `factors` have replaced the ones that `settings` describe. Layers are named by their whole
    paths, since no model is at hand."""
    same = ("base_model_name_or_path", "fan_in_fan_out", "lora_dropout", "modules_to_save", "revision", "task_type")
    stays = {"fan_in_fan_out": False} | {key: settings[key] for key in same if key in settings}
    return dict(sorted((settings_of(factors, {}, ()) | stays).items()))


def _target_names(paths: list[str], modules: Collection[str]) -> list[str]:
    """Last names where they select exactly these layers, whole paths elsewhere."""
    leaves = {path.rpartition(".")[2] for path in paths}
    selected = [path for path in modules if path.rpartition(".")[2] in leaves]
    return sorted(leaves if set(selected) == set(paths) else paths)


def _parameter_names(paths: list[str], modules: Iterable[str]) -> list[str]:
    """The last two names where they select exactly these parameters, whole paths elsewhere."""
    ends = {".".join(path.split(".")[-2:]) for path in paths}
    selected = {path for path in modules if any(path == end or path.endswith(f".{end}") for end in ends)}
    return sorted(ends if selected == set(paths) else paths)
