// What New run, Ask and Export share: parts of a page that the server renders, and buttons that copy.

/** Post a form and show the part of a page that comes back; the server has escaped it. False where it was given up. */
export async function load(path, form, holder, more = {}, signal = undefined) {
  const sent = new URLSearchParams(new FormData(form));
  for (const [name, value] of Object.entries(more)) sent.set(name, value);
  try {
    const answer = await fetch(path, { method: "POST", body: sent, signal, headers: { accept: "text/html" } });
    holder.innerHTML = answer.ok ? await answer.text() : "";
    if (!answer.ok) holder.textContent = "This failed. The terminal that runs the studio shows why.";
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    holder.textContent = "The studio does not answer. Is it still running?";
    return true;
  }
}

/** Put each problem of a part beside its field. */
export function place(form, part) {
  for (const one of form.querySelectorAll(".wrong")) one.textContent = "";
  for (const one of form.querySelectorAll("[aria-invalid]")) one.removeAttribute("aria-invalid");
  const list = part.querySelector("ul.problem");
  for (const one of list?.querySelectorAll("[data-field]") ?? []) {
    const id = one.dataset.field.replaceAll(".", "-");
    const beside = id && document.getElementById(`p-${id}`);
    if (!beside) continue;
    beside.textContent = beside.textContent ? `${beside.textContent}\n${one.textContent}` : one.textContent;
    document.getElementById(`f-${id}`)?.setAttribute("aria-invalid", "true");
  }
}

export function copyButtons(holder) {
  holder.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy), before = button.textContent;
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: copy with Ctrl-C";
    }
    setTimeout(() => { button.textContent = before; }, 2000);
  });
}
