"""A page follows a run that grows, through a reload, a background, a killed server and a run that begins anew."""

from __future__ import annotations

import time

from kit.report_runs import made_run
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import LossRecord, RankRecord, StepRecord

HIDE = """hidden => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def steps(run, first, last):
    log = MetricsLog(run.metrics)
    with log:
        for step in range(first, last + 1):
            row = StepRecord(step, 200, 0.1, 2 / step, 1e-3, 0.4, 500, 170, 0.1, 10**9)
            log.append(row.as_row())


def running(name="r"):
    run = made_run(name, steps=10, evaluated=False)
    run.write_manifest(run.manifest().model_copy(update={"status": "running", "results": None, "ended": None}))
    return run


def points(page, count):
    """Wait until the loss is drawn over so many points."""
    page.wait_for_selector(f".drawing[aria-label*='over {count} points']", timeout=60_000)
    label = page.locator(".drawing").first.get_attribute("aria-label")
    assert f"over {count} points" in label
    return page.locator("[data-tile=step]").inner_text()


def test_a_page_grows_with_its_run_and_a_reload_loses_nothing(visitor, workplace):
    run = running()
    with run.locked():
        page = visitor().open("/runs/r")
        assert points(page, 10) == "10 of 10"
        steps(run, 11, 60)
        assert points(page, 60) == "60 of 200"
        assert page.title().startswith("30 %")
        with MetricsLog(run.metrics) as log:
            log.append(LossRecord(60, 0.5, 99, 10).as_row())
            log.append(RankRecord(60, 12, 40, {"model.layers.0.self_attn.q_proj": 12}, True).as_row())
        page.wait_for_selector("#rank-map [aria-label='Ranks by kind of layer: q_proj 12']")
        assert page.locator("[data-tile=validation]").inner_text() == "0.5"
        page.reload()
        assert points(page, 60) == "60 of 200"
    page.wait_for_selector("#status.interrupted")
    assert "interrupted now" in page.locator("#changed").inner_text()


def test_a_page_takes_up_where_it_was_when_the_server_was_killed(visitor, server, workplace):
    run = running()
    with run.locked():
        one = visitor()
        page = one.open("/runs/r")
        points(page, 10)
        server.kill()
        steps(run, 11, 90)
        time.sleep(1)
        server.start()
        assert points(page, 90) == "90 of 200", "without a reload"
    refused = [word for word in one.heard if "ERR_CONNECTION_REFUSED" in word or "ERR_INCOMPLETE" in word]
    assert len(refused) == len(one.heard), "the browser itself says that the server was gone, and nothing else is heard"
    one.heard.clear()


def test_a_run_that_begins_anew_is_drawn_anew(visitor, workplace):
    run = running()
    with run.locked():
        page = visitor().open("/runs/r")
        points(page, 10)
        run.metrics.unlink()
        steps(run, 1, 3)
        assert points(page, 3) == "3 of 200"


def test_the_buttons_are_those_of_the_present_state_without_a_reload(visitor, workplace):
    run = running()
    page = visitor().open("/runs/r")
    page.wait_for_selector("#status.interrupted")
    assert page.get_by_role("button", name="Stop", exact=True).count() == 0
    with run.locked():
        page.get_by_role("button", name="Stop", exact=True).wait_for()
        assert page.locator("#changed").inner_text().strip() == "The training is running now."
        assert page.locator("[data-tile=left]").locator("xpath=preceding-sibling::dt").inner_text() == "time left"
        page.get_by_role("button", name="Stop", exact=True).focus()
        run.write_manifest(run.manifest().model_copy(update={"warnings": ("halved",)}))
        page.get_by_text("halved").wait_for()
        assert page.evaluate("document.activeElement.textContent") == "Stop", "nothing is taken from under a hand"
        run.write_manifest(made_run("other", steps=10).manifest())
    page.get_by_role("link", name="Ask", exact=True).nth(1).wait_for()
    assert page.get_by_role("button", name="Stop").count() == 0 and "saving" not in page.locator("#tiles").inner_text()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    assert page.locator("#result").is_visible() and "mean of 10 steps" in page.locator("#tiles").inner_text()
    assert page.locator("[data-tile=left]").inner_text() == "1 min 15 s"


def test_a_single_value_is_a_point(visitor, workplace):
    made_run("r", steps=1)
    page = visitor().open("/runs/r")
    page.locator(".drawing[aria-label*='over 1 points']").first.wait_for()
    for drawing in page.locator(".drawing[aria-label*='over 1 points']").all():
        assert drawing.locator("circle.point").count() == 1


def test_the_table_keeps_what_was_ticked_while_it_is_brought_up_to_date(visitor, workplace):
    run = running()
    with run.locked():
        page = visitor().open("/")
        page.get_by_label("Choose r").check()
        page.get_by_label("Choose r").focus()
        before = page.locator(".spark path").get_attribute("d")
        steps(run, 11, 60)
        page.wait_for_function("d => document.querySelector('.spark path').getAttribute('d') !== d", arg=before)
        assert page.get_by_label("Choose r").is_checked()
        assert page.evaluate("document.activeElement.value") == "r"


def test_a_page_in_the_background_asks_for_nothing_and_catches_up(visitor, workplace):
    run = running()
    with run.locked():
        page = visitor().open("/runs/r")
        points(page, 10)
        page.evaluate(HIDE, True)
        steps(run, 11, 70)
        page.wait_for_timeout(3500)
        assert "over 10 points" in page.locator(".drawing").first.get_attribute("aria-label")
        page.evaluate(HIDE, False)
        assert points(page, 70) == "70 of 200"
