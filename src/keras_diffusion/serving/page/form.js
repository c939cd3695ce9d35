// The form: what it asks the server to draw, and the settings of an image put back into it.

import { $, $$, element } from "./dom.js";

const form = $("#form");
const field = (name) => form.elements.namedItem(name);
const OF_MODEL = ["img_width", "img_height", "num_steps", "unconditional_guidance_scale"]; // each model has its defaults

let options = { models: [], samplers: [], spacings: [], loras: [], embeddings: [], limits: {} };
let extras = {}; // arguments without a field

export const hasModel = (name) => options.models.some((other) => other.name === name);
const model = () => options.models.find((other) => other.name === field("model").value);

// Fills the lists from GET v1/options and keeps what was typed.
export function setOptions(given) {
  const before = model();
  options = given;
  fillSelect(field("model"), options.models.map(({ name }) => [name, name]));
  if (!before && options.model) field("model").value = options.model;
  fillSelect(field("spacing"), [["", "default"], ...options.spacings.map((name) => [name, name])]);
  fillSelect($("#lora"), options.loras.map((name) => [name, name]));
  $("#loras").hidden = !options.loras.length;
  const embeddings = $("#embeddings");
  embeddings.hidden = !options.embeddings.length;
  embeddings.textContent = `Prompts may name these embeddings: ${options.embeddings.join(", ")}`;
  field("num_steps").max = options.limits.max_steps ?? "";
  field("batch_size").max = options.limits.max_batch ?? "";
  setModel(before);
}

function fillSelect(select, rows) {
  const { value } = select;
  select.replaceChildren(...rows.map(([value, textContent]) => element("option", { value, textContent })));
  if (rows.some(([name]) => name === value)) select.value = value;
}

// Replaces the defaults of the model before by those of the one chosen; what was typed stays.
function setModel(before) {
  const chosen = model();
  if (!chosen) return;
  for (const name of OF_MODEL) {
    const input = field(name);
    if (!input.value || input.value === String(before?.defaults[name])) input.value = chosen.defaults[name];
  }
  for (const name of ["img_width", "img_height"]) {
    Object.assign(field(name), { step: chosen.size_multiple, min: chosen.size_multiple, max: chosen.max_size });
  }
  const own = [["", `${chosen.defaults.sampler} (default)`]];
  fillSelect(field("sampler"), [...own, ...options.samplers.map((name) => [name, name])]);
  form.dataset.model = chosen.name;
}

// The arguments as the server takes them; those left empty are the model's own.
export function collect() {
  const found = { ...extras };
  for (const input of form.elements) {
    if (!input.name || input.name === "strength") continue;
    if (input.validity.badInput) throw Object.assign(new Error("Type a number."), { param: input.name });
    if (input.type === "checkbox") {
      if (input.checked) found[input.name] = true;
    } else if (input.value !== "" || input.name === "prompt") {
      const isNumber = input.type === "number" || (input.name.endsWith("seed") && /^\d+$/.test(input.value));
      found[input.name] = isNumber ? Number(input.value) : input.value;
    }
  }
  const loras = $$(".loras li").map((row) => ({ name: row.dataset.name, scale: $("input", row).valueAsNumber }));
  if (loras.length) found.loras = loras;
  return found;
}

// Puts arguments into the form; what they leave out is the model's own.
export function fill({ loras = [], ...given }) {
  clearErrors();
  if (hasModel(given.model)) field("model").value = given.model;
  setModel();
  const values = { ...model()?.defaults, sampler: "", batch_size: 1, strength: 0.8, ...given };
  for (const input of form.elements) {
    if (input.name && input.name !== "model") setField(input, values[input.name] ?? "");
  }
  showStrength();
  $(".loras").replaceChildren();
  loras.forEach(({ name, scale }) => addLora(name, scale));
  setExtras(Object.fromEntries(Object.entries(given).filter(([name, value]) => !field(name) && value != null)));
  $("#more").open ||= $$("[name]", $("#more")).some((input) => (input.type === "checkbox" ? input.checked : input.value));
}

function setField(input, value) {
  const isNew = input.options && ![...input.options].some((option) => option.value === value);
  if (isNew) input.append(new Option(value)); // another spelling of a sampler, say
  if (input.type === "checkbox") input.checked = Boolean(value);
  else input.value = value;
}

export function setStrength(value) {
  field("strength").value = value;
  showStrength();
}

function showStrength() {
  $("#strength-value").value = field("strength").valueAsNumber.toFixed(2);
}

// Sets the size to the one nearest to an image's that has as many pixels as the model's own.
export function setSize(width, height) {
  const chosen = model();
  if (!chosen) return;
  const { img_width, img_height } = chosen.defaults;
  const factor = Math.min(1, Math.sqrt((img_width * img_height) / (width * height)));
  const multiple = chosen.size_multiple;
  const fit = (side) => Math.min(chosen.max_size, Math.max(multiple, Math.round((side * factor) / multiple) * multiple));
  field("img_width").value = fit(width);
  field("img_height").value = fit(height);
}

export function setLastSeed(seed) {
  Object.assign($("#seed-again"), { value: seed ?? "", disabled: seed == null });
}

function addLora(name, scale = 1) {
  if ($$(".loras li").some((row) => row.dataset.name === name)) return;
  const input = element("input", { type: "number", step: 0.05, value: scale, ariaLabel: `Scale of ${name}` });
  const button = element("button", { type: "button", className: "quiet", textContent: "Remove", ariaLabel: `Remove ${name}` });
  const row = element("li", {}, element("span", { textContent: name }), input, button);
  row.dataset.name = name;
  button.onclick = () => {
    row.remove();
    $("#lora").focus();
  };
  $(".loras").append(row);
}

function setExtras(given) {
  extras = given;
  const rows = Object.entries(extras).map(([name, value]) => {
    const text = `${name}: ${JSON.stringify(value)}`;
    const button = element("button", { type: "button", className: "quiet", textContent: "Remove", ariaLabel: `Remove ${text}` });
    button.onclick = () => setExtras(Object.fromEntries(Object.entries(extras).filter(([other]) => other !== name)));
    return element("li", {}, element("span", { textContent: text }), button);
  });
  $("#extras").replaceChildren(...rows);
}

// Shows an error beside the field that it is about, or above the button.
export function showError(error) {
  const name = error.param?.split(/[.[]/)[0];
  const input = name && field(name);
  const place = input?.closest(".field") ?? $(`[data-param~="${CSS.escape(name ?? "")}"]`);
  if (!place) {
    $("#form-error").textContent = error.message;
    $("#form-error").hidden = false;
    return;
  }
  const id = `error-${name}`;
  place.after(element("p", { className: "error", id, role: "alert", textContent: plainly(error.message, name, place) }));
  const target = input ?? $("button, select", place);
  target.setAttribute("aria-describedby", id);
  if (input) input.setAttribute("aria-invalid", "true");
  const closed = place.closest("details");
  if (closed) closed.open = true;
  target.focus();
}

// Calls the argument by the name that the page has for it.
function plainly(message, name, place) {
  const label = $("label, .label", place).firstChild.textContent.trim();
  return message.replaceAll(`\`${name}\``, label).replace(`Received: ${name}=`, "Received: ");
}

export function clearErrors() {
  $("#form-error").hidden = true;
  $$(".error[id^=error-]", form).forEach((shown) => shown.remove());
  $$("[aria-describedby^=error-]", form).forEach((input) => input.removeAttribute("aria-describedby"));
  $$("[aria-invalid]", form).forEach((input) => input.removeAttribute("aria-invalid"));
}

field("model").addEventListener("change", () => {
  setModel(options.models.find(({ name }) => name === form.dataset.model));
});
$("#lora-add").onclick = () => addLora($("#lora").value);
$("#seed-random").onclick = () => (field("seed").value = "");
$("#seed-again").onclick = () => (field("seed").value = $("#seed-again").value);
field("strength").addEventListener("input", showStrength);
showStrength();
