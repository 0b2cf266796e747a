// Choosing an engine chooses its format; a running export is looked at each second.
const form = document.getElementById("export");

function named(format) {
  const name = document.getElementById("to");
  if (name && name.value.startsWith(`${form.dataset.run}-`)) name.value = `${form.dataset.run}-${format}`;
}

form?.addEventListener("change", (event) => { if (event.target.name === "format") named(event.target.value); });
for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => {
    const radio = form.querySelector(`[name=format][value="${CSS.escape(button.dataset.format)}"]`);
    if (!radio || radio.disabled) return;
    radio.checked = true;
    named(radio.value);
    radio.focus();
  });
}
document.getElementById("run")?.addEventListener("change", (event) => event.target.form.submit());

const state = document.getElementById("state");
async function look() {
  try {
    const answer = await fetch(`/exports/${state.dataset.id}/state`, { headers: { accept: "text/html" } });
    if (answer.ok) state.innerHTML = await answer.text();
  } catch { /* the studio is being started again */ }
  if (state.querySelector(".chip.running")) setTimeout(look, 1000);
}
if (state?.dataset.running === "true") setTimeout(look, 1000);
