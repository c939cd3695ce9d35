// The start image and its mask.

import { $, element, notify } from "./dom.js";
import { setSize, setStrength } from "./form.js";
import { drawStrokes, maskBlob, paint } from "./mask.js";

const section = $("#start");
const shown = $("#start-image");
const file = $("#start-file");

let start = null; // {blob, width, height, strokes}

export async function setStart(blob) {
  const url = URL.createObjectURL(blob);
  const probe = element("img", { src: url });
  try {
    await probe.decode();
  } catch {
    URL.revokeObjectURL(url);
    notify("This file is no image that the browser can show. Choose a PNG, JPEG or WebP file.");
    return;
  }
  URL.revokeObjectURL(shown.src);
  start = { blob, width: probe.naturalWidth, height: probe.naturalHeight, strokes: [] };
  shown.src = url;
  shown.alt = `Start image, ${start.width} × ${start.height} pixels`;
  setSize(start.width, start.height);
  show();
}

export function removeStart() {
  start = null;
  show();
}

// The task, and the arguments that belong to the start image.
export async function collectStart() {
  if (!start) return { task: "text_to_image" };
  const image = await toDataURL(start.blob);
  const strength = Number($("#strength").value);
  if (!hasMask()) return { task: "image_to_image", image, strength };
  const mask = await toDataURL(await maskBlob(start.strokes, start.width, start.height));
  return { task: "inpaint", image, mask, strength };
}

const hasMask = () => start.strokes.some(({ erase }) => !erase);

function toDataURL(blob) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
}

function show() {
  $(".start-empty", section).hidden = Boolean(start);
  $(".start-chosen", section).hidden = !start;
  if (!start) return;
  const masked = hasMask();
  $("#start-paint").textContent = masked ? "Change the mask…" : "Paint a mask…";
  $("#start-hint").textContent = masked
    ? "Only the painted part is drawn anew."
    : `${start.width} × ${start.height}; the whole image is drawn anew.`;
  const canvas = Object.assign($("#start-mask"), { width: start.width, height: start.height });
  drawStrokes(canvas.getContext("2d"), start.strokes, getComputedStyle(section).getPropertyValue("--accent"));
}

$("#start-choose").onclick = () => file.click();
file.onchange = async () => {
  if (file.files[0]) await setStart(file.files[0]);
  file.value = "";
  $("#start-paint").focus();
};
$("#start-remove").onclick = () => {
  removeStart();
  $("#start-choose").focus();
};
$("#start-paint").onclick = async () => {
  const before = hasMask();
  start.strokes = (await paint(shown.src, start.width, start.height, start.strokes)) ?? start.strokes;
  if (hasMask() && !before) setStrength(1); // that of `inpaint`
  show();
};
