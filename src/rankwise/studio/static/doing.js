// What screens share: parts of a page that the server renders, files that are uploaded, and buttons that copy.

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

/** Upload what is chosen or dropped; `done` gets its path on the machine. */
export function takeFiles(done) {
  const bar = document.getElementById("upload-bar"), state = document.getElementById("upload-state");
  const chosen = document.getElementById("upload"), drop = document.getElementById("drop");

  function upload(file) {
    if (!file) return;
    const request = new XMLHttpRequest();
    bar.hidden = false;
    state.textContent = `Uploading ${file.name}`;
    request.upload.onprogress = (event) => { if (event.lengthComputable) bar.value = event.loaded / event.total; };
    request.onloadend = () => {
      bar.hidden = true;
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { answer = {}; }
      state.textContent = answer.path ? `${answer.name} is uploaded.` : answer.error || "The upload was interrupted.";
      if (answer.path) done(answer.path);
    };
    request.open("POST", `/new/upload?name=${encodeURIComponent(file.name)}`);
    request.send(file);
  }

  chosen.addEventListener("change", () => upload(chosen.files[0]));
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.remove("over"); });
  drop.addEventListener("drop", (event) => upload(event.dataTransfer.files[0]));
}

document.querySelector("select#run")?.addEventListener("change", (event) => event.target.form.submit());
