"""The data-set card of a run, written from its manifest: every row says where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def data_card(manifest: Mapping[str, Any]) -> str:
    """Markdown with the metadata block that model hubs read."""
    about, counts, totals = manifest["fingerprint"], manifest["counts"], manifest["totals"]
    models = [
        f"| {name} | {m['name']} | {m['revision'] or 'not told'} | {_settings(m['sampling'])} |"
        for name, m in about["models"].items()
    ]
    roles = [
        f"| {name} | {role['prompt'][:16]} | {(role['schema'] or 'text')[:16]} | {_settings(role['sampling'])} |"
        for name, role in about["roles"].items()
    ]
    knobs = [f"- {name}: {value}" for name, value in about["knobs"].items() if not name.endswith("_prompt") or value]
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: traces",
            '  data_files: "traces-*.jsonl"',
            "tags: [agentsys, synthetic]",
            "---",
            f"# Traces of {about['system']}",
            "",
            f"Synthetic data, written by models. Run `{manifest['run']}`: {counts['kept']} records kept, "
            f"{counts['dropped']} dropped by the method, {counts['failed']} failed. {totals['calls']} calls, "
            f"{totals['prompt_tokens']} prompt and {totals['completion_tokens']} completion tokens.",
            "",
            "License and terms of the inputs and of the models' outputs are those of their owners; state them here.",
            "",
            "| model | name | revision | sampling over the role's own |",
            "|---|---|---|---|",
            *models,
            "",
            "| role | prompt (SHA-256) | output | sampling |",
            "|---|---|---|---|",
            *roles,
            "",
            "Settings:",
            "",
            *knobs,
            "",
        ]
    )


def _settings(sampling: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sampling.items()) or "-"
