"""adapter_config.json as data: only the keys that say what a LoRA does, each checked, nothing imported from it.

What would change the meaning of the factors and is not supported (DoRA, biases, saved modules, other methods) is
refused by name, and so is every key that is set and not known to be harmless: keys that only record how an adapter
was made are passed over, and nothing else is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankwise.adapters.targets import matcher
from rankwise.errors import AdapterError, some
from rankwise.spec.adapters import Alpha, Rank
from rankwise.spec.spec import problems_of

LARGEST = 5_000_000
HARMLESS = {
    "auto_mapping", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "task_type",
}  # fmt: skip


class PeftConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    peft_type: Literal["LORA"]
    base_model_name_or_path: str | None = None
    r: Rank
    lora_alpha: Alpha
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | str | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool = False
    use_dora: Literal[False] = False
    lora_bias: Literal[False] = False
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True, False, "gaussian", "eva", "orthogonal", "mica"] | None = True
    """The other ways to begin (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights as well."""
    modules_to_save: Annotated[list[str], Field(max_length=0)] | None = None
    trainable_token_indices: Annotated[list[int], Field(max_length=0)] | None = None
    target_parameters: Annotated[list[str], Field(max_length=0)] | None = None
    layer_replication: None = None

    def rank_of(self, path: str) -> int:
        return _first(self.rank_pattern, path, "rank_pattern", self.r)

    def alpha_of(self, path: str) -> float:
        return _first(self.alpha_pattern, path, "alpha_pattern", self.lora_alpha)

    def unmatched(self, paths: list[str]) -> list[str]:
        """Declared targets that no factor is for, and factors that no target declares."""
        targets = self.target_modules
        if targets is None or targets == "all-linear":
            return []
        names = [targets] if isinstance(targets, str) else targets
        meant = [matcher(target, "target_modules") for target in names]
        missing = [
            f'target "{name}" has no factors'
            for name, matches in zip(names, meant, strict=True)
            if not any(map(matches, paths))
        ]
        undeclared = [
            f'"{path}" is not among its targets' for path in paths if not any(matches(path) for matches in meant)
        ]
        return missing + undeclared


def _first(pattern: dict[str, Any] | None, path: str, said_in: str, otherwise: Any) -> Any:
    return next((value for key, value in (pattern or {}).items() if matcher(key, said_in)(path)), otherwise)


def read_config(file: Path) -> PeftConfig:
    if not file.is_file():
        raise AdapterError(f"{file} is missing; an adapter is a folder with this file and adapter_model.safetensors.")
    if file.stat().st_size > LARGEST:
        raise AdapterError(f"{file} has {file.stat().st_size:,} bytes, too many for an adapter's settings.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file} is not JSON ({type(error).__name__}).") from None
    if not isinstance(raw, dict) or "peft_type" not in raw:
        mlx = (
            " It looks like mlx-lm's, which is another format."
            if isinstance(raw, dict) and "lora_parameters" in raw
            else ""
        )
        raise AdapterError(f"{file} has no peft_type, so it is no PEFT adapter.{mlx}")
    unknown = [key for key, value in raw.items() if value and key not in HARMLESS | PeftConfig.model_fields.keys()]
    if unknown:
        raise AdapterError(
            f"{file} sets {some(map(repr, unknown))}, whose effect is not known here, so it is not used."
        )
    try:
        return PeftConfig.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(problem.rstrip(".") for problem in problems_of(error, PeftConfig))
        raise AdapterError(f"{file}: {problems}.") from None
