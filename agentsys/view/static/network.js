// Pictures of graphs: the nodes of a method in layers, and knowledge graphs by forces between their nodes.

const START = "__start__";
const END = "__end__";

/** Every edge of a run's topology as [from, to]: fixed ones, those that wait for several nodes, and branches. */
function topologyEdges(topology) {
  const edges = [...(topology.edges ?? [])];
  for (const waiting of topology.waiting_edges ?? []) for (const from of waiting.slice(0, -1).flat()) edges.push([from, waiting.at(-1)]);
  for (const [from, branches] of Object.entries(topology.branches ?? {}))
    for (const ends of Object.values(branches)) for (const to of Object.values(ends ?? {})) edges.push([from, to]);
  for (const [from, tos] of Object.entries(topology.destinations ?? {})) for (const to of [tos].flat()) edges.push([from, to]);
  const seen = new Set();
  return edges.filter((edge) => !seen.has(edge.join("\n")) && seen.add(edge.join("\n")));
}

/** The layer of each node: how many edges it is from the start, where no edge goes back. */
function layersOf(names, edges) {
  const after = new Map(names.map((name) => [name, edges.filter(([from]) => from === name).map(([, to]) => to)]));
  const layer = new Map([[START, 0]]);
  const queue = [START];
  while (queue.length) {
    const name = queue.shift();
    for (const to of after.get(name) ?? []) if (!layer.has(to)) { layer.set(to, layer.get(name) + 1); queue.push(to); }
  }
  const last = Math.max(0, ...layer.values());
  for (const name of names) if (!layer.has(name)) layer.set(name, last);
  layer.set(END, Math.max(...names.filter((name) => name !== END).map((name) => layer.get(name))) + 1);
  return layer;
}

/** A method's graph. `path` has the nodes that a record went through, in order; without one it is the graph alone. A
 * record that failed did not come to the end. */
function graphPicture(topology, path = null, failed = false) {
  const edges = topologyEdges(topology);
  const names = [...new Set([START, ...topology.nodes, ...edges.flat(), END])];
  const layer = layersOf(names, edges);
  const rows = [];
  for (const name of names) (rows[layer.get(name)] ??= []).push(name);
  const [boxWidth, boxHeight, gapX, gapY] = [132, 30, 46, 26];
  const tallest = Math.max(...rows.map((row) => row?.length ?? 0));
  const place = new Map();
  rows.forEach((row, column) => row?.forEach((name, i) => place.set(name, {
    x: 10 + column * (boxWidth + gapX),
    y: 26 + (i + (tallest - row.length) / 2) * (boxHeight + gapY),
  })));
  const visits = new Map();
  for (const name of path ?? []) visits.set(name, (visits.get(name) ?? 0) + 1);
  const taken = new Set();
  const whole = path ? [START, ...path, ...(failed ? [] : [END])] : [];
  const isEdge = new Set(edges.map((edge) => edge.join("\n")));
  whole.slice(1).forEach((name, i) => {  // nodes that ran at the same time follow no edge between them
    const before = whole.slice(0, i + 1).findLast((one) => isEdge.has(`${one}\n${name}`));
    if (before !== undefined) taken.add(`${before}\n${name}`);
  });
  const width = 20 + rows.length * (boxWidth + gapX) - gapX;
  const height = 44 + tallest * (boxHeight + gapY);

  const line = ([from, to]) => {
    const [a, b] = [place.get(from), place.get(to)];
    const isTaken = taken.has(`${from}\n${to}`);
    const across = `${boxWidth / 2 + a.x}`;
    let curve;
    if (b.x > a.x) {
      const [x1, y1, x2, y2] = [a.x + boxWidth, a.y + boxHeight / 2, b.x, b.y + boxHeight / 2];
      curve = `M${x1},${y1} C${x1 + gapX / 2},${y1} ${x2 - gapX / 2},${y2} ${x2},${y2}`;
    } else if (b.x === a.x) {
      curve = b.y > a.y ? `M${across},${a.y + boxHeight} V${b.y}` : `M${across},${a.y} V${b.y + boxHeight}`;
    } else {
      const lift = 14 + (a.x - b.x) / 14;
      curve = `M${across},${a.y} C${across},${a.y - lift} ${b.x + boxWidth / 2},${b.y - lift} ${b.x + boxWidth / 2},${b.y}`;
    }
    return svg("path", { class: isTaken ? "edge taken" : "edge", d: curve, "marker-end": isTaken ? "url(#arrow-taken)" : "url(#arrow)" });
  };
  const box = (name) => {
    const { x, y } = place.get(name);
    const label = name === START ? "start" : name === END ? "end" : name;
    const count = visits.get(name);
    const kind = name === START || name === END ? "end" : count ? "visited" : "";
    return svg("g", { class: `node ${kind}` },
      svg("title", {}, count ? `${label}: ${count} times` : label),
      svg("rect", { x, y, width: boxWidth, height: boxHeight, rx: 6 }),
      svg("text", { x: x + boxWidth / 2, y: y + boxHeight / 2 + 4, "text-anchor": "middle" },
        label.length > 18 ? `${label.slice(0, 17)}…` : label, count > 1 ? ` ×${count}` : ""));
  };
  const arrow = (id) => svg("marker", { id, viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
    svg("path", { d: "M0,0 L8,4 L0,8 z" }));
  return el("div", { class: "scroll" }, svg("svg", {
    class: "graph", viewBox: `0 0 ${width} ${height}`, style: `width:${width}px`, role: "img",
    "aria-label": path ? `path: ${path.join(", ")}` : "graph of the method",
  }, svg("defs", {}, arrow("arrow"), arrow("arrow-taken")), edges.map(line), names.map(box)));
}

/** Whether a value is a graph of labeled nodes and edges. */
function isNetwork(value) {
  return value && Array.isArray(value.nodes) && Array.isArray(value.edges) && value.nodes.every((node) => node && node.id !== undefined);
}

/** Positions by forces (Fruchterman and Reingold, 1991), the same in each call. */
function placeByForces(count, links, width, height) {
  const size = Math.sqrt((width * height) / Math.max(count, 1));
  const points = Array.from({ length: count }, (_, i) => ({
    x: width / 2 + (width / 3) * Math.cos(2.4 * i) * Math.sqrt((i + 1) / count),
    y: height / 2 + (height / 3) * Math.sin(2.4 * i) * Math.sqrt((i + 1) / count),
  }));
  const rounds = count > 1000 ? 10 : count > 300 ? 60 : 250;
  for (let round = 0; round < rounds; round++) {
    const moves = points.map(() => ({ x: 0, y: 0 }));
    for (let i = 0; i < count; i++) for (let j = i + 1; j < count; j++) {
      const [dx, dy] = [points[i].x - points[j].x || 0.1, points[i].y - points[j].y];
      const force = (size * size) / (dx * dx + dy * dy + 1);
      moves[i].x += dx * force; moves[i].y += dy * force; moves[j].x -= dx * force; moves[j].y -= dy * force;
    }
    for (const [i, j] of links) {
      const [dx, dy] = [points[i].x - points[j].x, points[i].y - points[j].y];
      const force = Math.sqrt(dx * dx + dy * dy) / size;
      moves[i].x -= dx * force; moves[i].y -= dy * force; moves[j].x += dx * force; moves[j].y += dy * force;
    }
    const heat = (width / 10) * (1 - round / rounds);
    points.forEach((point, i) => {
      const length = Math.hypot(moves[i].x, moves[i].y) || 1;
      point.x = Math.min(width - 60, Math.max(60, point.x + (moves[i].x / length) * Math.min(length, heat)));
      point.y = Math.min(height - 24, Math.max(24, point.y + (moves[i].y / length) * Math.min(length, heat)));
    });
  }
  return points;
}

/** A knowledge graph: nodes with labels in the reader's fonts, edges with their relations. */
function networkPicture(network) {
  const names = new Map(network.nodes.map((node, i) => [node.id, i]));
  const ends = (edge) => [edge.src ?? edge.from ?? edge.head ?? edge.source, edge.dst ?? edge.to ?? edge.tail ?? edge.target];
  const edges = network.edges.filter((edge) => edge && ends(edge).every((end) => names.has(end)));
  const count = network.nodes.length;
  const [width, height] = [Math.min(1100, 420 + 40 * count), Math.min(800, 260 + 26 * count)];
  const points = placeByForces(count, edges.map((edge) => ends(edge).map((end) => names.get(end))), width, height);
  const kinds = [...new Set(network.nodes.map((node) => node.kind ?? node.type ?? ""))];
  const color = (node) => `k${kinds.indexOf(node.kind ?? node.type ?? "") % 6}`;
  const lines = edges.map((edge) => {
    const [a, b] = ends(edge).map((end) => points[names.get(end)]);
    const label = edge.relation ?? edge.label ?? edge.kind ?? edge.type ?? "";
    return svg("g", { class: edge.verdict === "rejected" ? "link-line refused" : "link-line" },
      svg("title", {}, visible(JSON.stringify(edge, null, 1))),
      svg("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y }),
      svg("text", { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 - 3, "text-anchor": "middle" }, visible(String(label).slice(0, 40))));
  });
  const circles = network.nodes.map((node, i) => svg("g", { class: `entity ${color(node)}` },
    svg("title", {}, visible(JSON.stringify(node, null, 1))),
    svg("circle", { cx: points[i].x, cy: points[i].y, r: 7 }),
    svg("text", { x: points[i].x, y: points[i].y - 11, "text-anchor": "middle" }, visible(String(node.label ?? node.name ?? node.id).slice(0, 40)))));
  return el("div", {},
    kinds.some(Boolean) ? el("div", { class: "legend" }, kinds.map((kind, i) => el("span", { class: `key k${i % 6}` }, visible(kind)))) : null,
    el("div", { class: "scroll" }, svg("svg", { class: "network", viewBox: `0 0 ${width} ${height}`, style: `width:${width}px`, role: "img",
      "aria-label": `graph of ${count} nodes and ${edges.length} edges` }, lines, circles)));
}
