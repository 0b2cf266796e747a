"""Each screen in both widths and schemes: readable, reachable by keyboard alone, and silent about what a run holds."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from kit.browser_visits import Visitor
from kit.hostile_texts import PAYLOADS, folder_name
from kit.report_runs import made_run
from rankwise.studio.app import SCREENS

PATHS = {
    "runs": "/", "run": "/runs/a", "failed": "/runs/c", "report": "/runs/a/report", "compare": "/compare?run=a&run=b",
    "delete": "/delete?run=a&run=b",
} | {one.label: one.path for one in SCREENS if one.label not in (None, "Runs")}  # fmt: skip
SERIOUS = ("serious", "critical")


@pytest.fixture
def three(workplace):
    made_run("a", steps=30)
    made_run("b", method="lora", steps=12)
    run = made_run("c", status="failed", held_out=False, evaluated=False, steps=3)
    run.write_manifest(run.manifest().model_copy(update={"problem": "no memory", "warnings": ("halved", "slow")}))


@pytest.mark.parametrize("name", PATHS)
def test_a_screen_is_accessible_and_fits_in_each_width_and_scheme(three, visitor, name):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for width, scheme in (("desktop", "light"), ("phone", "dark")):
        page = visitor(width, scheme).open(PATHS[name])
        page.wait_for_timeout(300)
        for details in page.locator("details").all():
            details.evaluate("one => { one.open = true }")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off at the side"
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS] == []


def test_axe_finds_what_is_wrong(three, visitor):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visitor().open("/")
    page.evaluate("document.querySelector('input[name=words]').previousElementSibling.remove()")
    page.evaluate("document.querySelector('input[name=words]').removeAttribute('placeholder')")
    assert "label" in [one["id"] for one in axe.run(page).response["violations"] if one["impact"] in SERIOUS]


def test_runs_are_chosen_compared_sorted_and_deleted_by_keyboard(three, visitor):
    page = visitor().open("/")
    focus = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focus}.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focus}.id") == "content"

    def tab_to(check):
        for _ in range(60):
            page.keyboard.press("Tab")
            assert page.evaluate(f"getComputedStyle({focus}).outlineStyle") != "none", "the focus is seen"
            if page.evaluate(f"(one => {check})({focus})"):
                return
        raise AssertionError(f"{check} is not reached")

    tab_to("one.value === 'a'")
    page.keyboard.press("Space")
    tab_to("one.value === 'b'")
    page.keyboard.press("Space")
    tab_to("one.textContent.startsWith('Compare')")
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare?*")
    assert page.get_by_text("rankwise comparison").is_visible()
    page.go_back()
    page.locator("#content").focus()
    tab_to("one.textContent.startsWith('size')")
    page.keyboard.press("Enter")
    page.wait_for_url("**sort=size**")
    page.locator("#content").focus()
    tab_to("one.value === 'c'")
    page.keyboard.press("Space")
    tab_to("one.textContent.startsWith('Delete')")
    page.keyboard.press("Enter")
    page.wait_for_url("**/delete?run=c**")
    page.locator("#content").focus()
    tab_to("one.textContent.startsWith('Delete and free')")
    page.keyboard.press("Enter")
    page.wait_for_url("**/")
    assert "Deleted c" in page.get_by_role("status").inner_text()
    assert page.locator("td.lead").count() == 2


def test_a_chart_is_read_by_keyboard(three, visitor):
    page = visitor().open("/runs/a")
    drawing, readout = page.locator(".drawing").first, page.locator(".readout").first
    drawing.locator(".thick").wait_for(state="attached")
    drawing.focus()
    page.keyboard.press("Home")
    assert readout.inner_text().endswith("at step 1")
    page.keyboard.press("ArrowRight")
    assert readout.inner_text().endswith("at step 2")
    page.keyboard.press("End")
    assert readout.inner_text().endswith("at step 30")
    assert "over 30 points" in drawing.get_attribute("aria-label")


def test_a_page_without_scripts_has_what_a_run_came_to(three, chromium, server):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server.url + "/runs/a")
    assert page.get_by_role("heading", name="Result").is_visible() and "need scripts" in page.content()
    context.close()


def test_hostile_runs_are_inert_in_a_browser(visitor):
    apart = {"key", "exact", "setting", "column", "layer", "package", "metric", "target", "against"}
    names = [folder_name(payload) for payload in PAYLOADS]
    for name, payload in zip(names, PAYLOADS, strict=True):

        def said(where, payload=payload):
            return f"{payload}{where}" if where in apart else payload

        run = made_run(name, steps=4, said=said)
        run.write_manifest(run.manifest().model_copy(update={"problem": payload, "warnings": (payload,)}))
    one = visitor()
    page = one.open("/")
    assert page.locator("td.lead").count() == len(PAYLOADS)
    for at, name in enumerate(names):
        part = quote(name, safe="")
        for path in (f"/runs/{part}", f"/runs/{part}/report", f"/delete?run={part}")[: 3 if at % 6 == 0 else 1]:
            page = one.open(path)
            page.wait_for_selector(".thick, .report, form[action='/delete']", state="attached")
            assert page.evaluate("document.scripts.length") <= 1 and not page.evaluate("window.ran ?? false")


def test_the_visitor_hears_what_a_page_does(chromium, server):
    context = chromium.new_context()
    one = Visitor(context.new_page(), server.url)
    one.open("/").evaluate("console.log('x'); setTimeout(() => alert('y')); location.href = 'http://127.0.0.1:9/z'")
    one.page.wait_for_timeout(300)
    assert {word.partition(":")[0] for word in one.heard} == {"console", "dialog", "request"}
    context.close()
