"""The bulk runner: runs a compiled graph over records and writes traces.

A run is a set of workers, each of which takes one record at a time through the graph. There are no batches, so nothing
waits for the slowest record: the limit is on requests in flight, and more records than that are in progress.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from jinja2 import UndefinedError
from pydantic import PydanticUserError

from agentsys.collect import events
from agentsys.collect.card import data_card
from agentsys.collect.failures import Failures
from agentsys.collect.fingerprint import context_models, fingerprint, make_context, source_digest
from agentsys.collect.limits import FailureCounter, FailureLimit, Price, allowed_in_flight
from agentsys.collect.manifest import MANIFEST_VERSION
from agentsys.collect.options import RunOptions
from agentsys.collect.path import GraphRun
from agentsys.collect.pictures import PictureOptions, RunPictures, open_pictures
from agentsys.collect.resume import check_resumable, find_prompts, write_prompts
from agentsys.collect.store import Finished, RunFolder, id_hash
from agentsys.collect.summary import CALL_TOTALS, Summary, Watcher
from agentsys.display import say
from agentsys.logs import FILE as LOG_FILE
from agentsys.logs import RunLog
from agentsys.models import EndpointDown
from agentsys.models.access import mask_key
from agentsys.models.cache import CacheError, RequestCache
from agentsys.models.chat import AgentChatModel
from agentsys.models.foreign import set_foreign_in_flight
from agentsys.pictures import held_pictures
from agentsys.pictures.sources import FORMAT
from agentsys.prompt import PromptError
from agentsys.recorder import Recorder, Stopped, Switch, current
from agentsys.records import BadRecord, Record, read_records, shuffled
from agentsys.targets import Target, check_targets, target_from
from agentsys.telemetry import record_span
from agentsys.traces import Call, RunFolderError, Trace

RECORDS_PER_REQUEST: Final = 1.5
"""Records in progress per request that may be in flight: while one is between two calls, another takes its place.

An engine whose prefix cache belongs to its slots sets the number itself: there, moving a slot to another record costs
more than an idle slot.
"""
MANIFEST_SECONDS: Final = 5.0
"""Longest time between two writes of the manifest while records finish."""
RESERVED: Final = ("dropped", "targets", "tree")
"""Output fields of a graph that go to the trace itself: the reason for dropping it, its targets, its search tree. All
others are its result."""


def collect(
    graph: Any,
    records: str | Path | Iterable[Mapping[str, Any] | str],
    out: str | Path,
    *,
    context: Any = None,
    options: RunOptions | None = None,
    pictures: PictureOptions | None = None,
    watch: Watcher | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> Summary:
    """Run a compiled graph over records and append their traces to the folder `out`; a run in it is resumed.

    `records` is a file (JSONL, JSON array, CSV, TSV, Parquet, plain text) or an iterable of mappings or texts;
    `context` is the graph's context (models, knobs); `pictures` says where those of the records are; `on_start` is
    called with the folder once it is accepted. Raises RunFolderError (folder in use, not writable, or of a run with
    another fingerprint), InputError, SpecError, PromptError, EndpointDown, CacheError and TooManyFailures, and
    RuntimeError in a running event loop, where `acollect` is to be awaited. Errors of single records go to
    failed.jsonl.
    """
    _check_no_event_loop()
    more: dict[str, Any] = {"options": options, "pictures": pictures, "watch": watch, "on_start": on_start}
    work = acollect(graph, records, out, context=context, **more)
    with _rare_garbage_collection():
        try:
            import uvloop
        except ImportError:  # not available on Windows
            return asyncio.run(work)
        return uvloop.run(work)


def _check_no_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "collect() cannot run where an event loop runs already, as in a notebook: use `await agentsys.acollect(...)`, "
        "which takes the same arguments"
    )


async def acollect(
    graph: Any,
    records: str | Path | Iterable[Mapping[str, Any] | str],
    out: str | Path,
    *,
    context: Any = None,
    options: RunOptions | None = None,
    pictures: PictureOptions | None = None,
    watch: Watcher | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> Summary:
    """`collect` for a program that already runs an event loop."""
    options = options or RunOptions()
    context = make_context(graph) if context is None else context
    source = read_records(records, fields=options.fields, id_field=options.id_field, required=required_texts(graph))
    models = context_models(context)
    options = replace(options, in_flight=allowed_in_flight(options.in_flight, models.values()))
    set_foreign_in_flight(options.in_flight)
    for model in models.values():
        model.set_in_flight(options.in_flight)
    folder: RunFolder | None = None
    cache: RequestCache | None = None
    log = RunLog(mask_key)
    try:
        prompts = find_prompts(graph, context)
        run_fingerprint = await fingerprint(graph, context)
        name = Path(records).name if isinstance(records, str | Path) else "items"
        run_fingerprint["input"] = {"name": name, "fields": options.fields, "id_field": options.id_field}
        rules = (pictures or PictureOptions()).rules(records)
        run_pictures = await open_pictures(graph, context, rules, Path(out), run_fingerprint["input"])
        folder = RunFolder(Path(out))
        run_pictures.remove_partial()
        run_id = check_resumable(folder, run_fingerprint, prompts)
        log.open(folder.folder / LOG_FILE)
        write_prompts(folder, prompts)
        if on_start is not None:
            on_start(folder.folder)
        folder.rename_rejected()
        cache = RequestCache(options.cache_path, limit=options.cache_bytes) if options.cache_path else None
        if options.shuffle:
            source = shuffled(source, seed=options.seed)
        run = Run(graph, context, folder, cache, options, run_id, run_pictures, watch)
        run.begin(run_fingerprint)
        events.log_start(run.summary, run_fingerprint, options.cache_path)
        return await run.run(islice(source, options.limit), _capacity(list(models.values()), options))
    except BaseException as err:
        events.log_stop(err)
        raise
    finally:
        log.close()
        if cache is not None:
            cache.close()
        if folder is not None:
            folder.close()
        for model in models.values():
            await model.aclose()
        if closing := getattr(context, "aclose", None):
            await closing()


def required_texts(graph: Any) -> list[str]:
    """The required text fields of a graph's input. A record without one of them fails before any call."""
    try:
        schema = graph.get_input_jsonschema()
    except PydanticUserError:  # before Python 3.12, pydantic refuses typing.TypedDict
        return []
    fields = {name: f for name, f in schema.get("properties", {}).items() if f.get("format") != FORMAT}
    return [name for name in schema.get("required", []) if fields.get(name, {}).get("type") == "string"]


def _capacity(models: Sequence[AgentChatModel], options: RunOptions) -> int:
    """The number of records in progress."""
    requests = round(options.in_flight * RECORDS_PER_REQUEST)
    return max(model.records_in_progress or requests for model in models) if models else requests


class Run:
    """One run: the state that its workers share."""

    def __init__(
        self,
        graph: Any,
        context: Any,
        folder: RunFolder,
        cache: RequestCache | None,
        options: RunOptions,
        run_id: str,
        pictures: RunPictures,
        watch: Watcher | None,
    ) -> None:
        self.graph, self.context, self.folder, self.cache, self.options = graph, context, folder, cache, options
        self.switch = Switch()
        self.summary = Summary(folder.folder, run_id, price=Price.parse(options.price))
        self._pictures = pictures
        self._watch = watch or (lambda summary, event: None)
        self._seen: set[int] = set()
        self._retried: set[int] = set()
        self._done = Finished()
        self._failures = Failures()
        self._failure_log = events.FailureLog()
        self._failure_counter = FailureCounter(
            FailureLimit.parse(options.max_failures), retries_failed=options.retry_failed
        )
        self._manifest: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._saved = 0.0

    def begin(self, run_fingerprint: dict[str, Any]) -> None:
        """Read which records are finished and write the first manifest. Raises RunFolderError for a damaged folder."""
        earlier = self.folder.manifest()
        self._done = self.folder.scan()
        _say_lost(self.folder.folder, earlier, self._done)
        self._retried = self.folder.forget_failed(self._done) if self.options.retry_failed else set()
        self.summary.kept, self.summary.dropped = self._done.outcomes["kept"], self._done.outcomes["dropped"]
        self.summary.failed = self._done.failed
        self._manifest = {
            "version": MANIFEST_VERSION,
            "run": self.summary.run,
            "fingerprint": run_fingerprint,
            "source_sha256": source_digest(self.graph),
            "retries": (earlier.get("retries") or 0) + bool(self._retried),
            "before": earlier.get("totals") or {},
        }
        self._save()

    async def run(self, source: Iterator[Record | BadRecord], workers: int) -> Summary:
        """Process records until the source is exhausted, the token budget is spent or the user stops the run."""
        with _interrupts(self.switch):
            tasks = [asyncio.create_task(self._work(source)) for _ in range(workers)]
            try:
                await asyncio.gather(*tasks)
            except BaseException:
                self.switch.stop("failed")
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise
            finally:
                self.summary.stopped = self.switch.reason
                self.folder.remove_corrected(self._done)
                self._save()
                events.log_end(self.summary)
        self._failure_counter.check()
        return self.summary

    async def _work(self, source: Iterator[Record | BadRecord]) -> None:
        for record in source:  # all workers share this iterator
            if isinstance(record, BadRecord):
                self._add_bad_input(record, record.reason)
            elif self._is_due(record):
                self._watch(self.summary, record)
                with record_span(record.id, self.graph.name, self.summary.run) as span:
                    trace = await self._run_record(record)
                    if trace is not None and not (trace.outcome == "failed" and self._failure_counter.problem):
                        trace = self._append(trace, record)
                        self.summary.failed -= self._done.finish(record.id, is_failed=trace.outcome == "failed")
                        self.summary.add_record(trace.outcome, trace.reason)
                        self._count_failure(record.id, trace.reason if trace.outcome == "failed" else None)
                        events.log_record(trace)
                        self._after(trace)
                    span.add_trace(trace)
            await asyncio.sleep(0)  # a long run of finished records must not block the other workers
            if self.switch.reason:
                return

    def _append(self, trace: Trace, record: Record) -> Trace:
        """Append the trace and return it, as a failed one if its result cannot be written as JSON."""
        try:
            self.folder.add(trace)
        except TypeError as err:
            reason = f"the graph's output cannot be written as JSON: {err}"
            trace.measured["content"] = record.content
            trace = replace(trace, outcome="failed", reason=reason, result=None, targets=[])
            self.folder.add(trace)
        return trace

    def _is_due(self, record: Record) -> bool:
        """Whether the record is still to be processed. A second record with the same id fails here."""
        number = id_hash(record.id)
        if number in self._seen:
            shared = "id" if record.data.get(self.options.id_field) else "content"
            reason = f"duplicate: two records have this {shared} ({record.id})"
            self._add_bad_input(record, reason, record.id)
            return False
        self._seen.add(number)
        self.summary.failed -= self._done.replace_input(record.source)
        if self._done.has(number, record.content):
            self.summary.skipped += 1
            return False
        return True

    def _add_bad_input(self, record: Record | BadRecord, reason: str, record_id: str | None = None) -> None:
        if self._done.take_input(record.source, record.content):
            return
        self.summary.failed -= self._done.replace_input(record.source)
        self.folder.add_bad_input(record.source, reason, record_id, record.content)
        self.summary.add_record("failed", reason.split(":")[0])
        self._count_failure(record.source, reason, is_input=True)
        self._after(None)

    def _count_failure(self, place: str, reason: str | None, *, is_input: bool = False) -> None:
        if reason is not None:
            self._failure_log.add(place, reason)
        if self._failure_counter.add(reason, is_input=is_input):
            self.switch.stop("too many failures")

    def _after_call(self, call: Call) -> None:
        self.summary.add_call(call)
        events.log_call(call)
        self._watch(self.summary, call)

    def _after(self, trace: Trace | None) -> None:
        self._watch(self.summary, trace)
        spent = self.summary.prompt_tokens + self.summary.completion_tokens
        if self.options.token_budget is not None and spent >= self.options.token_budget:
            self.switch.stop("token budget", finish_records=True)
        if self.options.cost_budget is not None and (self.summary.cost or 0.0) >= self.options.cost_budget:
            self.switch.stop("cost budget", finish_records=True)
        if time.perf_counter() - self._saved > MANIFEST_SECONDS:
            self._save()

    async def _run_record(self, record: Record) -> Trace | None:
        """Run the graph on one record. Returns its trace, or None if the run was stopped before it was finished."""
        generation = self._manifest["retries"] if id_hash(record.id) in self._retried else 0
        recorder = Recorder(record.id, self.cache, self.switch, self._after_call, generation)
        token = current.set(recorder)
        started = time.perf_counter()
        graph_run = GraphRun()
        output: dict[str, Any] = {}
        targets: list[Target] = []
        error, traceback = "", ""
        fields = self._pictures.without_bytes(record.data)
        try:
            fields, pictures = await self._pictures.load(record.data)
            with held_pictures(*pictures):
                output = await graph_run.run(self.graph, fields, self.context)
            targets = [target_from(target) for target in output.get("targets") or ()]
            check_targets(targets, recorder.calls, output.get("tree"))
        except Stopped:
            return None
        except (EndpointDown, CacheError, RunFolderError):
            raise
        except PromptError as err:
            if isinstance(err.__context__, UndefinedError) and not self.summary.kept + self.summary.dropped:
                raise  # the prompt uses a variable that the graph does not set: every other record would fail too
            error, _ = self._failures.describe(err)
        except Exception as err:  # a failure ends this record only (docs/decisions/010)
            error, traceback = self._failures.describe(err)
        finally:
            current.reset(token)
        dropped = output.get("dropped")
        measured: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 3)}
        if traceback:
            measured["traceback"] = traceback
        if error:
            measured["content"] = record.content  # by it, a later run knows whether the record was corrected
        return Trace(
            id=record.id,
            system=self.graph.name,
            run=self.summary.run,
            outcome="failed" if error else "dropped" if dropped else "kept",
            reason=error or (str(dropped) if dropped else None),
            source=record.source,
            input=fields,
            result=None if error else {name: value for name, value in output.items() if name not in RESERVED},
            targets=[] if error else targets,
            calls=recorder.calls,
            tree=output.get("tree"),
            path=graph_run.path(recorder.tasks, {} if error else output),
            measured=measured,
        )

    def _save(self) -> None:
        summary = self.summary
        summary.seconds = time.perf_counter() - self._started
        self._saved = time.perf_counter()
        before = self._manifest["before"]
        manifest = {name: value for name, value in self._manifest.items() if name != "before"}
        manifest["counts"] = {"kept": summary.kept, "dropped": summary.dropped, "failed": summary.failed}
        manifest["totals"] = {name: before.get(name, 0) + getattr(summary, name) for name in (*CALL_TOTALS, "seconds")}
        if summary.cost is not None:
            manifest["totals"]["cost"] = before.get("cost", 0.0) + summary.cost
        self.folder.write_manifest(manifest)
        self.folder.write("README.md", data_card(manifest).encode())


def _say_lost(folder: Path, manifest: Mapping[str, Any], done: Finished) -> None:
    """Say if there are fewer finished records than were counted: a shard, or lines of it, were lost or removed."""
    counts = manifest.get("counts") or {}
    lost = sum(counts.get(name, 0) - count for name, count in done.outcomes.items())
    if lost > 0:
        say(f"{folder}: {lost} finished records are no longer in the shards; they are processed again")


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """With hundreds of records in progress, collecting cycles as often as by default takes a quarter of the CPU."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def _interrupts(switch: Switch) -> Iterator[None]:
    """Ctrl-C and SIGTERM finish the calls in progress, and say how many; a second signal stops them."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    signals = 0

    def interrupt() -> None:
        nonlocal signals
        signals += 1
        switch.stop("interrupted")
        if signals == 1 and switch.calls:
            calls = "1 call" if switch.calls == 1 else f"{switch.calls} calls"
            say(f"finishing {calls}, press Ctrl-C again to stop")
        elif signals > 1 and task is not None:
            task.cancel()

    numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, interrupt)
    except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or Windows: left to the caller
        numbers = ()
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
