// Joins the page's parts and begins.

import * as api from "./api.js";
import { $, $$, announce, hideNotice, notify } from "./dom.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as jobs from "./jobs.js";
import * as stage from "./stage.js";
import { collectStart, removeStart, setStart } from "./start.js";

const RETRY = 3000; // milliseconds
const LOOK = 10000;
let connected = false;

// Says what went wrong; while the server is away, waits for it.
function report(error) {
  if (error instanceof api.OfflineError) return reconnect();
  if (error instanceof api.ApiError) return notify(error.message, error.status === 401 && ["Enter the token", connect]);
  throw error;
}

const attempt = (action) => async (...given) => {
  try {
    return await action(...given);
  } catch (error) {
    return report(error);
  }
};

const connect = attempt(async () => {
  form.setOptions(await api.get("v1/options"));
  await jobs.refresh();
  connected = true;
  hideNotice();
  showServer("Ready");
});

let waiting = false;
function reconnect() {
  connected = false;
  showServer("Offline");
  if (waiting) return;
  waiting = true;
  notify("The server does not answer. Is “keras-diffusion serve” running? This page tries again every few seconds.");
  setTimeout(() => {
    waiting = false;
    connect();
  }, RETRY);
}

function showServer(text) {
  $("#server").textContent = text;
  $("#server").dataset.state = text.toLowerCase();
}

const draw = async () => {
  form.clearErrors();
  hideNotice();
  try {
    const job = await jobs.submit({ ...form.collect(), ...(await collectStart()) });
    if (job.state === "queued") announce(`Place ${job.place} in the queue`);
    requestAnimationFrame(() => $("#stage").scrollIntoView({ block: "nearest" })); // when it is rendered
  } catch (error) {
    if (error instanceof api.OfflineError) reconnect();
    else form.showError(error);
  }
};

$("#form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || $("dialog[open]")) return;
  event.preventDefault();
  draw();
});

// A change may come many times a second.
let scheduled = false;
jobs.onChange((job, before) => {
  if (job?.state === "failed" && before && jobs.isActive(before)) notify(`“${jobs.promptOf(job)}” failed: ${job.error}`);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    stage.render();
    gallery.render();
    const last = jobs.ended().find((job) => job.images.length);
    form.setLastSeed(last ? last.arguments.seed : null);
    if (connected) showServer(jobs.active().length ? "Drawing" : "Ready");
  });
});
jobs.onTrouble(report);
stage.onCancel(attempt(jobs.cancel));
$("#more-jobs").onclick = attempt(jobs.loadOlder);

// Other programs may draw too.
function look() {
  if (!document.hidden && connected) attempt(jobs.refresh)();
}
document.addEventListener("visibilitychange", look);
setInterval(look, LOOK);

gallery.setActions({
  use(job, given) {
    hideNotice();
    if (!form.hasModel(job.model)) notify(`The server does not have the model ${job.model} now.`);
    useSettings(given, job.task === "text_to_image");
  },
  start: attempt(async (path) => {
    await setStart(await api.getBlob(path));
    showForm("The image is the start image.");
  }),
  remove: attempt((job) => jobs.remove(job.id)),
});

function useSettings(given, fromText) {
  form.fill(given);
  if (fromText) removeStart();
  else notify("The image was drawn from a start image. Choose that too, and its mask if it had one.");
  showForm("The settings are filled in.");
}

function showForm(text) {
  announce(text);
  $("#form").scrollIntoView({ block: "start" });
  $("#prompt").focus({ preventScroll: true });
}

// An image's settings
const readSettings = attempt(async (file) => {
  try {
    const { arguments: given } = await api.postFile("v1/read-settings", file);
    notify(`The settings of ${file.name} are filled in. Press Draw to draw the image again.`);
    useSettings(given, given.strength == null);
  } catch (error) {
    if (!(error instanceof api.ApiError) || error.status === 401) throw error;
    notify(error.message, ["Use it as start image", () => setStart(file)]);
  }
});
$("#read").onclick = () => $("#read-file").click();
$("#read-file").onchange = async ({ target }) => {
  if (target.files[0]) await readSettings(target.files[0]);
  target.value = "";
};

// Dropped images
const drop = $("#drop");
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
window.addEventListener("dragenter", (event) => {
  if (hasFiles(event) && !$("dialog[open]")) drop.hidden = false;
});
window.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $$("[data-drop]", drop).forEach((zone) => zone.classList.toggle("over", zone.contains(event.target)));
});
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.hidden = true;
});
window.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  drop.hidden = true;
  const file = event.dataTransfer.files[0];
  if (!file || $("dialog[open]")) return;
  if (event.target.closest?.("[data-drop=start], #start")) setStart(file);
  else readSettings(file);
});

api.setTokenAsker((refused) => {
  const dialog = $("#token");
  $(".error", dialog).hidden = !refused;
  $("#token-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue ? $("#token-value").value : null), { once: true });
  });
});
$$(".examples button").forEach((button) => {
  button.onclick = () => {
    $("#prompt").value = button.textContent;
    $("#prompt").focus();
  };
});

connect();
