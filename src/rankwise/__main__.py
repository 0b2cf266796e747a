"""The command line, as `rankwise` and as `python -m rankwise`.

Importing it takes a third of a second, in which Ctrl-C is no traceback either.
"""

import sys

from rankwise.system.waiting import wait_briefly


def run() -> None:
    wait_briefly()
    try:
        from rankwise.cli.main import app
    except KeyboardInterrupt:
        print("rankwise: stopped.", file=sys.stderr)
        raise SystemExit(130) from None
    app()


if __name__ == "__main__":
    run()
