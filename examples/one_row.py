"""Follow one row through every stage, from the line it came in to the adapter that went out.

Each step calls the package's own function for that stop of the route, prints one line and asserts the law that
guards it. Runs on a CPU in seconds, with the starter model (`rankwise models pull smollm2-135m` fetches it):

    python examples/one_row.py
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rankwise.adapters.formats.peft import read_peft, write_peft
from rankwise.base.loading import load
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import GenerationConfig
from rankwise.forward.reference import SupervisedLogits
from rankwise.inference.generate import answer
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.objectives.causal_lm import token_loss
from rankwise.objectives.registry import objective_named
from rankwise.rows.encoded.batches import Batches, collate
from rankwise.rows.encoded.packing import pack
from rankwise.rows.forms.formats import find_format, parse_row
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import tokenise
from rankwise.training.backend import Eager
from rankwise.training.trainer import Trainer
from rankwise.training.workload import Workload

LINE = '{"prompt": "What is the name of the smallest planet?", "completion": "Mercury, and it has no moon."}'


def main() -> None:
    torch.manual_seed(0)
    model = load(ModelConfig(name="smollm2-135m", device="cpu"))

    row = json.loads(LINE)
    form = find_format(row, "here:1")
    (example,) = parse_row(row, form, "here:1")
    print(f"1  example   {form} form: {[message.role for message in example.messages]}")

    rendering = render(example, model.template)
    assert rendering.text == model.template.text(example.messages)
    print(f"2  segments  learned: {[segment.text for segment in rendering.segments if segment.learned]}")

    tokens = tokenise(rendering, model.tokenizer)
    assert tokens.as_asked, "what stands before the answer is what generation will be given"
    learned = [token for token, is_learned in zip(tokens.ids, tokens.loss_mask, strict=True) if is_learned]
    assert model.tokenizer.decode(learned) == row["completion"] + "<|im_end|>", "exactly the answer and its end"
    print(f"3  tokens    {len(tokens.ids)} ids, {tokens.loss_count} of them learned")

    (packed,) = pack([tokens, tokens], 2048)
    assert int(packed.loss_mask.sum()) == 2 * tokens.loss_count, "no token is lost"
    print(f"4  packed    two such rows: {tuple(packed.input_ids.shape)}")

    batch = collate([tokens])
    assert int(batch.loss_mask.sum()) == tokens.loss_count
    print(f"5  batch     inputs {tuple(batch.input_ids.shape)}, padded to a multiple of 8")

    forward = SupervisedLogits(model.module)
    with torch.no_grad():
        before = forward(batch)
        adapters = inject(model.module, LoraConfig(rank=8))
        assert torch.equal(forward(batch), before), "freshly injected is the base, bit for bit"
    print(f"6  adapted   {len(adapters.layers)} layers, {sum(p.numel() for p in adapters.parameters()):,} parameters")

    total, count = token_loss(before, batch), batch.count
    print(f"7  loss      {total.item():.2f} nats over {count} tokens: {total.item() / count:.3f} each")

    config = TrainingConfig(steps=8, batch_size=1, learning_rate=1e-3, schedule="constant")
    trainable = TrainableLoRA(adapters)
    backend = Eager(Workload(model.module, trainable, objective_named("causal-lm")))
    trainer = Trainer(trainable, Batches.of([tokens], config, backend.layout), config, backend)
    losses = [record.loss for record in trainer.run()]
    assert losses[-1] < 0.5 * losses[0], "the row is being learned"
    print(f"8  steps     loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")

    with torch.no_grad():
        trained = forward(batch)
        with adapters.base():
            assert torch.equal(forward(batch), before), "disabled is the base"
    with TemporaryDirectory() as folder:
        write_peft(adapters, Path(folder), base_model=model.source.name)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        adapters.remove()
        with torch.no_grad():
            assert torch.equal(forward(batch), before), "ejected is the base"
        again = read_peft(model.module, Path(folder))
    with torch.no_grad():
        assert torch.equal(forward(batch), trained), "read(write(adapter)) is the adapter"
    print(f"11 written   and read again: {len(again.layers)} layers, {size / 1e6:.1f} MB, the same logits")

    said = answer(model, example.messages[:-1], GenerationConfig(max_new_tokens=24))
    print(f"   asked     {said.text!r} (stopped by {said.stopped})")


if __name__ == "__main__":
    main()
