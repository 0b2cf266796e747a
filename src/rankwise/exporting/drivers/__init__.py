"""Scripts that load an export with somebody else's engine. Each runs alone, by the interpreter that has the engine.

A script imports the standard library and its engine, and nothing of rankwise, since an engine may live in an
environment of its own. It reads one JSON object from stdin and writes one to stdout; `engine_process.py` describes
both.
"""
