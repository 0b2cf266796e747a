"""What a model is trained for, as far as a plan goes by it: one value for each class of transformers."""

from __future__ import annotations

from collections.abc import Mapping

from rankwise.base.packed import EXACT
from rankwise.config.method import Form

HEAD_ROWS = 256
"""As kernels/loss.py takes them; a test compares both."""
OF_LOGITS = 4
"""Copies of an encoder-decoder's logits in float32 at once, as the loss's backward pass needs them: a step of T5's and
BART's shapes grew by 3.9 to 4.0 of them beside what its blocks keep."""
FAST = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt_neox", "gpt2"})
"""Families that have a fast form on a processor (forward/decoders.py); a test compares both."""
OF_IMAGES = frozenset({"vit", "deit", "dinov2", "clip", "siglip"})
"""Families of images with a fast form on a processor (forward/encoders.py); a test compares both."""
OF_TEXTS = frozenset({"bert", "roberta"})
"""Families of encoders of texts with a fast form on a processor, likewise. A norm is behind what it norms, so a block
keeps what goes into each and what comes out of it."""


class PlannedTask:
    """What a model is trained for, as far as a plan goes by it: here to continue texts."""

    fused = FAST
    """Families that have a fast form on a processor."""
    planned = True
    """Whether its training can be planned at all."""
    unplanned = "its forward pass cannot be simulated without its weights; only the parameters are counted"
    """Why it is not, where it is not."""
    stacks = 1
    """How many stacks of blocks the model has."""
    texts = 1
    """How many texts a document has."""
    learns = "answer"
    documents = "sequences"
    unit = "row"
    """That is predicted for; {0} is the side of an image."""
    names = "classes"
    targets = "rows"
    """That outputs are counted for."""
    writes = 1
    """Answers that a validation has of each row that it may answer."""
    readings = 1
    """How often a validation reads each row."""
    compiled = True
    """Whether torch's compiler takes its fast form."""
    trimmed = True
    """Whether its fast form computes of the last block only what the head gets."""
    tables = 2
    """Gradients of the table of words that are there at once, where it learns."""
    compared = 0.0
    """Bytes that a simple classifier of words takes, which the validation is compared with."""
    holes = 1.0
    """Memory lost in holes between allocations, as a multiple of the usual amount."""
    padding = ""
    lengths = "median length {0:,}, longest {1:,} tokens"

    def learned(self, tokens: int) -> int:
        """How many predictions have a loss in a document of so many tokens."""
        return tokens

    def above(self, tokens: int, targets: float) -> float:
        """Positions that the layers above all blocks map."""
        return tokens

    def backward(self, plain: float, adapted: float) -> float:
        """How many times what a block keeps is held on the way through its backward pass, where it runs through an
        adapter: as `plain`, or as `adapted`."""
        return plain

    def learned_share(self, share: float) -> str:
        """For people; `share` is that of tokens with a loss."""
        return f"{share:.0%} of them in the loss"

    def logits(self, learned: int, outputs: int, number: int, form: Form) -> tuple[float, str]:
        """Bytes of the head's numbers, and their formula. `outputs` are those of one target, `number` the bytes of a
        number of the base."""
        rows, each = learned, 2 * EXACT + (number if number < EXACT else 0)
        if form == "fast":
            rows, each = min(HEAD_ROWS, learned), number + EXACT
        return rows * outputs * each, f"{rows:,} tokens x {outputs:,}, in two number formats"


class Counting(PlannedTask):
    """Only count the parameters, for a model without the head of a task."""

    planned = False
    unplanned = "memory and time are forecast for models that write texts and for classifiers only"


class Rewriting(PlannedTask):
    """An encoder reads a text and a decoder writes another."""

    stacks = texts = 2
    padding = " with padding"
    lengths = "of each input and output the longer has {0:,} tokens in the median, at most {1:,}"

    def logits(self, learned: int, outputs: int, number: int, form: Form) -> tuple[float, str]:
        formula = f"{learned:,} tokens x {outputs:,} x {EXACT}, {OF_LOGITS} times in the loss's backward pass"
        return OF_LOGITS * EXACT * learned * outputs, formula


class Classifying(PlannedTask):
    """Predict classes or numbers for whole rows."""

    fused = OF_TEXTS
    unplanned = Counting.unplanned
    learns = "label"
    writes, readings = 0, 2
    compiled = trimmed = False
    tables, holes, compared = 1, 0.0, 0.15e9
    padding = " with padding"

    def above(self, tokens: int, targets: float) -> float:
        return targets

    def backward(self, plain: float, adapted: float) -> float:
        return adapted

    def learned(self, tokens: int) -> int:
        return 1

    def learned_share(self, share: float) -> str:
        return f"one target per {self.unit}"

    def logits(self, learned: int, outputs: int, number: int, form: Form) -> tuple[float, str]:
        return 3.0 * EXACT * learned * outputs, f"{learned:,} {self.targets} x {outputs:,} outputs, three times"


class TaggingWords(Classifying):
    """Predict a class for each word."""

    unit, names, targets = "word", "tags", "tokens"
    compared = 0.0

    def above(self, tokens: int, targets: float) -> float:
        return tokens

    def learned(self, tokens: int) -> int:
        return tokens


class ClassifyingImages(Classifying):
    fused = OF_IMAGES
    documents, unit = "images", "image of {0} x {0} pixels"


CAUSAL, CLASSIFIER, TAGGER, IMAGE_CLASSIFIER, SEQUENCES = (
    "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
    "AutoModelForImageClassification", "AutoModelForSeq2SeqLM",
)  # fmt: skip
COUNTED = Counting()
TASKS: Mapping[str, PlannedTask] = {
    CAUSAL: PlannedTask(), SEQUENCES: Rewriting(), CLASSIFIER: Classifying(), TAGGER: TaggingWords(),
    IMAGE_CLASSIFIER: ClassifyingImages(),
}  # fmt: skip
"""By the class of transformers that built the model."""
