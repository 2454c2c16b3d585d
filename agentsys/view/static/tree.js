// The search tree of a record: a picture, and values, visits and verdicts, opened level by level, with jumps to the calls.

const SHOWN_APART = new Set(["id", "parent", "depth", "outcome", "error", "visits", "value", "q", "call", "cost", "right", "how"]);

const DEEPEST = 500;
const DRAWN = 150;  // more nodes are not drawn: the list has them

/** The tree as nested lists, down to DEEPEST levels. `texts` has the reply of each call by key; `marks` says what became of a node, `pairs` which were paired. */
function treeView(nodes, texts, marks, onCall, pairs = []) {
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
    nodes.length > 1 && nodes.length <= DRAWN ? treePicture(roots, children, tallies(nodes, children), pairs) : null,
    list);
}

/** The solutions that were completed from a node. */
function rollouts(node) {
  return Array.isArray(node.rollouts) ? node.rollouts : [];
}

/** Right and finished solutions at and below each node: its own end, its rollouts, and those of its children. */
function tallies(nodes, children) {
  const counts = new Map();
  for (const node of [...nodes].reverse()) {  // children come after their parents
    const ends = [...(typeof node.right === "boolean" ? [node] : []), ...rollouts(node)];
    const below = (children.get(node.id) ?? []).map((child) => counts.get(child.id) ?? [0, 0]);
    counts.set(node.id, [ends.filter((end) => end.right).length + below.reduce((sum, [right]) => sum + right, 0),
      ends.length + below.reduce((sum, [, tried]) => sum + tried, 0)]);
  }
  return counts;
}

/** The tree as a picture: a column per step; a node is filled by its share of right solutions; arcs join the sides of pairs. */
function treePicture(roots, children, counts, pairs) {
  const places = new Map();
  let row = 0;
  const place = (node, depth) => {
    if (places.has(node.id)) return places.get(node.id);
    places.set(node.id, { node, x: 24 + 96 * depth, y: 0 });
    const below = (children.get(node.id) ?? []).map((child) => place(child, depth + 1));
    places.get(node.id).y = below.length ? (below[0].y + below.at(-1).y) / 2 : 20 + 26 * row++;
    return places.get(node.id);
  };
  for (const root of roots) place(root, 0);
  const all = [...places.values()];
  if (!all.length) return null;
  const [width, height] = [Math.max(...all.map(({ x }) => x)) + 90, 26 * row + 20];
  const edges = all.flatMap((from) => (children.get(from.node.id) ?? []).map((child) => {
    const to = places.get(child.id);
    return svg("path", { class: "tree-edge", d: `M${from.x} ${from.y} C${from.x + 48} ${from.y} ${to.x - 48} ${to.y} ${to.x} ${to.y}` });
  }));
  const arcs = pairs.map((pair) => [places.get(pair.chosen), places.get(pair.rejected)]).filter(([one, other]) => one && other)
    .map(([one, other]) => svg("path", { class: "tree-pair", d: `M${one.x} ${one.y} Q${one.x - 34} ${(one.y + other.y) / 2} ${other.x} ${other.y}` }));
  const dots = all.map(({ node, x, y }) => {
    const [right, tried] = counts.get(node.id) ?? [0, 0];
    const color = node.outcome === "failed" ? "failed" : tried ? "tried" : "open";
    const verdict = typeof node.right === "boolean" ? (node.right ? " ✓" : " ✗") : tried ? ` ${right}/${tried}` : "";
    return svg("g", {}, svg("title", {}, `${node.id}: ${tried ? `${right} of ${tried} solutions right` : node.outcome ?? ""}`),
      svg("circle", { class: `tree-node ${color}`, cx: x, cy: y, r: 7, style: tried ? `fill:hsl(${Math.round(120 * right / tried)} 60% 55%)` : "" }),
      svg("text", { class: "tree-label", x: x + 11, y: y + 4 }, `${typeof node.visits === "number" ? `N ${node.visits}` : ""}${verdict}`));
  });
  return el("div", { class: "tree-picture" }, svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "the search tree" }, edges, arcs, dots),
    el("p", { class: "dim" }, "Color and fraction: right ones among the finished solutions at and below a node; N: visits; dashed: the two sides of a pair."));
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
    typeof node.right === "boolean" ? el("span", { class: `badge ${node.right ? "chosen" : "rejected"}` }, node.right ? "right" : "wrong") : null,
    rollouts(node).length ? el("span", { class: "badge" }, `${rollouts(node).filter((one) => one.right).length} of ${rollouts(node).length} rollouts right`) : null,
    node.error ? el("span", { class: "bad" }, ` ${visible(node.error)}`) : null,
    node.call ? el("button", { type: "button", class: "link", onclick: (event) => { event.preventDefault(); onCall(node.call); } }, visible(node.call)) : null,
    text ? el("span", { class: "snippet", dir: "auto" }, visible(String(text).slice(0, 200))) : null,
    rest.length ? el("details", { class: "inline" }, el("summary", {}, "fields"), json(Object.fromEntries(rest))) : null);
}
