// The list of a run's records: filters, sorting, and only the rows that are in view.

const ROW = 30;
const SHOWN = [
  ["id", "id"], ["outcome", "outcome"], ["score", "score"], ["rounds", "rounds"], ["calls", "calls"], ["again", "again"],
  ["completion_tokens", "tokens"], ["seconds", "seconds"], ["text", "source"], ["output", "result"], ["reason", "reason"],
];
const NUMBERS = new Set(["score", "rounds", "calls", "again", "completion_tokens", "seconds"]);

/** The filter and order of each run's list, kept while the page is open. */
const listStates = new Map();

function listState(run) {
  if (!listStates.has(run.name)) listStates.set(run.name, { filter: {}, column: null, descending: true, selected: 0, numbers: [] });
  return listStates.get(run.name);
}

/** Filter and sort anew. */
function updateNumbers(run) {
  const state = listState(run);
  state.numbers = run.select(state.filter);
  if (state.column) {
    const values = run.columns[state.column];
    const sign = state.descending ? -1 : 1;
    const isNumber = NUMBERS.has(state.column);
    state.numbers.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (isNumber ? x - y : x < y ? -1 : x > y ? 1 : 0) || a - b;
    });
  }
  state.selected = Math.min(state.selected, Math.max(state.numbers.length - 1, 0));
  return state;
}

function recordsPage(run) {
  const state = listState(run);
  const count = el("span", { class: "dim count" });
  const body = el("div", { class: "rows", role: "rowgroup" });
  const spacer = el("div", { class: "spacer" }, body);
  const viewport = el("div", { class: "viewport", tabindex: "0", role: "rowgroup", onscroll: () => drawRows() }, spacer);
  const heads = el("div", { class: "row head", role: "row" });

  const open = (number) => { location.hash = `#/${run.name}/record/${number}`; };
  const drawHeads = () => show(heads, SHOWN.map(([column, label]) => el("button", {
    type: "button", class: `cell col-${column} ${NUMBERS.has(column) ? "number" : ""}`, role: "columnheader",
    "data-column": column, "aria-sort": state.column === column ? (state.descending ? "descending" : "ascending") : "none",
    onclick: () => {
      state.descending = state.column === column ? !state.descending : NUMBERS.has(column);
      state.column = column;
      refresh();
      heads.querySelector(`[data-column="${column}"]`).focus();
    },
  }, label, state.column === column ? (state.descending ? " ↓" : " ↑") : "")));
  const drawRows = () => {
    const first = Math.max(0, Math.floor(viewport.scrollTop / ROW) - 5);
    const last = Math.min(state.numbers.length, first + Math.ceil(viewport.clientHeight / ROW) + 12);
    const rows = [];
    for (let i = first; i < last; i++) {
      const number = state.numbers[i];
      rows.push(el("div", {
        class: `row ${run.value("outcome", number)} ${i === state.selected ? "selected" : ""}`, role: "row", style: `top:${i * ROW}px`,
        onclick: () => { state.selected = i; open(number); },
      }, SHOWN.map(([column]) => cell(run, column, number))));
    }
    show(body, rows);
  };
  const refresh = () => {
    updateNumbers(run);
    spacer.style.height = `${state.numbers.length * ROW}px`;
    bar.updateReasons();
    viewport.parentElement?.setAttribute("aria-rowcount", state.numbers.length);
    show(count, `${format(state.numbers.length)} of ${format(run.loaded)} records${run.loaded < run.records ? " (loading)" : ""}`);
    drawHeads();
    drawRows();
  };
  const select = (step) => {
    state.selected = Math.max(0, Math.min(state.numbers.length - 1, state.selected + step));
    const top = state.selected * ROW;
    if (top < viewport.scrollTop) viewport.scrollTop = top;
    if (top + ROW > viewport.scrollTop + viewport.clientHeight) viewport.scrollTop = top + ROW - viewport.clientHeight;
    drawRows();
  };
  const bar = filterBar(run, state, () => { state.selected = 0; viewport.scrollTop = 0; refresh(); }, count);
  const page = el("div", { class: "records" }, bar, el("div", { class: "list", role: "table", "aria-label": "records" }, heads, viewport));
  page.refresh = refresh;
  page.keys = { j: () => select(1), k: () => select(-1), ArrowDown: () => select(1), ArrowUp: () => select(-1),
    PageDown: () => select(20), PageUp: () => select(-20),
    Enter: () => state.numbers.length && open(state.numbers[state.selected]), "/": () => page.querySelector("input").focus() };
  requestAnimationFrame(refresh);
  return page;
}

function cell(run, column, number) {
  const value = run.value(column, number);
  const text = column === "outcome" ? el("span", { class: `badge ${value}` }, value)
    : NUMBERS.has(column) ? format(value) : visible(String(value ?? "").slice(0, 160));
  return el("span", { class: `cell col-${column} ${NUMBERS.has(column) ? "number" : ""}`, role: "cell", dir: NUMBERS.has(column) ? null : "auto" }, text);
}

function filterBar(run, state, changed, count) {
  const filter = state.filter;
  const set = (name, value) => { filter[name] = value; changed(); };
  const number = (value) => (value.trim() === "" || Number.isNaN(Number(value)) ? null : Number(value));
  const choice = el("select", { "aria-label": "reason", onchange: (event) => set("reason", event.target.value) });
  let counted = -1;
  const updateReasons = () => {
    if (counted === run.loaded) return;
    counted = run.loaded;
    const reasons = new Map();
    for (const reason of run.columns.reason ?? []) if (reason) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
    const frequent = [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 50);
    if (filter.reason && !frequent.some(([reason]) => reason === filter.reason)) frequent.push([filter.reason, reasons.get(filter.reason) ?? 0]);
    show(choice, el("option", { value: "" }, "any reason"),
      frequent.map(([reason, times]) => el("option", { value: reason, selected: filter.reason === reason }, `${visible(reason.slice(0, 80))} (${format(times)})`)));
  };
  const note = `The filter searches id, source, result and reason${run.text_chars ? ` (the first ${format(run.text_chars)} characters of each)` : ""}`;
  const bar = el("div", { class: "filters" },
    el("input", { type: "search", placeholder: "filter: id, source, result, reason", "aria-label": "text filter", title: note, value: filter.text ?? "", oninput: (event) => set("text", event.target.value) }),
    el("select", { "aria-label": "outcome", onchange: (event) => set("outcome", event.target.value) },
      ["", "kept", "dropped", "failed"].map((name) => el("option", { value: name, selected: (filter.outcome ?? "") === name }, name || "any outcome"))),
    choice,
    el("label", {}, "score ", el("input", { class: "narrow", inputmode: "decimal", placeholder: "from", "aria-label": "lowest score", value: filter.low ?? "", oninput: (event) => set("low", number(event.target.value)) }),
      el("input", { class: "narrow", inputmode: "decimal", placeholder: "to", "aria-label": "highest score", value: filter.high ?? "", oninput: (event) => set("high", number(event.target.value)) })),
    el("button", { type: "button", onclick: () => { state.filter = {}; route(); } }, "clear"),
    count);
  bar.updateReasons = updateReasons;
  return bar;
}
