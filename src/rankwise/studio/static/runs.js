// Brings the table up to date while a run is trained, and leaves ticked boxes and the focus where they are.
const EVERY = 4000;
const SHARE = 100; // of the time, one part of so many goes into looks, however many runs there are

async function refresh() {
  const place = document.getElementById("table");
  if (document.hidden || !place?.hasAttribute("data-live")) return;
  let answer;
  try {
    answer = await fetch(location.href, { headers: { accept: "text/html" } });
  } catch {
    return; // the studio was stopped; the next look may meet it again
  }
  if (!answer.ok || answer.redirected) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("table");
  if (!fresh) return;
  const ticked = new Set([...place.querySelectorAll("input:checked")].map((box) => box.value));
  const focused = place.contains(document.activeElement) ? address(document.activeElement) : null;
  for (const box of fresh.querySelectorAll("input[name=run]")) box.checked = ticked.has(box.value);
  place.replaceWith(document.adoptNode(fresh));
  if (focused) [...fresh.querySelectorAll("a, input")].find((one) => address(one) === focused)?.focus();
}

function address(element) {
  return element.value ?? element.getAttribute("href");
}

async function look() {
  const began = performance.now();
  await refresh();
  setTimeout(look, Math.max(EVERY, SHARE * (performance.now() - began)));
}

setTimeout(look, EVERY);
