"""Serve a personalized model of IDfree-PL to devices, which send a text and a fresh embedding.

    python trainers/idfree_serve.py run/cloud --central run/central
    python trainers/idfree/device.py run/devices/user-000000.npz --text "I loved it" --server http://127.0.0.1:8020

Listens at this machine alone, logs no request, and refuses what identifies a user. There is no encryption: other
machines should reach it through a proxy with TLS that adds no header about the sender.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from agentsys.commands import command, run_app
from agentsys.display import note, show
from agentsys.installation import install_command
from agentsys.trainers.idfree.queries import ServeOptions
from agentsys.trainers.loading import TrainerError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(
    model: Annotated[Path, typer.Argument(help="folder `cloud` of a run of `agentsys train idfree-pl`")],
    options: ServeOptions,
) -> None:
    """Serve a personalized model to devices."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise TrainerError(f"fastapi and uvicorn are not installed; {install_command('idfree')}")
    from agentsys.trainers.idfree.backbone import load_model
    from agentsys.trainers.idfree.server import make_app, make_server, open_socket

    listener = open_socket(options.host, options.port)
    central = load_model(options.central) if options.central else None
    server = make_server(make_app(load_model(model), options, central), options)
    if options.host not in LOOPBACK:
        note(f"--host {options.host}: other machines can reach this server, without encryption")
    host = f"[{options.host}]" if ":" in options.host else options.host
    show(f"serving {model} at http://{host}:{listener.getsockname()[1]}")
    server.run(sockets=[listener])


app = command(main, name="train idfree-serve")

if __name__ == "__main__":
    sys.exit(run_app(app))
