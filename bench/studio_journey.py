"""The studio on a real model: twice from an empty folder to a verified export, without a terminal.

    python bench/studio_journey.py [--model smollm2-135m] [--rows 120] [--steps 40]
                                   [--pictures docs/studio] [--json] [--out TITLE]

A person with a mouse on a desktop trains LoRA on orders by e-mail, asks the base and the run side by side, evaluates
the run on other orders, and exports the adapter verified by the installed engines; then one with a keyboard alone, on a
phone in the dark, trains AdaLoRA. The page's console, its requests to other addresses, and axe's serious findings on
each screen are counted. With --pictures the screens on the way are stored as the pictures of the documents.

Needs Playwright, axe and a Chromium (make browser).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from telling import parser_of, tell

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.browser_hands import ANSWERED, Keyboard, Mouse
from kit.browser_visits import CHROMIUM, FLAGS, WIDTHS, Server, Visitor
from rankwise.rows.samples import orders

QUESTION = orders(range(300, 301))[0]["email"]
KNOWN = 12
"""Rows that the run is evaluated on."""
PATIENCE = 1_200_000
"""Milliseconds for a training, and for what else takes long."""


@dataclass
class Journey:
    """`run` is the name of its run and `card` its method."""

    seen: Visitor
    person: Mouse | Keyboard
    run: str
    card: str
    chosen: argparse.Namespace
    pictures: dict[str, str]
    """The name of a picture for a screen on the way."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    findings: list[str] = field(default_factory=list[str])

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - began, 1)

    def screen(self, name: str, top: Any = None) -> None:
        """One screen on the way: axe looks at it, and its picture is taken, from an element that is scrolled up."""
        from axe_playwright_python.sync_playwright import Axe

        page = self.seen.page
        found = Axe().run(page).response["violations"]
        self.findings += [f"{name}: {one['id']}" for one in found if one["impact"] in ("serious", "critical")]
        if self.chosen.pictures and name in self.pictures:
            position = "one => one ? one.scrollIntoView({block: 'start'}) : scrollTo(0, 0)"
            page.evaluate(position, None if top is None else top.element_handle())
            page.wait_for_timeout(400)
            page.screenshot(path=self.chosen.pictures / f"{self.pictures[name]}.png")

    def train(self, rows: Path) -> None:
        page, person = self.seen.page, self.person
        person.press(page.get_by_role("navigation").get_by_role("link", name="New run"))
        page.wait_for_url("**/new")
        with self.timed("form"):
            person.write(page.locator("#f-model-name"), self.chosen.model)
            person.rows(rows)
            page.get_by_text(f"{self.chosen.rows} rows").wait_for()
            person.press(page.locator(f"[name=card][value={self.card}]"))
            given = {"run": self.run, "training-steps": str(self.chosen.steps), "training-batch_size": "4"}
            for name, text in given.items():
                person.write(page.locator(f"#f-{name}"), text)
            person.choose(page.locator("#share"), "10 %")
            page.locator(".verdict.fits").wait_for()
            page.wait_for_function(f"() => document.getElementById('command')?.textContent.includes({self.run!r})")
            page.locator("#forecast[aria-busy=false]").wait_for()
            self.screen("form")
            person.press(page.get_by_role("button", name="Preview rows"))
            page.locator("#preview mark.learned").nth(1).wait_for()
            person.press(page.get_by_role("button", name="Check all rows"))
            page.locator("#report h3").first.wait_for()
            self.screen("rows", page.locator("#preview"))
            person.press(page.get_by_role("button", name="Start", exact=True))
            page.wait_for_url(f"**/runs/{self.run}")
        with self.timed("training"):
            half = f"() => parseInt(document.querySelector('[data-tile=step]').innerText) > {self.chosen.steps // 2}"
            page.wait_for_function(half, timeout=PATIENCE)
            self.screen("run")
            page.locator("#status", has_text="finished").wait_for(timeout=PATIENCE)
        self.screen("finished")

    def ask(self) -> dict[str, str]:
        page, person = self.seen.page, self.person
        person.press(page.get_by_role("link", name="Ask", exact=True).first)
        page.wait_for_url("**/ask**")
        with self.timed("two answers"):
            person.write(page.locator("#prompt"), QUESTION)
            person.press(page.get_by_role("button", name="Ask", exact=True))
            page.wait_for_function(ANSWERED, timeout=PATIENCE)
        self.screen("ask")
        base, tuned = (one.inner_text() for one in page.locator(".said.assistant").all())
        return {"base": base, self.run: tuned}

    def evaluate(self, known: Path) -> None:
        """On rows that were not trained on."""
        page, person = self.seen.page, self.person
        person.press(page.get_by_role("navigation").get_by_role("link", name="Evaluate"))
        page.wait_for_url("**/evaluate**")
        self.screen("evaluate form")
        person.rows(known, "#data")
        with self.timed("evaluation"):
            person.press(page.get_by_role("button", name="Evaluate", exact=True))
            page.wait_for_url("**/evaluations/*")
            page.locator(".chip.good").wait_for(timeout=PATIENCE)
        self.screen("evaluate")

    def export(self) -> list[str]:
        """What the engines said of it."""
        page, person = self.seen.page, self.person
        person.press(page.get_by_role("navigation").get_by_role("link", name="Export"))
        page.wait_for_url("**/export**")
        self.screen("export")
        person.press(page.locator("[name=format][value=portable]"))
        person.choose(page.locator("#verify"), "in every installed engine")
        with self.timed("export"):
            person.press(page.get_by_role("button", name="Export", exact=True))
            page.wait_for_url("**/exports/*")
            page.locator(".chip.good").wait_for(timeout=PATIENCE)
        self.screen("verified")
        return [" ".join(one.inner_text().split()) for one in page.locator("[aria-label=Verdicts] tbody tr").all()]

    def whole(self, rows: Path, known: Path) -> dict[str, Any]:
        self.screen("start")
        self.train(rows)
        answers = self.ask()
        self.evaluate(known)
        engines = self.export()
        folder = Path("exports") / f"{self.run}-portable"
        assert (folder / "adapter_model.safetensors").is_file()
        self.seen.open("/")
        self.screen("runs")
        results = json.loads((Path("runs") / self.run / "manifest.json").read_text())["results"]
        losses = [results[f"validation_loss_{when}"] for when in ("before", "after")]
        return {
            "seconds": self.seconds, "answers": answers, "engines that ran it": engines,
            "validation loss": losses,
            "axe, serious": self.findings, "console and other addresses": self.seen.heard,
        }  # fmt: skip


DESKTOP = {
    "start": "start", "form": "new-run", "rows": "rows", "run": "run-desktop", "ask": "ask", "evaluate": "evaluate",
    "export": "export", "verified": "verified",
}  # fmt: skip
PHONE = {"form": "new-run-phone", "run": "run-phone-dark", "runs": "runs-phone"}


def laid(folder: Path, name: str, rows: list[dict[str, str | float]]) -> Path:
    """Orders by e-mail, and their fields as JSON, as prompts and completions."""
    file = folder / f"{name}.jsonl"
    pairs = ({"prompt": row["email"], "completion": row["fields"]} for row in rows)
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return file


def journeys(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    from rankwise.system.cache import cache_folder

    os.environ["RANKWISE_CACHE"] = str(cache_folder())
    os.environ["HOME"] = str(folder)  # the pictures are of nobody's own folder
    rows = laid(folder, "orders", orders(range(chosen.rows)))
    known = laid(folder, "new-orders", orders(range(200, 200 + KNOWN)))
    (folder / "work").mkdir()
    os.chdir(folder / "work")
    found, server = dict[str, Any](), Server().start()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for who, hand, width, scheme, card, pictures in (
            ("mouse, desktop", Mouse, "desktop", "light", "lora", DESKTOP),
            ("keyboard, phone", Keyboard, "phone", "dark", "adalora", PHONE),
        ):
            context = browser.new_context(viewport=WIDTHS[width], color_scheme=scheme)
            seen = Visitor(context.new_page(), server.url)
            page = seen.open("/")
            found[who] = Journey(seen, hand(page), f"orders-{card}", card, chosen, pictures).whole(rows, known)
        seen = Visitor(browser.new_page(viewport=WIDTHS["desktop"]), server.url)
        Journey(seen, Mouse(seen.open("/")), "", "", chosen, {"both": "runs-desktop"}).screen("both")
        browser.close()
    server.stop()
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pictures", type=lambda text: Path(text).absolute())
    chosen = parser.parse_args()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        found = journeys(chosen, Path(name))
        os.chdir(home)
    same = {"model": chosen.model, "rows": chosen.rows, "steps": chosen.steps}
    tell(chosen, same | found, lambda one: print(json.dumps(one, indent=1)))


if __name__ == "__main__":
    main()
