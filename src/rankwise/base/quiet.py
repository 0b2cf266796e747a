"""Silence transformers and the hub client in the terminal, and turn off telemetry.

It must be imported before transformers. The hub client keeps its own progress bar for downloads in a terminal.
"""

from __future__ import annotations

import os
import sys
import warnings

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm, in notebooks, about bars that are not drawn


def hush() -> None:
    """Turn off transformers' own progress bars, once it is imported."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
