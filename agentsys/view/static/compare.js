// Two runs: paired statistics, and the same records side by side. Also evaluations, trainings and saved states.

function comparePage(comparison) {
  const [first, second] = comparison.runs.map((name) => RUNS.find((run) => run.name === name));
  const names = [first, second].map((run) => visible(run.title));
  const measures = comparison.measures.map((m) => [
    m.label, m.n, m.first, m.second, `${m.value > 0 ? "+" : ""}${format(m.value)}`, `${format(m.low)} to ${format(m.high)}`, m.p,
  ]);
  const pairs = [];
  for (const [id, number] of second.places) if (id !== null && first.places.has(id)) pairs.push([first.places.get(id), number]);
  const change = ([a, b]) => (first.value("outcome", a) !== second.value("outcome", b) ? 2 : 0) + (first.value("output", a) !== second.value("output", b) ? 1 : 0);
  const difference = ([a, b]) => Math.abs((second.value("score", b) ?? 0) - (first.value("score", a) ?? 0));
  pairs.sort((x, y) => change(y) - change(x) || difference(y) - difference(x));
  const changedCount = pairs.filter((pair) => change(pair) > 0).length;
  const most = 500;
  return el("div", { class: "compare" },
    el("h1", {}, `${names[0]} and ${names[1]}`),
    el("p", {}, `${format(comparison.shared)} records in both, ${format(comparison.only[0])} only in ${names[0]}, ${format(comparison.only[1])} only in ${names[1]}.`),
    el("section", {}, el("h2", {}, "Paired statistics"),
      table(["", "records", ...names, "difference", "95 % interval", "p"], measures),
      el("p", { class: "dim" }, "Differences are second minus first, over records of both runs; intervals and p-values by paired bootstrap.")),
    el("section", {}, el("h2", {}, `Records side by side: ${format(changedCount)} differ`),
      el("div", { class: "scroll" }, table(["record", `${names[0]}`, "", `${names[1]}`, "", "score"], pairs.slice(0, most).map(([a, b]) => [
        el("span", { class: "long", dir: "auto" }, visible(first.value("text", a).slice(0, 120))),
        recordLink(first, a), el("span", { class: "long", dir: "auto" }, visible(first.value("output", a).slice(0, 400))),
        recordLink(second, b), changedWords(first.value("output", a).slice(0, 400), second.value("output", b).slice(0, 400)),
        `${format(first.value("score", a))} → ${format(second.value("score", b))}`,
      ]), "steps")),
      pairs.length > most ? el("p", { class: "dim" }, `The ${most} pairs that differ most are shown.`) : null));
}

function recordLink(run, number) {
  const outcome = run.value("outcome", number);
  return el("a", { href: `#/${run.name}/record/${number}`, title: run.value("reason", number) || outcome }, el("span", { class: `badge ${outcome}` }, outcome));
}

function evaluationPage(evaluation) {
  const metrics = [...new Set(Object.values(evaluation.systems).flatMap((system) => Object.keys(system ?? {})))];
  const cell = (score) => {
    if (!score || typeof score !== "object" || typeof score.value !== "number") return typeof score === "number" ? score : "";
    const interval = typeof score.low === "number" ? el("span", { class: "dim" }, ` ${format(score.low)} to ${format(score.high)}`) : null;
    const p = score.difference ? el("span", { class: "dim" }, `, p ${format(score.difference.p)}`) : null;
    return el("span", {}, format(score.value), interval, p);
  };
  return el("div", {}, el("h1", {}, visible(evaluation.folder)),
    el("div", { class: "scroll" }, table(["system", ...metrics], Object.entries(evaluation.systems).map(([name, system]) => [visible(name), ...metrics.map((metric) => cell(system?.[metric]))]))),
    el("p", { class: "dim" }, "95 % intervals; p-values of the difference to the baseline. Each system's run is a page of its own."),
    fold("settings", () => json(evaluation.settings)));
}

function trainingPage(training) {
  const together = (name) => [name, `eval_${name}`].filter((one) => training.curves[one]);
  const names = Object.keys(training.curves).filter((name) => !name.startsWith("eval_") || !training.curves[name.slice(5)]);
  const drawn = names.filter((name) => together(name).some((one) => training.curves[one].length > 1));
  const lineage = training.lineage;
  return el("div", {}, el("h1", {}, visible(training.folder), el("span", { class: "dim" }, ` ${visible(training.settings.method ?? "training")} of ${visible(training.settings.student ?? "")}`)),
    el("section", {}, el("h2", {}, "Curves"), el("div", { class: "charts" }, drawn.map((name) =>
      curves(Object.fromEntries(together(name).map((one) => [one, training.curves[one]])), name)))),
    el("section", {}, el("h2", {}, "Where its rows came from"), lineage
      ? el("div", {}, el("p", {}, `rows: ${visible(lineage.rows)}`), table(["run", "rows"], Object.entries(lineage.runs).map(([run, count]) => [runLink(run), count])),
        table(["model", "rows"], Object.entries(lineage.models)))
      : el("p", { class: "dim" }, "The rows of this training are not where its settings say.")),
    el("section", {}, el("h2", {}, "Report"), json(training.report)),
    el("section", {}, el("h2", {}, "Settings"), json(training.settings)));
}

function runLink(label) {
  const run = RUNS.find((one) => one.run && label.endsWith(one.run));
  return run ? el("a", { href: `#/${run.name}` }, visible(label)) : visible(label);
}

function statePage({ name, state }) {
  const tree = Array.isArray(state.tree) && state.tree.every((node) => node && node.id !== undefined) ? state.tree : null;
  return el("div", {}, el("h1", {}, visible(name)),
    tree ? el("section", {}, el("h2", {}, "Search tree"), treeView(tree, new Map(), new Map(), () => {})) : el("p", { class: "dim" }, "This state has no search tree."),
    Object.entries(state).filter(([, value]) => isNetwork(value)).map(([key, value]) => el("section", {}, el("h2", {}, `Graph: ${visible(key)}`), networkPicture(value))),
    el("section", {}, el("h2", {}, "State"), json(Object.fromEntries(Object.entries(state).filter(([key]) => key !== "tree")))));
}
