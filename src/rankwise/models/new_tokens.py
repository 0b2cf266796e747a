"""Rows for tokens that were added to a tokenizer, in the model's embedding and in its output head.

    row of a new token = mean of the rows of the tokens that it was written with before

Many models have more rows than tokens; new tokens take such rows first. Otherwise both tables grow by as many rows as
are missing. The numbers follow from the base and the tokens alone, so that the same base has the same rows wherever it
is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.kernels.quantized.tensor import is_quantized
from rankwise.text.new_tokens import NewTokens


@torch.no_grad()
def give_rows(module: Any, new: NewTokens, where: str) -> None:
    """Give every new token its rows. `where` names the model, for messages."""
    if not new.ids:
        return
    table = module.get_input_embeddings().weight
    if any(map(is_quantized, _tables(module))):
        raise ModelError(
            f"{where} stores its embedding or its output head in fewer bits, so no rows for new tokens can be added "
            "(model.new_tokens). Name the model in full precision, or leave the tokens out."
        )
    most = max(new.ids.values()) + 1
    if most > len(table):
        with torch.random.fork_rng():  # transformers draws the rows, which are written over below
            module.resize_token_embeddings(most, mean_resizing=False)
    for weight in _tables(module):
        for text, number in new.ids.items():
            pieces = torch.tensor(new.pieces[text], device=weight.device)
            weight[number] = weight[pieces].float().mean(0).to(weight.dtype)


def _tables(module: Any) -> list[Tensor]:
    """The weights that have a row for each token, a shared one once."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    weights = [module.get_input_embeddings().weight, *([] if head is None else [head.weight])]
    return list({id(weight): weight for weight in weights}.values())
