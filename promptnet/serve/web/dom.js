// Small helpers on the document, which know nothing of the service.

export const $ = (id) => document.getElementById(id);
export const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));
export const say = (text) => { $("said").textContent = text; };
export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
export const inWords = (ms) => (ms < 90e3 ? `${Math.ceil(ms / 5e3) * 5} s` : `${Math.ceil(ms / 60e3)} min`);
export const kB = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

export function complain(where, text) {
  where.textContent = text;
  where.hidden = !text;
}

export const clear = (...ids) => ids.forEach((id) => complain($(id), ""));

export function marked(text) {
  return text.split(/(S\d?\*)/).map((part, index) => (index % 2 ? Object.assign(document.createElement("mark"), { textContent: part }) : part));
}

export function tool(name, label, action) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: name, onclick: action });
  if (label) button.setAttribute("aria-label", label);
  return button;
}
