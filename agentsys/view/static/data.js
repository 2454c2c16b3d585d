// The page's data: its head, and pieces that are inside the page, in files beside it, or on the server of --live.

const HEAD = JSON.parse(document.getElementById("data-head").textContent);
const pieces = new Map();
const waiting = new Map();

/** Called by the script of a piece in the page's folder. */
function agentsysPiece(name, text) {
  waiting.get(name)?.resolve(JSON.parse(text));
  waiting.delete(name);
}

/** A piece by name, as a promise. */
function piece(name) {
  if (!pieces.has(name)) pieces.set(name, loadPiece(name));
  return pieces.get(name);
}

function loadPiece(name) {
  const inside = document.getElementById(`data-${name}`);
  if (inside) return Promise.resolve(JSON.parse(inside.textContent));
  return new Promise((resolve, reject) => {
    waiting.set(name, { resolve });
    const source = `${encodeURIComponent(HEAD.folder)}/${name}.js`;
    const failed = () => reject(new Error(`${source} is missing: keep the folder ${HEAD.folder} beside the page`));
    document.head.append(el("script", { src: source, onerror: failed, onload: (event) => event.target.remove() }));
  });
}

/** A run of the page: its head, and the columns of its records as far as they are loaded. */
class Run {
  constructor(head) {
    Object.assign(this, head);
    this.columns = {};
    this.texts = [];  // what the filter searches, in lower case
    this.places = new Map();
    this.loaded = 0;
  }

  /** Load the index, the first piece first; `onPart` is called after each. */
  async load(onPart) {
    for (let i = 0; i < this.indexes; i++) {
      this.add(await piece(`${this.name}-index-${i}`));
      onPart?.();
      await new Promise((resolve) => setTimeout(resolve));
    }
  }

  add(part) {
    const size = part.id.length;
    for (const [name, values] of Object.entries(part)) {
      const column = (this.columns[name] ??= []);
      for (const value of values) column.push(value);
    }
    for (let i = 0; i < size; i++) {
      this.texts.push(`${part.id[i]}\n${part.text[i]}\n${part.output[i]}\n${part.reason[i]}`.toLowerCase());
      if (!this.places.has(part.id[i])) this.places.set(part.id[i], this.loaded + i);  // a second one was refused
    }
    this.loaded += size;
  }

  value(column, number) {
    return this.columns[column][number];
  }

  /** Everything about a record, as a promise. */
  async record(number) {
    if (HEAD.live) return (await fetch(`record/${number}`)).json();
    return (await piece(`${this.name}-${this.value("place", number)}`))[number];
  }

  /** The numbers of the records that match a filter. */
  select({ text = "", outcome = "", reason = "", low = null, high = null }) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const { outcome: outcomes, reason: reasons, score: scores } = this.columns;
    const numbers = [];
    for (let i = 0; i < this.loaded; i++) {
      if (outcome && outcomes[i] !== outcome) continue;
      if (reason && reasons[i] !== reason) continue;
      if (low !== null && !(scores[i] !== null && scores[i] >= low)) continue;
      if (high !== null && !(scores[i] !== null && scores[i] <= high)) continue;
      if (words.length && !words.every((word) => this.texts[i].includes(word))) continue;
      numbers.push(i);
    }
    return numbers;
  }
}

const RUNS = HEAD.runs.map((head) => new Run(head));
for (const run of RUNS) {
  const same = RUNS.filter((one) => one.folder === run.folder);
  run.title = same.length > 1 ? `${run.folder} (${same.indexOf(run) + 1})` : run.folder;
}
