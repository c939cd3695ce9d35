// What is being drawn, and what waits.

import { getBlob } from "./api.js";
import { $, announce, element } from "./dom.js";
import * as jobs from "./jobs.js";
import { promptOf } from "./jobs.js";

const stage = $("#stage");
const running = $(".running", stage);
const queue = $(".queue", stage);
const preview = $(".preview img", stage);
const EACH = 5; // how often progress is said aloud, in parts of the whole

let current = null; // the running job
let fetching = false;
let said = "";
let queued = "";

const seconds = (number) => (number < 60 ? `${Math.ceil(number)} s` : `${Math.floor(number / 60)} min ${Math.round(number % 60)} s`);

function stepText(job) {
  if (!job.step) return "Getting ready…";
  const left = job.seconds_left == null ? "" : ` · ${seconds(job.seconds_left)} left`;
  return `Step ${job.step} of ${job.num_steps}${left}`;
}

export function render() {
  const focused = stage.contains(document.activeElement);
  const active = jobs.active();
  const job = active.find((other) => other.state === "running");
  stage.hidden = !active.length;
  running.hidden = !job;
  if (job?.id !== current?.id) preview.hidden = true;
  current = job;
  if (job) renderRunning(job);
  renderQueue(active.filter((other) => other !== job));
  // The button that had the focus may be gone.
  const still = document.activeElement;
  if (focused && (!stage.contains(still) || still.closest("[hidden]"))) $("#prompt").focus();
  document.title = job?.step ? `${job.step}/${job.num_steps} · keras-diffusion` : "keras-diffusion";
}

function renderRunning(job) {
  $(".prompt", running).textContent = promptOf(job);
  $(".step", running).textContent = stepText(job);
  const bar = $("progress", running);
  bar.max = job.num_steps || 1;
  if (job.step) bar.value = job.step;
  else bar.removeAttribute("value");
  running.dataset.id = job.id;
  const { img_width, img_height } = job.arguments;
  if (img_width && img_height) preview.parentElement.style.aspectRatio = `${img_width} / ${img_height}`;
  preview.alt = `Preview: ${promptOf(job)}`;
  showPreview(job);
  say(job);
}

// Progress is announced at the start and a few times more: a screen reader could not keep up with each step.
function say(job) {
  const part = `${job.id} ${Math.floor((EACH * job.step) / job.num_steps)}`;
  if (part === said) return;
  said = part;
  announce(job.step ? stepText(job) : `Drawing ${promptOf(job)}`);
}

async function showPreview(job) {
  if (!job.preview || fetching) return;
  fetching = true;
  try {
    const url = URL.createObjectURL(await getBlob(job.preview));
    if (current?.id === job.id) {
      URL.revokeObjectURL(preview.src);
      preview.src = url;
      preview.hidden = false;
    }
  } catch {
    // A preview that is gone is no loss: the image follows.
  } finally {
    fetching = false;
  }
}

function renderQueue(waiting) {
  const now = waiting.map(({ id, place }) => `${id} ${place}`).join();
  if (now === queued) return;
  queued = now;
  const focused = document.activeElement?.closest(".queue li")?.dataset.id;
  queue.replaceChildren(...waiting.map(queueRow));
  if (focused) queue.querySelector(`[data-id="${CSS.escape(focused)}"] button`)?.focus();
}

function queueRow(job) {
  const place = element("span", { className: "place", textContent: job.place ? `Place ${job.place}` : "Next" });
  const prompt = element("span", { className: "prompt", textContent: promptOf(job) });
  const button = element("button", { type: "button", className: "quiet", textContent: "Cancel" });
  button.ariaLabel = `Cancel ${promptOf(job)}`;
  const row = element("li", {}, place, prompt, button);
  row.dataset.id = job.id;
  return row;
}

const ENDS = { done: "Drawn", cancelled: "Cancelled" };
jobs.onChange((job, before) => {
  if (job && before && jobs.isActive(before) && ENDS[job.state]) announce(`${ENDS[job.state]}: ${promptOf(job)}`);
});

// `cancel(id)` is called for the job whose button is pressed.
export function onCancel(cancel) {
  stage.addEventListener("click", ({ target }) => {
    const id = target.closest("button")?.closest("[data-id]").dataset.id;
    if (id) cancel(id);
  });
}
