"""A program that is rankwise and prints an empty line as soon as it handles its first signal, in its first lines."""

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
