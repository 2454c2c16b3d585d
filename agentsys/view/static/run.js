// A run as a whole: outcomes and reasons, distributions, the method's graph, its tables, the slowest and longest records.

function runPage(run) {
  const columns = run.columns;
  const counts = { kept: 0, dropped: 0, failed: 0 };
  for (const outcome of columns.outcome ?? []) counts[outcome]++;
  const page = el("div", { class: "overview" },
    el("h1", {}, visible(run.system || run.folder), el("span", { class: "dim" }, ` run ${visible(run.run ?? "")} in ${visible(run.folder)}`)),
    shares(Object.entries(counts).map(([kind, count]) => ({ kind, label: kind, count }))),
    facts(run, counts),
    reasonLists(run),
    distributions(run),
    run.topology?.nodes ? el("section", {}, el("h2", {}, "Graph"), graphPicture(run.topology)) : null,
    extremes(run),
    el("div", { class: "sections" }, (run.sections ?? []).map((section) => el("section", { class: "report" }, el("h2", {}, visible(section.title)),
      el("div", { class: "scroll" }, table(section.columns, section.rows)), section.note ? el("p", { class: "dim" }, visible(section.note)) : null))),
    el("section", {}, el("h2", {}, "Settings"), fold("models, options, roles and input", () => json(run.settings))));
  return page;
}

function facts(run, counts) {
  const totals = run.totals ?? {};
  const records = counts.kept + counts.dropped + counts.failed;
  const sum = (name) => (run.columns[name] ?? []).reduce((total, value) => total + (value ?? 0), 0);
  const calls = sum("calls");
  const [prompt, hits] = [sum("prompt_tokens"), sum("prefix_hits")];
  const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "");
  const list = [
    ["records", format(records)],
    ["calls", `${format(calls)}${counts.kept ? `, ${format(calls / counts.kept)} per kept record` : ""}`],
    ["tokens generated", format(sum("completion_tokens"))],
    ["prompt tokens", `${format(prompt)}, ${percent(hits, prompt)} from the prefix cache`],
    ["calls from the request cache", `${format(sum("cache_hits"))} (${percent(sum("cache_hits"), calls)})`],
    ["replies requested again", format(sum("again"))],
    ["seconds", totals.seconds === undefined ? "" : format(totals.seconds)],
    ["cost", totals.cost === undefined ? "" : format(totals.cost)],
  ].filter(([, text]) => text !== "");
  return el("dl", { class: "facts" }, list.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))));
}

function showRecords(run, filter) {
  listState(run).filter = filter;
  location.hash = `#/${run.name}/records`;
}

function reasonLists(run) {
  const reasons = new Map();
  (run.columns.reason ?? []).forEach((reason, i) => {
    if (!reason) return;
    const key = JSON.stringify([run.value("outcome", i), reason]);
    reasons.set(key, (reasons.get(key) ?? 0) + 1);
  });
  if (!reasons.size) return null;
  const rows = [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 12).map(([key, count]) => {
    const [outcome, reason] = JSON.parse(key);
    const link = el("button", { type: "button", class: "link", dir: "auto", onclick: () => showRecords(run, { outcome, reason }) }, visible(reason.slice(0, 300)));
    return [el("span", { class: `badge ${outcome}` }, outcome), link, count];
  });
  return el("section", {}, el("h2", {}, "Why records were not kept"), table(["", "reason", "records"], rows));
}

function distributions(run) {
  const columns = run.columns;
  const lengths = (columns.output ?? []).map((text, i) => (run.value("outcome", i) === "kept" ? text.length : null));
  const charts = [
    histogram(columns.score ?? [], "score", (low, high) => showRecords(run, { low, high })),
    histogram(columns.rounds ?? [], "rounds"),
    histogram(columns.nodes ?? [], "nodes of the search tree"),
    histogram(columns.calls ?? [], "calls"),
    histogram(columns.completion_tokens ?? [], "tokens generated"),
    histogram(columns.seconds ?? [], "seconds"),
    histogram(lengths, "characters of the result"),
  ].filter(Boolean);
  return charts.length ? el("section", {}, el("h2", {}, "Distributions"), el("div", { class: "charts" }, charts)) : null;
}

function extremes(run) {
  const top = (column) => {
    const values = run.columns[column] ?? [];
    const best = [];
    for (let i = 0; i < values.length; i++) {
      if (values[i] === null || (best.length === 5 && values[i] <= values[best[4]])) continue;
      best.push(i);
      best.sort((a, b) => values[b] - values[a]);
      best.length = Math.min(best.length, 5);
    }
    return best;
  };
  const list = (title, column) => {
    const numbers = top(column);
    return numbers.length ? el("div", {}, el("h3", {}, title), table(["", "record"], numbers.map((number) => [
      run.value(column, number),
      el("a", { href: `#/${run.name}/record/${number}`, dir: "auto" }, visible(`${run.value("id", number)} ${run.value("text", number).slice(0, 60)}`)),
    ]))) : null;
  };
  return el("section", {}, el("h2", {}, "Slowest and longest records"),
    el("div", { class: "sides" }, list("seconds", "seconds"), list("tokens generated", "completion_tokens")));
}
