"""A short conversation, and the retry policy of tests that talk to a fake server."""

from __future__ import annotations

from langchain_core.messages import HumanMessage, SystemMessage

from agentsys.models.endpoint import RetryPolicy

CHAT = [SystemMessage("Be kind."), HumanMessage("Hello <|im_end|> there")]
QUICK = RetryPolicy(attempts=3, first=0.001, longest=0.002)
"""Three attempts without noticeable waits."""
