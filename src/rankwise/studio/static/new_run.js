// The form of a new run: what it takes is asked anew while it is filled in. Without this script the form still starts.
import { copyButtons, load, place, takeFiles } from "/static/doing.js";

const form = document.getElementById("new-run");
const forecast = document.getElementById("forecast");
const field = (name) => form.elements[name];
const page = `${Date.now()}-${Math.random()}`; // requests of one page take turns
let timer = 0, asked = null, rows = 0;

function turned(wait = 350) {
  clearTimeout(timer);
  timer = setTimeout(ask, wait);
}

async function ask() {
  asked?.abort();
  asked = new AbortController();
  forecast.setAttribute("aria-busy", "true");
  const open = forecast.querySelector("details")?.open;
  const refusal = document.getElementById("refusal"), refused = refusal.innerHTML.trim() ? "yes" : "";
  const done = await load("/new/forecast", form, forecast, { page, refused }, asked.signal);
  if (!done) return;
  const left = forecast.querySelector("template");
  if (refused && left && left.innerHTML !== refusal.innerHTML) refusal.innerHTML = left.innerHTML;
  forecast.setAttribute("aria-busy", "false");
  if (open) forecast.querySelector("details")?.setAttribute("open", "");
  place(form, forecast);
  noteRows(forecast);
}

function noteRows(holder) {
  const told = Number(holder.querySelector("[data-rows]")?.dataset.rows || 0);
  if (told && holder.id === "columns") rows = told;
  else if (told && !rows) rows = told;
}

function showCard() {
  const card = new FormData(form).get("card");
  for (const one of form.querySelectorAll("[data-cards]")) {
    const cards = one.dataset.cards.split(" ").filter(Boolean);
    const own = !cards.length || cards.includes(card);
    one.hidden = !own;
    for (const control of one.querySelectorAll("input, select, textarea")) control.disabled = !own;
  }
}

function set(name, value) {
  const control = field(name);
  if (!control) return false;
  if (control.type === "checkbox") control.checked = value === "true";
  else control.value = value;
  control.dispatchEvent(new Event("change", { bubbles: true }));
  return true;
}

async function columns() {
  rows = 0;
  const holder = document.getElementById("columns");
  await load("/new/columns", form, holder);
  noteRows(holder);
}

// A column has one use: it leaves the others. There is one answer; texts stand below each other.
function use(select) {
  const { column } = select.dataset, braces = `{${column}}`, text = (name) => field(name).value;
  field("data.prompt").value = text("data.prompt").split("\n").filter((line) => line !== braces).join("\n").replaceAll(braces, "");
  if (text("data.completion") === braces) field("data.completion").value = "";
  field("data.ignore_columns").value = text("data.ignore_columns").split(",").filter((one) => one && one !== column).join(",");
  if (select.value === "data.completion") {
    for (const other of document.querySelectorAll("[data-column]")) if (other !== select && other.value === select.value) other.value = "";
    field("data.completion").value = braces;
  } else if (select.value) {
    const apart = select.value === "data.prompt" ? "\n" : ",", added = apart === "," ? column : braces;
    field(select.value).value = [text(select.value), added].filter(Boolean).join(apart);
  }
  document.querySelector("[data-prompt]")?.parentElement.remove();
  turned(0);
}

function setting(text) {
  const at = text.indexOf("="), name = text.slice(0, at), value = text.slice(at + 1);
  if (name === "adapter.method") {
    const card = form.querySelector(`[name=card][value="${CSS.escape(value)}"]`);
    if (card) { card.checked = true; card.dispatchEvent(new Event("change", { bubbles: true })); }
    return;
  }
  if (set(name, value)) return;
  const other = field("other");
  other.value = [...other.value.split("\n").filter((line) => line && !line.startsWith(`${name}=`)), text].join("\n");
  turned(0);
}

// a path that is half typed may be a folder of everything, which takes long to read
const whole = ["data.path", "data.validation.path"];
form.addEventListener("input", ({ target }) => { if (target.name && !whole.includes(target.name)) turned(); });
form.addEventListener("change", (event) => {
  if (event.target.id === "share") {
    if (event.target.value && rows) set("data.held_out", String(Math.round(rows * Number(event.target.value))) || "0");
    return;
  }
  if (event.target.dataset.column) use(event.target);
  if (event.target.name === "card") showCard();
  if (event.target.name === "data.path") columns();
  if (event.target.name) turned(0);
});
form.addEventListener("click", (event) => {
  const button = event.target.closest("button[type=button]");
  if (!button) return;
  const told = button.dataset;
  if (told.set) set(told.set, told.value);
  else if (told.setting) told.setting.split(" ").forEach(setting);
  else if (told.prompt) { field("data.prompt").value = told.prompt; set("data.completion", told.completion); columns().then(() => document.querySelector("[data-column]")?.focus()); }
  else if (told.load) into(button);
});

async function into(button) {
  const holder = document.getElementById(button.dataset.into);
  holder.textContent = "Reading the rows …";
  button.disabled = true;
  await load(button.dataset.load, form, holder, { first: button.dataset.first || "1" });
  button.disabled = false;
}

takeFiles((path) => set("data.path", path));
copyButtons(document);
showCard();
document.getElementById("problems")?.focus();
if (field("data.path").value) columns();
