// Elements. Texts of a trace only ever become text nodes: nothing in them is read as HTML.

/** An HTML element. Attributes that start with "on" are listeners; children are elements, texts, or arrays of them. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replace an element's content. */
function show(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
}

/** A number with separators, or rounded to three digits; "" for null. */
function format(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3)));
}

const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** A text with visible escapes in place of control and direction characters. */
function visible(text) {
  return String(text).replace(CONTROLS, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

const LONG = 20000;

/** A block of text in the direction of its script. Of a very long one the beginning, and a button for the rest. */
function textBlock(text, kind = "") {
  const whole = visible(text ?? "");
  const block = el("div", { class: `text ${kind}`, dir: "auto" }, whole.slice(0, LONG));
  if (whole.length > LONG) {
    const more = el("button", { type: "button", onclick: () => show(block, whole) }, `show all ${format(whole.length)} characters`);
    block.append(" … ", more);
  }
  return block;
}

/** A section that opens and closes. Its content is made when it is first opened. */
function fold(title, make, open = false) {
  const body = el("div", { class: "fold-body" });
  let isMade = false;
  const details = el("details", { open, ontoggle: () => {
    if (details.open && !isMade) { isMade = true; body.append(...[make()].flat(Infinity)); }
  } }, el("summary", {}, title), body);
  return details;
}

/** A table of texts; numbers are right-aligned. */
function table(columns, rows, kind = "") {
  const cell = (value) => (value instanceof Node ? el("td", {}, value)
    : el("td", { class: typeof value === "number" || typeof value === "boolean" || /^[-\d.,]+( ?%)?$/.test(value) ? "number" : "", dir: "auto" },
      typeof value === "number" ? format(value) : visible(value ?? "")));
  return el("table", { class: kind },
    columns.some(Boolean) ? el("thead", {}, el("tr", {}, columns.map((name) => el("th", {}, name)))) : null,
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))));
}

/** A JSON value as indented text. */
function json(value) {
  return textBlock(JSON.stringify(value, null, 1) ?? "", "code");
}
