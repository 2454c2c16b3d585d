"""The systems of LongDPO's evaluation: models that write responses, and existing responses that are only judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentsys.evaluation.run import OTHER_INTEGRATION, SystemRun
from agentsys.graphs.longdpo.longbench_write import EMPTY, LongBenchWriteContext, graph
from agentsys.graphs.longdpo.requests import Request, Response, response_of
from agentsys.traces import Trace


@dataclass(frozen=True, slots=True)
class Writer:
    """One system: its run, and its `existing` responses, one per request, if it does not write them in the run.

    `origin` is the file or folder of the existing responses.
    """

    run: SystemRun
    existing: list[Response] | None = None
    origin: str = ""

    @classmethod
    def of_model(cls, name: str, context: LongBenchWriteContext, requests: Sequence[Request], folder: Path) -> Writer:
        """A system whose run writes a response to each request, and judges it if the context says so."""
        records = [{"id": row.id, "prompt": row.prompt} for row in requests]
        return cls(SystemRun(name, graph, context, records, folder))

    @classmethod
    def of_responses(
        cls,
        name: str,
        judge: LongBenchWriteContext | None,
        requests: Sequence[Request],
        folder: Path,
        responses: list[Response],
        origin: str,
    ) -> Writer:
        """A system whose responses exist; its run judges those that are not empty. Without a judge it is empty."""
        records = [
            {"id": row.id, "prompt": row.prompt, "existing_response": response.text}
            for row, response in zip(requests, responses, strict=True)
            if judge and response.text and response.text.strip()
        ]
        return cls(SystemRun(name, graph, judge, records, folder), responses, origin)

    def responses(self, requests: Sequence[Request], traces: Iterable[Trace]) -> list[Response]:
        """The response to each request, with its grades, from the traces of the run."""
        by_id = {trace.id: response_of(trace) for trace in traces}
        if self.existing is None:
            return [by_id[row.id] for row in requests]
        return [
            self._with_grades(response, by_id.get(row.id))
            for row, response in zip(requests, self.existing, strict=True)
        ]

    def _with_grades(self, response: Response, judged: Response | None) -> Response:
        if self.run.context is None or response.text is None:
            return response
        if judged is None or not response.text.strip():
            return replace(response, unjudged=EMPTY)
        return replace(response, grades=judged.grades, unjudged=judged.error or judged.unjudged)

    def conditions(self) -> dict[str, Any]:
        """The run, who wrote with which sampling, and who judged; None where it does not apply."""
        conditions: dict[str, Any] = {"run": None, "writer": self.origin, "sampling": None, "judge": None}
        if self.run.context is None or not (manifest := self.run.manifest()):
            return conditions
        fingerprint = manifest["fingerprint"]
        if self.existing is None:
            writer = fingerprint["models"].get("writer_model", {"name": OTHER_INTEGRATION, "sampling": {}})
            limit = {"max_tokens": self.run.context.max_tokens}
            conditions["writer"] = writer["name"]
            conditions["sampling"] = {**fingerprint["roles"]["writer"]["sampling"], **limit, **writer["sampling"]}
        judge = self.run.model_name("quality_model") if self.run.context.judge else None
        return {**conditions, "run": manifest["run"], "judge": judge}
