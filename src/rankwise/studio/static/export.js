// Choosing an engine chooses its format.
import "/static/doing.js";

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
