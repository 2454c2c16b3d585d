// Tokens colored by their probability.

const STEPS = [0.02, 0.1, 0.3, 0.6, 0.9];

/** The class of a token: p0 for the least probable, p5 for the most. */
function probabilityClass(logprob) {
  if (logprob === null || logprob === undefined) return "";
  const probability = Math.exp(logprob);
  return `p${STEPS.filter((step) => probability >= step).length}`;
}

/** Tokens as text; a tooltip has the probability of each. */
function tokenBlock(tokens) {
  return el("div", { class: "text tokens", dir: "auto" }, tokens.map(([text, logprob]) => {
    const probability = logprob === null ? "no probability" : `probability ${Math.exp(logprob).toPrecision(3)}`;
    return el("span", { class: `token ${probabilityClass(logprob)}`, title: `${JSON.stringify(text)} ${probability}` }, visible(text));
  }));
}

/** What the colors mean. */
function tokenLegend() {
  const labels = ["< 2 %", "2 %", "10 %", "30 %", "60 %", "≥ 90 %"];
  return el("div", { class: "legend" }, "probability of a token: ", labels.map((label, i) => el("span", { class: `token p${i}` }, label)));
}
