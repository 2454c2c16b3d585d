// The search tree of a record: values and visits, opened level by level, with jumps to the calls.

const SHOWN_APART = new Set(["id", "parent", "depth", "outcome", "error", "visits", "value", "q", "call", "cost"]);

const DEEPEST = 500;

/** The tree as nested lists, down to DEEPEST levels. `texts` has the reply of each call by key; `marks` says what became of a node. */
function treeView(nodes, texts, marks, onCall) {
  const children = new Map();
  for (const node of nodes) {
    if (!children.has(node.parent ?? null)) children.set(node.parent ?? null, []);
    children.get(node.parent ?? null).push(node);
  }
  const ids = new Set(nodes.map((node) => node.id));
  const roots = nodes.filter((node) => node.parent === null || node.parent === undefined || !ids.has(node.parent));
  const values = nodes.map((node) => node.q ?? node.value).filter((value) => typeof value === "number");
  const [low, high] = [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
  const share = (value) => (high > low ? (value - low) / (high - low) : 1);

  const shown = new Set();
  const item = (node, depth) => {
    const isFirst = !shown.has(node.id);  // a second node of an id has no children of its own
    shown.add(node.id);
    const below = isFirst && depth < DEEPEST ? children.get(node.id) ?? [] : [];
    const line = treeLine(node, share, texts, marks, onCall);
    if (!below.length) return el("li", { class: "leaf" }, line);
    return el("li", {}, el("details", { open: depth < 2 }, el("summary", {}, line),
      el("ul", {}, below.map((child) => item(child, depth + 1)))));
  };
  const list = el("ul", { class: "tree" }, roots.map((root) => item(root, 0)));
  const openAll = (open) => list.querySelectorAll("details:not(.inline)").forEach((details) => { details.open = open; });
  return el("div", {},
    el("div", { class: "buttons" },
      el("button", { type: "button", onclick: () => openAll(true) }, "expand all"),
      el("button", { type: "button", onclick: () => openAll(false) }, "collapse all"),
      el("span", { class: "dim" }, `${format(nodes.length)} nodes`)),
    list);
}

function treeLine(node, share, texts, marks, onCall) {
  const number = node.q ?? node.value;
  const rest = Object.entries(node).filter(([name, value]) => !SHOWN_APART.has(name) && value !== null);
  const step = node.step ? `${node.step.sub_query ?? ""} ${node.step.retrieved ? "(retrieved) " : ""}→ ${node.step.answer ?? ""}` : null;
  const text = step ?? texts.get(node.call) ?? node.text ?? node.answer ?? "";
  return el("span", { class: "tree-line", "data-node": node.id },
    el("b", {}, visible(node.id)), " ",
    marks.has(node.id) ? el("span", { class: `badge ${marks.get(node.id)}` }, marks.get(node.id)) : null,
    node.outcome ? el("span", { class: "badge" }, visible(node.outcome)) : null,
    number === undefined || number === null ? null : el("span", { class: "meter", title: `value ${node.value}, mean of its visits ${node.q}` },
      el("span", { class: "meter-bar", style: `width:${Math.round(48 * share(number))}px` }), ` Q ${format(node.q ?? node.value)}`),
    typeof node.value === "number" && node.q !== undefined ? el("span", { class: "dim" }, ` V ${format(node.value)}`) : null,
    typeof node.visits === "number" ? el("span", { class: "dim" }, ` N ${format(node.visits)}`) : null,
    node.error ? el("span", { class: "bad" }, ` ${visible(node.error)}`) : null,
    node.call ? el("button", { type: "button", class: "link", onclick: (event) => { event.preventDefault(); onCall(node.call); } }, visible(node.call)) : null,
    text ? el("span", { class: "snippet", dir: "auto" }, visible(String(text).slice(0, 200))) : null,
    rest.length ? el("details", { class: "inline" }, el("summary", {}, "fields"), json(Object.fromEntries(rest))) : null);
}
