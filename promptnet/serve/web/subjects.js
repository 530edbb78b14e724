// Who: pictures chosen and learned, and the people that there are.

import { $, clear, complain, inWords, kB, marked, plural, say } from "./dom.js";
import { all, call, follow, get, picture, state } from "./service.js";
import { ask, show } from "./problems.js";
import { reword } from "./words.js";
import { loadResults } from "./results.js";

function choose(files) {
  state.files = [...files].filter((file) => file.type.startsWith("image/"));
  clear("files-problem", "consent-problem", "subject-problem");
  if (files.length && !state.files.length) complain($("files-problem"), "This is not a picture. PNG, JPEG and WebP work.");
  $("chosen").replaceChildren(...state.files.map((file) => Object.assign(new Image(), { src: URL.createObjectURL(file), alt: `Chosen: ${file.name}` })));
  $("after-choice").hidden = !state.files.length;
  $("foreign").checked = false;
  $("foreign-line").hidden = true;
  $("example-line").hidden = state.files.length > 0;
  $("drop").classList.toggle("has", state.files.length > 0);
  $("choose").textContent = state.files.length ? "Choose others" : "Choose a picture";
}

$("files").onchange = () => choose($("files").files);
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", over);
    if (name === "drop") choose(event.dataTransfer.files);
  });
$("example").onclick = async () => {
  const blob = await (await call("web/example.png")).blob();
  choose([new File([blob], "example.png", { type: "image/png" })]);
  $("consent").focus();
};

$("subject-form").onsubmit = async (event) => {
  event.preventDefault();
  clear("files-problem", "consent-problem", "subject-problem");
  if (!$("consent").checked) {
    complain($("consent-problem"), "Tick the box first: a face needs its owner's yes.");
    return $("consent").focus();
  }
  const form = new FormData();
  state.files.forEach((file) => form.append("images", file));
  for (const [name, value] of Object.entries({ consent: true, class_word: $("class-word").value, tune: $("tune").checked, allow_foreign: $("foreign").checked })) form.append(name, value);
  try {
    await learn(await (await call("v1/subjects", { method: "POST", body: form })).json());
  } catch (error) {
    $("subject-form").hidden = false;
    show(error, "subject-problem");
  }
};

/** Show a customise job until it ends: its place, its progress and the curve of its loss. */
export async function learn(job) {
  const losses = [];
  let first;
  state.learning = job;
  clear("learning-problem");
  $("subject-form").hidden = $("add-subject").hidden = $("curve").hidden = true;
  $("learning").hidden = $("cancel-learning").hidden = false;
  $("learning-bar").removeAttribute("value");
  $("learning-state").textContent = "waiting";
  const ended = await follow(job, (event, data) => {
    if (event === "queued") $("learning-state").textContent = data.place > 1 ? `${data.place}th in the queue`.replace("2th", "2nd").replace("3th", "3rd") : "next in the queue";
    if (event !== "progress") return;
    if (data.step) $("learning-bar").value = data.step / Math.max(1, data.num_steps);
    first ??= data.step ? { step: data.step, at: Date.now() } : undefined;
    const left = data.step > (first?.step ?? 0) ? ((Date.now() - first.at) / (data.step - first.step)) * (data.num_steps - data.step) : 0;
    $("learning-state").textContent = data.step ? `step ${data.step} of ${data.num_steps}${left ? `, about ${inWords(left)} left` : ""}` : "looking at the picture";
    losses.push(...(data.losses || []));
    drawCurve(losses, data.num_steps);
  });
  state.learning = null;
  if (ended.status === "succeeded") {
    const wasHere = [document.body, $("cancel-learning")].includes(document.activeElement);
    choose([]);
    $("subject-form").reset();
    $("learning").hidden = true;
    await loadSubjects(ended.output.subject);
    say("The face is learned. Now say what they should look like.");
    if (wasHere) $("prompt").focus();
    return;
  }
  $("subject-form").hidden = false;
  $("learning").hidden = true;
  $("foreign-line").hidden = ended.error?.code !== "foreign";
  complain($("subject-problem"), ended.status === "canceled" ? "" : ended.error?.message || "It did not work.");
  say(ended.status === "canceled" ? "Canceled. Nothing of the picture was kept." : "");
  await loadSubjects();
}

function drawCurve(losses, numSteps) {
  $("curve").hidden = losses.length < 2;
  if (losses.length < 2) return;
  const values = losses.flatMap(({ loss, held_out }) => (held_out === null ? [loss] : [loss, held_out]));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const line = (name) => losses.filter((at) => at[name] !== null)
    .map((at, index) => `${index ? "L" : "M"}${((300 * at.step) / numSteps).toFixed(1)} ${(84 - (78 * (at[name] - low)) / (high - low || 1)).toFixed(1)}`).join(" ");
  $("curve").querySelector(".batch").setAttribute("d", line("loss"));
  $("curve").querySelector(".held-out").setAttribute("d", line("held_out"));
  const [first, last] = [losses[0], losses.at(-1)];
  $("curve-caption").textContent = `Error at unseen noise: ${first.held_out?.toFixed(3) ?? "–"} at first, ${last.held_out?.toFixed(3) ?? "–"} now. Lower is closer.`;
}

$("cancel-learning").onclick = () => state.learning && call(state.learning.urls.cancel, { method: "POST" }).catch((error) => show(error, "learning-problem"));
$("add-subject").onclick = () => {
  $("subject-form").hidden = false;
  $("add-subject").hidden = true;
  $("files").focus();
};

export async function loadSubjects(chosen = state.subject) {
  const subjects = await all("v1/subjects");
  state.subject = (subjects.find(({ id }) => id === chosen) || subjects[0])?.id ?? null;
  $("subjects").replaceChildren(...subjects.map(subjectCard));
  $("lead").hidden = subjects.length > 0;
  if (!state.learning) {
    $("subject-form").hidden = subjects.length > 0 && !state.files.length;
    $("add-subject").hidden = !$("subject-form").hidden;
  }
  reword();
}

function subjectCard(subject) {
  const card = Object.assign(document.createElement("div"), { className: "subject" });
  card.dataset.id = subject.id;
  const label = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "subject", className: "unseen", checked: subject.id === state.subject });
  const image = Object.assign(new Image(72, 72), { alt: "" });
  picture(`v1/subjects/${subject.id}/thumbnail`).then((address) => { image.src = address; }, () => {});
  const [made, today] = [new Date(subject.created_at * 1000), new Date().toDateString()];
  const when = made.toDateString() === today ? `today, ${made.toLocaleTimeString([], { timeStyle: "short" })}` : made.toLocaleDateString([], { dateStyle: "medium" });
  const facts = Object.assign(document.createElement("span"), { className: "facts quiet" });
  const name = Object.assign(document.createElement("span"), { className: "name" });
  name.append(...marked("S*"), Object.assign(document.createElement("span"), { className: "other", textContent: "Draw this person" }));
  facts.append(name, `added ${when}${subject.tuned ? "" : ", not tuned"}`);
  label.append(radio, image, facts);
  radio.onchange = () => { state.subject = subject.id; reword(); };
  const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "Delete" });
  remove.setAttribute("aria-label", `Delete the person added ${when}`);
  remove.onclick = async () => {
    const { num_images: count } = await get(`v1/subjects/${subject.id}`);
    ask("Delete this person?", "This goes at once and for good:",
      [`what was learned of the face (${kB(subject.bytes)})`, count ? `${plural(count, "picture")} of them` : "no pictures, as none was drawn", "the jobs and the words that were asked for"],
      async () => {
        await call(`v1/subjects/${subject.id}`, { method: "DELETE" });
        await Promise.all([loadSubjects(null), loadResults(learn)]);
        say("Deleted.");
        return $("subject-form").hidden ? $("add-subject") : $("files");
      });
  };
  card.append(label, remove);
  return card;
}
