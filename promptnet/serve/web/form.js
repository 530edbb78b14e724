// What: the form around the words, and what it asks for.

import { $, clear, complain } from "./dom.js";
import { Problem, state } from "./service.js";
import { show } from "./problems.js";
import { reword, worded } from "./words.js";
import { draw } from "./results.js";

export function fillSizes() {
  const [width, height] = state.model.size.split("x").map(Number);
  const fit = (side) => Math.max(1, Math.round(side / state.model.multiple_px)) * state.model.multiple_px;
  const sizes = [["Square", width, height], ["Wide", width * 1.5, height], ["Tall", width, height * 1.5], ["Large", width * 1.5, height * 1.5]];
  $("size").replaceChildren(...sizes.map(([name, ...sides], index) => {
    const [w, h] = sides.map(fit);
    return new Option(`${name} (${w} × ${h})`, index ? `${w}x${h}` : "", !index);
  }));
  $("steps").placeholder = state.model.num_inference_steps;
}

export function fillEdits(edits) {
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
