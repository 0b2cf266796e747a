"""A tokenizer that counts what it is asked to encode."""

from __future__ import annotations

from rankwise.rows.text.tokenizer import HubTokenizer


class Counted(HubTokenizer):
    texts = 0

    def encode_all(self, texts):
        self.texts += len(texts)
        return super().encode_all(texts)
