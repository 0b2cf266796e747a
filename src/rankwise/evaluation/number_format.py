"""How a model is held while it is measured: in float32 on a processor, unless somebody says otherwise.

There answers do not depend on how many are written at once, and no measure has the rounding of bfloat16 in it; so
`evaluate` and `strength` tell the same KL of the same run.
"""

from __future__ import annotations

from rankwise.config.models import ModelConfig


def held_to_measure(spec: ModelConfig, dtype: str = "auto") -> ModelConfig:
    given = ModelConfig(name=spec.name, dtype=dtype) if dtype != "auto" else None  # pyright: ignore[reportArgumentType]
    exact = "float32" if given is None and _on_processor(spec) else spec.dtype
    return spec.model_copy(update={"dtype": given.dtype if given is not None else exact})


def _on_processor(spec: ModelConfig) -> bool:
    from rankwise.models.precision import choose_precision

    return choose_precision(spec).device.type == "cpu"
