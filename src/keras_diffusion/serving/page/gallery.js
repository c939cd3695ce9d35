// The gallery: an image each, newest first, and the viewer that shows one with its settings.

import { getBlob } from "./api.js";
import { $, element, onAction } from "./dom.js";
import * as jobs from "./jobs.js";
import { promptOf } from "./jobs.js";

const list = $("#gallery");
const viewer = $("#viewer");
const urls = new Map(); // path of an image → promise of its object URL
const tiles = new Map(); // job's id → its list items
const LARGEST = 6; // times its size in pixels, in the viewer
let shown = null; // {job, index} in the viewer
let actions = {}; // use(job, arguments), start(path), remove(job)

const ROWS = {
  negative_prompt: "Negative prompt",
  num_steps: "Steps",
  sampler: "Sampler",
  spacing: "Spacing",
  unconditional_guidance_scale: "Guidance",
  strength: "Strength",
  seed: "Seed",
  variation_seed: "Variation seed",
  variation_strength: "Its strength",
  clip_skip: "Clip skip",
};
const TASKS = { text_to_image: "From text", image_to_image: "From an image", inpaint: "Part of an image" };
const STATES = { failed: "Failed", cancelled: "Cancelled" };

export function setActions(given) {
  actions = given;
}

// The arguments that draw image i of a job alone: it has the seed + i, or the variation seed + i.
const alone = ({ job, index }) => {
  const { seed, variation_seed, variation_strength } = job.arguments;
  const seeds = variation_strength ? { seed, variation_seed: variation_seed + index } : { seed: seed + index };
  return { ...job.arguments, ...seeds, batch_size: 1 };
};
const seedsOf = (entry) => [alone(entry).seed, alone(entry).variation_seed].filter((seed) => seed != null);

const altOf = ({ job, index }) =>
  job.images.length > 1 ? `${promptOf(job)}, image ${index + 1} of ${job.images.length}` : promptOf(job);
const entriesOf = (job) => (job.images.length ? job.images.map((_, index) => ({ job, index })) : [{ job, index: 0 }]);
const entries = () => jobs.ended().flatMap(entriesOf);

function urlOf(path) {
  if (!urls.has(path)) {
    const url = getBlob(path).then((blob) => URL.createObjectURL(blob));
    url.catch(() => urls.delete(path));
    urls.set(path, url);
  }
  return urls.get(path);
}

const visible = new IntersectionObserver(
  (seen) => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      visible.unobserve(target);
      urlOf(target.dataset.path).then(
        (url) => (target.src = url),
        () => (target.alt += " (not loaded)"),
      );
    }
  },
  { rootMargin: "600px" },
);

export function render() {
  const ended = jobs.ended();
  for (const [id, items] of tiles) {
    if (ended.some((job) => job.id === id)) continue;
    items.forEach((item) => item.remove());
    tiles.delete(id);
  }
  for (const job of ended) if (!tiles.has(job.id)) tiles.set(job.id, entriesOf(job).map(makeTile));
  const wanted = ended.flatMap((job) => tiles.get(job.id));
  wanted.forEach((item, i) => {
    if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null);
  });
  $("#empty").hidden = jobs.all().length > 0;
  $("#more-jobs").hidden = !wanted.length || !jobs.hasOlder();
}

function makeTile(entry) {
  const { job } = entry;
  const button = element("button", { type: "button", className: "tile" });
  const path = job.images[entry.index];
  if (path) {
    const image = element("img", { alt: altOf(entry) });
    image.dataset.path = path;
    visible.observe(image);
    button.append(element("span", { className: "frame" }, image));
  } else {
    button.classList.add(job.state);
    button.append(element("span", { className: "frame", textContent: STATES[job.state] ?? job.state }));
  }
  button.append(element("span", { className: "prompt", textContent: promptOf(job), ariaHidden: String(Boolean(path)) }));
  button.append(element("span", { className: "hint", textContent: summary(entry) }));
  button.onclick = () => show(entry);
  const item = element("li", {}, button);
  item.dataset.job = job.id;
  return item;
}

function summary(entry) {
  const { num_steps, sampler } = entry.job.arguments;
  return [`${num_steps} steps`, sampler, `seed ${seedsOf(entry).join(", ")}`].filter(Boolean).join(" · ");
}

function show(entry) {
  shown = entry;
  const { job, index } = entry;
  const path = job.images[index];
  const image = $(".picture img", viewer);
  image.hidden = !path;
  image.removeAttribute("src");
  image.alt = altOf(entry);
  if (path) urlOf(path).then((url) => shown === entry && showImage(entry, url), () => {});
  const message = $(".picture .error", viewer);
  message.hidden = Boolean(path);
  message.textContent = job.error ?? STATES[job.state] ?? "";
  $("#viewer-title").textContent = promptOf(job);
  $("dl", viewer).replaceChildren(...details(entry));
  for (const name of ["start", "download"]) action(name).hidden = !path;
  setDelete(false);
  const place = placeOf(entries());
  action("previous").disabled = place <= 0;
  action("next").disabled = place === entries().length - 1;
  if (!viewer.open) viewer.showModal();
}

const action = (name) => $(`[data-act=${name}]`, viewer);
const placeOf = (list) => list.findIndex(({ job, index }) => job.id === shown.job.id && index === shown.index);

function showImage(entry, href) {
  $(".picture img", viewer).src = href;
  const words = promptOf(entry.job).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60).replace(/^-|-$/g, "");
  Object.assign(action("download"), { href, download: `${[words || "image", ...seedsOf(entry)].join("-")}.png` });
}

function details(entry) {
  const { job } = entry;
  const given = alone(entry);
  const rows = [["Task", TASKS[job.task]], ["Model", job.model]];
  if (given.img_width) rows.push(["Size", `${given.img_width} × ${given.img_height}`]);
  for (const [name, label] of Object.entries(ROWS)) {
    if (given[name] != null && given[name] !== "") rows.push([label, String(given[name])]);
  }
  if (given.loras?.length) rows.push(["LoRAs", given.loras.map(({ name, scale }) => `${name} ${scale}`).join(", ")]);
  rows.push(["Asked for", new Date(job.created * 1000).toLocaleString()]);
  return rows.flatMap(([label, value]) => [element("dt", { textContent: label }), element("dd", { textContent: value })]);
}

// Deleting takes a second press.
function setDelete(asked) {
  const count = shown.job.images.length;
  const all = count > 1 ? `all ${count} images of this job` : "for good";
  action("delete").textContent = asked ? `Delete ${all}` : "Delete";
  action("delete").dataset.asked = asked ? "1" : "";
}

function step(by) {
  const next = entries()[placeOf(entries()) + by];
  if (next) show(next);
}

onAction(viewer, {
  use() {
    const { job } = shown;
    viewer.close();
    actions.use(job, { ...alone(shown), model: job.model });
  },
  start() {
    const { job, index } = shown;
    viewer.close();
    actions.start(job.images[index]);
  },
  async delete() {
    if (!action("delete").dataset.asked) return setDelete(true);
    const { job } = shown;
    viewer.close();
    const beside = tiles.get(job.id)?.at(-1).nextElementSibling ?? tiles.get(job.id)?.[0].previousElementSibling;
    await actions.remove(job);
    for (const path of job.images) {
      urls.get(path)?.then(URL.revokeObjectURL);
      urls.delete(path);
    }
    ($("button", beside ?? $("#empty")) ?? $("#prompt")).focus();
  },
  previous: () => step(-1),
  next: () => step(1),
  close: () => viewer.close(),
});
$(".picture img", viewer).onload = ({ target }) => (target.style.maxWidth = `${LARGEST * target.naturalWidth}px`);
action("delete").onblur = () => shown && setDelete(false);
viewer.addEventListener("keydown", ({ key }) => {
  if (key === "ArrowLeft") step(-1);
  if (key === "ArrowRight") step(1);
});
viewer.addEventListener("click", ({ target }) => target === viewer && viewer.close()); // beside it
