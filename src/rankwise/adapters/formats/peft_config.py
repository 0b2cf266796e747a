"""adapter_config.json as data: only the keys that say what a LoRA does, each checked, nothing imported from it.

Settings that would change the meaning of the factors and are not supported (biases, other methods) are refused by name,
and so is every key that is set and not known to be harmless: only keys that record how an adapter was made are ignored.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import regex
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from rankwise.config.adapters import Rank
from rankwise.config.base import Number, problems_of
from rankwise.config.matching import matcher
from rankwise.errors import AdapterError, some

LARGEST = 5_000_000
NO_TARGETS = "dummy-target-modules"
"""PEFT's target of an adapter that has no factors."""
WrittenAlpha = Annotated[Number, Field(gt=0, le=1e8)]
"""Scale times rank: more than an alpha that is asked for, where it was divided by less than the rank."""
HARMLESS = {
    "auto_mapping", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "megatron_core", "peft_version", "qalora_group_size",
    "task_type",
}  # fmt: skip
HARMLESS_TO_ADALORA = HARMLESS | {
    "alpha_pattern", "beta1", "beta2", "deltaT", "orth_reg_weight", "r", "target_r", "tfinal", "tinit", "total_step",
    "use_rslora",
}  # fmt: skip
_SINGULAR_VALUES = regex.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_E(?:\.[^.]+)?")


class _Common(BaseModel):
    """The settings of both methods."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    base_model_name_or_path: str | None = None
    revision: str | None = None
    """The base model's revision."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | str | None = None
    lora_bias: Literal[False] = False
    bias: Literal["none"] = "none"
    modules_to_save: list[Annotated[str, Field(min_length=1)]] | None = None
    """Modules that were trained whole."""
    trainable_token_indices: Annotated[list[int], Field(max_length=0)] | None = None
    target_parameters: Annotated[list[str], Field(max_length=0)] | None = None
    layer_replication: None = None
    exclude_modules: list[str] | str | None = None

    def unmatched(self, paths: list[str]) -> list[str]:
        """List declared targets that have no factors, and factors that no target declares."""
        targets = self.target_modules
        if targets in (None, "all-linear") or (targets == NO_TARGETS and not paths):
            return []
        names = [targets] if isinstance(targets, str) else targets
        meant = [matcher(target, "target_modules") for target in names]
        missing = [
            f'the target "{name}" has no factors'
            for name, matches in zip(names, meant, strict=True)
            if not self.exclude_modules and not any(map(matches, paths))
        ]
        undeclared = [
            f'"{path}" is not among the targets' for path in paths if not any(matches(path) for matches in meant)
        ]
        return missing + undeclared


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
        return {path: self._rank_of(path) for path in paths}, []

    def scale_of(self, path: str) -> float:
        rank, alpha = self._rank_of(path), _first(self.alpha_pattern, path, "alpha_pattern", self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def _rank_of(self, path: str) -> int:
        return _first(self.rank_pattern, path, "rank_pattern", self.r)


class PeftAdaLoraConfig(_Common):
    """rsLoRA and alpha_pattern have no effect on PEFT's AdaLoRA, and have none here."""

    peft_type: Literal["ADALORA"]
    init_r: Rank
    lora_alpha: float = Field(ge=-1e6, le=1e6)
    rank_pattern: dict[str, list[StrictBool]] | None = None
    """By `<path>.lora_E`: which of the init_r rows are left. Saving takes the others out."""
    use_dora: Literal[False] = False
    init_lora_weights: Literal[True, False] | None = True
    parts: ClassVar[str] = "ABE"

    def scale_of(self, path: str) -> float:
        """The scale of the trained model, whatever is left of its ranks; init_r stands in for an alpha of 0 or less."""
        return (self.lora_alpha if self.lora_alpha > 0 else self.init_r) / (self.init_r + 1e-5)

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


def _first(pattern: dict[str, Any] | None, path: str, setting: str, otherwise: Any) -> Any:
    return next((value for key, value in (pattern or {}).items() if matcher(key, setting)(path)), otherwise)


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
    if not file.is_file():
        raise AdapterError(f"{file} is missing; an adapter is a folder with this file and adapter_model.safetensors.")
    if file.stat().st_size > LARGEST:
        raise AdapterError(
            f"{file} has {file.stat().st_size:,} bytes, which is too large for the settings of an adapter."
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file} is not JSON ({type(error).__name__}).") from None
    if not isinstance(raw, dict) or "peft_type" not in raw:
        mlx = (
            " It looks like an adapter of mlx-lm, which is another format."
            if isinstance(raw, dict) and "lora_parameters" in raw
            else ""
        )
        raise AdapterError(f"{file} has no peft_type, so this is not a PEFT adapter.{mlx}")
    return raw


def read_config(file: Path) -> PeftConfig:
    return check_config(read_settings(file), file)


def check_config(settings: dict[str, Any], file: Path) -> PeftConfig:
    kind, harmless = PeftLoraConfig, HARMLESS
    if settings["peft_type"] == "ADALORA":
        kind, harmless = PeftAdaLoraConfig, HARMLESS_TO_ADALORA
    unknown = [key for key, value in settings.items() if value and key not in harmless | kind.model_fields.keys()]
    if unknown:
        raise AdapterError(
            f"{file} sets {some(map(repr, unknown))}, which rankwise does not support, so the adapter is not used."
        )
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(problem.rstrip(".") for problem in problems_of(error, kind))
        raise AdapterError(f"{file}: {problems}.") from None
