"""The command line, as `rankwise` and as `python -m rankwise`.

Importing it takes a third of a second, in which Ctrl-C is no traceback either: until a command begins, and after it has
ended, nothing has to be put in order, so the process ends at once.
"""

import gc
import os
import signal
import sys
from types import FrameType

COLLECTED = (50_000, 20, 100)
"""When Python looks for cycles of objects: new objects, and smaller searches before a larger one. Torch and
transformers make so many lasting objects that with Python's own numbers (700, 10, 10) a tenth of a start is spent
searching them."""


def run() -> None:
    gc.set_threshold(*COLLECTED)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # `&` ignores it
        signal.signal(signal.SIGINT, _leave)
    try:
        from rankwise.system.processor import wait_briefly

        wait_briefly()
        from rankwise.cli.main import app

        app()
    except KeyboardInterrupt:
        _leave(signal.SIGINT, None)
    except (MemoryError, ImportError) as error:  # before a command began, which says it itself
        from rankwise.errors import is_out_of_memory, typed

        if not is_out_of_memory(error):
            raise
        os.write(2, f"rankwise: {typed(error)}\n".encode())
        os._exit(4)
    except SystemExit as left:
        if left.code == 4:  # without memory or disk, what torch does as Python ends would be a traceback
            sys.stdout.flush()
            os._exit(4)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exit code of the command stands


def _leave(number: int, frame: FrameType | None) -> None:
    """No exception: inside an import, a library would take it for an error of its own."""
    os.write(2, b"rankwise: stopped.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    run()
