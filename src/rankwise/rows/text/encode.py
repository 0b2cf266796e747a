"""From Examples to token sequences: rendered, tokenized, and limited to the largest length.

The user or the recipe decides what happens to a row that is too long:

    drop        it is left out and counted
    truncate    its end is cut, including the end token (Stanford Alpaca)
    cut-prompt  a prompt of half the largest length or more is cut to that many characters, and to at most half of its
                own; a row that is still too long is truncated (GPT4All-J)
    split       the conversation is divided at turns into several rows (Vicuna); a single turn that is too long is left
                out
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rankwise.config.data import DataConfig
from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.outcome import Outcome, RowEncoder
from rankwise.rows.text.rendering import renderings
from rankwise.rows.text.tokenize import Rendering, Tokens, tokenise_all, undecodable
from rankwise.rows.text.tokenizer import HubTokenizer

EncoderOf = Callable[[ChatTemplate, HubTokenizer, DataConfig, int], RowEncoder]
"""From a template, a tokenizer, settings and the largest number of tokens of a row."""


@dataclass(frozen=True)
class Encoder:
    template: ChatTemplate
    tokenizer: HubTokenizer
    spec: DataConfig
    limit: int
    """Largest number of tokens: data.max_length, or the model's context if that is shorter."""

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        """Encode examples together, because a tokenizer is faster with many texts at once."""
        outcomes = [Outcome(example) for example in examples]
        self._write(outcomes, apart=self.spec.answers == "apart")
        self._part(outcomes)
        return [self._fitted(outcome) for outcome in outcomes]

    def _part(self, outcomes: Sequence[Outcome]) -> None:
        """Make one sequence for each answer of a conversation in which an earlier answer's tokens change once the next
        question follows, if that helps."""
        unlike = [outcome for outcome in outcomes if outcome.unlike_asked and _answers(outcome.example) > 1]
        parted = [Outcome(outcome.example) for outcome in unlike]
        self._write(parted, apart=True)
        for outcome, apart in zip(unlike, parted, strict=True):
            if apart.problem is None and not apart.unlike_asked:
                outcome.sequences = apart.sequences

    def _write(self, outcomes: Sequence[Outcome], *, apart: bool) -> None:
        drawn: list[tuple[Outcome, Rendering]] = []
        conversations = [(outcome.example.messages, outcome.example.tools) for outcome in outcomes]
        for outcome, written in zip(outcomes, self.template.written(conversations), strict=True):
            try:
                made = renderings(outcome.example, self.template, apart=apart, written=written)
            except TemplateError as error:
                outcome.problem = str(error)
                continue
            made = made if len(made) == 1 else [replace(rendering, method="apart") for rendering in made]
            drawn += [(outcome, rendering) for rendering in made]
        encoded = tokenise_all([rendering for _, rendering in drawn], self.tokenizer)
        for (outcome, rendering), tokens in zip(drawn, encoded, strict=True):
            if tokens is None:
                outcome.problem = undecodable(rendering, outcome.example.where)
            else:
                everything = self.spec.learned == "everything"
                learned = replace(tokens, loss_mask=(True,) * len(tokens.ids)) if everything else tokens
                outcome.sequences.append(learned)

    def _fitted(self, outcome: Outcome) -> Outcome:
        if outcome.problem is not None:
            outcome.sequences = []
            return outcome
        outcome.lengths = [len(sequence.ids) for sequence in outcome.sequences]
        cuts = self.spec.too_long == "cut-prompt" and any(map(self._long_prompt, outcome.sequences))
        if not cuts and max(outcome.lengths, default=0) <= self.limit:
            return outcome
        match self.spec.too_long:
            case "drop":
                self._drop(outcome)
            case "truncate":
                self._truncate(outcome)
            case "cut-prompt":
                self._cut_prompt(outcome, cuts)
            case "split":
                self._split(outcome)
        return outcome

    def _drop(self, outcome: Outcome) -> None:
        fitting = [sequence for sequence in outcome.sequences if len(sequence.ids) <= self.limit]
        outcome.too_long += len(outcome.sequences) - len(fitting)
        outcome.sequences = fitting

    def _truncate(self, outcome: Outcome) -> None:
        whole, outcome.sequences = outcome.sequences, []
        outcome.truncated += sum(len(sequence.ids) > self.limit for sequence in whole)
        outcome.learn(shortened(sequence, self.limit) for sequence in whole)

    def _long_prompt(self, sequence: Tokens) -> bool:
        given = next((place for place, learned in enumerate(sequence.loss_mask) if learned), 0)
        return given >= self.limit // 2

    def _cut_prompt(self, outcome: Outcome, cuts: bool) -> None:
        if cuts:
            shorter = replace(self, spec=self.spec.model_copy(update={"too_long": "truncate"}))
            (again,) = shorter.encode([_with_short_question(outcome.example, self.limit // 2)])
            outcome.sequences, outcome.problem = again.sequences, again.problem
            outcome.truncated, outcome.without_loss_tokens = max(1, again.truncated), again.without_loss_tokens
        else:
            self._truncate(outcome)

    def _split(self, outcome: Outcome) -> None:
        system, pairs = _turns(outcome.example)
        if len(pairs) < 2 or outcome.example.tools:
            return self._drop(outcome)
        whole = replace(self, spec=self.spec.model_copy(update={"too_long": "drop"}))
        outcome.sequences = []
        begun: list[Message] = []
        held: Outcome | None = None
        for pair in pairs:
            (longer,) = whole.encode([replace(outcome.example, messages=(*system, *begun, *pair))])
            if longer.too_long and held is not None:
                outcome.learn(held.sequences)
                begun = []
                (longer,) = whole.encode([replace(outcome.example, messages=(*system, *pair))])
            held = None if longer.too_long else longer
            begun = [] if longer.too_long else [*begun, *pair]
            outcome.too_long += longer.too_long
        if held is not None:
            outcome.learn(held.sequences)
        outcome.truncated += 1 if outcome.sequences else 0
        return None


def shortened(sequence: Tokens, limit: int) -> Tokens:
    """The first `limit` tokens."""
    if len(sequence.ids) <= limit:
        return sequence
    inside = sequence.loss_mask[limit] and sequence.loss_mask[limit - 1]
    ids, mask = sequence.ids[:limit], sequence.loss_mask[:limit]
    return Tokens(ids, mask, sequence.as_asked, ended=not inside, method=sequence.method)


def _answers(example: Example) -> int:
    return sum(message.role == "assistant" for message in example.messages)


def _turns(example: Example) -> tuple[tuple[Message, ...], list[list[Message]]]:
    """The system message, and the other turns, divided before each question that follows an answer."""
    system = tuple(message for message in example.messages[:1] if message.role == "system")
    pairs: list[list[Message]] = []
    for message in example.messages[len(system) :]:
        if not pairs or (message.role == "user" and pairs[-1][-1].role == "assistant"):
            pairs.append([])
        pairs[-1].append(message)
    return system, pairs


def _with_short_question(example: Example, characters: int) -> Example:
    """Shorten the last question. Its context is removed first, because it comes last in the prompt."""
    index = max((place for place, message in enumerate(example.messages) if message.role == "user"), default=None)
    if index is None:
        return example
    asked = example.messages[index].whole
    short = replace(example.messages[index], content=asked[: min(characters, len(asked) // 2)] or asked[:1], context="")
    return replace(example, messages=(*example.messages[:index], short, *example.messages[index + 1 :]))
