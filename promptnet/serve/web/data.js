// Your data: what there is, taken along or deleted.

import { $, complain, plural, say } from "./dom.js";
import { all, call, state } from "./service.js";
import { ask } from "./problems.js";
import { learn, loadSubjects } from "./subjects.js";
import { loadResults } from "./results.js";

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
    await Promise.all([loadSubjects(null), loadResults(learn)]);
    say("Everything is deleted. The receipt was saved with your downloads.");
    return $("files");
  }, "Delete everything");
};
$("leave").onclick = () => {
  sessionStorage.clear();
  location.reload();
};
