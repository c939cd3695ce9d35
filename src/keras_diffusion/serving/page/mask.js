// The painter of masks: a dialog with the start image, painted on with mouse, finger or keyboard.

import { $, announce, onAction } from "./dom.js";

const dialog = $("#painter");
const canvas = $("canvas", dialog);
const image = $("img", dialog);
const brush = $(".brush", dialog);
const size = $("input[type=range]", dialog);
const STEP = 1 / 32; // of the longer side, for an arrow key

let strokes = []; // {erase, width, points: [[x, y], …]} in pixels of the image
let stroke = null; // the one being painted
let cursor = [0, 0];
let finish = () => {};

// Resolves to the strokes, or to null where the user cancels.
export function paint(url, width, height, given) {
  strokes = structuredClone(given);
  stroke = null;
  Object.assign(canvas, { width, height });
  cursor = [width / 2, height / 2];
  image.src = url;
  const easel = canvas.parentElement;
  Object.assign(easel.style, { aspectRatio: `${width} / ${height}`, width: `min(100%, calc(55dvh * ${width / height}))` });
  redraw();
  dialog.showModal();
  canvas.focus();
  moveBrush();
  return new Promise((resolve) => (finish = resolve));
}

// Draws strokes over whatever a canvas shows; `erased` is the colour that erasing leaves, or none.
export function drawStrokes(context, strokes, colour, erased) {
  context.lineCap = context.lineJoin = "round";
  for (const { erase, width, points } of strokes) {
    context.globalCompositeOperation = erase && !erased ? "destination-out" : "source-over";
    context.strokeStyle = erase && erased ? erased : colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
}

// The mask as a PNG of the image's size: white where to draw anew, else black.
export async function maskBlob(strokes, width, height) {
  const made = Object.assign(document.createElement("canvas"), { width, height });
  const context = made.getContext("2d");
  context.fillRect(0, 0, width, height);
  drawStrokes(context, strokes, "white", "black");
  return new Promise((resolve) => made.toBlob(resolve, "image/png"));
}

function redraw() {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  drawStrokes(context, strokes, getComputedStyle(dialog).getPropertyValue("--accent"));
}

const brushWidth = () => (Number(size.value) / 100) * Math.max(canvas.width, canvas.height);

function moveBrush() {
  const scale = canvas.clientWidth / canvas.width;
  const [x, y] = cursor.map((side) => side * scale);
  const width = brushWidth() * scale;
  Object.assign(brush.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${width}px` });
}

function lower() {
  const erase = $("[name=tool]:checked", dialog).value === "erase";
  stroke = { erase, width: brushWidth(), points: [[...cursor]] };
  strokes.push(stroke);
  redraw();
}

function move(x, y) {
  cursor = [Math.min(canvas.width, Math.max(0, x)), Math.min(canvas.height, Math.max(0, y))];
  moveBrush();
  if (!stroke) return;
  stroke.points.push([...cursor]);
  redraw();
}

const lift = () => (stroke = null);

function followPointer(event) {
  const scale = canvas.width / canvas.clientWidth;
  move(event.offsetX * scale, event.offsetY * scale);
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  followPointer(event);
  lower();
});
canvas.addEventListener("pointermove", followPointer);
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  const arrow = ARROWS[event.key];
  if (arrow) {
    const step = STEP * Math.max(canvas.width, canvas.height);
    move(cursor[0] + arrow[0] * step, cursor[1] + arrow[1] * step);
  } else if (event.key === " ") {
    if (stroke) lift();
    else lower();
    announce(stroke ? "Brush lowered" : "Brush lifted");
  } else {
    return;
  }
  event.preventDefault();
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
});
size.addEventListener("input", moveBrush);
window.addEventListener("resize", moveBrush);
image.addEventListener("load", moveBrush);

function undo() {
  lift();
  strokes.pop();
  redraw();
}

function clear() {
  lift();
  strokes = [];
  redraw();
}

const close = (result) => {
  dialog.close();
  finish(result);
};
onAction(dialog, { undo, clear, done: () => close(strokes), cancel: () => close(null) });
dialog.addEventListener("cancel", () => finish(null)); // the Escape key
