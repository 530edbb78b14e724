// The page of a promptnet service. It talks to /v1 alone, keeps the key in this tab, and loads nothing from elsewhere.
// This file lets people in; each other one is a part of the page.

import { $, complain, sleep } from "./dom.js";
import { Problem, all, call, get, state } from "./service.js";
import { fillIdeas, reword } from "./words.js";
import { fillEdits, fillSizes } from "./form.js";
import { learn, loadSubjects } from "./subjects.js";
import { loadResults } from "./results.js";
import "./data.js";

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
  await Promise.all([loadSubjects(), loadResults(learn)]);
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

enter().catch((error) => {
  $("service-state").textContent = error.message;
  if (!(error instanceof Problem)) console.error(error);
  if (error.status === 401) [$("door").hidden, $("key-form").hidden] = [false, false];
});
