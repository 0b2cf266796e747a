"""A person goes from an empty folder to a trained adapter, answers side by side and a verified export, in a browser;
and from tickets in a spreadsheet to a downloaded file of predictions, scores and an export.

Once by mouse on a desktop, once by keyboard alone on a phone; each screen has no serious finding of axe on the way.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.browser_hands import ANSWERED, Keyboard, Mouse
from kit.classifiers import encoder_folder, labelled
from kit.hostile_texts import PAYLOADS
from kit.library import rows
from kit.vision_models import lay_pictures


@pytest.fixture
def engines(monkeypatch):
    """Exports are verified in the engines that are installed."""
    monkeypatch.delenv("RANKWISE_ENGINES", raising=False)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "lands.jsonl"
    file.write_text(rows(24))
    return file


@pytest.mark.parametrize(("width", "scheme", "hand"), [("desktop", "light", Mouse), ("phone", "dark", Keyboard)])
def test_from_an_empty_folder_to_a_verified_export(
    engines, visitor, tmp_path, tiny_folder, rows_file, width, scheme, hand
):
    page = visitor(width, scheme).open("/")
    page.set_default_timeout(60_000)
    person = hand(page)
    check_accessible(page)
    person.press(page.get_by_role("navigation").get_by_role("link", name="New run"))
    page.wait_for_url("**/new")
    train(page, person, tiny_folder, rows_file)
    page.wait_for_url("**/runs/lands")
    page.locator("#status", has_text="finished").wait_for(timeout=240_000)
    assert (tmp_path / "runs/lands/adapter/adapter_model.safetensors").is_file()
    ask(page, person)
    export(page, person)
    written = tmp_path / "exports" / "lands-portable"
    assert (written / "adapter_model.safetensors").is_file()
    assert "peft" in (written / "README.md").read_text().lower()


def train(page, person, model: Path, rows: Path) -> None:
    person.write(page.locator("#f-model-name"), str(model))
    person.rows(rows)
    page.get_by_text("24 rows").wait_for()
    page.locator(".verdict.fits").wait_for(timeout=200_000)  # a model of an unknown shape is built first
    before = page.locator("#forecast .tiles").inner_text()
    person.write(page.locator("#f-adapter-rank"), "4")
    page.wait_for_function("before => document.querySelector('#forecast .tiles')?.innerText !== before", arg=before)
    person.press(page.get_by_role("button", name="Preview rows"))
    page.locator("#preview mark.learned").nth(1).wait_for()
    assert "It is town 0." in page.locator("#preview pre mark").first.inner_text()
    person.press(page.get_by_role("button", name="Check all rows"))
    page.locator("#report").get_by_text("No problems found").wait_for()
    check_accessible(page)
    person.choose(page.locator("#share"), "10 %")
    page.wait_for_function("() => document.getElementById('f-data-held_out').value === '2'")
    given = {"training-steps": "40", "training-batch_size": "2", "training-learning_rate": "0.01", "run": "lands"}
    for name, text in given.items():
        person.write(page.locator(f"#f-{name}"), text)
    page.wait_for_function("() => document.getElementById('command')?.textContent.includes('--run lands')")
    command = page.locator("#command").text_content()
    assert "--steps 40" in command and "--held-out 2" in command and "--rank 4" in command
    person.press(page.get_by_role("button", name="Start", exact=True))


def ask(page, person) -> None:
    person.press(page.get_by_role("link", name="Ask", exact=True).first)
    page.wait_for_url("**/ask**")
    person.write(page.locator("#prompt"), "What is land 3?")
    person.press(page.get_by_role("button", name="Ask", exact=True))
    page.wait_for_function(ANSWERED, timeout=120_000)
    texts = [one.inner_text() for one in page.locator(".said.assistant").all()]
    assert len(texts) == 2 and texts[0] != texts[1] and "It is town" in texts[1]
    check_accessible(page)


def export(page, person) -> None:
    person.press(page.get_by_role("navigation").get_by_role("link", name="Export"))
    page.wait_for_url("**/export**")
    check_accessible(page)
    person.press(page.locator("[name=format][value=portable]"))
    assert page.locator("#to").input_value() == "lands-portable"
    person.choose(page.locator("#verify"), "in every installed engine")
    person.press(page.get_by_role("button", name="Export", exact=True))
    page.wait_for_url("**/exports/*")
    page.locator(".chip.good").wait_for(timeout=240_000)
    ran = page.locator("#verified ~ .scroll tbody tr")
    assert ran.count() >= 1 and "right" in ran.first.inner_text()
    assert page.locator("code").first.inner_text().strip()
    check_accessible(page)


@pytest.mark.parametrize(("width", "scheme", "hand"), [("desktop", "dark", Mouse), ("phone", "light", Keyboard)])
def test_from_tickets_to_a_file_of_predictions_scores_and_an_export(visitor, tmp_path, width, scheme, hand):
    model, tickets, known, new = (tmp_path / name for name in ("bert", "tickets.csv", "known.csv", "new.csv"))
    encoder_folder(model)
    lines = [f"{number};{row['text']};{row['label']}" for number, row in enumerate(labelled(80))]
    for file, part in ((tickets, lines[:60]), (known, lines[60:])):
        file.write_text("\n".join(["ticket;message;mood", *part]))
    new.write_text("ticket;message\n1;the film is kind\n2;the plot is cold\n")
    page = visitor(width, scheme).open("/")
    person = hand(page)
    person.press(page.get_by_role("link", name="Use my rows to classify texts"))
    page.wait_for_url("**/new?way=classify")
    assert page.locator("#f-model-name").input_value() == "minilm"
    person.write(page.locator("#f-model-name"), str(model))
    person.rows(tickets)
    page.locator(".verdict", has_text="Memory and time follow when").wait_for()
    page.locator("#forecast", has_text="Choose the text and the answer or label first").wait_for()
    assert page.get_by_role("button", name="Start", exact=True).bounding_box()["y"] < page.viewport_size["height"]
    person.choose(page.get_by_label("Use message as"), "text")
    person.choose(page.get_by_label("Use mood as"), "answer or label")
    page.locator(".verdict.fits").wait_for()
    assert page.get_by_text("A guess").count() == 0
    check_accessible(page)
    for name, text in {"training-steps": "30", "training-learning_rate": "0.01", "run": "moods"}.items():
        person.write(page.locator(f"#f-{name}"), text)
    person.press(page.get_by_role("button", name="Start", exact=True))
    page.wait_for_url("**/runs/moods")
    person.press(page.locator("#head").get_by_role("link", name="Predict"))
    page.wait_for_url("**/predict?run=moods")
    person.rows(new, "#data")
    person.press(page.get_by_role("button", name="Predict", exact=True))
    page.wait_for_url("**/predictions/*")
    page.locator(".chip.good").wait_for()
    check_accessible(page)
    with page.expect_download() as downloaded:
        person.press(page.get_by_role("link", name="Download new-moods.csv"))
    head, *rows = downloaded.value.path().read_text().splitlines()
    assert head.startswith("ticket;message;prediction;") and [row.split(";")[2] for row in rows] == ["good", "bad"]
    evaluate(page, person, known)
    person.press(page.get_by_role("navigation").get_by_role("link", name="Export"))
    page.wait_for_url("**/export")
    assert page.locator("[name=format][value=gguf]").count() == 0
    person.press(page.get_by_role("button", name="Export", exact=True))
    page.wait_for_url("**/exports/*")
    page.locator(".chip.good").wait_for()
    assert "Load it with PEFT" in page.locator("#state").inner_text()
    check_accessible(page)


def evaluate(page, person, known) -> None:
    """On rows with answers; below the scores stand the answers, and one text is asked in between."""
    person.press(page.get_by_role("navigation").get_by_role("link", name="Evaluate"))
    page.wait_for_url("**/evaluate")
    check_accessible(page)
    person.rows(known, "#data")
    person.press(page.get_by_role("button", name="Evaluate", exact=True))
    page.wait_for_url("**/evaluations/*")
    page.locator(".chip.good").wait_for()
    assert page.locator("#answers ~ .scroll tbody tr").count() == 20 and "of 20 are not" in page.content()
    check_accessible(page)
    person.press(page.get_by_role("navigation").get_by_role("link", name="Predict"))
    person.write(page.locator("#prompt"), "the plot is kind")
    person.press(page.get_by_role("button", name="Ask", exact=True))
    page.locator(".bars li").first.wait_for()
    page.wait_for_function("() => document.getElementById('state').textContent === ''")
    label, bar = (page.locator(f".bars {tag}").first.bounding_box() for tag in ("span", "progress"))
    assert bar["x"] - label["x"] - label["width"] < 60
    check_accessible(page)


def check_accessible(page) -> None:
    """No finding of axe that is serious or critical, and nothing is cut off at the side."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = [one for one in axe.run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], page.url
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url


def test_a_form_that_is_wrong_says_so_beside_its_fields(visitor, tiny_folder):
    seen = visitor("phone", "light")
    page = seen.open("/new")
    person = Keyboard(page)
    person.write(page.locator("#f-model-name"), str(tiny_folder))
    person.write(page.locator("#f-adapter-rank"), "many")
    page.locator("#p-adapter-rank", has_text="many").wait_for()
    assert page.locator("#f-adapter-rank").get_attribute("aria-invalid") == "true"
    check_accessible(page)
    person.write(page.locator("#f-adapter-rank"), "4")
    page.wait_for_function("() => !document.getElementById('f-adapter-rank').hasAttribute('aria-invalid')")
    person.press(page.get_by_role("button", name="Start", exact=True))
    page.wait_for_function("() => document.activeElement.id === 'problems'")
    seen.heard[:] = [one for one in seen.heard if "422" not in one]  # Chromium writes the status of the answer
    assert page.locator("#f-adapter-rank").input_value() == "4"
    check_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_each_screen_is_accessible_with_all_that_it_can_show(library, tmp_path, monkeypatch, request, width, scheme):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora", "adalora"))
    seen = request.getfixturevalue("visitor")(width, scheme)
    paths = ("/new?from=adalora", "/ask?run=lora&with=adalora", "/export?run=adalora", "/evaluate?run=lora")
    for path in paths:
        page = seen.open(path)
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        page.wait_for_load_state("networkidle")
        check_accessible(page)


def test_a_classifier_of_images_is_asked_with_a_file(visitor, tmp_path):
    lay_pictures(tmp_path)
    page = visitor("phone", "dark").open("/ask?run=pictures")
    for name in ("rows/dark/0.png", "vit/config.json"):
        page.get_by_label("Image", exact=True).set_input_files(str(tmp_path / name))
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator(".said.wrong" if "json" in name else ".bars li").first.wait_for()
        check_accessible(page)
    assert page.locator(".bars li").count() == 2 and page.locator(".bars").inner_text().count("%") == 2
    assert page.evaluate("document.querySelector('.talk img').naturalWidth") == 40
    assert "config.json" in page.locator(".said.wrong").inner_text()


def test_hostile_rows_names_and_files_are_text(visitor, tmp_path, tiny_folder):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": one, "completion": one}) + "\n" for one in PAYLOADS))
    page = visitor().open("/new")
    elements = "[...new Set([...document.querySelectorAll('main *')].map((one) => one.tagName))].sort().join()"
    page.locator("#f-model-name").fill(str(tiny_folder))
    page.locator("#f-data-path").fill(str(file))
    page.locator("#f-data-path").dispatch_event("change")
    page.get_by_role("button", name="Check all rows").click()
    page.locator("#report h3").first.wait_for()
    before = set(page.evaluate(elements).split(","))
    assert not before & {"SCRIPT", "IFRAME", "OBJECT", "EMBED", "STYLE", "IMG", "svg", "math", "META", "BASE", "LINK"}
    page.get_by_role("button", name="Preview rows").click()
    for _ in range(len(PAYLOADS) // 3):
        page.locator("#preview figure").first.wait_for()
        assert set(page.evaluate(elements).split(",")) <= before | {"FIGURE", "FIGCAPTION", "PRE", "MARK"}
        page.get_by_role("button", name="Next rows").click()
        page.wait_for_load_state("networkidle")
    for payload in PAYLOADS:
        page.get_by_label("Upload a file").set_input_files(
            {"name": f"{payload[:80].replace('/', '_')}.jsonl", "mimeType": "text/plain", "buffer": ROW}
        )
        page.wait_for_function("() => document.getElementById('upload-state').textContent.endsWith('is uploaded.')")
        page.evaluate("text => { for (const id of FIELDS) document.getElementById(id).value = text; }".replace(
            "FIELDS", json.dumps(["f-data-system", "f-run", "f-other", "f-data-prompt"])), payload)  # fmt: skip
        with page.expect_response("**/new/forecast"):
            page.locator("#f-run").dispatch_event("change")
    assert set(page.evaluate(elements).split(",")) <= before | {"FIGURE", "FIGCAPTION", "PRE", "MARK", "IMG"} - {"IMG"}


ROW = b'{"text": "a"}\n'
