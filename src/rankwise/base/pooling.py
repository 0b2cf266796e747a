"""One vector of a text for the head of a classifier, in place of what the model's own code would read.

    mean    sum of the hidden states of all tokens / their number        max    their largest values
    cls     the hidden state of the first token

Each is scaled to mean 0 and variance 1 over its numbers. The body of the model gives this vector as the state of every
token and as the output of its pooler, so whichever of them the model's head takes, it reads it.

For other programs the same is written as one more block (`as_block`). Its attention looks at all tokens alike, so that
it adds a mean, times a large number beside which the token's own state is nothing, and its norm does the scaling.
BERT's own pooler is made the identity: tanh(x) is x for small x.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.errors import ModelError
from rankwise.runs.row_facts import Pooling


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

    def replace(_: nn.Module, __: Any, arguments: dict[str, Any], outputs: Any) -> Any:
        states, mask = outputs.last_hidden_state, arguments.get("attention_mask")
        real = torch.ones_like(states[..., 0]) if mask is None else mask
        vector = pooled(states, real, pooling).to(states.dtype)
        if hasattr(outputs, "pooler_output"):
            outputs["pooler_output"] = vector
        outputs["last_hidden_state"] = vector[:, None].expand_as(states)
        return outputs

    if isinstance(getattr(body, "pooler", None), nn.Module):
        body.pooler = None
    body.register_forward_hook(replace, with_kwargs=True)


@torch.no_grad()
def as_block(module: Any, pooling: Pooling, dtype: torch.dtype) -> None:
    """Add the pooling to a merged model as a block of its own kind, so that the model's own code computes it.
    ModelError where its blocks cannot."""
    from transformers.models.bert.modeling_bert import BertForSequenceClassification, BertPooler

    body = getattr(module, str(module.base_model_prefix))
    blocks = getattr(getattr(body, "encoder", None), "layer", None)
    if pooling == "max" or blocks is None or not hasattr(getattr(blocks[-1], "attention", None), "self"):
        raise ModelError(
            f"the head reads the {pooling} of all tokens (classification.pooling), which a {type(module).__name__} "
            "cannot say in its own weights. Export the adapter with --format peft, whose README has the code that "
            "loads it, or train with --set classification.pooling=own."
        )
    large, small = (2.0**11, 2.0**-7) if dtype == torch.float16 else (2.0**20, 2.0**-12)
    block = deepcopy(blocks[-1])
    for value in block.parameters():
        value.zero_()
    block.attention.self.value.weight.copy_(torch.eye(len(block.attention.self.value.weight)))
    if pooling == "mean":
        block.attention.output.dense.weight.copy_(large * block.attention.self.value.weight)
    for norm in (block.attention.output.LayerNorm, block.output.LayerNorm):
        norm.weight.fill_(1.0)
    blocks.append(block)
    module.config.num_hidden_layers += 1
    if isinstance(module, BertForSequenceClassification):
        body.pooler = BertPooler(module.config).to(block.output.LayerNorm.weight)
        body.pooler.dense.weight.copy_(small * torch.eye(module.config.hidden_size))
        body.pooler.dense.bias.zero_()
        module.classifier.weight.div_(small)
