"""Programs that are rankwise and tell, or choose, the point of their beginning at which Ctrl-C comes.

BEGUN prints an empty line as soon as it handles its first signal, in its first lines. WITHIN, whose first argument is
the name of a built-in function, gets Ctrl-C when that function calls Python.
"""

BEGUN = """
import signal
real = signal.signal
def first(*given):
    signal.signal = real
    before = real(*given)
    print(flush=True)
    return before
signal.signal = first
from rankwise.__main__ import run
run()
"""
WITHIN = """
import os, signal, sys
function, running = sys.argv.pop(1), [""]
def watch(frame, event, given):
    if event == "call" and running[-1] == function:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)
    elif event in ("call", "c_call"):
        running.append("" if event == "call" else given.__name__)
    elif len(running) > 1:
        running.pop()
from rankwise.__main__ import run
sys.setprofile(watch)
run()
"""
