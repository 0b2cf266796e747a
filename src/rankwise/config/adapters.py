"""Settings of the fine-tuning method: LoRA, AdaLoRA, full fine-tuning of the whole model, or a new head alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rankwise.config.base import Flag, Label, Number, PositiveInt, listed
from rankwise.config.matching import by_pattern, parse_layers, select, split_names
from rankwise.config.method import ASKED_SEPARATELY, Card, Form, MethodConfig
from rankwise.config.models import ModelConfig
from rankwise.config.modules import AUTO, BEFORE, Heads, Layer, Modules, Selection
from rankwise.config.parameters import (
    NO_HEADS,
    PREFIX,
    BudgetKind,
    Parameters,
    PlannedLayer,
    bytes_of,
    parse_budget,
    with_budget,
    with_ranks,
)
from rankwise.errors import ConfigError

Rank = Annotated[int, Field(ge=1, le=4096, strict=True)]
Alpha = Annotated[Number, Field(gt=0, le=1e6)]
Start = Literal["zero", "orthonormal", "gaussian"]
ExportFormat = Literal["peft", "portable", "mlx", "merged", "gguf-lora", "gguf", "ollama", "onnx"]


EXTRACTED = (
    "{model} trained an adapter, so there is nothing to extract. Use rankwise merge --rank with --as-adapter to lower "
    "its rank."
)


ONLY_ROWS = "{} is for linear layers and Conv1D, and the targets include {}. Leave these out, or {}."


class AdapterConfig(MethodConfig):
    """Settings that LoRA and AdaLoRA share.

    Targets and the keys of patterns select modules by path. A word of letters, digits, `_`, `.` and `-` matches the end
    of a path. Anything else is a regular expression, which must match the whole path or its end after a dot.
    """

    artifact = "adapter"
    cannot: ClassVar[Mapping[str, str]] = {"extracted": EXTRACTED}
    auto_rate = 2e-3
    classifier_rate = 3e-4
    image_rate = 4.2e-4
    dropout: Annotated[Number, Flag("--dropout"), Label("Dropout", "more")] = Field(0.0, ge=0, lt=1)
    """Dropout probability on the input of each adapter during training."""
    targets: Annotated[
        tuple[str, ...],
        Flag("--targets", "all-linear, or all-conv for a model without linear layers"),
        Label("Layers to adapt", "more"),
    ] = (AUTO,)
    """Layers that get an adapter: `all-linear`, `all-conv`, names or a regular expression. `all-linear` selects every
    linear layer except the output head, and `all-conv` every two-dimensional convolution except those that read the
    image itself. `auto` is `all-linear`, or `all-conv` for a model without linear layers. Otherwise give names or
    regular expressions, such as `q_proj,experts.down_proj`."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None, Flag("--layers", "all")] = None
    """Transformer blocks that get adapters: `0-3,7`, or a list of numbers. By default all blocks."""

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_as_list(cls, value: object) -> object:
        if isinstance(value, str):
            value = split_names(value)
        if isinstance(value, list | tuple) and (not value or not all(value)):
            raise ValueError("name at least one layer, all-linear or all-conv")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_as_numbers(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,)
        return parse_layers(value) if isinstance(value, str) else value

    def select(self, modules: Modules) -> Selection:
        return select(modules, self.targets, self.layers, only_rows=self.only_rows, settings=dict(self))


class LoraConfig(AdapterConfig):
    """LoRA and its variants: delta W = (alpha / rank) B A.

    The defaults follow Schulman et al. 2025 ("LoRA Without Regret"): every linear layer, alpha 32.
    """

    cards = (
        Card("lora", "LoRA", "Trains two small matrices beside each layer; the usual choice, small and quick.",
             {"adapter.method": "lora"}),
        Card("dora", "DoRA", "LoRA that trains the length of each weight vector apart from its direction; a little "
             "slower.", {"adapter.method": "lora", "adapter.dora": True}),
        Card("eva", "LoRA, started by EVA", "LoRA that begins with the main directions of your rows, and gives more "
             "rank to layers that need it.", {"adapter.method": "lora", "adapter.start": "eva"}),
    )  # fmt: skip
    named = "lora"
    full_takes: ClassVar[Mapping[str, float]] = {"fused": 6.2, "eager": 2.5}
    smaller = ("adapter.rank=4",)
    text_rate = 7.2e-4
    method: Literal["lora"] = "lora"
    """The method these settings belong to."""
    rank: Annotated[Rank, Flag("--rank"), Label("Rank", "knobs")] = 16
    """LoRA rank: the inner dimension of the adapter's two matrices, A and B. A higher rank trains more parameters."""
    alpha: Annotated[Alpha, Flag("--alpha"), Label("Alpha", "more")] = 32.0
    """LoRA alpha: each layer's update is scaled by alpha / rank."""
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    """Ranks for single layers, as `{pattern: rank}`. The first pattern that matches a layer applies."""
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)
    """Alphas for single layers, as `{pattern: alpha}`. The first pattern that matches a layer applies."""
    start: Literal["uniform", "eva"] = "uniform"
    """Initial values of A. `uniform` draws them at random. `eva` (Paischer et al. 2024) takes the principal directions
    of each layer's inputs on the training rows, and gives more rank to layers whose inputs they explain better. The
    number of parameters does not rise."""
    eva_rho: Number = Field(2.0, ge=1)
    """Largest rank of one layer under `eva`, as a multiple of its own rank. 1 keeps the ranks equal."""
    eva_batches: PositiveInt = 8
    """Number of micro-batches that `eva` reads, at most one pass over the training rows."""
    scaling: Literal["rank", "sqrt-rank"] = "rank"
    """Divisor of alpha in the scale. `sqrt-rank` is rank-stabilised LoRA (arXiv 2312.03732)."""
    b_rate: Number = Field(1.0, gt=0, le=1e3)
    """Learning rate of B as a multiple of the learning rate of A (LoRA+, arXiv 2402.12354). On an embedding, A is the
    matrix that starts at zero, and the multiple applies to A."""
    dora: bool = False
    """DoRA (arXiv 2402.09353): train the length of each output's weight vector separately from its direction. It works
    on linear layers and Conv1D, and not together with a second adapter."""

    @property
    def label(self) -> str:
        return "DoRA" if self.dora else "LoRA"

    @property
    def only_rows(self) -> str:
        return ONLY_ROWS.format("dora", "{}", "set adapter.dora=false") if self.dora else ""

    def without_rows(self) -> Self:
        return self.model_copy(update={"start": "uniform"})

    def ranks_and_scales(self, paths: list[str]) -> list[tuple[int, float]]:
        """Rank and scale of the adapter at each path."""
        ranks = by_pattern(paths, self.rank_pattern, self.rank, "rank_pattern")
        alphas = by_pattern(paths, self.alpha_pattern, self.alpha, "alpha_pattern")
        return [
            (int(rank), alpha / (math.sqrt(rank) if self.scaling == "sqrt-rank" else rank))
            for rank, alpha in zip(ranks, alphas, strict=True)
        ]

    def parameters(self, total: int, layers: Sequence[Layer], heads: Heads = NO_HEADS) -> Parameters:
        ranks = [rank for rank, _ in self.ranks_and_scales([layer.path for layer in layers])]
        return with_ranks(total, layers, ranks, heads, dora=self.dora, exact=self.start != "eva")


class AdaLoraConfig(AdapterConfig):
    """AdaLoRA (Zhang et al. 2023): delta W = scale P^T diag(strength) Q, with more rank for the layers that need it.

    A triplet is a row of P, a row of Q and their singular value (strength). Training starts with more triplets than
    the budget and prunes the least important ones. The phases are given as shares of the run. `compat: reference`
    makes the defaults those of the authors' code: no shrinking, their penalty, their initial values, one learning
    rate.
    """

    cards = (
        Card("adalora", "AdaLoRA", "Begins with more rank than the budget and prunes what matters least, layer by "
             "layer.", {"adapter.method": "adalora"}),
    )  # fmt: skip
    named = "adalora"
    tags = ("adalora",)
    averages = 2
    smaller = ("adapter.budget=2",)
    method: Literal["adalora"] = "adalora"
    """The method these settings belong to."""
    budget: Annotated[str, Flag("--budget"), Label("Budget", "knobs")] = "8"
    """AdaLoRA budget, the adapter's size at the end of training: a mean rank (`8`), a number of `1680 triplets` or
    `600k parameters`, or a file size (`2MB`)."""
    initial: Number = Field(1.5, ge=1, le=16)
    """Size of the adapter at the first step, as a multiple of the budget."""
    scale: Number = Field(2.0, gt=0, le=1e4)
    """Scale of each layer's update. It corresponds to alpha / rank in LoRA."""
    warmup: Number = Field(0.1, ge=0, lt=1)
    """Share of the steps before pruning begins."""
    final: Number = Field(0.4, ge=0, lt=1)
    """Share of the steps after pruning, in which the ranks no longer change."""
    interval: PositiveInt | Literal["auto"] = "auto"
    """Steps between prunings. `auto` is 1/200 of the run, at most 100."""
    beta1: Number = Field(0.85, gt=0, lt=1)
    """Decay of the moving average of each parameter's sensitivity."""
    beta2: Number = Field(0.85, gt=0, lt=1)
    """Decay of the moving average of each sensitivity's uncertainty."""
    orthogonality: Number = Field(0.0, ge=0)
    """Weight of the penalty that keeps the rows of P and of Q orthonormal, for a `start` other than `zero`, with which
    the default is 0.001. Reported losses do not include the penalty. With 0.001, the rows stayed orthonormal within 2 %
    on the starter model. The authors' 0.1 made a worse model (lab/adalora.md)."""
    penalty: Literal["paper", "reference"] = "paper"
    """Form of that penalty. `paper` sums squared norms; `reference` averages norms, as the authors' code does."""
    importance: Literal["after", "before"] = "after"
    """When importance is measured: `after` the optimizer step, as in the authors' code, or `before` it, as in the
    paper."""
    strength_rate: Number = Field(1.0, gt=0, le=1e3)
    """Learning rate of the singular values, as a multiple of the learning rate of P and Q. With a `start` other than
    `zero` the default is 32."""
    budget_unit: Literal["triplets", "parameters"] = "triplets"
    """How triplets compete. With `parameters`, importance is divided by the number of parameters, so that a triplet
    of a narrow layer costs less than one of a wide layer. A budget in parameters or bytes always works this way."""
    start: Start = "zero"
    """Initial values. With `zero`, P starts at zero, as LoRA's B does, the rows of Q are orthogonal and as long as
    those of LoRA's A, and the singular values are 1. With `orthonormal` and `gaussian` (standard deviation 0.02), P and
    Q are random and the singular values zero, as in the paper; these forgot far more (lab/adalora_keeping.md)."""
    shrink: bool = True
    """Remove pruned triplets from the matrices when pruning has ended. If false, they stay and are set to zero at each
    step."""

    @property
    def label(self) -> str:
        return "AdaLoRA"

    @property
    def written_as(self) -> str:
        return "AdaLoRA, written as LoRA"

    @model_validator(mode="before")
    @classmethod
    def _compat(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = dict(value)
        if "compat" in given:
            if given.pop("compat") != "reference":
                raise ValueError("the only value of compat is reference")
            given = REFERENCE | given
        return given if given.get("start", "zero") == "zero" else STRENGTHS_AT_ZERO | given

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_as_text(cls, value: object) -> object:
        text = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value
        if isinstance(text, str):
            parse_budget(text)
        return text

    @property
    def prunes(self) -> bool:
        """Whether the phases leave steps for it."""
        return self.warmup + self.final < 1

    @property
    def parsed_budget(self) -> tuple[BudgetKind, float]:
        return parse_budget(self.budget)

    @property
    def mean_rank_share(self) -> float:
        """Training computes with the first ranks until they are decided, and then with what is left, if the rest is
        taken out."""
        mean = self.initial * (1 - self.final) + self.final if self.shrink else self.initial
        return mean / self.initial

    def parameters(self, total: int, layers: Sequence[Layer], heads: Heads = NO_HEADS) -> Parameters:
        return with_budget(total, layers, self, self.initial, heads)

    def step_operations(self, layer: Layer, rank: float) -> float:
        """The penalty: P^T P and Q Q^T, and as much for their gradient."""
        return 4.0 * rank**2 * (layer.inputs + layer.outputs) if self.orthogonality else 0.0


class VeraConfig(AdapterConfig):
    """VeRA (Kopiczko et al. 2023): delta W = diag(b) B diag(d) A, over linear layers and Conv1D.

    A and B are random, frozen, and shared by all layers. Each layer trains the vectors d and b.
    """

    cards = (
        Card("vera", "VeRA", "Trains two vectors for each layer over random matrices that all share: the fewest "
             "parameters.", {"adapter.method": "vera"}),
    )  # fmt: skip
    named = "vera"
    tags = ("vera",)
    smaller = ("adapter.rank=16",)
    auto_rate = 2e-2
    method: Literal["vera"] = "vera"
    """The method these settings belong to."""
    rank: Annotated[Rank, Flag("--rank"), Label("Rank", "knobs")] = 256
    """VeRA rank: the inner dimension of the shared random matrices A and B. A higher rank costs memory but adds few
    trained parameters."""
    d_initial: Annotated[Number, Field(gt=0, le=1e4)] = 0.1
    """Initial value of each entry of d; b starts at zero."""

    @property
    def label(self) -> str:
        return "VeRA"

    @property
    def only_rows(self) -> str:
        return ONLY_ROWS.format("VeRA", "{}", "choose --method lora")

    def check_heads(self, heads: Iterable[str]) -> None:
        """ConfigError where modules are to be trained whole."""
        if names := list(heads):
            raise ConfigError([
                f"VeRA stores the vectors of layers alone, and the head {names[0]} would be trained beside them. "
                "Choose --method lora."
            ])  # fmt: skip

    def parameters(self, total: int, layers: Sequence[Layer], heads: Heads = NO_HEADS) -> Parameters:
        """The two matrices are in the file and in memory once; a step has those of each layer with their vectors."""
        self.check_heads(heads)
        inside, outside = max(layer.inputs for layer in layers), max(layer.outputs for layer in layers)
        adapted = tuple(PlannedLayer(layer, (self.rank,), self.rank + layer.outputs) for layer in layers)
        tensors: list[tuple[str, tuple[int, ...]]] = [
            (f"{PREFIX}{layer.path}.vera_lambda_{part}", (size,))
            for layer in layers for part, size in (("b", layer.outputs), ("d", self.rank))
        ]  # fmt: skip
        tensors += [("base_model.vera_A", (self.rank, inside)), ("base_model.vera_B", (outside, self.rank))]
        trainable, each = sum(one.trainable for one in adapted), sum(layer.inputs + layer.outputs for layer in layers)
        written = trainable + self.rank * (inside + outside)
        sizes = (bytes_of(tensors), bytes_of(tensors, half=True))
        beside = written + self.rank * each // 2  # a step has them in 16 bits
        return Parameters(total, trainable, adapted, written, *sizes, exact=True, in_memory=beside)


NO_FACTORS = "{folder} has no adapter, because it is a result of full fine-tuning. Use --format merged or gguf."
FULL_RESULT = "{model} is a result of full fine-tuning and has no adapter."


class FullConfig(MethodConfig):
    """Full fine-tuning: trains every weight of the model, in float32."""

    cards = (
        Card("full", "Full fine-tuning", "Trains every weight in float32: the most memory, and a whole model as its "
             "result.", {"adapter.method": "full"}),
    )  # fmt: skip
    named = "full (every weight, in float32)"
    artifact = "model"
    cannot: ClassVar[Mapping[str, str]] = {
        "asked beside others": ASKED_SEPARATELY,
        "judged by engines": "The whole model learned, so there is no adapter: every engine loads it as a model.",
        "merged by files": f"{FULL_RESULT} Use rankwise extract to make one of it, or rankwise export --format merged "
        "for the whole model.",
        "combined": FULL_RESULT,
        "continued": "{model} trained the whole model and has no adapter to begin with (--from). Its model is a base "
        "like any other: use --model {value}.",
        **dict.fromkeys(("peft", "portable", "mlx", "gguf-lora"), NO_FACTORS),
    }
    base_gradients = 1
    lowest = BEFORE
    fewer_bits: ClassVar[Mapping[str, str]] = {}
    trial_part = 2
    trial_copies = 5
    lighter_base = (
        "adapter.method=lora", "an adapter is trained instead of the whole model",
    )  # fmt: skip
    auto_rate = 1e-4
    classifier_rate = 6e-5
    method: Literal["full"] = "full"
    """The method these settings belong to."""

    @property
    def label(self) -> str:
        return "full fine-tuning"

    def parameters(self, total: int, layers: Sequence[Layer], heads: Heads = NO_HEADS) -> Parameters:
        return Parameters(total, total, (), 0, None, None, exact=True)

    def loaded(self, base: ModelConfig) -> ModelConfig:
        """Weights that learn are float32 on every device, in full, and in memory."""
        return base.model_copy(update={"dtype": "float32", "quantize": "none", "memory": None})

    def form(self, fastest: Form) -> Form:
        return "plain"

    def learns(self, adapted: str) -> str:
        return "full"


AdaLora = AdaLoraConfig
"""Short name for use from Python: `rankwise.AdaLora(budget=8)`."""
STRENGTHS_AT_ZERO: dict[str, Any] = {"strength_rate": 32.0, "orthogonality": 0.001}
"""Defaults of AdaLoRA whose singular values start at zero."""
REFERENCE: dict[str, Any] = {
    "penalty": "reference", "orthogonality": 0.1, "strength_rate": 1.0, "start": "gaussian", "shrink": False,
    "importance": "after",
}  # fmt: skip


class HeadConfig(MethodConfig):
    """The new head of a classifier alone; the pretrained model stays as it is."""

    cards = (
        Card("head", "Head only", "Trains only the new head of a classifier and leaves the model as it is.",
             {"adapter.method": "head"}),
    )  # fmt: skip
    named = "head (only the new head of a classifier)"
    artifact = "adapter"
    cannot: ClassVar[Mapping[str, str]] = {
        "extracted": EXTRACTED,
        "portable": "{folder} has no adapted layers, so there is no rank that all could have. Use --format peft or "
        "merged.",
    }
    auto_rate = 5e-2
    classifier_rate = 5e-2
    image_rate = 8e-3
    text_rate = 5e-4
    method: Literal["head"] = "head"
    """The method these settings belong to."""

    @property
    def label(self) -> str:
        return "head only"

    def parameters(self, total: int, layers: Sequence[Layer], heads: Heads = NO_HEADS) -> Parameters:
        return with_ranks(total, (), (), heads, dora=False, exact=True)


EVERY = (
    Annotated[LoraConfig, Tag("lora")]
    | Annotated[AdaLoraConfig, Tag("adalora")]
    | Annotated[VeraConfig, Tag("vera")]
    | Annotated[HeadConfig, Tag("head")]
    | Annotated[FullConfig, Tag("full")]
)
"""Every method, under the name that its settings have as `method`. methods/registry.py says what each of them does."""
METHODS: dict[str, type[MethodConfig]] = {row[1].tag: row[0] for row in map(get_args, get_args(EVERY))}
COMPARED = (LoraConfig, AdaLoraConfig, FullConfig)
"""Methods whose memory a plan shows for comparison with the planned method."""


def _method(value: Any) -> Any:
    return value.get("method", "lora") if isinstance(value, dict) else getattr(value, "method", None)


Adapting = Annotated[
    EVERY,
    Discriminator(_method, custom_error_type="method", custom_error_message=f"The method is {listed(METHODS)}"),
    Field(description=f"Choose {listed(config.named for config in METHODS.values())}."),
]
LARGEST_STRENGTH = 10.0


def check_strength(strength: float) -> None:
    """Refuse a factor of an adapter's change, after training, that is negative, NaN or very large."""
    if not 0 <= strength <= LARGEST_STRENGTH:  # so that NaN is refused too
        raise ConfigError([
            f"the strength {strength:g} is out of range: 0 is the base model, 1 the adapter as trained, "
            f"{LARGEST_STRENGTH:g} the maximum."
        ])  # fmt: skip
