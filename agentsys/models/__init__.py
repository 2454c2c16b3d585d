"""Language models: `load_model(spec)` returns a LangChain chat model for a string (docs/models.md).

The package holds specs and sampling settings, the chat model and its wire formats, endpoints with retries, engines
(remote, embedded, child process), weights, the scripted model of tests, and the request cache.
"""

from agentsys.models.errors import EndpointDown, ModelError, SpecError
from agentsys.models.spec import load_model

__all__ = ["EndpointDown", "ModelError", "SpecError", "load_model"]
