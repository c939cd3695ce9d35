// Lists what is wrong with the page as it is: names, alternatives, ids, headings and contrast (WCAG 2.2, level AA).
const problems = [];
const shown = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;
const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);
const dialog = document.querySelector("dialog[open]");
const inUse = (element) => !dialog || dialog.contains(element);
const tell = (what, element) => problems.push(`${what}: ${element.outerHTML.slice(0, 120)}`);

for (const field of all("input, select, textarea")) {
  const name = field.labels[0]?.textContent ?? field.ariaLabel;
  if (!name?.trim()) tell("no label", field);
}
for (const button of all("button, a, summary")) if (!(button.textContent + (button.ariaLabel ?? "")).trim() && !button.querySelector("img[alt]")) tell("no name", button);
for (const image of all("img")) if (!image.hasAttribute("alt")) tell("no alternative", image);
for (const item of document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]")) {
  const ids = ["aria-labelledby", "aria-describedby", "for"].flatMap((name) => (item.getAttribute(name) ?? "").split(" "));
  for (const id of ids) if (id && !document.getElementById(id)) tell("no such id", item);
}
const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
if (new Set(ids).size < ids.length) problems.push("an id is there twice");
let level = 0;
for (const heading of all("h1, h2, h3")) {
  if (heading.tagName[1] > level + 1) tell("a level of headings is left out", heading);
  level = Number(heading.tagName[1]);
}

const parse = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
function background(element) {
  for (let at = element; at; at = at.parentElement) {
    const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
    if (a === 1) return [r, g, b];
    if (a > 0) throw new Error("a translucent background");
  }
  return [255, 255, 255];
}
let compared = 0;
function compare(element, pseudo) {
  const colour = parse(getComputedStyle(element, pseudo).color).slice(0, 3);
  const found = ratio(colour, background(element));
  compared += 1;
  if (found < 4.5) tell(`contrast ${found.toFixed(2)}${pseudo ?? ""}`, element);
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (walker.currentNode.data.trim() && shown(element) && inUse(element) && !element.closest(":disabled, .unseen")) compare(element);
}
for (const field of all("input, select, textarea")) {
  if (!inUse(field)) continue;
  compare(field);
  if (field.placeholder) compare(field, "::placeholder");
}
if (compared < 10) problems.push("hardly any text is there");
return problems;
