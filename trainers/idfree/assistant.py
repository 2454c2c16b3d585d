"""An example graph for Studio: a text, answered by a server of IDfree-PL without and with a demo device's embedding.

    text -> general (no embedding) -> personal (a fresh draw of the device) -> compare (a sentence)

The server's address and the device's parameter file come from the environment of the process, not from the browser: a
web page must not choose where texts and embeddings are sent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NotRequired

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.roles import Role
from agentsys.systems import BaseContext, System, ask, role_options, sequence_graph
from agentsys.trainers.loading import TrainerError

SERVER: Final = "AGENTSYS_IDFREE_SERVER"
"""Environment variable: the address of `agentsys train idfree-serve`."""
DEVICE: Final = "AGENTSYS_IDFREE_DEVICE"
"""Environment variable: the parameter file of the demo device."""


class Input(TypedDict):
    """Graph input."""

    text: str


class State(Input):
    """Graph output: both answers, the class or the next words, and a sentence about them."""

    general: NotRequired[str]
    personal: NotRequired[str]
    comparison: NotRequired[str]


def check_comparison(reply: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a sentence is refused, or None: it states both answers."""
    missing = [inputs[name] for name in ("general", "personal") if inputs[name] not in reply]
    return f"it does not state {' and '.join(missing)}: copy the answers" if missing else None


@dataclass(frozen=True)
class IDfreeAssistant(System):
    """The role and the nodes."""

    comparer: Role[str] = Role(
        "idfree/comparer", check=check_comparison, sampling={"temperature": 0.0, "max_tokens": 160}
    )

    async def general(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The server's answer to the text alone."""
        return {"general": await asyncio.to_thread(_ask_without, state["text"]), "personal": "", "comparison": ""}

    async def personal(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The server's answer to the text with a fresh embedding of the device."""
        return {"personal": await asyncio.to_thread(_ask_with, state["text"])}

    async def compare(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """A sentence with both answers."""
        answers = {"general": state["general"], "personal": state["personal"]}
        answer = await ask(runtime.context, self.comparer, key="compare", text=state["text"], **answers)
        return {"comparison": answer.value.strip()}

    def builder(self) -> StateGraph[State, Context, Input, State]:
        """general -> personal -> compare."""
        nodes = (self.general, self.personal, self.compare)
        return sequence_graph(*nodes, state=State, context=Context, input=Input, output=State)


@dataclass(frozen=True)
@role_options(IDfreeAssistant)
class Context(BaseContext):
    """Models and prompts."""


def _setting(variable: str, what: str) -> str:
    if not (value := os.environ.get(variable, "")):
        raise TrainerError(f"start the server with {variable}: {what}")
    return value


def _server() -> str:
    return _setting(SERVER, "the address of `agentsys train idfree-serve`")


# In threads: files and requests would block the server's event loop.


def _ask_without(text: str) -> str:
    from agentsys.trainers.idfree.device import path_of, send

    server = _server()
    return _to_text(send(server, path_of(send(server, "/v1/model")), {"text": text}))


def _ask_with(text: str) -> str:
    from agentsys.trainers.idfree.device import ask as ask_with

    return _to_text(ask_with(_server(), _setting(DEVICE, "a parameter file, run/devices/user-000000.npz"), text))


def _to_text(answer: Mapping[str, Any]) -> str:
    """The class, or the next words."""
    return str(answer.get("label", answer.get("text", ""))).strip()


builder = IDfreeAssistant().builder()
graph = builder.compile(name="idfree")
