"""What the traces of a run say about it: outcomes with reasons, calls and tokens by role, replies requested again.

The traces are read once and not kept: memory holds counts, and one small number per record.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from agentsys.display import plain
from agentsys.traces import Call, Trace

MAX_REASONS: Final = 10
"""Reasons printed for each outcome, and for the replies that were requested again; report.json has all of them."""
MAX_REASON: Final = 160
"""Characters of a reason; longer ones, which hold a reply or a record, are cut."""


@dataclass(frozen=True, slots=True)
class Section:
    """A table of a report: its title, the names of its columns, rows of cells, and a line below it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of a report's PNG: `draw` draws it on axes of matplotlib. `width` is in columns of the PNG."""

    title: str
    draw: Callable[[Any], None]
    width: int = 1


class Statistics(Protocol):
    """What a report counts: it sees each trace once, and then has data for JSON, tables and figures."""

    def add(self, trace: Trace) -> None:
        """Count a finished record."""

    def data(self) -> dict[str, Any]:
        """The numbers, as report.json has them."""

    def sections(self) -> list[Section]:
        """The tables."""

    def panels(self) -> list[Panel]:
        """The figures; none for what has no data."""

    def headline(self) -> list[tuple[str, str]]:
        """The few (label, value) rows that the table at the end of a run shows."""


@dataclass(slots=True)
class RoleUse:
    """The calls of a role, with their tokens. `requested_again` counts the replies that failed a check."""

    calls: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requested_again: int = 0
    truncated: int = 0
    engine_seconds: float = 0.0

    def add(self, call: Call) -> None:
        """Count a call. A call from the request cache takes no time."""
        self.calls += 1
        self.prompt_tokens += call.prompt_tokens
        self.completion_tokens += call.completion_tokens
        self.requested_again += call.error is not None
        self.truncated += call.finish == "length" and call.sampling.get("max_tokens") != 1  # 1: a token is all it asks
        if call.measured.get("cache_hit"):
            self.from_cache += 1
        else:
            self.engine_seconds += call.measured.get("seconds") or 0.0


@dataclass
class RunStatistics:
    """The numbers of any run. `totals` are those of its manifest: paid calls and tokens, wall seconds, cost."""

    totals: Mapping[str, float] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    roles: defaultdict[str, RoleUse] = field(default_factory=lambda: defaultdict(RoleUse))
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often a role's reply was requested again, by role and reason."""
    kept: RoleUse = field(default_factory=RoleUse)
    """The calls of kept records alone."""
    calls_per_record: array[int] = field(default_factory=lambda: array("l"))

    def add(self, trace: Trace) -> None:
        """Count a finished record."""
        self.add_outcome(trace.outcome, trace.reason)
        self.calls_per_record.append(len(trace.calls))
        for call in trace.calls:
            self.roles[call.role].add(call)
            if trace.outcome == "kept":
                self.kept.add(call)
            if call.error is not None:
                self.faults[call.role, _shorten(call.error)] += 1

    def add_outcome(self, outcome: str, reason: str | None) -> None:
        """Count a record; of a refused input there is no trace."""
        self.outcomes[outcome] += 1
        if reason:
            self.reasons[outcome][_shorten(reason)] += 1

    @property
    def records(self) -> int:
        """All finished records: kept, dropped and failed."""
        return self.outcomes.total()

    @property
    def all_calls(self) -> RoleUse:
        """The calls of all roles."""
        sums = RoleUse()
        for use in self.roles.values():
            for name, value in asdict(use).items():
                setattr(sums, name, getattr(sums, name) + value)
        return sums

    def data(self) -> dict[str, Any]:
        """See Statistics."""
        kept, use = self.outcomes["kept"], self.all_calls
        return {
            "records": {name: self.outcomes[name] for name in ("kept", "dropped", "failed")},
            "reasons": {outcome: dict(counts.most_common()) for outcome, counts in self.reasons.items()},
            "totals": dict(self.totals),
            "calls": asdict(use),
            "per_kept_record": {
                name: round(getattr(use, name) / kept, 2) if kept else None
                for name in ("calls", "prompt_tokens", "completion_tokens")
            },
            "in_kept_records": asdict(self.kept),
            "roles": {role: asdict(use) for role, use in self.roles.items()},
            "requested_again": [
                {"role": role, "reason": reason, "replies": count}
                for (role, reason), count in self.faults.most_common()
            ],
        }

    def sections(self) -> list[Section]:
        """See Statistics."""
        sections = [self._outcomes(), self._cost(), self._role_table()]
        if self.faults:
            rows = [(role, reason, f"{count:,}") for (role, reason), count in self.faults.most_common(MAX_REASONS)]
            sections.append(Section("Replies requested again", ("role", "reason", "replies"), rows))
        return sections

    def _outcomes(self) -> Section:
        rows: list[tuple[str, ...]] = []
        for outcome in ("kept", "dropped", "failed"):
            count = self.outcomes[outcome]
            rows.append((outcome, f"{count:,}", percent(count, self.records)))
            rows += [
                (f"  {reason}", f"{number:,}", percent(number, self.records))
                for reason, number in self.reasons[outcome].most_common(MAX_REASONS)
            ]
        return Section("Records", ("", "records", "share"), rows)

    def _cost(self) -> Section:
        use, kept = self.all_calls, self.outcomes["kept"]
        rows: list[tuple[str, ...]] = [("calls", f"{use.calls:,}", f"{self.kept.calls:,}")]
        rows.append(("  from the request cache", f"{use.from_cache:,}", f"{self.kept.from_cache:,}"))
        for name, label in _PER_RECORD.items():
            values = [getattr(calls, name) for calls in (use, self.kept)]
            if kept:
                rows.append((f"{label} per kept record", *(f"{value / kept:,.1f}" for value in values)))
            elif self.records:
                rows.append((f"{label} per record", f"{values[0] / self.records:,.1f}", "-"))
        if seconds := self.totals.get("seconds"):
            rate = self.totals.get("completion_tokens", 0) / seconds
            rows.append(("wall time", format_seconds(seconds), ""))
            rows.append(("completion tokens per second", f"{rate:,.1f}", ""))
        if "cost" in self.totals:
            rows.append(("cost", f"{self.totals['cost']:,.4f}", ""))
        return Section("Calls and tokens", ("", "all records", "kept alone"), rows)

    def _role_table(self) -> Section:
        columns = (
            *("role", "calls", "prompt tokens", "completion tokens", "requested again"),
            *("truncated", "seconds per call"),
        )
        rows = [
            (
                role,
                f"{use.calls:,}",
                f"{use.prompt_tokens:,}",
                f"{use.completion_tokens:,}",
                f"{use.requested_again:,} ({percent(use.requested_again, use.calls)})",
                f"{use.truncated:,}",
                f"{use.engine_seconds / paid:.2f}" if (paid := use.calls - use.from_cache) else "-",
            )
            for role, use in self.roles.items()
        ]
        return Section("Roles", columns, rows)

    def panels(self) -> list[Panel]:
        """See Statistics."""
        panels = [Panel("records", self._draw_outcomes)]
        if self.roles:
            panels += [Panel("tokens by role", self._draw_roles), Panel("calls per record", self._draw_calls)]
        return panels

    def _draw_outcomes(self, axes: Any) -> None:
        names = ("kept", "dropped", "failed")
        counts = [self.outcomes[name] for name in names]
        bars = axes.bar(names, counts, color=["#4c9f70", "#e0a458", "#c0392b"], width=0.6)
        axes.bar_label(bars, labels=[f"{count:,} ({percent(count, self.records)})" for count in counts])
        axes.set_ylabel("records")
        axes.margins(y=0.15)

    def _draw_roles(self, axes: Any) -> None:
        names = [plain(role) for role in self.roles]
        prompt = [use.prompt_tokens / self.records for use in self.roles.values()]
        completion = [use.completion_tokens / self.records for use in self.roles.values()]
        axes.barh(names, prompt, color="C7", label="prompt")
        axes.barh(names, completion, left=prompt, color="C0", label="completion")
        axes.set_ylim(len(names) + 0.2, -0.6)  # from the top, with room for the legend
        axes.set_xlabel("tokens per record")
        axes.legend(loc="lower center", ncols=2, frameon=False, fontsize=8)

    def _draw_calls(self, axes: Any) -> None:
        low, high = min(self.calls_per_record), max(self.calls_per_record)
        bins = [edge - 0.5 for edge in range(low, high + 2)] if high - low < 60 else 40
        axes.hist(self.calls_per_record, bins=bins, color="C0", edgecolor="white")
        axes.set_xlabel("calls")
        axes.set_ylabel("records")

    def headline(self) -> list[tuple[str, str]]:
        """See Statistics."""
        if not (kept := self.outcomes["kept"]):
            return []
        use = self.all_calls
        cell = f"{use.calls / kept:,.1f} and {use.completion_tokens / kept:,.0f}"
        return [("calls and completion tokens per kept record", cell)]

    def project(self, total: int) -> dict[str, float]:
        """What `total` records would take if they are as those of this run: kept records, calls, tokens, time, cost.

        Calls and tokens include those that the request cache answered here: none is expected to be in the cache. Time
        and cost, which only a run's manifest has, are those of its paid calls. `kept_low` and `kept_high` are the ends
        of a 95 % interval.
        """
        use, factor = self.all_calls, total / max(self.records, 1)
        low, high = wilson_interval(self.outcomes["kept"], self.records)
        projection = {"records": total, "kept": self.outcomes["kept"] * factor}
        projection |= {"kept_low": low * total, "kept_high": high * total}
        projection |= {name: getattr(use, name) * factor for name in _PER_RECORD}
        if paid := self.totals.get("calls"):
            projection["seconds"] = self.totals.get("seconds", 0.0) / paid * projection["calls"]
            if "cost" in self.totals:
                tokens = self.totals.get("prompt_tokens", 0) + self.totals.get("completion_tokens", 0)
                needed = projection["prompt_tokens"] + projection["completion_tokens"]
                projection["cost"] = self.totals["cost"] / max(tokens, 1) * needed
        return projection

    def projection_section(self, projection: Mapping[str, float]) -> Section:
        """The table of a projection."""
        low, high = projection["kept_low"], projection["kept_high"]
        rows = [("kept records", f"{projection['kept']:,.0f} ({low:,.0f} to {high:,.0f})")]
        rows += [(label, f"{projection[name]:,.0f}") for name, label in _PER_RECORD.items()]
        if "seconds" in projection:
            rows.append(("time", format_seconds(projection["seconds"])))
        if "cost" in projection:
            rows.append(("cost", f"{projection['cost']:,.2f}"))
        title = f"Projection for {projection['records']:,} records, from {self.records:,}"
        note = "In brackets the 95 % interval of the share of kept records (Wilson). The rest is proportional."
        return Section(title, ("", "projected"), rows, note)


_PER_RECORD: Final = {
    "calls": "calls", "prompt_tokens": "prompt tokens", "completion_tokens": "completion tokens"
}  # fmt: skip


def percent(count: float, total: float) -> str:
    """A share in percent, with more digits near 0 and 100; "-" of nothing."""
    if not total:
        return "-"
    share = 100 * count / total
    if 90 < share < 100:
        return f"{share:.1f} %"
    return f"{share:.2g} %" if share < 9.95 else f"{share:.0f} %"


def format_seconds(seconds: float) -> str:
    """A duration in the largest unit of which there is more than one."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a probability, from 0 to 1 (Wilson's score interval)."""
    if not trials:
        return 0.0, 1.0
    z = 1.96
    share = successes / trials
    center = share + z * z / (2 * trials)
    margin = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    scale = 1 + z * z / trials
    return max(0.0, (center - margin) / scale), min(1.0, (center + margin) / scale)


def _shorten(reason: str) -> str:
    line = plain(reason)
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}..."
