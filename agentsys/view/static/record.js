// One record: its path through the graph, its calls, result, search tree, graph, and what is learned from it.

/** The page of a record. `target` is a call to open and scroll to. */
async function recordPage(run, number, target = "") {
  const record = await run.record(number);
  const calls = new Map(record.calls.map((call) => [call.key, call]));
  const texts = new Map(record.calls.map((call) => [call.key, call.text]));
  const callSection = callList(record, calls);
  const goTo = (key) => {
    location.replace(`#/${run.name}/record/${number}/${encodeURIComponent(key)}`);
    callSection.openCall(key);
  };
  const scores = await evaluationScores(record.id);
  const sections = [
    ["Result", resultSection(record)],
    scores.length ? ["Evaluation", scores] : null,
    record.path || (run.topology && record.input) ? ["Path", pathSection(run, record, goTo)] : null,
    record.tree?.length ? ["Search tree", treeView(record.tree, texts, nodeMarks(record), goTo, treePairs(record))] : null,
    ...Object.entries(record.result ?? {}).filter(([, value]) => isNetwork(value)).map(([name, value]) => [`Graph: ${name}`, networkPicture(value)]),
    record.targets.length ? ["What is learned", targetSection(record, goTo)] : null,
    [`Calls (${record.calls.length})`, callSection],
    ["Input", json(record.input ?? record.content ?? null)],
    record.measured?.traceback ? ["Traceback", textBlock(record.measured.traceback, "code")] : null,
  ].filter(Boolean);
  const links = sections.map(([title, body], i) => el("a", { href: "#", onclick: (event) => {
    event.preventDefault(); [body].flat()[0].parentElement.scrollIntoView({ behavior: "smooth" });
  } }, title));
  const page = el("div", { class: "record" },
    recordHead(run, record, number),
    el("nav", { class: "contents" }, links),
    sections.map(([title, body]) => el("section", {}, el("h2", {}, title), body)));
  if (target) setTimeout(() => callSection.openCall(target));
  return page;
}

/** What the page's evaluations say of a record: a table of systems for each. */
async function evaluationScores(id) {
  const tables = [];
  for (let i = 0; i < HEAD.evaluations.length; i++) {
    const scores = HEAD.evaluations[i].has_scores ? await piece(`e${i}-scores`) : {};
    if (!Object.hasOwn(scores, id)) continue;
    const systems = scores[id];
    const names = [...new Set(Object.values(systems).flatMap(Object.keys))];
    tables.push(el("div", { class: "scroll" }, table(["system", ...names], Object.entries(systems).map(([system, values]) =>
      [visible(system), ...names.map((name) => values[name] ?? "")]))));
  }
  return tables;
}

function recordHead(run, record, number) {
  const value = (name) => run.value(name, number);
  const facts = [
    ["score", format(value("score"))], ["rounds", format(value("rounds"))], ["tree nodes", format(value("nodes"))], ["calls", format(value("calls"))],
    ["requested again", format(value("again"))],
    ["prompt tokens", `${format(value("prompt_tokens"))} (${format(value("prefix_hits"))} from the prefix cache)`],
    ["cost", run.totals?.cost && run.totals.completion_tokens ? `about ${format((run.totals.cost * (value("prompt_tokens") + value("completion_tokens"))) / (run.totals.prompt_tokens + run.totals.completion_tokens))}` : ""],
    ["generated tokens", format(value("completion_tokens"))],
    ["from the request cache", `${format(value("cache_hits"))} calls`],
    ["seconds", format(value("seconds"))],
    ["source", visible(String(record.source ?? ""))],
  ].filter(([, text]) => text !== "");
  return el("div", { class: "record-head" },
    el("h1", {}, el("span", { class: `badge ${record.outcome}` }, record.outcome), " ", visible(record.id ?? "input without a record")),
    record.reason ? el("p", { class: "reason", dir: "auto" }, el("b", {}, record.outcome === "failed" ? "failed because: " : "dropped because: "), visible(record.reason)) : null,
    el("dl", { class: "facts" }, facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))));
}

function resultSection(record) {
  const texts = [];
  const rest = {};
  for (const [name, value] of Object.entries(record.result ?? {})) {
    if (typeof value === "string" && value) texts.push([name, value]);
    else if (value !== null && !isNetwork(value)) rest[name] = value;
  }
  const steps = Array.isArray(rest.steps) && rest.steps.every((step) => step && typeof step === "object") ? rest.steps : null;
  if (steps) delete rest.steps;
  return el("div", {},
    record.result ? null : el("p", { class: "dim" }, "No result: the record failed."),
    texts.map(([name, text]) => el("div", { class: "field" }, el("h3", {}, visible(name)), textBlock(text))),
    steps ? stepTable(steps) : null,
    Object.keys(rest).length ? fold("other fields", () => json(rest)) : null);
}

/** The steps of a refinement: what was written, its score, and which words changed. */
function stepTable(steps) {
  const main = ["translation", "text", "response", "sub_query", "answer"].find((name) => steps.some((step) => typeof step[name] === "string"));
  const others = [...new Set(steps.flatMap(Object.keys))].filter((name) => name !== main && name !== "key");
  const cell = (value) => (value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : value);
  return el("div", { class: "field" }, el("h3", {}, "steps"), el("div", { class: "scroll" }, table(
    ["", main ?? "", ...others],
    steps.map((step, i) => [
      i, main ? changedWords(String(steps[i - 1]?.[main] ?? step[main] ?? ""), String(step[main] ?? "")) : "",
      ...others.map((name) => cell(step[name])),
    ]), "steps")));
}

/** A text with the words marked that are not in the text before (longest common subsequence). */
function changedWords(before, after) {
  const split = (text) => text.slice(0, 4000).match(/[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{N}\p{M}'’]+|\s+|[^\p{L}\p{N}\s]/gu) ?? [];
  const [a, b] = [split(before), split(after)];
  if (a.length * b.length > 400000) return el("span", { class: "long", dir: "auto" }, visible(after));
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--)
    lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
  const parts = [];
  for (let [i, j] = [0, 0]; j < b.length;) {
    if (i < a.length && a[i] === b[j]) { parts.push(visible(b[j])); i++; j++; }
    else if (i < a.length && lengths[i + 1][j] >= lengths[i][j + 1]) i++;
    else { parts.push(b[j].trim() ? el("mark", {}, visible(b[j])) : b[j]); j++; }
  }
  return el("span", { class: "long", dir: "auto" }, parts);
}

function pathSection(run, record, goTo) {
  const nodes = record.path?.map((step) => step.node) ?? null;
  const stepBody = (step) => () => [
    step.calls.length ? el("p", {}, "calls: ", step.calls.map((key) => [el("button", { type: "button", class: "link", onclick: () => goTo(key) }, visible(key)), " "])) : null,
    ...Object.entries(step.update).map(([name, value]) => el("div", { class: "field" }, el("h4", {}, visible(name)),
      typeof value === "string" ? textBlock(value) : json(value))),
    step.in_result.length ? el("p", { class: "dim" }, `as in the result: ${step.in_result.join(", ")}`) : null,
    step.omitted.length ? el("p", { class: "dim" }, `not recorded (large, or no JSON): ${step.omitted.join(", ")}`) : null,
  ].filter(Boolean);
  const title = (step, i) => [el("b", {}, `${i + 1}. ${visible(step.node)}`), el("span", { class: "dim" },
    ` ${step.calls.length ? `${step.calls.length} call${step.calls.length > 1 ? "s" : ""}, ` : ""}wrote ${[...Object.keys(step.update), ...step.in_result, ...step.omitted].join(", ") || "nothing"}`)];
  return el("div", {},
    run.topology?.nodes ? graphPicture(run.topology, nodes, record.outcome === "failed") : null,
    nodes ? el("div", { class: "path-steps" }, record.path.map((step, i) => fold(title(step, i), stepBody(step))))
      : el("p", { class: "dim" }, "This run is of an earlier version, which did not record the path."));
}

/** What became of the nodes of a search: chosen and rejected ones of preference pairs, else those of an answer or a solution. */
function nodeMarks(record) {
  const marks = new Map();
  for (const pair of treePairs(record)) { marks.set(pair.chosen, "chosen"); marks.set(pair.rejected, "rejected"); }
  for (const target of record.targets.filter((one) => !one.rejected.length))
    for (const id of targetNodes(record, target.segments)) if (!marks.has(id)) marks.set(id, "learned");
  return marks;
}

/** The nodes that a side of a target learns. */
function targetNodes(record, segments) {
  const byCall = new Map((record.tree ?? []).filter((node) => node.call).map((node) => [node.call, node.id]));
  return segments.map((segment) => segment.node ?? (segment.learned ? byCall.get(segment.call) : undefined)).filter((id) => id !== undefined && id !== null);
}

/** The pairs of nodes that came of a tree: the first nodes in which the two sides of a preference pair differ. */
function treePairs(record) {
  return record.targets.filter((target) => target.rejected.length).map((target) => {
    const [chosen, rejected] = [targetNodes(record, target.segments), targetNodes(record, target.rejected)];
    const at = chosen.findIndex((id, i) => id !== rejected[i]);
    return { chosen: chosen[at], rejected: rejected[at] };
  }).filter((pair) => pair.chosen !== undefined && pair.rejected !== undefined);
}

function targetSection(record, goTo) {
  const sides = (target) => (target.rejected.length
    ? el("div", { class: "sides" },
      el("div", {}, el("h4", {}, "chosen"), segmentList(target.segments, goTo)),
      el("div", { class: "rejected-side" }, el("h4", {}, "rejected"), segmentList(target.rejected, goTo)))
    : segmentList(target.segments, goTo));
  return el("div", {},
    el("p", { class: "dim" }, "Marked text is learned, the rest is context without loss. A call's key leads to the call that wrote the text."),
    record.targets.map((target, i) => fold(
      [el("b", {}, `${i + 1}. ${target.kind}`), " ", Object.entries(target.scores).map(([name, value]) => el("span", { class: "badge" }, `${name} ${format(value)}`))],
      () => [
        target.row ? el("p", { class: "row-facts" }, "row ", Object.entries(target.row).map(([name, value]) => el("span", { class: "badge" }, `${name} ${format(value)}`))) : null,
        sides(target),
      ].filter(Boolean), i < 3)));
}

function segmentList(segments, goTo) {
  return segments.map((segment) => {
    const origin = segment.call ? el("button", { type: "button", class: "link", onclick: () => goTo(segment.call) }, visible(segment.call)) : null;
    const body = segment.fault ? el("p", { class: "bad" }, visible(segment.fault))
      : segment.text === null ? el("p", { class: "dim" }, "the whole request of the call") : textBlock(segment.text, segment.learned ? "learned" : "");
    return el("div", { class: "segment" }, el("div", { class: "segment-head" }, segment.role, " ", segment.learned ? "learned" : "context", " ", origin), body);
  });
}

/** All calls; those whose key extends another's are below it. The list has a method `openCall(key)`. */
function callList(record, calls) {
  const folds = new Map();
  const parent = (key) => { for (let at = key.lastIndexOf("/"); at > 0; at = key.lastIndexOf("/", at - 1)) if (calls.has(key.slice(0, at))) return key.slice(0, at); return null; };
  const below = new Map();
  for (const key of calls.keys()) { const up = parent(key); if (up) { if (!below.has(up)) below.set(up, []); below.get(up).push(key); } }
  const one = (key) => {
    const call = calls.get(key);
    const details = fold(callTitle(call, below.get(key)?.length ?? 0), () => [
      callBody(call, record.texts),
      (below.get(key) ?? []).length ? el("div", { class: "below" }, below.get(key).map(one)) : null,
    ].filter(Boolean));
    details.dataset.call = key;
    folds.set(key, details);
    return details;
  };
  const inOrder = new Set([...(record.path ?? []).flatMap((step) => step.calls), ...calls.keys()]);
  const hasTokens = record.calls.some((call) => call.tokens);
  const list = el("div", { class: "calls" }, hasTokens ? tokenLegend() : null, [...inOrder].filter((key) => calls.has(key) && !parent(key)).map(one));
  list.openCall = (key) => {
    if (!calls.has(key)) return;
    const chain = [];
    for (let at = key; at; at = parent(at)) chain.unshift(at);
    for (const name of chain) { const details = folds.get(name); if (details && !details.open) { details.open = true; details.dispatchEvent(new Event("toggle")); } }
    list.querySelectorAll(".found").forEach((details) => details.classList.remove("found"));
    setTimeout(() => { const details = folds.get(key); details?.scrollIntoView({ block: "start" }); details?.classList.add("found"); });
  };
  return list;
}

function callTitle(call, below) {
  const seconds = call.measured?.cache_hit ? "request cache" : call.measured?.seconds !== undefined ? `${format(call.measured.seconds)} s` : "";
  return [
    el("b", {}, visible(call.key)), " ", el("span", { class: "badge" }, visible(call.role)),
    call.error ? el("span", { class: "badge failed" }, "requested again") : null,
    call.finish !== "stop" ? el("span", { class: "badge dropped" }, visible(call.finish)) : null,
    call.measured?.cache_hit ? el("span", { class: "badge" }, "cache hit") : null,
    el("span", { class: "dim" }, ` ${format(call.prompt_tokens)} → ${format(call.completion_tokens)} tokens ${seconds}${below ? `, ${below} call${below > 1 ? "s" : ""} below` : ""} `),
    el("span", { class: "snippet", dir: "auto" }, visible(call.text.slice(0, 160))),
  ];
}

function callBody(call, shared) {
  const text = (content) => (typeof content === "number" ? shared[content] : content);
  const message = ({ role, content }) => el("div", { class: "message" }, el("div", { class: "message-role" }, visible(role ?? "")),
    typeof text(content) === "string" ? textBlock(text(content)) : json(text(content)));
  const facts = {
    model: call.model, mode: call.mode, seed: call.seed, finish: call.finish, sampling: call.sampling, measured: call.measured,
  };
  return el("div", { class: "call" },
    call.error ? el("p", { class: "bad", dir: "auto" }, "requested again because: ", visible(call.error)) : null,
    call.messages.map(message),
    call.reasoning ? fold("thought", () => (call.reasoning_tokens ? tokenBlock(call.reasoning_tokens) : textBlock(call.reasoning))) : null,
    el("div", { class: "message reply" }, el("div", { class: "message-role" }, "reply"),
      call.tokens ? tokenBlock(call.tokens) : textBlock(call.text)),
    el("p", { class: "dim" }, visible(Object.entries(facts).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join(" · "))));
}
