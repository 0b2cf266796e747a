"""How many characters a token has, and how far a plan's tokens are from those that are trained on.

    python lab/characters.py DATA

DATA is the folder of data sets that CONTRIBUTING names. Of each set: the characters of one token of the starter's
tokenizer, without what the template adds; then the tokens of all rows as a training encodes them, and by how much the
plan is off that counts the tokens of some rows, and the one that takes them from characters.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rankwise.base.loading import load_tokenizer
from rankwise.base.sources import find
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.planning.rows import conversations_of
from rankwise.planning.tokens import TokenCounter
from rankwise.rows.preparation import Encoding, EncodingFacts, prepared_of
from rankwise.rows.report.report import Tally
from rankwise.rows.sample import sample_rows
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent

SETS = {
    "dolly": "dolly/train_alpaca.jsonl", "alpaca": "alpaca/train.json", "gsm8k": "gsm8k/train.jsonl",
    "lima": "lima/train.json", "oasst": "oasst/trees.jsonl", "superbowl": "superbowl_facts/train.jsonl",
    "self-instruct": "self_instruct/seed_tasks.jsonl", "vicuna": "sharegpt/vicuna_dummy_conversation.json",
}  # fmt: skip
LONGEST = 8192


def characters_of_token(spec: DataConfig, tokenizer: Path) -> float:
    seen = sample_rows(spec, spec.all_sources[0])
    texts = [
        text
        for row in seen.drawn
        for example in row.examples
        for text in ([example.text] if example.text else [message.whole for message in example.messages])
    ]
    return sum(map(len, texts)) / sum(TokenCounter(tokenizer).count(texts))


def main() -> None:
    folder = Path(sys.argv[1])
    starter = ModelConfig(name="smollm2-135m")
    tokenizer, name, _ = load_tokenizer(starter)
    model = find(starter, silent).folder
    writing = TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), name, LONGEST)
    print("| set | rows | characters / token | tokens | learned | counted | from characters | seconds of a plan |")
    print("|---|---|---|---|---|---|---|---|")
    for name, file in SETS.items():
        spec = DataConfig(path=str(folder / file), max_length=LONGEST, on_bad_row="skip")
        work = Encoding(spec, writing.encoder(spec), Tally(), silent, None, EncodingFacts())
        data_report = prepared_of(work, work.read(None)).data_report
        assert data_report.tokens and data_report.loss_tokens
        ratio = characters_of_token(spec, model)
        began = time.perf_counter()
        counted = conversations_of(spec, TokenCounter(model), LONGEST)
        seconds = time.perf_counter() - began
        guessed = conversations_of(spec, TokenCounter(), LONGEST)
        off = [f"{plan.tokens.likely / data_report.tokens - 1:+.1%}" for plan in (counted, guessed)]
        learned = f"{data_report.loss_tokens / data_report.tokens:.0%}"
        cells = (name, data_report.rows, f"{ratio:.2f}", f"{data_report.tokens:,}", learned, *off, f"{seconds:.2f}")
        print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
