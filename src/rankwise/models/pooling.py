"""One vector of a text for the head of a classifier, in place of what the model's own code would read.

    mean    sum of the hidden states of all tokens / their number        max    their largest values
    cls     the hidden state of the first token

Each is scaled to mean 0 and variance 1 over its numbers. The body of the model gives this vector as the state of every
token and as the output of its pooler, so whichever of them the model's head takes, it reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.runs.target_facts import Pooling


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Hidden states (B, T, D) and the mask (B, T) of real tokens to (B, D)."""
    states, real = states.float(), mask[..., None].bool()
    if pooling == "mean":
        found = states.masked_fill(~real, 0).sum(1) / real.sum(1)
    elif pooling == "max":
        found = states.masked_fill(~real, -float("inf")).amax(1)
    else:
        found = states[:, 0]
    return F.layer_norm(found, found.shape[-1:], eps=1e-12)


def read_pooled(module: nn.Module, pooling: Pooling) -> None:
    """From here on the head of a classifier reads the pooled vector; with `own` what it always reads. The body's own
    pooler goes: it would neither learn nor be read."""
    if pooling == "own":
        return
    body: Any = getattr(module, str(module.base_model_prefix))

    def replace(_: nn.Module, __: Any, given: dict[str, Any], outputs: Any) -> Any:
        states, mask = outputs.last_hidden_state, given.get("attention_mask")
        real = torch.ones_like(states[..., 0]) if mask is None else mask
        vector = pooled(states, real, pooling).to(states.dtype)
        if hasattr(outputs, "pooler_output"):
            outputs.pooler_output = vector
        outputs.last_hidden_state = vector[:, None].expand_as(states)
        return outputs

    if isinstance(getattr(body, "pooler", None), nn.Module):
        body.pooler = None
    body.register_forward_hook(replace, with_kwargs=True)
