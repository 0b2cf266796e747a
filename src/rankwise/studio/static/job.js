// Files that are sent with a form of a job, and a running job, which is looked at each second.
import { takeFiles } from "/static/doing.js";

const data = document.getElementById("data"), state = document.getElementById("state");
if (data) takeFiles((path) => { data.value = path; });

async function look() {
  try {
    const answer = await fetch(state.dataset.path, { headers: { accept: "text/html" } });
    if (answer.ok) state.innerHTML = await answer.text();
  } catch { /* the studio is being started again */ }
  if (state.querySelector(".chip.running")) setTimeout(look, 1000);
}
if (state?.dataset.running === "true") setTimeout(look, 1000);
