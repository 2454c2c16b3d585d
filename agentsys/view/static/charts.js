// Histograms and curves.

/** A histogram of numbers in up to `bins` bins. A click on a bar calls `onPick(low, high)`. */
function histogram(values, label, onPick = null, bins = 24) {
  const numbers = values.filter((value) => typeof value === "number");
  if (!numbers.length) return null;
  let [low, high] = [Infinity, -Infinity];
  for (const value of numbers) { if (value < low) low = value; if (value > high) high = value; }
  const whole = numbers.every(Number.isInteger);
  const width = high === low ? 1 : whole ? Math.ceil((high - low + 1) / bins) : (high - low) / bins;
  const count = high === low ? 1 : whole ? Math.ceil((high - low + 1) / width) : bins;
  const heights = new Array(count).fill(0);
  for (const value of numbers) heights[Math.min(count - 1, Math.floor((value - low) / width))]++;
  const top = Math.max(...heights);
  const [w, h, bar] = [280, 90, 280 / count];
  const mean = numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  const bars = heights.map((height, i) => {
    const from = low + i * width;
    const to = whole ? Math.min(from + width - 1, high) : i === count - 1 ? high : from + width;
    const range = whole && width === 1 ? format(from) : `${format(from)} to ${format(to)}`;
    return svg("rect", {
      class: onPick ? "bar pick" : "bar", tabindex: onPick ? 0 : null, role: onPick ? "button" : null,
      onkeydown: (event) => { if (event.key === "Enter") onPick?.(from, to); }, x: i * bar + 0.5, width: Math.max(bar - 1, 1),
      y: h - (h * height) / top, height: (h * height) / top,
      onclick: () => onPick?.(from, to),
    }, svg("title", {}, `${range}: ${format(height)}`));
  });
  return el("figure", { class: "chart" },
    el("figcaption", {}, label, el("span", { class: "dim" }, ` mean ${format(mean)}`)),
    svg("svg", { viewBox: `0 0 ${w} ${h + 14}`, role: "img", "aria-label": `${label}: histogram` }, bars,
      svg("text", { x: 0, y: h + 12 }, format(low)),
      svg("text", { x: w, y: h + 12, "text-anchor": "end" }, format(high))));
}

const MOST_POINTS = 1000;

/** At most MOST_POINTS points, evenly chosen, with the first and the last. */
function thin(points) {
  if (points.length <= MOST_POINTS) return points;
  return Array.from({ length: MOST_POINTS }, (_, i) => points[Math.round((i * (points.length - 1)) / (MOST_POINTS - 1))]);
}

/** Lines through [[x, y], ...] by name. */
function curves(series, label) {
  const names = Object.keys(series);
  const drawn = Object.fromEntries(names.map((name) => [name, thin(series[name])]));
  const points = names.flatMap((name) => drawn[name]);
  const [w, h] = [420, 170];
  const span = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return [low, high === low ? low + 1 : high];
  };
  const [left, right] = span(points.map((point) => point[0]));
  const [bottom, top] = span(points.map((point) => point[1]));
  const x = (value) => 46 + ((w - 56) * (value - left)) / (right - left);
  const y = (value) => 8 + ((h - 30) * (top - value)) / (top - bottom);
  return el("figure", { class: "chart wide" },
    el("figcaption", {}, label),
    svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${label}: curve` },
      svg("line", { class: "axis", x1: 46, x2: w - 10, y1: h - 22, y2: h - 22 }),
      [top, bottom].map((value) => svg("text", { x: 42, y: y(value) + 4, "text-anchor": "end" }, format(value))),
      [left, right].map((value) => svg("text", { x: x(value), y: h - 6, "text-anchor": "middle" }, format(value))),
      names.map((name, i) => [
        svg("polyline", { class: `curve c${i % 4}`, points: drawn[name].map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }),
        drawn[name].map(([a, b]) => svg("circle", { class: `point c${i % 4}`, cx: x(a), cy: y(b), r: drawn[name].length > 40 ? 0 : 2.5 },
          svg("title", {}, `${name} at ${format(a)}: ${format(b)}`))),
      ])),
    names.length > 1 ? el("div", { class: "legend" }, names.map((name, i) => el("span", { class: `key c${i % 4}` }, name))) : null);
}

/** A bar whose parts have lengths by count. */
function shares(parts) {
  const total = parts.reduce((sum, part) => sum + part.count, 0) || 1;
  return el("div", { class: "shares" }, parts.filter((part) => part.count).map((part) =>
    el("div", { class: `share ${part.kind}`, style: `flex-grow:${part.count}`, title: `${part.label}: ${format(part.count)}` },
      `${part.label} ${format(part.count)} (${Math.round((100 * part.count) / total)} %)`)));
}
