// Addresses, keys, and the updates of a live page.

const main = document.getElementById("main");
const header = document.getElementById("header");
let keys = {};
let shown = null;

/** Show what the address names: #/r0, #/r0/records, #/r0/record/12/CALL, #/compare/0, #/training/0, #/evaluation/0, #/state/0. */
async function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(decode);
  const run = RUNS.find((one) => one.name === parts[0]);
  drawHeader(parts);
  keys = {};
  shown = null;
  try {
    if (run && parts[1] === "record") await showRecord(run, Number(parts[2]), parts.slice(3).join("/"));
    else if (run && parts[1] === "records") { shown = recordsPage(run); keys = shown.keys; show(main, shown); }
    else if (run) show(main, runPage(run));
    else if (parts[0] === "compare" && HEAD.comparisons[parts[1]]) show(main, comparePage(HEAD.comparisons[parts[1]]));
    else if (parts[0] === "training" && HEAD.trainings[parts[1]]) show(main, trainingPage(HEAD.trainings[parts[1]]));
    else if (parts[0] === "evaluation" && HEAD.evaluations[parts[1]]) show(main, evaluationPage(HEAD.evaluations[parts[1]]));
    else if (parts[0] === "state" && HEAD.states[parts[1]]) show(main, statePage(HEAD.states[parts[1]]));
    else location.replace(`#/${firstPage()}`);
  } catch (error) {
    show(main, el("p", { class: "bad" }, `This part cannot be shown: ${error.message}`));
    throw error;
  }
}

function decode(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

function firstPage() {
  if (HEAD.evaluations.length) return "evaluation/0";
  return RUNS.length ? RUNS[0].name : HEAD.trainings.length ? "training/0" : "state/0";
}

async function showRecord(run, number, call) {
  if (!(number >= 0 && number < run.records)) { show(main, el("p", { class: "bad" }, "There is no such record.")); return; }
  while (number >= run.loaded) await new Promise((resolve) => setTimeout(resolve, 30));
  const numbers = listState(run).numbers.length ? listState(run).numbers : updateNumbers(run).numbers;
  const at = numbers.indexOf(number);
  const step = (by) => { const next = numbers[at + by]; if (next !== undefined) location.hash = `#/${run.name}/record/${next}`; };
  keys = { j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    Escape: () => { location.hash = `#/${run.name}/records`; }, u: () => { location.hash = `#/${run.name}/records`; } };
  const address = location.hash;
  const page = await recordPage(run, number, call);
  if (location.hash !== address) return;  // another record was asked for in the meantime
  const pager = el("div", { class: "pager" },
    el("a", { href: `#/${run.name}/records` }, "records"),
    el("button", { type: "button", disabled: at <= 0, onclick: () => step(-1) }, "← previous"),
    el("span", { class: "dim" }, `${format(at + 1)} of ${format(numbers.length)}`),
    el("button", { type: "button", disabled: at < 0 || at >= numbers.length - 1, onclick: () => step(1) }, "next →"));
  show(main, pager, page);
  if (!call) window.scrollTo(0, 0);
}

function drawHeader(parts) {
  const link = (address, label, active) => el("a", { href: `#/${address}`, class: active ? "active" : "" }, label);
  show(header, el("nav", { class: "tabs" },
    HEAD.evaluations.map((one, i) => link(`evaluation/${i}`, `evaluation ${visible(one.folder)}`, parts[0] === "evaluation" && parts[1] === String(i))),
    RUNS.map((run) => [
      link(run.name, visible(run.title), parts[0] === run.name && !parts[1]),
      link(`${run.name}/records`, "records", parts[0] === run.name && Boolean(parts[1])),
    ]),
    HEAD.comparisons.map((one, i) => link(`compare/${i}`, `compare ${one.runs.map((name) => visible(RUNS.find((run) => run.name === name).title)).join(" and ")}`, parts[0] === "compare" && parts[1] === String(i))),
    HEAD.trainings.map((one, i) => link(`training/${i}`, `training ${visible(one.folder)}`, parts[0] === "training" && parts[1] === String(i))),
    HEAD.states.map((one, i) => link(`state/${i}`, visible(one.name), parts[0] === "state" && parts[1] === String(i)))),
  el("span", { id: "live", class: "dim" }),
  el("details", { class: "help" }, el("summary", {}, "keys"), table(["", ""], [
    ["j k ↓ ↑", "next and previous record"], ["Enter", "open the record"], ["/", "filter"], ["Esc, u", "back to the list"], ["g", "the run's page"],
  ])));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (typing && event.key === "Escape") { event.target.blur(); return; }
  if (typing && !(event.key === "Enter" && keys.Enter && event.target.matches("input"))) return;
  if (event.target.matches("button, a, summary, .bar") && ["Enter", "ArrowLeft", "ArrowRight"].includes(event.key)) return;
  if (event.key === "g" && RUNS.length) { location.hash = `#/${RUNS[0].name}`; return; }
  const act = keys[event.key];
  if (act) { event.preventDefault(); act(); }
});

/** Ask the server of --live for records that have finished since, every second. */
async function follow(run) {
  const note = () => document.getElementById("live");
  for (;;) {
    try {
      const reply = await (await fetch(`since/${run.loaded}`)).json();
      if (reply.head.generation !== run.generation) location.reload();  // failed records were removed to be tried again
      Object.assign(run, reply.head);
      if (reply.index.id.length) {
        run.add(reply.index);
        if (shown) shown.refresh();
        else if (!location.hash.includes("/record/") && !main.contains(document.activeElement)) route();
      }
      if (note()) note().textContent = run.fault ? visible(run.fault) : `live: ${format(run.loaded)} records, ${new Date().toLocaleTimeString()}`;
    } catch {
      if (note()) note().textContent = "live: the server has stopped";
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

window.addEventListener("hashchange", route);
(async () => {
  if (HEAD.live) {
    await route();
    follow(RUNS[0]);
    return;
  }
  for (const run of RUNS) {
    let isFirst = true;
    await run.load(() => { if (isFirst && run === RUNS[0]) { isFirst = false; route(); } else if (shown) shown.refresh(); });
  }
  if (shown) shown.refresh(); else if (!location.hash.includes("/record/")) await route();
  document.body.dataset.ready = "true";
})().catch((error) => show(main, el("p", { class: "bad" }, error.message)));
