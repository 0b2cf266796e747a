// The course of one run: asks for its events, draws what comes, and takes up where it was after any interruption.
import { Chart, element } from "./chart.js";
import { drawRanks } from "./rank_map.js";

const STEP = 0, LOSS = 1, RATE = 2, NORM = 3, SPEED = 4, MEMORY = 5, SECONDS = 6;
const AT_WORK = ["starting", "running"];
const LAST = 50;
const run = document.getElementById("run").dataset;
const byId = (name) => document.getElementById(name);

const number = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) ? value.toExponential(1) : Number(value.toPrecision(4)).toLocaleString("en"));
const bytes = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${(value / 1e6).toFixed(0)} MB`);
const short = (value) => (value >= 1e9 ? `${number(value / 1e9)} GB` : `${number(value / 1e6)} MB`);
const duration = (seconds) => {
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  if (whole < 60) return `${whole} s`;
  return hours ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
};

const charts = byId("charts");
const loss = new Chart(charts, { title: "loss", height: 250, format: number, smooth: true });
const small = [
  [NORM, new Chart(charts, { title: "gradient norm before clipping", format: number, smooth: true })],
  [RATE, new Chart(charts, { title: "learning rate", format: number, fromZero: true })],
  [SPEED, new Chart(charts, { title: "tokens/s", format: number, smooth: true, fromZero: true })],
  [MEMORY, new Chart(charts, { title: "memory", format: short, fromZero: true })],
];
let steps = [], validation = [], total = null, position = "", status = run.status, source = null, scores = new Map();

function take(message) {
  steps.push(...message.steps);
  validation.push(...message.validation);
  total = message.of ?? total;
  for (const [metric, step, value] of message.scores) (scores.get(metric) ?? scores.set(metric, []).get(metric)).push([step, value]);
  if (message.ranks) {
    byId("ranks").hidden = false;
    drawRanks(byId("rank-map"), byId("ranks-about"), message.ranks);
  }
  show();
}

function show() {
  const columns = (at) => steps.map((row) => [row[STEP], row[at]]);
  loss.show(columns(LOSS), validation);
  for (const [at, chart] of small) chart.show(columns(at));
  for (const [metric, points] of scores) {
    const chart = scoreCharts.get(metric) ?? scoreCharts.set(metric, new Chart(charts, { title: `${words(metric)} on validation rows`, format: number })).get(metric);
    chart.show(points);
  }
  const last = steps.at(-1);
  if (!last) return;
  tile("step", total ? `${last[STEP].toLocaleString("en")} of ${total.toLocaleString("en")}` : last[STEP].toLocaleString("en"));
  tile("loss", last[LOSS] === null ? "not finite" : number(mean(LOSS)));
  if (validation.length) tile("validation", number(validation.at(-1)[1]));
  tile("speed", number(Math.round(mean(SPEED))));
  if (last[MEMORY] !== null) tile("memory", bytes(last[MEMORY]));
  const many = Math.min(LAST, steps.length);
  if (many > 1) named("loss", `loss, mean of ${many} steps`);
  const [metric, points] = scores.entries().next().value ?? [];
  if (points?.length) {
    named("score", `${words(metric)} on validation rows`).hidden = false;
    tile("score", number(points.at(-1)[1]));
  }
  if (AT_WORK.includes(status)) named("left", "time left");
  if (AT_WORK.includes(status) && total) tile("left", last[STEP] >= total ? "saving" : `about ${duration((total - last[STEP]) * mean(SECONDS))}`);
  byId("progress").value = total ? last[STEP] / total : 0;
  if (AT_WORK.includes(status) && total) document.title = `${Math.floor((100 * last[STEP]) / total)} % · ${document.title.split(" % · ").at(-1)}`;
}
const scoreCharts = new Map();

function mean(column) {
  const values = steps.slice(-LAST).map((row) => row[column]).filter((value) => value !== null);
  return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
}

function tile(name, text) {
  document.querySelector(`[data-tile=${name}]`).textContent = text;
}

const words = (metric) => metric.replaceAll("_", " ");

function named(name, text) {
  const label = document.querySelector(`[data-tile=${name}]`).previousElementSibling;
  label.textContent = text;
  return label.parentElement;
}

// What can be done and what has come of the run, as the page has it now. While a run is trained, the buttons stay under
// the hand of whoever is among them; once it has ended they would do nothing, and the heading gets the focus.
async function renew() {
  try {
    const answer = await fetch(run.path);
    const fresh = new DOMParser().parseFromString(answer.ok ? await answer.text() : "", "text/html");
    if (!fresh.getElementById("head")) return;
    for (const part of ["head", "tiles", "result", "records", "change"]) {
      const place = byId(part), now = fresh.getElementById(part), within = place.contains(document.activeElement);
      if (within && AT_WORK.includes(status)) continue;
      place.replaceWith(document.adoptNode(now));
      if (within) byId("head").querySelector("h1").focus();
    }
    show();
    document.querySelector("main > .notice:not(#changed)")?.remove();
    byId("changed").querySelector("a")?.remove();
  } catch {
    // the studio was stopped; the link stays
  }
}

function change(state) {
  const chip = byId("status");
  chip.textContent = state.status;
  chip.className = `chip ${state.status}`;
  byId("problem").textContent = state.problem ?? "";
  byId("problem").hidden = !state.problem;
  byId("warnings").hidden = !state.warnings.length;
  byId("warning-list").replaceChildren(...state.warnings.map((one) => element("li", {}, one)));
  if (state.status !== status) {
    const said = { gone: "This run was deleted or renamed.", finished: "The training has finished; its result is saved." };
    byId("changed").textContent = said[state.status] ?? `The training is ${state.status} now.`;
    byId("changed").append(" ", element("a", { href: state.status === "gone" ? "/" : run.path }, "Show what can be done now"));
    byId("changed").hidden = false;
  }
  const before = status;
  status = state.status;
  if (before !== status && status !== "gone") renew();
  if (!AT_WORK.includes(status)) document.title = document.title.split(" % · ").at(-1);
  show();
  readLog();
}

// A page in the background closes its stream, since a browser opens only six to one server; it asks again from where it was.
function follow() {
  if (document.hidden || source) return;
  source = new EventSource(`${run.path}/events?after=${encodeURIComponent(position)}`);
  source.addEventListener("records", (event) => {
    position = event.lastEventId;
    take(JSON.parse(event.data));
  });
  source.addEventListener("begin", (event) => {
    position = event.lastEventId;
    steps = [];
    validation = [];
    scores = new Map();
    show();
  });
  source.addEventListener("state", (event) => change(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) return; // it asks again by itself
    close();
    setTimeout(follow, 2000);
  });
}

function close() {
  source?.close();
  source = null;
}

async function readLog() {
  const text = byId("log-text");
  if (!text || !byId("log").open) return;
  try {
    const answer = await fetch(`${run.path}/log`);
    if (answer.ok) text.textContent = await answer.text();
  } catch {
    // the studio was stopped; the next look may meet it again
  }
}

document.addEventListener("visibilitychange", () => (document.hidden ? close() : follow()));
byId("log").addEventListener("toggle", readLog);
setInterval(() => AT_WORK.includes(status) && !document.hidden && readLog(), 2000);
follow();
