"""The parameter counts that the papers of LoRA and AdaLoRA print, beside the counts of `rankwise plan`.

    LoRA       Hu et al. 2021, arXiv 2106.09685
    AdaLoRA    Zhang et al. 2023, arXiv 2303.10512

    python lab/papers.py      prints them as a table

A remark names each figure that does not follow from the paper's own formula. `printed` is the figure as the paper has
it, and `ours` has the same form: millions with as many decimals, a share of the model, or triplets.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.parameters import Parameters
from rankwise.forward.plan import base_of
from rankwise.planning.parameters import parameters_of

GPT3_PRINTED = 175_255_800_000
"""Parameters of GPT-3 as LoRA's paper gives them. Its "10,000 times fewer" is 9,285 times at r = 4."""
GPT3_REMARK = (
    "The paper has 175,255.8M parameters for the model and does not say how they are counted. 96 blocks of width 12,288"
    " with biases and norms, 2,050 positions and one table of 50,257 words make 174,604.3M; a head of its own would be "
    "617.6M of the 651.5M between them. 9,285 times fewer is against the paper's figure, 9,251 times against this one."
)
QUERY_VALUE = ("query", "value")
ALL_SIX = ("query_proj", "key_proj", "value_proj", "dense")
"""Query, key, value, the attention's output and both feed-forward layers: 72 in DeBERTaV3-base."""


@dataclass(frozen=True)
class PaperRow:
    paper: str
    table: str
    model: str
    """Its name in `rankwise plan --models`."""
    config: LoraConfig | AdaLoraConfig
    printed: str
    remark: str = ""

    @property
    def rank(self) -> str:
        return str(self.config.rank) if isinstance(self.config, LoraConfig) else self.config.budget

    def ours(self, counted: Parameters) -> str:
        """AdaLoRA counts as if every layer had the same rank; the number that training ends with is near it."""
        if self.printed.endswith("triplets"):
            assert counted.left is not None, "LoRA has no triplets"
            return f"{counted.left.amount} triplets"
        amount = counted.trainable if counted.left is None else counted.left.even
        if self.printed.endswith("%"):
            return f"{amount / counted.total:.2%}".replace("%", " %")
        places = len(self.printed.removesuffix("M").partition(".")[2])
        return f"{amount / 1e6:.{places}f}M"

    def agrees(self, counted: Parameters) -> bool:
        """Whether the paper's figure is ours; AdaLoRA's may be whatever its triplets can come to."""
        if counted.left is None or not self.printed.endswith("M"):
            return self.ours(counted) == self.printed
        return counted.left.least <= float(self.printed.removesuffix("M")) * 1e6 <= counted.left.most


def _lora(table: str, model: str, targets: tuple[str, ...], rank: int, printed: str, remark: str = "") -> PaperRow:
    return PaperRow("LoRA", table, model, LoraConfig(rank=rank, targets=targets), printed, remark)


def _adalora(table: str, model: str, budget: str, printed: str, remark: str = "", *, initial: float = 1.5) -> PaperRow:
    targets = ALL_SIX if model.startswith("deberta") else ("all-linear",)
    return PaperRow(
        "AdaLoRA", table, model, AdaLoraConfig(budget=budget, initial=initial, targets=targets), printed, remark
    )


def _lora_beside(table: str, model: str, rank: int, printed: str, remark: str = "") -> PaperRow:
    targets = ALL_SIX if model.startswith("deberta") else ("all-linear",)
    return PaperRow("AdaLoRA", table, model, LoraConfig(rank=rank, targets=targets), printed, remark)


ROWS: tuple[PaperRow, ...] = (
    _lora("GPT-3", "gpt3-175b", ("q_proj", "v_proj"), 1, "4.7M"),
    _lora("GPT-3", "gpt3-175b", ("q_proj", "v_proj"), 4, "18M", "18.9M, which the paper cuts to 18M."),
    _lora("GPT-3", "gpt3-175b", ("q_proj", "v_proj"), 8, "37.7M"),
    _lora("GLUE", "roberta-base", QUERY_VALUE, 8, "0.3M"),
    _lora("GLUE", "roberta-large", QUERY_VALUE, 8, "0.8M"),
    _lora(
        "GLUE", "deberta-v2-xxlarge", ("query_proj", "value_proj"), 8, "4.7M",
        "A misprint: the table of settings has r = 8, and 4.7M is r = 16, which the authors' scripts have.",
    ),
    _lora("GLUE", "deberta-v2-xxlarge", ("query_proj", "value_proj"), 16, "4.7M", "As the authors' scripts have it."),
    _lora(
        "E2E", "gpt2-medium", ("c_attn",), 4, "0.35M",
        "A misprint: the paper's own formula, 2 x 48 x 1,024 x 4, is 393,216. One LoRA over the fused layer, as here, "
        "has as many parameters as one for q and one for v.",
    ),
    _lora(
        "E2E", "gpt2-large", ("c_attn",), 4, "0.77M",
        "A misprint: the paper's own formula, 2 x 72 x 1,280 x 4, is 737,280.",
    ),
    _lora_beside("GLUE", "deberta-v3-base", 8, "1.33M"),
    _lora_beside("GLUE", "deberta-v3-base", 2, "0.33M"),
    _adalora("GLUE", "deberta-v3-base", "8", "1.27M", "576 triplets of 2,205 parameters; 2,304 with ranks all alike."),
    _adalora(
        "GLUE", "deberta-v3-base", "2", "0.32M",
        "144 triplets of 2,222 parameters; it begins with rank 4, so twice the budget and not 1.5 times.", initial=2,
    ),
    _adalora("settings", "deberta-v3-base", "8", "576 triplets"),
    _adalora("settings", "deberta-v3-base", "4", "288 triplets"),
    _adalora("settings", "deberta-v3-base", "2", "144 triplets", "Begins with rank 4.", initial=2),
    _adalora("settings", "deberta-v3-base", "1", "72 triplets", "Begins with rank 2.", initial=2),
    _lora_beside("summaries", "bart-large", 1, "0.13 %"),
    _lora_beside("summaries", "bart-large", 2, "0.26 %", "0.27 %, which the paper cuts to 0.26 %."),
    _lora_beside("summaries", "bart-large", 8, "1.10 %", "1.06 % of all parameters; of what it is 1.10 % is not said."),
    _lora_beside("summaries", "bart-large", 16, "2.20 %", "2.13 % of all parameters; see r = 8."),
    _adalora(
        "summaries", "bart-large", "8", "1536 triplets",
        "The paper's table of budgets for BART repeats that of SQuAD; these are 192 layers times r = 8.",
    ),
)  # fmt: skip


def rows_of(model: str) -> tuple[PaperRow, ...]:
    return tuple(row for row in ROWS if row.model == model)


def main() -> None:
    print("| paper | table | model | rank | printed | ours | exactly | agrees | remark |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        counted = parameters_of(base_of(row.model).shape(), row.config)
        agrees = "yes" if row.agrees(counted) else "no"
        cells = (row.paper, row.table, row.model, row.rank, row.printed, row.ours(counted), f"{counted.trainable:,}")
        print("|", " | ".join((*cells, agrees, row.remark)), "|")
    print(f"\nGPT-3: {GPT3_REMARK}")


if __name__ == "__main__":
    main()
