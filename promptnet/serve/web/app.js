// The page of a promptnet service. It talks to /v1 alone, keeps the key in this tab, and loads nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));
const say = (text) => { $("said").textContent = text; };
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const inWords = (ms) => (ms < 90e3 ? `${Math.ceil(ms / 5e3) * 5} s` : `${Math.ceil(ms / 60e3)} min`);
const kB = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

const state = { key: sessionStorage.getItem("key"), local: false, model: null, subject: null, files: [], pending: 0, learning: null };
const pictures = new Map(); // path -> blob address, loaded once

// -- talking to the service -----------------------------------------------------------------------------------------

class Problem extends Error {
  constructor(status, body) {
    super(body.detail || "The service did not answer as expected.");
    Object.assign(this, { status, code: (body.type || "").split(":").pop(), errors: body.errors || [] });
  }
}

async function call(path, { method = "GET", body, headers = {} } = {}) {
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  if (body && !(body instanceof FormData)) [body, headers["Content-Type"]] = [JSON.stringify(body), "application/json"];
  let answer;
  try {
    answer = await fetch(path.replace(/^\//, ""), { method, body, headers, cache: "no-store" });
  } catch {
    throw new Problem(0, { detail: "The service does not answer. Is it still running?" });
  }
  if (answer.ok) return answer;
  throw new Problem(answer.status, await answer.json().catch(() => ({})));
}
const get = async (path) => (await call(path)).json();

async function all(path) {
  const found = [];
  for (let cursor = ""; cursor !== null;) {
    const page = await get(`${path}?limit=100${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
    found.push(...page.data);
    cursor = page.next_cursor;
  }
  return found;
}

async function picture(path) {
  if (!pictures.has(path)) pictures.set(path, URL.createObjectURL(await (await call(path)).blob()));
  return pictures.get(path);
}

/** Hear the events of a job until it ends; a broken line is taken up again. Returns the job as it ended. */
async function follow(job, hear) {
  for (;;) {
    try {
      const lines = (await call(job.urls.events)).body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await lines.read();
        if (done) break;
        const parts = (text + value).split(/\r?\n\r?\n/);
        text = parts.pop();
        for (const part of parts) {
          const [, event] = part.match(/^event: ?(.*)$/m) || [];
          const [, data] = part.match(/^data: ?(.*)$/m) || [];
          if (event === "ended") return JSON.parse(data);
          if (event) hear(event, JSON.parse(data));
        }
      }
    } catch (error) {
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    await sleep(1000);
  }
}

// -- saying what went wrong, where it went wrong ----------------------------------------------------------------------

function complain(where, text) {
  where.textContent = text;
  where.hidden = !text;
}
const PLACES = { images: "files-problem", consent: "consent-problem", class_word: "subject-problem", prompt: "prompt-problem" };

function show(error, otherwise) {
  if (!(error instanceof Problem)) console.error(error);
  const field = error.errors?.[0]?.field;
  const message = error.errors?.[0]?.message || error.message;
  const place = $(PLACES[field] || otherwise);
  if (place === $("more-problem") && field) $("more").open = true;
  complain(place, field && !PLACES[field] && !message.includes(field) ? `${field}: ${message}` : message);
}
const clear = (...ids) => ids.forEach((id) => complain($(id), ""));

/** Ask before something is deleted, and say what goes. Errors stay in the question; what the action returns gets the focus. */
function ask(title, lead, items, action, yes = "Delete") {
  const [dialog, problem] = [$("ask"), $("ask").querySelector(".problem")];
  $("ask-title").textContent = title;
  $("ask-lead").textContent = lead;
  $("ask-list").replaceChildren(...items.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  complain(problem, "");
  $("ask-yes").textContent = yes;
  $("ask-yes").onclick = () => action().then((next) => { dialog.close(); next?.focus(); }, (error) => complain(problem, error.message));
  dialog.showModal();
}

// -- the door ---------------------------------------------------------------------------------------------------------

async function enter() {
  const session = await get("web/session");
  state.local = session.local;
  $("leave").hidden = session.local;
  if (session.local ? !session.open : !state.key) {
    $("door").hidden = false;
    if (session.local) {
      $("door-title").textContent = "Almost there";
      $("door-why").textContent = "Open the address that “promptnet ui” printed in its terminal: it lets this browser in.";
      $("key-form").hidden = true;
    } else $("key").focus();
    return;
  }
  for (let ready = session.ready; !ready; ready = (await get("web/session")).ready) {
    $("service-state").textContent = "The model is loading…";
    await sleep(1000);
  }
  $("service-state").textContent = "";
  const [models, consent, edits] = await Promise.all([get("v1/models"), get("v1/consent"), all("v1/edits")]);
  state.model = models.data[0];
  $("consent-text").textContent = consent.text;
  $("door").hidden = true;
  $("room").hidden = $("open-data").hidden = false;
  fillSizes();
  fillIdeas();
  fillEdits(edits);
  reword();
  await Promise.all([loadSubjects(), loadResults()]);
}

$("key-form").onsubmit = async (event) => {
  event.preventDefault();
  const problem = event.target.querySelector(".problem");
  state.key = $("key").value.trim();
  complain(problem, "");
  try {
    await call("v1/models");
    sessionStorage.setItem("key", state.key);
    await enter();
  } catch (error) {
    state.key = null;
    complain(problem, error.status === 401 ? "This key is not known here. Was it copied whole?" : error.message);
  }
};

// -- who --------------------------------------------------------------------------------------------------------------

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
async function learn(job) {
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

async function loadSubjects(chosen = state.subject) {
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
        await Promise.all([loadSubjects(null), loadResults()]);
        say("Deleted.");
        return $("subject-form").hidden ? $("add-subject") : $("files");
      });
  };
  card.append(label, remove);
  return card;
}

// -- what -------------------------------------------------------------------------------------------------------------

const CLAUSE = /^([a-z-]+)(?:\s*,\s*|\s+and\s+|\s+(?=(?:in|on|with|wearing|without)\b)|\s*$)(.*)$/i;
const COLORS = "pink|navy|teal|yellow|white|lime|red|blue|green|orange|black|grey|gray|purple|violet|brown|beige|cream|gold|silver|turquoise";
const PLAIN_COLOR = new RegExp(`\\bon (?:an? )?(${COLORS})(?=\\s*(?:,|$))`, "gi"); // "on pink" is a background
const NO_ADJECTIVE = /^(in|on|with|wearing|without|as|at|a|an|the)$/i;

/** A prompt with S* from whatever was typed: "make yourself sad, in sunglasses" is "a sad portrait of S*, in sunglasses". */
function worded(text) {
  const words = text.trim().replace(/^(please\s+)?(make|draw|show|turn)\s+(yourself|myself|me|us|them|him|her|it|this person)\b\s*(look\s+)?/i, "").replace(/[.\s]+$/, "")
    .replace(PLAIN_COLOR, (_, color) => `on ${/^[aeiou]/i.test(color) ? "an" : "a"} ${color.toLowerCase()} background`);
  if (/S\d?\*/.test(words)) return words;
  const [, first, rest] = words.match(CLAUSE) || [];
  if (!first || NO_ADJECTIVE.test(first)) return words ? `a portrait of S*, ${words}` : "a portrait of S*";
  return `${/^[aeiou]/i.test(first) ? "an" : "a"} ${first.toLowerCase()} portrait of S*${rest ? `, ${rest}` : ""}`;
}

function marked(text) {
  return text.split(/(S\d?\*)/).map((part, index) => (index % 2 ? Object.assign(document.createElement("mark"), { textContent: part }) : part));
}

function reword() {
  clear("prompt-problem");
  $("reads").hidden = !$("prompt").value.trim();
  $("reads").replaceChildren("Will be drawn as: ", ...marked(worded($("prompt").value)), ". ", ...marked("S* stands for the person."));
  $("draw-hint").textContent = state.subject ? "" : "First add a picture, in step 1.";
  const clauses = $("prompt").value.toLowerCase().split(/\s*,\s*/);
  for (const chip of $("ideas").children) chip.setAttribute("aria-pressed", clauses.includes(chip.textContent));
}

const IDEAS = [["happy", "sad", "surprised"], ["wearing sunglasses", "wearing glasses"], ["on a pink background", "on a navy background"], ["in a red shirt"]];

function fillIdeas() {
  $("ideas").replaceChildren(...IDEAS.flatMap((group, place) => group.map((idea) => {
    const chip = Object.assign(document.createElement("button"), { type: "button", textContent: idea });
    chip.onclick = () => {
      const clauses = $("prompt").value.split(/\s*,\s*/).filter(Boolean);
      const others = clauses.filter((clause) => !group.includes(clause.toLowerCase()));
      if (!clauses.includes(idea)) others[place ? "push" : "unshift"](idea);
      $("prompt").value = others.join(", ");
      reword();
    };
    return chip;
  })));
}

function fillSizes() {
  const [width, height] = state.model.size.split("x").map(Number);
  const fit = (side) => Math.max(1, Math.round(side / state.model.multiple_px)) * state.model.multiple_px;
  const sizes = [["Square", width, height], ["Wide", width * 1.5, height], ["Tall", width, height * 1.5], ["Large", width * 1.5, height * 1.5]];
  $("size").replaceChildren(...sizes.map(([name, ...sides], index) => {
    const [w, h] = sides.map(fit);
    return new Option(`${name} (${w} × ${h})`, index ? `${w}x${h}` : "", !index);
  }));
  $("steps").placeholder = state.model.num_inference_steps;
}

function fillEdits(edits) {
  $("edits-field").hidden = !edits.length;
  $("edits").replaceChildren(...edits.map(({ id, owned }) => {
    const row = Object.assign(document.createElement("div"), { className: "edit" });
    const name = owned ? `yours (${id.slice(-6)})` : id.replaceAll("-", " ");
    const label = Object.assign(document.createElement("label"), { className: "check" });
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: id });
    const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 2, step: 0.1, value: 1, disabled: true });
    const output = Object.assign(document.createElement("output"), { textContent: "" });
    range.setAttribute("aria-label", `Strength of ${name}`);
    label.append(box, name);
    box.onchange = range.oninput = () => {
      range.disabled = !box.checked;
      output.textContent = box.checked ? `${Math.round(range.value * 100)}%` : "";
      sayMore();
    };
    row.append(label, range, output);
    return row;
  }));
}

const chosenEdits = () => [...$("edits").querySelectorAll("input:checked")].map((box) => ({ edit: box.value, strength: Number(box.closest(".edit").querySelector("[type=range]").value) }));

function sayMore() {
  const parts = [chosenEdits().map(({ edit }) => edit).join(", "), $("size").value];
  $("more-said").textContent = parts.some(Boolean) ? `· ${parts.filter(Boolean).join(" · ")}` : "";
}

/** Weights of the two guidance terms: to the left S* speaks louder; to the right the words around it, without fusion. */
function balance() {
  const { subject_scale: own, class_scale: words } = state.model.sampling;
  const at = Number($("balance").value) / 10;
  if (!at) return {};
  return at < 0 ? { subject_scale: own * (1 - 0.4 * at), class_scale: words * (1 + at) } : { fusion_steps: 0, subject_scale: own * (1 - 0.4 * at), class_scale: words + 0.4 * at * own };
}

function asked() {
  const seed = $("seed").value.trim();
  if (seed && !/^\d{1,15}$/.test(seed)) throw new Problem(422, { errors: [{ field: "seed", message: "seed must be a whole number of at most 15 digits" }] });
  const request = { prompt: worded($("prompt").value), subjects: [state.subject], n: Number($("count").value), preview: true, edits: chosenEdits(), ...balance() };
  const options = { size: $("size").value, negative_prompt: $("negative").value.trim(), steps: Number($("steps").value) };
  for (const [name, value] of Object.entries(options)) if (value) request[name] = value;
  if (seed) request.seed = Number(seed);
  return request;
}

$("draw-form").onsubmit = (event) => {
  event.preventDefault();
  clear("prompt-problem", "more-problem");
  if (!state.subject) {
    complain($("prompt-problem"), state.learning ? "The face is still being learned. A moment." : "There is nobody to draw yet: add a picture first, in step 1.");
    return state.learning || $("files").focus();
  }
  try {
    draw({ request: asked(), typed: $("prompt").value, balance: $("balance").value });
  } catch (error) {
    show(error, "more-problem");
  }
};
$("prompt").oninput = reword;
$("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("draw-form").requestSubmit();
  }
};
$("size").onchange = sayMore;

// -- pictures ---------------------------------------------------------------------------------------------------------

const remembered = JSON.parse(sessionStorage.getItem("asked") || "{}"); // what jobs of this tab were asked

function remember(job, entry) {
  remembered[job] = entry;
  sessionStorage.setItem("asked", JSON.stringify(Object.fromEntries(Object.entries(remembered).slice(-200))));
}

/** Ask for pictures, and show them once they are there. Errors appear below the words. */
async function draw(entry) {
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

function tool(name, label, action) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: name, onclick: action });
  if (label) button.setAttribute("aria-label", label);
  return button;
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

async function loadResults() {
  const jobs = (await get("v1/jobs?limit=50")).data;
  $("results").querySelectorAll(".result:not(.pending)").forEach((card) => card.remove());
  const open = (job) => ["starting", "processing"].includes(job.status);
  const drawn = jobs.filter((job) => job.kind === "images" && job.status === "succeeded");
  $("results").append(...drawn.flatMap((job) => job.output.images.map((image) => imageCard(image, remembered[job.id]))));
  told(0);
  if (state.pending || state.learning) return;
  for (const job of jobs.filter(open).reverse()) job.kind === "subject" ? learn(job).catch((error) => show(error, "learning-problem")) : watch(job);
}

// -- your data --------------------------------------------------------------------------------------------------------

const dataProblem = $("data").querySelector(".problem");

$("open-data").onclick = async () => {
  complain(dataProblem, "");
  $("data").showModal();
  try {
    const [subjects, jobs] = await Promise.all([all("v1/subjects"), all("v1/jobs")]);
    const images = jobs.flatMap((job) => job.output?.images || []).length;
    state.counts = [plural(subjects.length, "person", "people"), plural(images, "picture"), plural(jobs.length, "job")];
    $("data-counts").textContent = `Here are ${state.counts.slice(0, 2).join(" and ")} of yours, encrypted under a key of your own.`;
  } catch (error) {
    complain(dataProblem, error.message);
  }
};
$("export").onclick = async () => {
  try {
    const address = URL.createObjectURL(await (await call("v1/me/export")).blob());
    Object.assign(document.createElement("a"), { href: address, download: "promptnet-export.zip" }).click();
  } catch (error) {
    complain(dataProblem, error.message);
  }
};
$("delete-all").onclick = () => {
  $("data").close();
  ask("Delete everything?", "This goes at once and for good, with the key that encrypts it:", [...(state.counts || []), "edit cards that you brought"], async () => {
    const receipt = await (await call("v1/me", { method: "DELETE" })).json();
    const address = URL.createObjectURL(new Blob([JSON.stringify(receipt, null, 1)], { type: "application/json" }));
    Object.assign(document.createElement("a"), { href: address, download: "deletion-receipt.json" }).click();
    sessionStorage.removeItem("asked");
    await Promise.all([loadSubjects(null), loadResults()]);
    say("Everything is deleted. The receipt was saved with your downloads.");
    return $("files");
  }, "Delete everything");
};
$("leave").onclick = () => {
  sessionStorage.clear();
  location.reload();
};

enter().catch((error) => {
  $("service-state").textContent = error.message;
  if (!(error instanceof Problem)) console.error(error);
  if (error.status === 401) [$("door").hidden, $("key-form").hidden] = [false, false];
});
