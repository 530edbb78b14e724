// Pictures: asked for, watched while they are drawn, drawn again, varied and deleted.

import { $, complain, marked, plural, say, sleep, tool } from "./dom.js";
import { call, follow, get, picture, state } from "./service.js";
import { ask, show } from "./problems.js";
import { reword } from "./words.js";

const remembered = JSON.parse(sessionStorage.getItem("asked") || "{}"); // what jobs of this tab were asked

function remember(job, entry) {
  remembered[job] = entry;
  sessionStorage.setItem("asked", JSON.stringify(Object.fromEntries(Object.entries(remembered).slice(-200))));
}

/** Ask for pictures, and show them once they are there. Errors appear below the words. */
export async function draw(entry) {
  const request = { ...entry.request, seed: entry.request.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] };
  $("draw").disabled = true;
  try {
    const job = await (await call("v1/images", { method: "POST", body: request })).json();
    remember(job.id, { ...entry, request });
    say(`Drawing ${plural(request.n, "picture")}.`);
    await Promise.race([watch(job), sleep(400)]);
  } catch (error) {
    show(error, "prompt-problem");
  } finally {
    $("draw").disabled = false;
  }
}

function resultCard(entry) {
  const card = $("result-template").content.firstElementChild.cloneNode(true);
  const part = Object.fromEntries(["img", "progress", ".asked", ".seed", ".problem", ".tools"].map((name) => [name.replace(".", ""), card.querySelector(name)]));
  part.asked.append(...(entry ? marked(entry.request.prompt) : ["Drawn earlier"]));
  part.img.alt = entry?.request.prompt || "Drawn earlier";
  return { card, part };
}

/** One waiting card for a job, in whose place its pictures come. */
async function watch(job) {
  const entry = remembered[job.id];
  const { card, part } = resultCard(entry);
  card.classList.add("pending");
  const cancel = tool("Cancel", "Cancel this drawing", () => call(`v1/jobs/${job.id}/cancel`, { method: "POST" }).catch((error) => complain(part.problem, error.message)));
  part.tools.append(cancel);
  part.seed.textContent = "waiting";
  part.progress.removeAttribute("value");
  part.progress.setAttribute("aria-label", "Drawing");
  $("results").prepend(card);
  told(1);
  try {
    const ended = await follow(job, (event, data) => {
      if (event === "queued") part.seed.textContent = data.place > 1 ? `waiting, place ${data.place} in the queue` : "next in the queue";
      if (event === "preview") part.img.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(data.b64_json), (c) => c.charCodeAt(0))], { type: "image/png" }));
      if (event !== "progress") return;
      part.seed.textContent = `step ${data.step} of ${data.num_steps}`;
      if (data.step) part.progress.value = data.step / Math.max(1, data.num_steps);
    });
    if (ended.status === "succeeded") {
      const focused = card.contains(document.activeElement);
      const cards = ended.output.images.map((image) => imageCard(image, entry));
      card.replaceWith(...cards);
      if (focused) cards[0]?.querySelector("button").focus();
      say(`${plural(cards.length, "picture is", "pictures are")} ready.`);
    } else if (ended.status === "canceled") {
      if (card.contains(document.activeElement)) $("prompt").focus();
      card.remove();
      say("Canceled.");
    } else throw new Error(ended.error?.message || "It did not work.");
  } catch (error) {
    card.classList.remove("pending");
    part.progress.hidden = true;
    part.seed.textContent = "";
    complain(part.problem, error.message);
    cancel.replaceWith(tool("Dismiss", "", () => { card.remove(); told(0); }));
  } finally {
    told(-1);
  }
}

function imageCard(image, entry) {
  const { card, part } = resultCard(entry);
  const seed = Number.isSafeInteger(image.seed) ? image.seed : null; // larger ones were rounded on their way here
  part.progress.hidden = true;
  const changes = entry?.request.edits.map(({ edit, strength }) => `${edit} ${Math.round(strength * 100)}%`) || [];
  part.seed.textContent = [...(seed === null ? [] : [`seed ${seed}`]), ...changes].join(" · ");
  picture(image.url).then((address) => {
    part.img.src = address;
    const save = Object.assign(document.createElement("a"), { href: address, download: `${image.id}.png`, textContent: "Save" });
    save.setAttribute("aria-label", `Save the picture with seed ${seed}`);
    part.tools.lastElementChild.before(save);
  }, (error) => complain(part.problem, error.message));
  if (entry) part.tools.append(tool("Again", "Again: the same words, another seed", () => draw({ ...entry, request: { ...entry.request, seed: undefined } })));
  if (entry && seed !== null) part.tools.append(tool("Vary", `Vary: keep seed ${seed}, change the words`, () => vary(entry, seed)));
  part.tools.append(tool("Delete", `Delete the picture with seed ${seed}`, () => ask("Delete this picture?", "This goes at once and for good:", ["the one picture, here and on the service"], async () => {
    await call(`v1/images/${image.id}`, { method: "DELETE" });
    const next = card.nextElementSibling || card.previousElementSibling;
    card.remove();
    told(0);
    say("Deleted.");
    return next?.querySelector("button") || $("prompt");
  })));
  return card;
}

/** Bring what made a picture back into the form, its seed too: change a word, and the rest stays. */
function vary({ request, typed, balance: at }, seed) {
  $("prompt").value = typed;
  $("balance").value = at;
  $("size").value = request.size || "";
  $("negative").value = request.negative_prompt || "";
  $("steps").value = request.steps || "";
  $("count").value = "1";
  for (const row of $("edits").children) {
    const [box, range] = row.querySelectorAll("input");
    const edit = request.edits.find((one) => one.edit === box.value);
    box.checked = Boolean(edit);
    range.value = edit ? edit.strength : 1;
    box.onchange();
  }
  [...$("subjects").children].find((card) => card.dataset.id === request.subjects[0])?.querySelector("input").click();
  keepSeed(seed);
  reword();
  $("prompt").focus();
}

function keepSeed(seed) {
  $("seed").value = seed;
  $("kept-seed").hidden = !seed && seed !== 0;
  $("kept-seed").firstElementChild.textContent = `Seed ${seed} is kept: change a word, and the rest of the picture stays.`;
}
$("seed").oninput = () => { $("kept-seed").hidden = true; };
$("kept-seed").lastElementChild.onclick = () => {
  keepSeed("");
  $("count").value = "4";
  $("prompt").focus();
};

function told(change) {
  state.pending += change;
  $("service-state").textContent = state.pending ? `${plural(state.pending, "drawing")} under way` : "";
  $("no-results").hidden = $("results").children.length > 0;
}

/** Show what was drawn, and what is under way; `resume` shows a face that is being learned. */
export async function loadResults(resume) {
  const jobs = (await get("v1/jobs?limit=50")).data;
  $("results").querySelectorAll(".result:not(.pending)").forEach((card) => card.remove());
  const open = (job) => ["starting", "processing"].includes(job.status);
  const drawn = jobs.filter((job) => job.kind === "images" && job.status === "succeeded");
  $("results").append(...drawn.flatMap((job) => job.output.images.map((image) => imageCard(image, remembered[job.id]))));
  told(0);
  if (state.pending || state.learning) return;
  for (const job of jobs.filter(open).reverse()) job.kind === "subject" ? resume(job).catch((error) => show(error, "learning-problem")) : watch(job);
}
