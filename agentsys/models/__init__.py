"""Models: `load_model(spec)` makes a LangChain chat model from a string. docs/models.md describes the specs."""

from agentsys.models.errors import EndpointDown, ModelError, SpecError
from agentsys.models.spec import load_model

__all__ = ["EndpointDown", "ModelError", "SpecError", "load_model"]
