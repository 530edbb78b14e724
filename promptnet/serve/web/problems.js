// Saying what went wrong where it went wrong, and asking before something is deleted.

import { $, complain } from "./dom.js";
import { Problem } from "./service.js";

const PLACES = { images: "files-problem", consent: "consent-problem", class_word: "subject-problem", prompt: "prompt-problem" };

export function show(error, otherwise) {
  if (!(error instanceof Problem)) console.error(error);
  const field = error.errors?.[0]?.field;
  const message = error.errors?.[0]?.message || error.message;
  const place = $(PLACES[field] || otherwise);
  if (place === $("more-problem") && field) $("more").open = true;
  complain(place, field && !PLACES[field] && !message.includes(field) ? `${field}: ${message}` : message);
}

/** Ask before something is deleted, and say what goes. Errors stay in the question; what the action returns gets the focus. */
export function ask(title, lead, items, action, yes = "Delete") {
  const [dialog, problem] = [$("ask"), $("ask").querySelector(".problem")];
  $("ask-title").textContent = title;
  $("ask-lead").textContent = lead;
  $("ask-list").replaceChildren(...items.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  complain(problem, "");
  $("ask-yes").textContent = yes;
  $("ask-yes").onclick = () => action().then((next) => { dialog.close(); next?.focus(); }, (error) => complain(problem, error.message));
  dialog.showModal();
}
