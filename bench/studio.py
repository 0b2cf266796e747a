"""What a page that follows a training costs it, and what it misses when the server is killed.

    python bench/studio.py [--steps 2000] [--rounds 2] [--blocks 2] [--writer 50] [--json] [--out bench/results/TITLE]

A tiny Llama (blocks of width 32) is trained with LoRA for so many steps, in turns without a studio and with one whose
page of the run is open in headless Chromium, ABAB. With two blocks its steps take a few milliseconds, so there is more
to draw than with any real training; more blocks make slower steps. Beside the seconds of training there are the seconds
of processor time that the training, the server and the browser took, which another load on the machine hardly changes.
`lost` is what the server and the browser took as a share of the training's own, as if all of them had one core.

Then a run is stopped and goes on by the page's button; the server is killed with SIGKILL while it trains, and started
anew. `missed` counts the steps of the log that the page, which was never loaded again, has not drawn.

With --writer nothing is trained: the log of a run grows by so many steps a second, and there is only the processor time
that the server and the browser took to follow all of them. A machine that is busy with other work can measure that.

Needs Playwright and a Chromium (make browser).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from telling import parser_of, tell

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
RANKWISE = [sys.executable, "-m", "rankwise"]
SETTINGS = ["--model", "tiny-llama", "--data", "rows.jsonl", "--rank", "4", "--batch-size", "2", "--held-out", "6",
            "--learning-rate", "0.01", "--set", "model.dtype=float32", "--quiet"]  # fmt: skip
LONGEST = 900.0
HOME = Path.cwd()


def lay_out(folder: Path, blocks: int) -> None:
    from conftest import chat_tokenizer, tiny_model
    from kit.library import rows

    tokenizer = chat_tokenizer()
    tiny_model("llama", vocab=len(tokenizer), layers=blocks).save_pretrained(folder / "tiny-llama")
    tokenizer.save_pretrained(folder / "tiny-llama")
    (folder / "rows.jsonl").write_text(rows(60))


def train(name: str, steps: int) -> subprocess.Popen[bytes]:
    command = [*RANKWISE, "train", *SETTINGS, "--steps", str(steps), "--run", name]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Studio:
    """A server in a process of its own."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([*RANKWISE, "studio", "--port", str(self.port), "--json"],
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait()

    def ask(self, path: str, form: bytes | None = None) -> str:
        request = urllib.request.Request(self.url + path, form, {"origin": self.url, "accept": "text/html"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    from kit.browser_visits import CHROMIUM, FLAGS

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


def processor_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes if one.is_running())


def browsers() -> list[psutil.Process]:
    """Those of Chromium that this process started."""
    return [one for one in psutil.Process().children(recursive=True) if "chrom" in one.name()]


def points(page: Any) -> int:
    label = page.locator(".drawing").first.get_attribute("aria-label") or ""
    number = label.partition("over ")[2].partition(" ")[0]
    return int(number) if number.isdecimal() else 0


def until(what: Any, pause: float = 0.3) -> None:
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > LONGEST:
            raise SystemExit("it took too long")
        time.sleep(pause)


def running(name: str) -> bool:
    file = Path("runs") / name / "manifest.json"
    return file.is_file() and json.loads(file.read_text())["status"] == "running"


def seconds_of(process: subprocess.Popen[bytes]) -> float:
    """Wait for its end; the processor time that it took."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a training ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def results(name: str) -> dict[str, Any]:
    return json.loads((Path("runs") / name / "manifest.json").read_text())["results"]


def alone(name: str, steps: int) -> dict[str, float]:
    own = seconds_of(train(name, steps))
    return {"seconds": results(name)["train_seconds"], "training": own, "server": 0.0, "browser": 0.0}


def followed(name: str, steps: int, studio: Studio, browser: Any) -> dict[str, float]:
    process = train(name, steps)
    until(lambda: running(name), 0.05)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    server = [psutil.Process(studio.process.pid)]
    before = processor_seconds(server), processor_seconds(browsers())
    page.goto(f"{studio.url}/runs/{name}")
    own = seconds_of(process)
    after = processor_seconds(server), processor_seconds(browsers())
    until(lambda: points(page) == steps)
    page.close()
    return {
        "seconds": results(name)["train_seconds"], "training": own, "server": after[0] - before[0],
        "browser": after[1] - before[1],
    }  # fmt: skip


def written(steps: int, a_second: float, studio: Studio, browser: Any) -> dict[str, float]:
    """The processor time for the steps of a log that nobody trains."""
    from kit.report_runs import made_run
    from rankwise.runs.metrics_log import MetricsLog
    from rankwise.runs.records import StepRecord

    run = made_run("written", steps=1, evaluated=False, during=False, method="lora", held_out=False)
    run.write_manifest(run.manifest().model_copy(update={"status": "running", "results": None}))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    with run.locked(), MetricsLog(run.metrics) as log:
        page.goto(f"{studio.url}/runs/written")
        until(lambda: "1 of" in page.locator("[data-tile=step]").inner_text())
        server, before, began = [psutil.Process(studio.process.pid)], 0.0, time.monotonic()
        before = processor_seconds(server), processor_seconds(browsers())
        for step in range(2, steps + 1):
            noise = 1 + 0.1 * ((step * 7919) % 13) / 13
            log.append(
                StepRecord(step, steps, step / 99, 2 * noise / step**0.2, 1e-3, noise, 80, 40, 0.02, 10**9).as_row()
            )
            time.sleep(max(0.0, began + step / a_second - time.monotonic()))
        seconds = time.monotonic() - began
        page.wait_for_timeout(3000)
        after, seen = (processor_seconds(server), processor_seconds(browsers())), points(page)
    return {
        "steps": steps, "missed": steps - seen, "seconds": seconds, "server": after[0] - before[0],
        "browser": after[1] - before[1], "server_share": (after[0] - before[0]) / seconds,
        "browser_share": (after[1] - before[1]) / seconds,
    }  # fmt: skip


def only_written(steps: int, a_second: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        os.chdir(folder)
        studio = Studio(8378)
        try:
            return {"steps_a_second": a_second} | written(steps, a_second, studio, browser)
        finally:
            studio.stop()
            os.chdir(HOME)


def killed(steps: int, studio: Studio, browser: Any) -> dict[str, Any]:
    """A run that is stopped, goes on by the page, and is trained while the server is killed."""
    first = train("killed", steps)
    until(lambda: list(Path("runs/killed/checkpoints").glob("step-*")))
    first.send_signal(signal.SIGINT)
    first.wait()
    page = browser.new_page()
    page.goto(f"{studio.url}/runs/killed")
    page.get_by_role("button", name="Resume").click()
    page.wait_for_selector("#status.running", timeout=LONGEST * 1000)
    studio.stop(signal.SIGKILL)
    drawn = points(page)
    time.sleep(3)
    trained_meanwhile = running("killed")
    studio.start()
    again = ">running<" in studio.ask("/runs/killed")
    until(lambda: not running("killed"))
    until(lambda: points(page) == steps)
    seen = points(page)
    page.reload()
    until(lambda: points(page) == steps)
    log = Path("runs/killed/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = sum('"kind": "step"' in line for line in log)
    return {
        "drawn_before": drawn, "trained_without_a_server": trained_meanwhile, "met_again_as_running": again,
        "steps_logged": logged, "missed": logged - seen, "missed_after_a_reload": logged - points(page),
    }  # fmt: skip


def measured(steps: int, rounds: int, blocks: int) -> dict[str, Any]:
    arms: dict[str, list[dict[str, float]]] = {"alone": [], "followed": []}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        lay_out(Path(folder), blocks)
        os.chdir(folder)
        alone("first", 20)  # files come from the disk, and rows are encoded
        studio = Studio(8377)
        try:
            for number in range(rounds):
                arms["alone"].append(alone(f"alone-{number}", steps))
                arms["followed"].append(followed(f"followed-{number}", steps, studio, browser))
                seconds = [round(every[-1]["seconds"], 1) for every in arms.values()]
                print(f"round {number + 1} of {rounds}: {seconds} s, {arms['followed'][-1]}", file=sys.stderr)
            interrupted = killed(steps, studio, browser)
        finally:
            studio.stop()
            os.chdir(HOME)
    medians = {
        name: {key: statistics.median(one[key] for one in every) for key in every[0]} for name, every in arms.items()
    }
    page = medians["followed"]
    return {
        "steps": steps, "rounds": rounds, "blocks": blocks, "medians": medians,
        "lost": {name: page[name] / page["training"] for name in ("server", "browser")},
        "slower": page["seconds"] / medians["alone"]["seconds"] - 1,
        "slower_in_processor_time": page["training"] / medians["alone"]["training"] - 1,
        "killed": interrupted, "all": arms,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    print(f"{found['steps']:,} steps, medians of {found['rounds']}:   seconds   processor: training   server   browser")
    for name, one in found["medians"].items():
        print(f"{name:<26}{one['seconds']:>17.1f}{one['training']:>22.1f}{one['server']:>9.2f}{one['browser']:>10.2f}")
    lost = found["lost"]
    print(f"lost to the server {lost['server']:.2%}, to the browser {lost['browser']:.2%} of the training's own")
    print(f"slower by {found['slower']:+.1%}; own processor time {found['slower_in_processor_time']:+.1%}")
    print(f"server killed: {found['killed']}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--writer", type=float)
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job and its children ignore it
    if asked.writer:
        tell(asked, only_written(asked.steps, asked.writer), print)
    else:
        tell(asked, measured(asked.steps, asked.rounds, asked.blocks), show)


if __name__ == "__main__":
    main()
