"""Difference sampling (MiniPLM): keep the chunks that are much likelier under the teacher than the reference.

    r(x) = (log p(x) - log p_ref(x)) / |x| = nll_ref(x) - nll_teacher(x)        nats per token

The share alpha of the chunks with the highest r is kept, over all domains together, in the order of the corpus. Noise
is unlikely under both models and boilerplate likely under both, so neither has a high difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from agentsys.display import markdown
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.pretrain.corpus import FORMAT_KEYS, ChunkFolder, ChunkWriter, Numbers
from agentsys.trainers.pretrain.scores import read_scores

SAMPLE_CHARACTERS: Final = 600
"""Characters of a chunk that samples.md shows."""

_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Differences:
    """Both models' scores of all chunks of a corpus, in its order: (n,) in nats per token.

    NaN for a chunk without predicted tokens (only document ends); it ranks below all others.
    """

    teacher: Numbers
    reference: Numbers

    @property
    def values(self) -> Numbers:
        """r(x), reference minus teacher."""
        return self.reference - self.teacher


def read_differences(folder: ChunkFolder, teacher: Path, reference: Path) -> Differences:
    """Both scores of every chunk. Raises TrainerError unless both folders have a score for each chunk."""
    nll = [
        np.concatenate([table.column("nll").to_numpy() for _, table in read_scores(scores, folder)])
        for scores in (teacher, reference)
    ]
    return Differences(*(scores.astype(np.float32) for scores in nll))


def top_share(values: Numbers, alpha: float) -> Numbers:
    """True for the int(alpha n) chunks with the highest values, (n,); the first of equal ones.

    Raises TrainerError for an alpha outside (0, 1], or one that keeps no chunk.
    """
    if not 0 < alpha <= 1:
        raise TrainerError(f"--alpha {alpha:g}: give a share above 0 and at most 1")
    count = int(alpha * len(values) + 1e-9)
    if not count:
        raise TrainerError(f"--alpha {alpha:g} keeps none of {len(values)} chunks; give a larger share, or more text")
    keep = np.zeros(len(values), bool)
    keep[np.argsort(-values, kind="stable")[:count]] = True  # NaN sorts last
    return keep


def write_selection(
    folder: ChunkFolder, keep: Numbers, out: Path, columns: dict[str, Numbers] | None = None, **facts: Any
) -> ChunkFolder:
    """Write the chunks where `keep` (n,) is True as a new corpus, in the same order, shard by shard.

    `columns` are additional columns (n,); `facts` are added to the manifest. The selection may also be a random one.
    """
    import pyarrow as pa

    writer = ChunkWriter(out)
    start = 0
    for shard in folder.shards:
        table = shard.read()
        part = slice(start, start := start + table.num_rows)
        for name, values in (columns or {}).items():
            table = table.append_column(name, pa.array(values[part]))
        if keep[part].any():
            writer.add_shard(table.filter(pa.array(keep[part])))
    format_facts = {key: folder.manifest[key] for key in FORMAT_KEYS}
    return writer.finish(**format_facts, selected_from=folder.manifest["sha256"], **facts)


def select(
    chunks: str | Path,
    teacher: str | Path,
    reference: str | Path,
    alpha: float,
    out: str | Path,
    samples: int = 10,
) -> ChunkFolder:
    """Write the selected corpus, with `difference.png` and `samples.md` in its folder.

    Its columns are those of the chunks, teacher_nll, reference_nll and difference, which can serve as a weight. Raises
    TrainerError for scores of other chunks.
    """
    folder, out = ChunkFolder(chunks), Path(out)
    differences = read_differences(folder, Path(teacher), Path(reference))
    values = differences.values
    keep = top_share(values, alpha)
    columns = {"teacher_nll": differences.teacher, "reference_nll": differences.reference, "difference": values}
    lowest = values[keep].min()
    facts = {"alpha": alpha, "lowest_difference": None if np.isnan(lowest) else float(lowest)}
    selected = write_selection(folder, keep, out, columns, **facts)
    plot(values, keep, out / "difference.png")
    (out / "samples.md").write_text(_format_samples(folder, differences, keep, samples), encoding="utf-8")
    return selected


def plot(values: Numbers, keep: Numbers, path: Path) -> None:
    """Plot histogram and cumulative distribution of the differences, with the threshold between kept and dropped."""
    from matplotlib.figure import Figure

    finite = values[~np.isnan(values)]
    figure = Figure(figsize=(10, 4), layout="constrained")
    histogram, cumulative = figure.subplots(1, 2)
    if len(finite):
        low, high = np.quantile(finite, [0.001, 0.999])
        width = max(high - low, 1e-6)
        edges = np.linspace(low - 0.01 * width, high + 0.01 * width, 201)
        histogram.hist([values[keep], values[~keep]], edges, stacked=True, label=["kept", "dropped"])
        histogram.legend()
        ordered = np.sort(finite)
        cumulative.plot(edges, np.searchsorted(ordered, edges, side="right") / len(ordered))
    if not np.isnan(threshold := np.min(values[keep])):
        for axes in (histogram, cumulative):
            axes.axvline(float(threshold), color="black", linewidth=0.8)
    histogram.set_ylabel("chunks")
    cumulative.set_ylabel("share of chunks at or below")
    for axes in (histogram, cumulative):
        axes.set_xlabel("reference NLL - teacher NLL, nats per token")
    figure.savefig(path, dpi=120)


def _format_samples(folder: ChunkFolder, differences: Differences, keep: Numbers, count: int) -> str:
    values = differences.values
    order = np.argsort(-values, kind="stable")[: np.count_nonzero(~np.isnan(values))]
    rng = np.random.default_rng(_SEED)
    kept, dropped = np.flatnonzero(keep), np.flatnonzero(~keep)
    groups = {
        "Highest difference": order[:count],
        "Lowest difference": order[::-1][:count],
        "Kept, sampled at random": np.sort(rng.permutation(kept)[:count]),
        "Dropped, sampled at random": np.sort(rng.permutation(dropped)[:count]),
    }
    rows = _read_texts(folder, np.unique(np.concatenate(list(groups.values()))))
    lines = ["# Chunks to read", "", "NLL in nats per token; difference = reference - teacher.", ""]
    for title, places in groups.items():
        lines += [f"## {title}", ""]
        for place in places.tolist():
            chunk = rows[place]
            scores = f"difference {values[place]:.3f}, teacher {differences.teacher[place]:.3f}"
            lines += [
                f"### {markdown(chunk['id'])}: {scores}, reference {differences.reference[place]:.3f}",
                "",
                _indent_text(chunk),
                "",
            ]
    return "\n".join(lines)


def _indent_text(chunk: dict[str, Any]) -> str:
    """The beginning of a chunk as an indented block, which Markdown shows unchanged."""
    text = chunk["text"][:SAMPLE_CHARACTERS]
    more = " ..." if len(chunk["text"]) > SAMPLE_CHARACTERS else ""
    return "\n".join(f"    {line}" for line in f"{text}{more}".splitlines())


def _read_texts(folder: ChunkFolder, places: Numbers) -> dict[int, dict[str, Any]]:
    """Id and text of the chunks at these places of the corpus."""
    chunks_by_place: dict[int, dict[str, Any]] = {}
    start = 0
    for shard in folder.shards:
        inside = places[(places >= start) & (places < start + shard.chunks)]
        if len(inside):
            rows = shard.read("id", "text").take(inside - start).to_pylist()
            chunks_by_place |= dict(zip(inside.tolist(), rows, strict=True))
        start += shard.chunks
    return chunks_by_place
