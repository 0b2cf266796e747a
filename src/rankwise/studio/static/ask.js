// Conversations with several models at once. Each side has its own history, which lives in this page alone.
import "/static/doing.js";

const sides = [...document.querySelectorAll(".side")].map((holder) => ({
  holder, run: holder.dataset.run, talk: holder.querySelector(".talk"), slider: holder.querySelector("input[type=range]"),
  messages: [], answer: null,
}));
const form = document.getElementById("ask"), prompt = document.getElementById("prompt"), image = document.getElementById("image");
const state = document.getElementById("state"), stop = document.getElementById("stop"), send = document.getElementById("send");
const kind = document.getElementById("sides")?.dataset.kind;
let asked = null;

for (const side of sides) {
  side.slider?.addEventListener("input", () => { side.holder.querySelector("output").textContent = Number(side.slider.value).toFixed(2); });
}

function turn(side, who, text) {
  const one = document.createElement("div");
  one.className = `said ${who}`;
  one.textContent = text;
  side.talk.append(one);
  side.talk.scrollTop = side.talk.scrollHeight;
  return one;
}

function value(id, whole) {
  const text = document.getElementById(id)?.value.trim();
  if (!text) return undefined;
  const number = Number(text);
  return Number.isNaN(number) || (whole && !Number.isInteger(number)) ? text : number;
}

function body(text) {
  const runs = sides.map((side) => side.run).filter(Boolean);
  const sent = { runs, sides: sides.map((side) => ({
    run: side.run, strength: side.slider ? Number(side.slider.value) : 1,
    messages: [...(kind === "text" ? side.messages : []), { role: "user", content: text }],
  })) };
  const system = document.getElementById("system");
  if (system) Object.assign(sent, { system: system.value === system.defaultValue ? null : system.value, temperature: value("temperature"), top_p: value("top_p"), seed: value("seed", true), max_new_tokens: value("max_new_tokens", true) });
  return sent;
}

const WHY = { length: "cut at the longest answer", repetition: "stopped: the answer repeats itself", end: "" };

function note(side, text) {
  if (!text) return;
  const one = document.createElement("span");
  one.className = "hint";
  one.textContent = text;
  side.talk.append(one);
}

function bars(side, labels, chosen) {
  const list = document.createElement("ul");
  list.className = "bars";
  for (const [label, share] of labels) {
    const line = document.createElement("li"), name = document.createElement("span"), bar = document.createElement("progress"), told = document.createElement("span");
    const own = Array.isArray(chosen) ? chosen.includes(label) : chosen === label;
    name.textContent = own ? `✓ ${label}` : label;
    bar.value = share;
    bar.setAttribute("aria-label", label);
    told.textContent = `${(100 * share).toFixed(1)} %`;
    line.append(name, bar, told);
    list.append(line);
  }
  side.talk.append(list);
}

function spans(side, found, whole) {
  const shown = document.createElement("p");
  let at = 0;
  for (const one of found) {
    shown.append(whole.slice(at, one.start));
    const mark = document.createElement("mark");
    mark.className = "learned";
    mark.textContent = `${whole.slice(one.start, one.end)} [${one.label}]`;
    shown.append(mark);
    at = one.end;
  }
  shown.append(whole.slice(at));
  side.talk.append(shown);
}

function take(event, text) {
  if (event.status) state.textContent = event.status;
  if (event.side === undefined) {
    if (event.problem) state.textContent = event.problem;
    return;
  }
  const side = sides[event.side];
  state.textContent = "";
  if (event.text) {
    side.answer.textContent += event.text;
    side.talk.scrollTop = side.talk.scrollHeight;
  }
  if (event.problem) { side.answer.classList.add("wrong"); side.answer.textContent ||= event.problem; side.failed = true; }
  if (event.labels?.length) { side.answer.remove(); bars(side, event.labels, event.chosen); }
  else if (event.spans) { side.answer.remove(); spans(side, event.spans, event.whole); }
  else if (typeof event.value === "number") side.answer.textContent = event.value.toPrecision(5);
  if (event.finish) {
    side.messages.push({ role: "user", content: text }, { role: "assistant", content: side.answer.textContent });
    const speed = event.tokens ? `${event.tokens} tokens in ${event.seconds} s` : "";
    note(side, [WHY[event.finish], speed].filter(Boolean).join(" · "));
    side.done = true;
  }
}

// The chosen file as a data: URL, whose part after the comma is base64.
function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

async function pictured(sent, file) {
  if (file.size > Number(image.dataset.largest)) throw new Error(`${file.name} is larger than ${Number(image.dataset.largest) / 1e6} MB.`);
  const url = await read(file), seen = document.createElement("img");
  seen.onerror = () => seen.remove();
  seen.src = url;
  seen.alt = "";
  sides[0].talk.insertBefore(seen, sides[0].answer);
  sent.image = url.slice(url.indexOf(",") + 1);
}

async function ask() {
  const file = image?.files[0], text = image ? file?.name ?? "" : prompt.value;
  if (!text.trim() || asked) return;
  asked = new AbortController();
  stop.disabled = false;
  send.disabled = true;
  state.textContent = "";
  const sent = body(text);
  for (const side of sides) { turn(side, "user", text); side.answer = turn(side, "assistant", ""); side.failed = side.done = false; }
  try {
    if (file) await pictured(sent, file);
    const answer = await fetch("/ask/answer", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(sent), signal: asked.signal });
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || "The question failed.");
    await follow(answer.body, text);
    if (prompt && sides.every((side) => side.done)) for (const one of [prompt, ...(template?.querySelectorAll("textarea") ?? [])]) one.value = "";
  } catch (error) {
    state.textContent = error.name === "AbortError" ? "Stopped." : error.message;
  }
  for (const side of sides) if (!side.done && !side.failed) note(side, "not finished, so it is not part of the conversation");
  asked = null;
  stop.disabled = true;
  send.disabled = false;
  (image ?? prompt).focus();
}

async function follow(stream, text) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value: part } = await reader.read();
    if (done) return;
    rest += part;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const one of events) take(JSON.parse(one.slice("data: ".length)), text);
  }
}

form?.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
form?.addEventListener("keydown", (event) => {
  if (event.target.tagName === "TEXTAREA" && event.target.id !== "system" && event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
stop?.addEventListener("click", () => asked?.abort());
document.getElementById("fresh")?.addEventListener("click", () => {
  asked?.abort();
  for (const side of sides) { side.messages = []; side.talk.replaceChildren(); }
  prompt.focus();
});

// The run's prompt, filled in from a field for each of its columns; the message stays free to be changed.
const template = document.getElementById("template");
template?.addEventListener("input", () => {
  const values = Object.fromEntries([...template.querySelectorAll("[data-column]")].map((one) => [one.dataset.column, one.value]));
  prompt.value = template.dataset.template.replace(/\{\{|\}\}|\{([^{}]+)\}/g, (piece, name) => (name === undefined ? piece[0] : values[name] ?? ""));
});
