"""The dtype for measurements: float32 on a CPU, unless the user chooses another.

In float32, answers do not depend on the batch size and measurements contain no bfloat16 rounding. So `evaluate` and
`strength` report the same KL for the same run.
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
