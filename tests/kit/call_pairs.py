"""Answers with calls of tools, as (reference, answer, whether the whole call, the functions and the arguments of the
right functions are right: w, f, a, or - where there is no right function)."""

from __future__ import annotations

import json
from typing import Any


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def tagged(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in calls)


ROME, OSLO = call("weather", city="Rome"), call("weather", city="Oslo")
TIME, ADD = call("time", zone="CET"), call("add", a=1, b=2)
NONE, PLAIN = call("now"), "It is sunny in Rome."
DEEP = call("book", room={"beds": 2, "view": None}, guests=["Ada", "Ben"], paid=True)
LLAMA = '{"name": "weather", "parameters": {"city": "Rome"}}'
TEXT = '{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}'
ONE, TWO, THREE = tagged(ROME), tagged(ROME, OSLO), tagged(ROME, TIME, ADD)

PAIRS = [
    # one call, written in several ways
    (ONE, ONE, "wfa"),
    (ONE, ROME, "wfa"),
    (ONE, f"  {ROME}\n", "wfa"),
    (ONE, f"Let me look.\n{ONE}", "wfa"),
    (ONE, f"{ONE}\nOne moment.", "wfa"),
    (ONE, f"```json\n{ROME}\n```", "wfa"),
    (ONE, f"[TOOL_CALLS][{ROME}]", "wfa"),
    (ONE, f"<|python_tag|>{LLAMA}", "wfa"),
    (ONE, LLAMA, "wfa"),
    (ONE, TEXT, "wfa"),
    (ONE, f"<tool_call>{ROME}", "wfa"),
    (ONE, '{"arguments": {"city": "Rome"}, "name": "weather"}', "wfa"),
    (ONE, '{"name":"weather","arguments":{"city":"Rome"}}', "wfa"),
    (ONE, '{"name": "weather", "arguments": {"city": "R\\u006fme"}}', "wfa"),
    (ONE, '{"id": 7, "name": "weather", "arguments": {"city": "Rome"}}', "wfa"),
    (ONE, '{"type": "function", "function": ' + ROME + "}", "---"),
    (tagged(NONE), '{"name": "now", "arguments": {}}', "wfa"),
    (tagged(NONE), '{"name": "now", "arguments": "{}"}', "wfa"),
    (tagged(ADD), call("add", b=2, a=1), "wfa"),
    (tagged(ADD), call("add", a=1.0, b=2), "wfa"),
    (tagged(DEEP), call("book", paid=True, guests=["Ada", "Ben"], room={"view": None, "beds": 2.0}), "wfa"),
    # the wrong arguments
    (ONE, tagged(OSLO), "-f-"),
    (ONE, call("weather", city="rome"), "-f-"),
    (ONE, call("weather", city="Rome "), "-f-"),
    (ONE, call("weather", city=["Rome"]), "-f-"),
    (ONE, call("weather", town="Rome"), "-f-"),
    (ONE, call("weather", city="Rome", unit="C"), "-f-"),
    (ONE, call("weather"), "-f-"),
    (tagged(NONE), call("now", zone="CET"), "-f-"),
    (tagged(ADD), call("add", a=2, b=1), "-f-"),
    (tagged(ADD), call("add", a="1", b=2), "-f-"),
    (tagged(ADD), call("add", a=True, b=2), "-f-"),
    (tagged(ADD), call("add", a=1, b=None), "-f-"),
    (tagged(ADD), call("add", a=1), "-f-"),
    (tagged(ADD), call("add", a=1, b=2.5), "-f-"),
    (tagged(DEEP), call("book", room={"beds": 2}, guests=["Ada", "Ben"], paid=True), "-f-"),
    (tagged(DEEP), call("book", room={"beds": 2, "view": None}, guests=["Ben", "Ada"], paid=True), "-f-"),
    (tagged(DEEP), call("book", room={"beds": 2, "view": None}, guests=["Ada"], paid=True), "-f-"),
    (tagged(DEEP), call("book", room={"beds": 2, "view": None}, guests=["Ada", "Ben"], paid=1), "-f-"),
    (tagged(DEEP), call("book", room={"beds": 2, "view": ""}, guests=["Ada", "Ben"], paid=True), "-f-"),
    # the wrong function
    (ONE, call("wether", city="Rome"), "---"),
    (ONE, call("Weather", city="Rome"), "---"),
    (ONE, tagged(TIME), "---"),
    (tagged(NONE), tagged(TIME), "---"),
    (ONE, '{"function": "weather", "arguments": {"city": "Rome"}}', "---"),
    (ONE, '{"name": ["weather"], "arguments": {"city": "Rome"}}', "---"),
    # no call, or none that can be read
    (ONE, "", "---"),
    (ONE, PLAIN, "---"),
    (ONE, "weather(city='Rome')", "---"),
    (ONE, "{'name': 'weather', 'arguments': {'city': 'Rome'}}", "---"),
    (ONE, ROME[:-1], "---"),
    (ONE, '{"name": "weather"}', "---"),
    (ONE, '{"name": "weather", "arguments": "Rome"}', "---"),
    (ONE, '{"name": "weather", "arguments": ["Rome"]}', "---"),
    (ONE, '{"name": "weather", "arguments": null}', "---"),
    (ONE, "{" * 5_000, "---"),
    # none wanted
    (PLAIN, PLAIN, "wf-"),
    (PLAIN, "Anything else.", "wf-"),
    (PLAIN, "", "wf-"),
    (PLAIN, '{"temperature": 20}', "wf-"),
    (PLAIN, ONE, "---"),
    (PLAIN, f"{PLAIN} {ROME}", "---"),
    (PLAIN, TWO, "---"),
    # several, in any order
    (TWO, TWO, "wfa"),
    (TWO, tagged(OSLO, ROME), "wfa"),
    (TWO, f"[TOOL_CALLS][{OSLO}, {ROME}]", "wfa"),
    (TWO, f"{ROME}; {LLAMA.replace('Rome', 'Oslo')}", "wfa"),
    (TWO, ONE, "--a"),
    (TWO, tagged(ROME, ROME), "-f-"),
    (TWO, tagged(ROME, OSLO, ROME), "--a"),
    (TWO, tagged(ROME, TIME), "--a"),
    (ONE, tagged(ROME, ROME), "--a"),
    (ONE, TWO, "--a"),
    (tagged(ROME, ROME), tagged(ROME, ROME), "wfa"),
    (tagged(ROME, ROME), ONE, "--a"),
    (THREE, tagged(ADD, ROME, TIME), "wfa"),
    (THREE, tagged(TIME, ROME), "--a"),
    (THREE, tagged(ROME, TIME, call("add", a=1, b=3)), "-f-"),
    (THREE, tagged(ROME, TIME, ADD, NONE), "--a"),
    (THREE, PLAIN, "---"),
]
