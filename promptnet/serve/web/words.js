// A prompt with S* from whatever was typed, and ideas to tap.

import { $, clear, marked } from "./dom.js";
import { state } from "./service.js";

const CLAUSE = /^([a-z-]+)(?:\s*,\s*|\s+and\s+|\s+(?=(?:in|on|with|wearing|without)\b)|\s*$)(.*)$/i;
const COLORS = "pink|navy|teal|yellow|white|lime|red|blue|green|orange|black|grey|gray|purple|violet|brown|beige|cream|gold|silver|turquoise";
const PLAIN_COLOR = new RegExp(`\\bon (?:an? )?(${COLORS})(?=\\s*(?:,|$))`, "gi"); // "on pink" is a background
const NO_ADJECTIVE = /^(in|on|with|wearing|without|as|at|a|an|the)$/i;

/** A prompt with S* from whatever was typed: "make yourself sad, in sunglasses" is "a sad portrait of S*, in sunglasses". */
export function worded(text) {
  const words = text.trim().replace(/^(please\s+)?(make|draw|show|turn)\s+(yourself|myself|me|us|them|him|her|it|this person)\b\s*(look\s+)?/i, "").replace(/[.\s]+$/, "")
    .replace(PLAIN_COLOR, (_, color) => `on ${/^[aeiou]/i.test(color) ? "an" : "a"} ${color.toLowerCase()} background`);
  if (/S\d?\*/.test(words)) return words;
  const [, first, rest] = words.match(CLAUSE) || [];
  if (!first || NO_ADJECTIVE.test(first)) return words ? `a portrait of S*, ${words}` : "a portrait of S*";
  return `${/^[aeiou]/i.test(first) ? "an" : "a"} ${first.toLowerCase()} portrait of S*${rest ? `, ${rest}` : ""}`;
}

export function reword() {
  clear("prompt-problem");
  $("reads").hidden = !$("prompt").value.trim();
  $("reads").replaceChildren("Will be drawn as: ", ...marked(worded($("prompt").value)), ". ", ...marked("S* stands for the person."));
  $("draw-hint").textContent = state.subject ? "" : "First add a picture, in step 1.";
  const clauses = $("prompt").value.toLowerCase().split(/\s*,\s*/);
  for (const chip of $("ideas").children) chip.setAttribute("aria-pressed", clauses.includes(chip.textContent));
}

const IDEAS = [["happy", "sad", "surprised"], ["wearing sunglasses", "wearing glasses"], ["on a pink background", "on a navy background"], ["in a red shirt"]];

export function fillIdeas() {
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
