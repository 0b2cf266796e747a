"""Keep transformers and the hub client from writing to the terminal, and from reaching the network unasked.

Imported before transformers everywhere in this folder. Their bars and hints would mix with ours and with --json.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def hush() -> None:
    """Turn off transformers' own bars, once it is imported."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
