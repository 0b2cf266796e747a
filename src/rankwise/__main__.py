"""The command line, as `rankwise` and as `python -m rankwise`.

Importing it takes a third of a second, in which Ctrl-C is no traceback either.
"""

import sys


def run() -> None:
    try:
        from rankwise.cli.main import app
    except KeyboardInterrupt:
        print("rankwise: stopped.", file=sys.stderr)
        raise SystemExit(130) from None
    app()


if __name__ == "__main__":
    run()
