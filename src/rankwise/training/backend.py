"""A backend computes losses: eager, by the model's own code; fused, by kernels; or compiled, which is fused with its
chains of small operations made into loops by torch's compiler.

A run keeps the backend that it began with, since results differ in rounding. Before a kernel is relied on, the model
itself is asked whether both ways agree. Compiling takes seconds and saves a few hundredths of a run, so a short run
does without. How many blocks recompute their activations follows from the backend and the free memory (workload.py),
changes no number, and is decided anew each time a run begins or goes on.

For classifiers, the kernels compute the blocks of their encoder inside the model's own forward pass.

Weights that are stored in int8, NF4 or a GGUF file are multiplied by inputs in int8 where the processor is faster in
it. What it costs is measured on the first rows of the run, layer by layer,

    e = |y' - y| / |y - mean of y|        y by unpacked weights, y' with products in int8

Each layer multiplies the few columns of its inputs that are farthest above the others by unpacked weights. A layer
whose e is large all the same has no products in int8. Small errors may add up, so outputs and gradients of the whole
model are compared too, and of the layers those that err most are left out, half at a time, until both are near. The
manifest says what was decided. It holds for the whole run and for what is computed with its result later.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rankwise.adapters.token_rows import TokenRows
from rankwise.base.precision import multiplies_int8
from rankwise.base.split import is_sharded
from rankwise.errors import ConfigError, RunError, is_out_of_memory, some
from rankwise.forward.activation_memory import activation_checkpointing
from rankwise.forward.agreement import (
    Agreement,
    Computed,
    agreement,
    check_finite,
    distance,
    encoder_agreement,
    gradients_of,
    moved,
)
from rankwise.forward.encoders import FusedEncoder, encoder_blocks, has_encoder_kernels
from rankwise.forward.fused import (
    PROBED,
    FusedLoss,
    blocks_of,
    first_blocks,
    has_kernels,
    has_weights_that_learn,
    probe,
)
from rankwise.forward.reference import check_packs
from rankwise.kernels.loss import divergence
from rankwise.kernels.quantized.formats import (
    TINY,
    Int8,
    is_compiled,
    multiply_in_int8,
    use_int8_products,
    weights_for_int8,
)
from rankwise.kernels.quantized.tensor import stored_bytes
from rankwise.kernels.regions import compiled_regions
from rankwise.planning.stored_weights import COPY_SHARE
from rankwise.planning.time import COMPILED_AFTER
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.encoded.packing import flat, pack
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.manifest import BackendName, Products
from rankwise.runs.records import StatusMessage, WarningMessage
from rankwise.system.cache import cache_folder
from rankwise.system.memory import available_memory
from rankwise.training.losses import Backend
from rankwise.training.workload import Workload, eager_blocks, encoder_blocks_recomputed, fused_blocks, prefix_room

COMPARED, LENGTHS = 2, (37, 5, 14)
"""Images, and lengths of texts, that both backends are compared on."""
NO_COMPILER = "not compiled: torch's compiler, which needs a C++ compiler, does not work on this machine"
LARGE = 4 * 10**8
"""Weights of a model that takes noticeably long to compare as a whole, so that only its first blocks are compared and
timed: the others are computed alike."""
QUICK = 15.0
"""Compiling runs the comparison again. Where one takes longer than these seconds, a run must be longer by the same
factor before it is compiled."""
ADVICE = "use --restart to start it again with another backend."
OWN_WEIGHTS = "the fused kernels need frozen weights, but this run trains the model's own weights"
NO_KERNELS = "there are no fused kernels for this model and device"


@dataclass(frozen=True)
class Eager:
    work: Workload
    name: BackendName = "eager"
    joins = False
    tally = None

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return pack(rows, max_tokens) if self.work.packing else self.work.objective.loss.batches(rows, max_tokens)

    def loss(self, batch: Batch) -> Tensor:
        return self.work.objective.loss(self.work.module, batch)

    def base_rows(self, text: Batch) -> Tensor:
        """(N, V) logits."""
        return self.work.objective.loss.predict(self.work.module, text)

    def anchored(self, batch: Batch | None, text: Batch, base: Tensor) -> tuple[Tensor, Tensor]:
        apart = divergence(self.work.objective.loss.predict(self.work.module, text), base)
        return apart.new_zeros(()) if batch is None else self.loss(batch), apart

    @contextmanager
    def active(self) -> Iterator[None]:
        work, module = self.work, self.work.module
        if work.packing:
            embeddings: Any = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
            check_packs(module, embeddings.weight.shape[0])
        with activation_checkpointing(eager_blocks(work, self.loss)):
            yield


@dataclass
class Fused:
    """The kernels of decoders, which end in the loss of predicted tokens."""

    work: Workload
    name: BackendName = "fused"
    joins = True
    tally = None
    not_compiled: ClassVar[str | None] = None
    _loss: FusedLoss | None = field(default=None, init=False)

    @staticmethod
    def why_not(work: Workload) -> str | None:
        if has_kernels(work.module, work.longest):
            return None
        if any(isinstance(part, TokenRows) for part in work.module.modules()):
            return "the fused kernels know no rows of new tokens (model.new_tokens)"
        if has_weights_that_learn(work.module):
            return OWN_WEIGHTS
        if has_kernels(work.module, 1):
            return (
                f"the longest row has {work.longest:,} tokens, more than the model's sliding window. With a lower "
                "--max-length the fused backend can be used, which takes less time and memory"
            )
        return NO_KERNELS

    @staticmethod
    def compared(work: Workload) -> Agreement:
        with first_blocks(work.module, LARGE):
            there = set(work.module.parameters())
            learned = [one for one in work.trainable.parameters() if one in there]
            return agreement(work.module, learned, partial(work.objective.loss.predict, work.module))

    @property
    def _computed(self) -> FusedLoss:
        assert self._loss is not None, "the backend is active"
        return self._loss

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return flat(rows, max_tokens)

    def loss(self, batch: Batch) -> Tensor:
        return self._computed(batch)

    def log_probabilities(self, batch: Batch) -> Tensor:
        """(N,) of the batch's targets."""
        return self._computed.log_probabilities(batch)

    def base_rows(self, text: Batch) -> Tensor:
        """(N, d) inputs of the output head."""
        return self._computed.hidden(text, text.loss_mask[0].nonzero()[:, 0])

    def anchored(self, batch: Batch | None, text: Batch, base: Tensor) -> tuple[Tensor, Tensor]:
        return self._computed.anchored(batch, text, base)

    @contextmanager
    def active(self) -> Iterator[None]:
        work = self.work
        _refuse_unsupported(work, self.name)
        with _compiled() if self.name == "compiled" else nullcontext():
            if self.name == "compiled":
                _try_compiler(work)
            free = available_memory()
            self._loss = FusedLoss(
                work.module, lowest=work.first_trained_block, recomputed=fused_blocks(work, free),
                room=prefix_room(free),
            )  # fmt: skip
            yield


@dataclass
class FusedBlocks:
    """The kernels of encoders, inside the model's own forward pass."""

    work: Workload
    name: BackendName = "fused"
    tally = None
    not_compiled: ClassVar[str | None] = "the fused kernels of encoders are not compiled"
    _encoder: FusedEncoder | None = field(default=None, init=False)

    @staticmethod
    def why_not(work: Workload) -> str | None:
        if has_encoder_kernels(work.module):
            return None
        return (
            OWN_WEIGHTS if any(has_weights_that_learn(block) for block in encoder_blocks(work.module)) else NO_KERNELS
        )

    @staticmethod
    def compared(work: Workload) -> Agreement:
        """On random images, or on texts of several lengths."""
        loss, module = work.objective.loss, work.module
        length = work.objective.row_length
        lengths = [length] * COMPARED if length else [min(one, work.longest) for one in LENGTHS]
        rows = loss.random_rows(module, lengths, torch.Generator().manual_seed(0))
        (batch,) = loss.batches(rows, len(lengths) * max(lengths))
        return encoder_agreement(module, work.trainable.parameters(), partial(loss.predict, module), batch)

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return self.work.objective.loss.batches(rows, max_tokens)

    def loss(self, batch: Batch) -> Tensor:
        assert self._encoder is not None, "the backend is active"
        return self._encoder(batch)

    @contextmanager
    def active(self) -> Iterator[None]:
        work = self.work
        _refuse_unsupported(work, self.name)
        loss = partial(work.objective.loss, work.module)
        free = available_memory()
        self._encoder = FusedEncoder(
            work.module, loss, lowest=work.first_trained_block,
            recomputed=encoder_blocks_recomputed(work, loss, free), room=prefix_room(free),
        )  # fmt: skip
        with self._encoder.active():
            yield


KERNELS: Mapping[str, type[Fused | FusedBlocks]] = {
    "answers": Fused, "pairs": Fused, "multiple-choice": Fused, "classes": FusedBlocks,
}  # fmt: skip


def backend_named(name: BackendName, work: Workload) -> Backend:
    return Eager(work) if name == "eager" else work.objective.among(KERNELS)(work, name)


def choose_backend(work: Workload, setting: BackendName | Literal["auto"], tokens: int) -> Backend:
    """For a new run over so many tokens in all. A row of the embedding that no token of the rows or of the comparison
    reads makes no loss that is not a number, so the tables are looked at."""
    if not is_sharded(work.module):
        check_finite(work.module, torch.nn.Embedding)
    if setting == "eager":
        return Eager(work)
    kernels = work.objective.among(KERNELS)
    if why := why_unsupported(work) or (kernels.not_compiled if setting == "compiled" else None):
        kind = WarningMessage if has_kernels(work.module, 1) else StatusMessage
        return _eager_instead(work, setting, "", why, kind)
    began = time.perf_counter()
    large = sum(parameter.numel() for parameter in work.module.parameters()) >= LARGE
    if large:  # of which not all blocks are compared
        work.callback(StatusMessage("comparing the fused backend with the model's own code"))
        check_finite(work.module, quantized=False)
    found = kernels.compared(work)
    compared = time.perf_counter() - began
    enough = COMPILED_AFTER * max(1.0, compared / QUICK)
    if not found.agrees:
        return _eager_instead(work, setting, ", which takes more time and memory", found.why, WarningMessage)
    could_pay = kernels.not_compiled is None and setting == "auto"
    whole = compared * (blocks_of(work.module) / 2 if could_pay and large else 1)  # or less
    could_pay = could_pay and whole / sum(PROBED) * tokens > enough
    pays = could_pay and _seconds_per_token(work) * tokens > enough
    compiles = (pays or setting == "compiled") and _compiles(work, required=setting == "compiled")
    backend = kernels(work, "compiled" if compiles else "fused")
    work.callback(StatusMessage(
        f"using the {backend.name} backend: it was compared with the model's own code (--backend eager), and their "
        "results are equal up to rounding"
    ))  # fmt: skip
    return backend


def _refuse_unsupported(work: Workload, name: BackendName) -> None:
    """RunError where a run that began with this backend cannot go on with it."""
    if why_unsupported(work) is not None:
        raise RunError(
            f"the run was started with the {name} backend, which is not available for this model here; {ADVICE}"
        )


def why_unsupported(work: Workload) -> str | None:
    """Why there are no kernels for this model, objective and device, with rows of this length; None where there are."""
    if is_sharded(work.module):
        return "the base is split over several processes (model.sharded), and the kernels read whole weights"
    return work.objective.words.cannot.get("computed by kernels") or work.objective.among(KERNELS).why_not(work)


def _eager_instead(
    work: Workload, setting: str, cost: str, why: str, kind: type[StatusMessage] | type[WarningMessage]
) -> Eager:
    if setting != "auto":
        raise ConfigError([f"training.backend is {setting}, which is not available for this run: {why}. Leave it out."])
    work.callback(kind(f"using the eager backend{cost}: {why}"))
    return Eager(work)


def _seconds_per_token(work: Workload) -> float:
    """By a small step, which is slower for each token than a large one; the comparison has made one before."""
    batch, blocks = probe(work.module, PROBED, torch.Generator()), blocks_of(work.module)
    with work.with_dropout(), first_blocks(work.module, LARGE):
        began = time.perf_counter()
        _gradients(work, batch)
        return (time.perf_counter() - began) / batch.tokens * blocks / blocks_of(work.module)


def _gradients(work: Workload, batch: Batch) -> None:
    torch.autograd.grad(FusedLoss(work.module)(batch), work.trainable.parameters(), allow_unused=True)


def _compiles(work: Workload, *, required: bool) -> bool:
    work.callback(StatusMessage("comparing the compiled backend with the model's own code"))
    began = time.perf_counter()
    with _compiled():
        found = work.objective.among(KERNELS).compared(work)
    if found.agrees:
        work.callback(StatusMessage(f"compiled in {time.perf_counter() - began:.0f} s"))
        return True
    why_not = NO_COMPILER if found.failed else f"not compiled: {found.why}"
    if required:
        raise ConfigError([f"training.backend is compiled, but the run is {why_not}. Leave it out."])
    work.callback(StatusMessage(why_not))
    return False


def _try_compiler(work: Workload) -> None:
    """RunError where the compiler is missing or broken, whatever it raises."""
    try:
        with work.with_dropout():
            _gradients(work, probe(work.module, PROBED, torch.Generator()))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RunError(
            "the run was started with the compiled backend, but torch's compiler, which needs a C++ compiler, does not "
            f"work on this machine ({type(error).__name__}); {ADVICE}"
        ) from error


@contextmanager
def _compiled() -> Iterator[None]:
    with compiled_regions(cache_folder() / "compiled"):
        yield


COMPARED_TOKENS = 512
"""About so many tokens of the first rows decide which columns a layer keeps out of int8; a longer row is whole."""
OUTLIERS = 16
"""Columns of its inputs that each layer multiplies by unpacked weights."""
LARGEST_ERROR = 0.06
"""The error above which a layer has no products in int8. Normal numbers have 0.012."""
LARGEST_CHANGE, LARGEST_TURN = 0.15, 0.4
"""How far outputs and gradients of the whole model may be from those by unpacked weights. SmolLM2-135M had 0.032 and
0.11, and tiny models of seven architectures at most 0.034 and 0.056."""
TURNED_TOKENS = 128
"""About so many tokens of the shortest rows give the gradients."""


def choose_products(
    work: Workload, setting: Literal["auto", "bfloat16", "int8"], rows: Sequence[Tokens]
) -> Products | None:
    """Choose how the weights of a new run over these rows are multiplied, and let the model compute so from here on.
    None is for unpacked weights."""
    why = _why_no_int8(work.module)
    if why is not None and setting == "int8":
        raise ConfigError([f"training.matmul is int8, which is not available for this run: {why}. Leave it out."])
    if why is not None or setting == "bfloat16" or (setting == "auto" and not _pays(work.module)):
        return None
    few = work.objective.loss.batches(rows, TURNED_TOKENS)[-1]
    products, why = _compared_products(work, work.objective.loss.batches(rows, COMPARED_TOKENS)[0], few)
    work.callback(WarningMessage(f"{why}; {_described(products)}") if why else StatusMessage(_described(products)))
    return products


def _pays(module: torch.nn.Module) -> bool:
    """Whether copies in int8 leave most of the free memory, and are larger than what is stored: weights in eight bits
    or more would rather be stored in int8."""
    copied = [weight for weight in weights_for_int8(module).values() if not isinstance(weight.format, Int8)]
    size = sum(weight.numel() for weight in copied)
    return size <= available_memory() / COPY_SHARE and size >= sum(map(stored_bytes, copied))


def use_products(module: torch.nn.Module, products: Products | None) -> None:
    """Let a model compute so from here on. RunError where a run that began with int8 cannot go on with it."""
    if products is not None and products.outliers and (why := _why_no_int8(module)) is not None:
        raise RunError(f"the run computes products in int8, which is not possible here: {why}. Use --restart.")
    use_int8_products(module, {} if products is None else products.outliers)


def _described(products: Products) -> str:
    text = (
        "frozen weights are multiplied in int8 (--matmul bfloat16 turns it off), which changes the model's outputs "
        f"by {products.change:.1%} before training"
    )
    if products.unpacked:
        text += f"; {len(products.unpacked)} layers are computed with unpacked weights: {some(products.unpacked, 3)}"
    return text


def _why_no_int8(module: torch.nn.Module) -> str | None:
    weights = weights_for_int8(module)
    if not weights:
        return "the base has no weights in int8, NF4 or the formats of a GGUF file (--quantize int8)"
    if is_sharded(module) or next(iter(weights.values())).device.type != "cpu":
        return "only a CPU computes products in int8, and only on a base that is not split"
    if not multiplies_int8():
        return "this processor is not faster in int8 (it has neither AVX512-VNNI nor AMX)"
    return None if is_compiled() else "products in int8 need a C++ compiler, and none works on this machine"


@torch.no_grad()
def _compared_products(work: Workload, batch: Batch, few: Batch) -> tuple[Products, str]:
    """Outlier columns of each layer, and how far the outputs of the model are from those with unpacked weights; and why
    layers were left out that are near their unpacked weights."""
    module, outliers, weights = work.module, dict[str, tuple[int, ...]](), weights_for_int8(work.module)
    layers, errors = dict(module.named_modules()), dict[str, float]()

    def gradients() -> Tensor:
        learned = list(work.trainable.parameters())
        with torch.enable_grad(), moved(learned, torch.Generator().manual_seed(0)):
            return gradients_of(work.objective.loss(module, few), learned)

    turned = gradients()
    hooks = [
        layers.get(f"{name}.base_layer", layers[name]).register_forward_hook(
            _compare_layer(name, weight, outliers, errors)
        )
        for name, weight in weights.items()
    ]
    try:
        unpacked = work.objective.loss.predict(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    plain, why = Computed(unpacked, turned), ""
    apart = distance(Computed(work.objective.loss.predict(module, batch), gradients()), plain)
    while outliers and (apart.logits > LARGEST_CHANGE or apart.gradients > LARGEST_TURN):
        why = why or f"products of all layers in int8 would change {apart}, too much to train with"
        best = sorted(outliers, key=errors.__getitem__)[: len(outliers) // 2]
        outliers = {name: outliers[name] for name in best}
        use_int8_products(module, outliers)
        apart = distance(Computed(work.objective.loss.predict(module, batch), gradients()), plain)
    if not math.isfinite(apart.logits):
        check_finite(module)
    left = tuple(name for name in weights if name not in outliers)
    return Products(outliers=outliers, unpacked=left, change=apart.logits), why


def _compare_layer(
    name: str, weight: Any, outliers: dict[str, tuple[int, ...]], errors: dict[str, float]
) -> Callable[..., None]:
    """A hook of a layer that finds its outlier columns, and has it computed in int8 from then on."""

    def compare(layer: Any, arguments: tuple[Tensor, ...], y: Tensor) -> None:
        if name in errors:  # a block that is called again
            return
        x, unpacked = arguments[0].flatten(0, -2), y.flatten(0, -2).float()
        lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        largest = (x.float().abs() / lengths.clamp_min_(TINY)).amax(0)
        columns = tuple(sorted(largest.argsort(descending=True, stable=True)[:OUTLIERS].tolist()))
        multiply_in_int8(weight, columns)
        quantized = torch.nn.functional.linear(x, weight, layer.bias)
        spread = (unpacked - unpacked.mean(0)).norm().item()  # what is equal for all tokens says nothing of them
        errors[name] = (quantized.float() - unpacked).norm().item() / max(spread, TINY)
        if errors[name] <= LARGEST_ERROR:
            outliers[name] = columns
        else:
            multiply_in_int8(weight, None)

    return compare
