"""Times as people write them: text to datetime64, formats that are mixed in one column, and clocks that change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from agentsys.trainers.traffic.series import DAY, Ints, SeriesError, Times, utc_offsets

Bools = npt.NDArray[np.bool_]

_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,]\d+)?)?"
_FORMATS = {
    "ISO 8601": rf"^(?P<year>\d{{4}})[-/](?P<month>\d{{1,2}})[-/](?P<day>\d{{1,2}})(?:[T ]+{_CLOCK})?"
    r"\s*(?P<offset>Z|z|[+-]\d{2}(?::?\d{2})?)?$",
    "day.month.year": rf"^(?P<day>\d{{1,2}})\.(?P<month>\d{{1,2}})\.(?P<year>\d{{4}})(?:,?\s+{_CLOCK})?$",
    "slashes": r"^(?P<first>\d{1,2})/(?P<other>\d{1,2})/(?P<year>\d{4})"
    rf"(?:,?\s+{_CLOCK}\s*(?P<half>[AaPp][Mm])?)?$",
    "digits": r"^(?P<year>(?:19|20)\d{2})(?P<month>\d{2})(?P<day>\d{2})"
    r"(?:(?P<hour>\d{2})(?:(?P<minute>\d{2})(?P<second>\d{2})?)?)?$",
    "Unix seconds": r"^(?P<seconds>1[0-8]\d{8}|\d{9})(?:\.\d+)?$",
    "Unix milliseconds": r"^(?P<milliseconds>1[0-8]\d{11})$",
}
"""Regular expressions (RE2) of the formats, no two of which match one text.

In slashes, the order of day and month is found out from all times. Unix seconds end in March 2030, where ten digits
become a date and an hour.
"""

YEARS = (1900, 2200)
"""Years beyond are mistakes."""

KNOWN = "2024-12-31 17:45, 31.12.2024 17:45, 12/31/2024 5:45 PM or Unix seconds"


@dataclass(frozen=True, slots=True)
class Stamps:
    """Times of the rows of a table."""

    times: Times
    """(R,) datetime64[s]: UTC where `is_utc`, otherwise the local wall clock."""
    is_utc: Bools
    """(R,) where the text had an offset from UTC or counts seconds."""
    notes: tuple[str, ...] = ()


def parse_times(texts: pa.Array, place: str) -> Stamps:
    """Times of texts in one of the formats, or in several. `place` names file and column in errors.

    Raises SeriesError for a text that is no time, and for slashes whose order of day and month no row tells.
    """
    texts = pc.utf8_trim_whitespace(pc.fill_null(texts.cast(pa.string()), ""))
    times = np.full(len(texts), np.datetime64("NaT"), "datetime64[s]")
    is_utc = np.zeros(len(texts), bool)
    counts: dict[str, int] = {}
    for name, pattern in _FORMATS.items():
        rows = np.flatnonzero(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False))
        if len(rows):
            fields = _Fields(pc.extract_regex(texts.take(pa.array(rows)), pattern), place)
            if name == "slashes":
                name = fields.order_slashes()
            times[rows], is_utc[rows] = fields.to_times(rows)
            counts[name] = len(rows)
    if len(bad := np.flatnonzero(np.isnat(times))):
        row = int(bad[0])
        raise SeriesError(f"{place}, row {row + 1}: {texts[row].as_py()!r} is no time: write it as {KNOWN}")
    return Stamps(times, is_utc, _describe(counts, is_utc, place))


def count_times(rows: int, start: str, step: int | None, name: str) -> Stamps:
    """Times of rows without times, from --start on, --step apart. Raises SeriesError if one is not given."""
    if not start or not step:
        raise SeriesError(f"{name} has no times: give --start (time of its first row) and --step")
    first = parse_times(pa.array([start]), "--start")
    times = first.times[0] + np.arange(rows) * np.timedelta64(step, "s")
    return Stamps(times, np.full(rows, bool(first.is_utc[0])))


def is_time(text: str) -> bool:
    """Whether a text looks like a time in one of the formats that are no plain number."""
    formats = (_FORMATS[name] for name in ("ISO 8601", "day.month.year", "slashes"))
    return any(pc.match_substring_regex(pa.array([text.strip()]), pattern)[0].as_py() for pattern in formats)


def _describe(counts: dict[str, int], is_utc: Bools, place: str) -> tuple[str, ...]:
    notes = []
    if len(counts) > 1:
        formats = ", ".join(f"{name} {count:,} rows" for name, count in counts.items())
        notes.append(f"{place}: times in {len(counts)} formats ({formats}), each read as such")
    if is_utc.any() and not is_utc.all():
        notes.append(f"{place}: {int(is_utc.sum()):,} times have an offset from UTC, the others are local")
    return tuple(notes)


class _Fields:
    """The parts of times that one regular expression found."""

    def __init__(self, found: Any, place: str) -> None:
        names = [found.type[index].name for index in range(found.type.num_fields)]
        self.parts = {name: found.field(name) for name in names}
        self.place = place

    def number(self, name: str) -> Ints:
        """(R,) a part as a number, 0 where it is absent."""
        if name not in self.parts:
            return np.zeros(len(next(iter(self.parts.values()))), np.int64)
        part = self.parts[name]
        digits = pc.if_else(pc.equal(part, ""), "0", part)
        numbers: Ints = digits.cast(pa.int64()).to_numpy(zero_copy_only=False)
        return numbers

    def order_slashes(self) -> str:
        """Decide whether the day or the month comes first: a number above 12 is a day. Returns the format's name."""
        first, other = self.number("first"), self.number("other")
        day_first, month_first = bool((first > 12).any()), bool((other > 12).any())
        if day_first == month_first:
            why = "some rows have the day first, some the month" if day_first else "no row tells day from month"
            example = f"{first[0]}/{other[0]}/..."
            raise SeriesError(f"{self.place}: times such as {example}: {why}; write them as 2024-12-31 17:45")
        day, month = ("first", "other") if day_first else ("other", "first")
        self.parts |= {"day": self.parts[day], "month": self.parts[month]}
        return "day/month/year" if day_first else "month/day/year"

    def to_times(self, rows: Ints) -> tuple[Times, Bools]:
        """(R,) times and whether they are UTC; `rows` are their positions in the table, for errors."""
        if "seconds" in self.parts or "milliseconds" in self.parts:
            seconds = self.number("seconds") + self.number("milliseconds") // 1000
            return seconds.astype("datetime64[s]"), np.ones(len(rows), bool)
        year, month, day = self.number("year"), self.number("month"), self.number("day")
        hour, minute, second = self._hours(), self.number("minute"), self.number("second")
        months = (year - 1970) * 12 + month - 1
        days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + day - 1
        right = (days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) == months) & (day > 0)
        right &= (year >= YEARS[0]) & (year <= YEARS[1]) & (month > 0) & (month <= 12) & (minute < 60) & (second < 60)
        right &= (hour < 24) | ((hour == 24) & (minute + second == 0))  # 24:00 is the end of the day
        if not right.all():
            row = int(np.argmin(right))
            text = f"{year[row]}-{month[row]:02}-{day[row]:02} {hour[row]:02}:{minute[row]:02}"
            raise SeriesError(f"{self.place}, row {rows[row] + 1}: there is no time {text}: correct it")
        offsets, is_utc = self._offsets()
        seconds = days * DAY + hour * 3600 + minute * 60 + second - offsets
        return seconds.astype("datetime64[s]"), is_utc

    def _hours(self) -> Ints:
        hour = self.number("hour")
        if "half" not in self.parts:
            return hour
        half = pc.utf8_lower(self.parts["half"]).to_numpy(zero_copy_only=False)
        return np.where(half == "", hour, hour % 12 + 12 * (half == "pm"))

    def _offsets(self) -> tuple[Ints, Bools]:
        count = len(self.parts["year"])
        if "offset" not in self.parts:
            return np.zeros(count, np.int64), np.zeros(count, bool)
        texts = self.parts["offset"].to_pylist()
        by_text = {text: _offset_seconds(text) for text in set(texts)}
        return np.array([by_text[text] for text in texts], np.int64), np.array([text != "" for text in texts])


def _offset_seconds(text: str) -> int:
    if text in ("", "Z", "z"):
        return 0
    digits = text[1:].replace(":", "")
    return (-1 if text[0] == "-" else 1) * (int(digits[:2]) * 3600 + int(digits[2:] or 0) * 60)


Clock = Literal[0, 1, 2]
ONCE, TWICE, NEVER = 0, 1, 2
"""How often the clock of a time zone shows a local time: twice in an hour of autumn, never in an hour of spring."""


def to_utc(local: Times, zone: str) -> tuple[Times, Times, Ints]:
    """(R,) UTC times of local times, as if before and as if after a change of the clock, and how often they occur.

    Where a local time occurs once, both are the same; where it occurs twice, they are its first and second occurrence;
    where it never occurs, they mean nothing. Raises SeriesError for an unknown zone.
    """
    day = np.timedelta64(DAY, "s")
    before, after = utc_offsets(local - day, zone), utc_offsets(local + day, zone)
    seconds = local.astype("datetime64[s]").astype(np.int64)
    first: Times = (seconds - before).astype("datetime64[s]")
    second: Times = (seconds - after).astype("datetime64[s]")
    first_holds, second_holds = utc_offsets(first, zone) == before, utc_offsets(second, zone) == after
    count = np.where(first_holds & second_holds & (before != after), TWICE, ONCE)
    count = np.where(first_holds | second_holds, count, NEVER)
    utc = np.where(first_holds, first, second)
    return utc, np.where(second_holds, second, utc), count
