"""Preference tuning: raise the probability of a chosen answer over that of a rejected one to the same prompt.

The model is an ordinary language model and stays one: only what its loss compares is different (pair_losses.py). A row
is a pair of conversations, and a loss is a mean over pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.config.preference import PreferenceConfig
from rankwise.data.batches import Batch
from rankwise.data.pair_batches import flat_pairs, padded_pairs
from rankwise.data.writing import TextWriting
from rankwise.forward.reference import SupervisedLogits, random_documents
from rankwise.models.kind import CAUSAL_LM as KIND
from rankwise.models.kind import ModelKind
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load, load_unchecked
from rankwise.objectives.pair_losses import PAIR_LOSSES, PairLosses
from rankwise.objectives.targets import text_writing
from rankwise.runs.pair_facts import PairFacts
from rankwise.runs.records import Callback
from rankwise.text.encode_pairs import PairEncoder, pair_of
from rankwise.text.rendering import Template
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

NAME = "preference"


@dataclass(frozen=True)
class Preference:
    config: PreferenceConfig
    prompts: bool = False
    """Whether the likelihood of orpo also covers the prompts."""
    name: str = NAME
    targets: None = None
    row_length: None = None
    kind: ModelKind = KIND

    @classmethod
    def of(cls, facts: PairFacts) -> Preference:
        """As a run was trained."""
        return cls(PreferenceConfig(loss=facts.loss, beta=facts.beta), facts.prompts)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model before training."""
        return self.config.loss == "dpo"

    def load(self, spec: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        return (load if checked else load_unchecked)(spec, callback)

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        return ()

    @property
    def facts(self) -> PairFacts:
        """How pairs are learned; nothing is counted yet."""
        return PairFacts(
            loss=self.config.loss, beta=self.config.beta, prompts=self.prompts, rows=0, duplicates=0, contradictions=0,
            ties=0,
        )  # fmt: skip

    def writing(self, model: LoadedModel) -> TextWriting:
        return text_writing(model, self.encoder, pairs=self.facts)

    def encoder(self, template: Template, tokenizer: HubTokenizer, spec: DataConfig, limit: int) -> PairEncoder:
        return PairEncoder(template, tokenizer, spec, limit)

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return padded_pairs(rows, max_tokens, prompts=self.prompts)

    def flat(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """The same without padding, for the fused backend."""
        return flat_pairs(rows, max_tokens, prompts=self.prompts)

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, V) of the targets alone."""
        return SupervisedLogits(module)(batch)

    def losses(self, logs: Tensor, batch: Batch) -> PairLosses:
        """From the log-probabilities (N,) of the batch's targets."""
        assert batch.pairs is not None, "the rows are pairs"
        return PAIR_LOSSES[self.config.loss](logs, batch.pairs, self.config.beta)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return self.losses(log_probabilities(self.predict(module, batch), batch), batch).losses.sum()

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """Pairs of so many tokens in all, with a loss on every token."""
        embeddings = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        halves = [half for length in lengths for half in (max(1, length // 2), max(1, length - length // 2))]
        sides = random_documents(embeddings.num_embeddings, halves, generator)
        return [pair_of(chosen, rejected) for chosen, rejected in zip(sides[::2], sides[1::2], strict=True)]


def log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """(N,) of the batch's targets, in float32 or more."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(exact, batch.targets[batch.loss_mask], reduction="none")
