"""What runs on a user's device: the private parameters, a fresh embedding for every request, and the request itself.

The parameters of a user's embedding distribution stay in a file on the device. For each request the device draws an
embedding from it and sends the text and the draw, and nothing else (arXiv 2501.06062). This file needs Python 3.11
and numpy alone: copy it to the device, with the user's parameter file.

    python device.py PARAMETERS --text "I loved the ending" --server http://127.0.0.1:8020
    python device.py PARAMETERS --text "I loved the ending"          prints the request instead of sending it
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Design = Literal["beta", "gauss"]

VERSION: Final = 1
"""Version of the parameter file."""

TIMEOUT: Final = 60.0
"""Seconds to wait for the server."""

_BELOW_ONE: Final = np.nextafter(np.float32(1), np.float32(0))
_ABOVE_ZERO: Final = np.finfo(np.float32).tiny


class DeviceError(ValueError):
    """User-fixable error of a device: its parameter file, its text or its server."""


@dataclass(frozen=True)
class Parameters:
    """One user's distribution over embeddings; every entry is independent of the others.

    beta: entries are Beta(first, second); gauss: entries are normal with mean `first` and standard deviation `second`.
    """

    design: Design
    first: FloatArray
    """(n_tokens, width): alpha, or the mean."""
    second: FloatArray
    """(n_tokens, width): beta, or the standard deviation."""
    model: str
    """SHA-256 digest (hexadecimal) of the central model that they were fitted with."""

    def __post_init__(self) -> None:
        """Raises DeviceError for parameters that are no distribution."""
        if self.design not in get_args(Design):
            raise DeviceError(f"unknown design {self.design!r}: it is beta or gauss")
        if self.first.ndim != 2 or self.first.shape != self.second.shape or not self.first.size:
            raise DeviceError(
                f"the parameters have shapes {self.first.shape} and {self.second.shape}: both must be (tokens, width)"
            )
        if not (np.isfinite(self.first).all() and np.isfinite(self.second).all()):
            raise DeviceError("the parameters contain NaN or infinite values: fit this user's parameters again")
        if (self.second <= 0).any() or (self.design == "beta" and (self.first <= 0).any()):
            raise DeviceError(f"the parameters of the {self.design} design must be positive: fit them again")
        if not re.fullmatch("[0-9a-f]{64}", self.model):
            raise DeviceError("the parameters do not name their central model by a SHA-256 digest")

    @property
    def width(self) -> int:
        """Width of an embedding token: the model's hidden size."""
        return int(self.first.shape[1])


def save_parameters(path: str | Path, parameters: Parameters) -> None:
    """Write a parameter file (float32, .npz; 7 kB for one token of width 768), atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            version=np.array(VERSION),
            design=np.array(parameters.design),
            model=np.array(parameters.model),
            first=parameters.first.astype(np.float32),
            second=parameters.second.astype(np.float32),
        )
    temporary.replace(path)


def load_parameters(path: str | Path, model: str | None = None, width: int | None = None) -> Parameters:
    """Read a parameter file, and check that it belongs to a model (its digest) and a width where they are given.

    Raises DeviceError for a file that is missing, damaged, of another version, of another model or of another width.
    """
    fields = _read_fields(Path(path))
    version = fields.get("version")
    if version is None or version.size != 1 or version.item() != VERSION:
        raise DeviceError(f"{path}: not a parameter file of version {VERSION}; fit it again with this release")
    try:
        design, digest = str(fields["design"].item()), str(fields["model"].item())
        first, second = (np.asarray(fields[name], dtype=np.float32) for name in ("first", "second"))
        parameters = Parameters(cast(Design, design), first, second, digest)
    except DeviceError as err:
        raise DeviceError(f"{path}: {err}") from err
    except (KeyError, ValueError) as err:
        raise DeviceError(f"{path}: the parameter file is incomplete ({err}); fit it again") from err
    if model is not None and parameters.model != model:
        raise DeviceError(
            f"{path}: fitted with another central model ({parameters.model[:12]}, not {model[:12]}); fit it again"
        )
    if width is not None and parameters.width != width:
        raise DeviceError(
            f"{path}: its embeddings are {parameters.width} wide and the model's {width}; use the model's own file"
        )
    return parameters


def _read_fields(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise DeviceError(f"{path}: no such parameter file")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("an array alone")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise DeviceError(f"{path}: not a parameter file, or a damaged one") from err


class Device:
    """A user's device. Each request carries a new draw, so that no two requests carry the same embedding."""

    def __init__(self, parameters: Parameters, seed: int | None = None) -> None:
        """A `seed` repeats the same draws, for tests; without one they come from the system's entropy."""
        self.parameters = parameters
        self._random = np.random.default_rng(seed)

    def draw(self) -> FloatArray:
        """A fresh embedding, (n_tokens, width)."""
        first, second = self.parameters.first, self.parameters.second
        if self.parameters.design == "beta":
            values = self._random.beta(first, second).astype(np.float32)
            return np.clip(values, _ABOVE_ZERO, _BELOW_ONE)
        return self._random.normal(first, second).astype(np.float32)

    def request(self, text: str) -> dict[str, Any]:
        """The body of one request: the text and a fresh embedding. A generation is one request, so it keeps its draw.

        Raises DeviceError for an empty text.
        """
        if not text.strip():
            raise DeviceError("the text is empty")
        # The shortest decimal that reads back as the same float32: about half the bytes of a float64's.
        embedding = [[float(str(value)) for value in row] for row in self.draw()]
        return {"text": text, "embedding": embedding}


def send(server: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """POST a JSON body to the server (GET without one), on a connection of its own, and return the answer.

    Raises DeviceError where the server cannot be reached or refuses the request.
    """
    if not server.startswith(("http://", "https://")):
        raise DeviceError(f"--server {server}: the address must begin with http:// or https://")
    # A common name instead of the default User-Agent, which tells the Python version of the device.
    headers = {"Content-Type": "application/json", "User-Agent": "idfree"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.rstrip("/") + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as err:
        raise DeviceError(f"{server} refused the request ({err.code}): {_reason(err)}") from err
    except (OSError, ValueError) as err:
        raise DeviceError(f"{server} did not answer ({getattr(err, 'reason', err)}): is the server running?") from err
    if not isinstance(answer, dict):
        raise DeviceError(f"{server} answered with something else than an object: is it an idfree server?")
    return answer


def _reason(err: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(err)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(err.reason)


def path_of(model: Mapping[str, Any]) -> str:
    """Where a server takes requests, by its description of the model."""
    return "/v1/completions" if model.get("task") == "generate" else "/v1/classify"


def ask(server: str, path: str | Path, text: str) -> dict[str, Any]:
    """Ask the server with a parameter file, after a check that the file belongs to the server's model.

    Raises DeviceError.
    """
    model = send(server, "/v1/model")
    try:
        digest, width = str(model["model"]), int(model["width"])
    except (KeyError, TypeError, ValueError) as err:
        raise DeviceError(f"{server} does not describe its model at /v1/model: is it an idfree server?") from err
    return send(server, path_of(model), Device(load_parameters(path, digest, width)).request(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Send a text and a fresh embedding of this user to the server.")
    parser.add_argument("parameters", help="this user's parameter file")
    parser.add_argument("--text", required=True, help="the text; - reads it from standard input")
    parser.add_argument("--server", help="address of the server; without it, the request is printed")
    options = parser.parse_args(arguments)
    text = sys.stdin.read() if options.text == "-" else options.text
    try:
        if options.server:
            answer = ask(options.server, options.parameters, text)
        else:
            answer = Device(load_parameters(options.parameters)).request(text)
    except DeviceError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    print(json.dumps(answer, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
