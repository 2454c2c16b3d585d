"""What the model servers of the Studio tests reply: a fitting text for each role, known by its schema or its prompt."""

from __future__ import annotations

import json
import re
from typing import Any

from agentsys.graphs.deeprag.narrative import ANSWER, FINAL, FOLLOW_UP, SEARCH
from agentsys.graphs.longdpo.judge import PRINCIPLES
from tests.support.punchbench import GIVEN, STATEMENTS
from tests.support.servers import Answer, Behavior, Seen, decode

TEXT = "Her laugh was a bell in an empty church."
DRAFTS = ["她的笑声是空教堂里的钟。", "她的笑声像空教堂里的一声钟鸣。", "她一笑，空荡的教堂里仿佛响起了钟声。"]
EDITED = "她笑，如空教堂里的钟。"
REPAIRED = "她的笑声是空教堂里的钟声。"
SCORES = {DRAFTS[0]: 60, DRAFTS[1]: 75, DRAFTS[2]: 92}
ADVICE = 'The word "钟" is silent; "余音" lets the bell be heard.'
QUESTION = "In which town was the inventor Ada Brandt born?"
SUB_QUERIES = ["Who is Ada Brandt?", "Where was Ada Brandt born?"]
PASSAGES = [
    {"id": "p1", "title": "Ada Brandt", "text": "Ada Brandt was born in Torby."},
    {"id": "p2", "title": "Kettles", "text": "Water boils."},
    {"id": "p3", "title": "Bells", "text": "A church bell rings."},
]
MEMORY, FOUND = "an inventor of lamps", "the town of Torby"
SOUND, METAL = ("the sound of a bell", "钟声"), ("a hollow thing of metal", "钟")
"""Senses of "bell": what the term list knows, what the LLM source knows."""
BELL = "A bell is a hollow thing of metal that rings when it is struck."
"""What the model knows about the sentence (RAGtrans' SKET)."""
PROBLEM = "What is 3 times 4, plus 5?"
SOLVED = ("Step 1: 3 * 4 = 12.\n\n", ": 12 + 5 = 17, so \\boxed{17}")
"""Two steps; what ended the first, "Step 2", is in neither."""


def text_of(content: Any) -> str:
    """The text of a message's content, without its pictures."""
    return content if isinstance(content, str) else "\n".join(block.get("text", "") for block in content)


def asked(seen: Seen) -> list[dict[str, str]]:
    """The messages of a request, whatever its dialect; in token mode they are read back from the ids."""
    if "messages" in seen.body:
        return [{**message, "content": text_of(message["content"])} for message in seen.body["messages"]]
    turns = decode(seen.body["prompt"]).split("<|im_start|>")[1:-1]
    return [
        dict(zip(("role", "content"), turn.removesuffix("<|im_end|>\n").split("\n", 1), strict=True)) for turn in turns
    ]


def prompt_of(seen: Seen) -> str:
    """All that a request says, an answer that it begins included."""
    if "messages" in seen.body:
        return "\n".join(text_of(message["content"]) for message in seen.body["messages"])
    return decode(seen.body["prompt"])


def schema_of(seen: Seen) -> dict[str, Any]:
    """The schema of a request, whatever its dialect."""
    form = seen.body.get("response_format", {}).get("json_schema", {}).get("schema")
    return form or seen.body.get("structured_outputs", {}).get("json") or seen.body.get("json_schema") or {}


def structured(seen: Seen, last: str) -> Behavior | None:
    """A reply that follows the request's schema; None for one that asks for text."""
    match sorted(schema_of(seen).get("properties", ())):
        case ["day", "sensor", "time"]:
            return as_json(sensor="b", day="Monday 2024-02-26", time="08:00")
        case ["keywords"]:
            return as_json(keywords=[{"word": "bell", "translation": "钟声"}])
        case ["reason", "score"]:
            return as_json(reason="The image.", score=next((s for t, s in SCORES.items() if t in last), 50))
        case ["score"]:
            return as_json(score=80)
        case ["long", "short"]:
            return as_json(long="She was born there.", short="Torby" if FOUND in last else "Lund")
        case ["figurative", "literal", "reason", "suitable"]:
            return as_json(figurative=True, literal="空教堂里的钟 (Glocke)", suitable=False, reason="A bell is loud.")
        case ["accuracy", "insight", *_]:
            return as_json(**dict.fromkeys(PRINCIPLES, 4))
        case ["accuracy", "analysis", *grades]:
            return as_json(analysis="It is short.", accuracy=4, **dict.fromkeys(grades, 4))
        case ["found", "relevance", "translation"]:
            return as_json(relevance=4, found="bell = 钟", translation=DRAFTS[1])
    return crat_structured(schema_of(seen), last) or punchbench_structured(schema_of(seen), last)


def punchbench_structured(schema: dict[str, Any], last: str) -> Behavior | None:
    """PunchBench's replies that follow a schema: antonymous captions and distractors have no punchline."""
    match sorted(schema.get("properties", ())):
        case ["contradict", "first", "second"]:
            return as_json(contradict=False, first="", second="")
        case ["correct", "wrong"]:
            return as_json(**STATEMENTS)
        case ["answer"]:
            pass
        case _:
            return None
    if "Yes" not in schema["properties"]["answer"]["enum"]:
        return as_json(answer="A")
    is_no = "against ethics" in last or GIVEN["antonymous"] in last or GIVEN["distractor"] in last
    return as_json(answer="No" if is_no else "Yes")


def punchbench_reply(role: str, last: str) -> str:
    """What PunchBench's roles write that follow no schema, by their system prompts; empty for the others."""
    replies = {
        "means the same in other words": "synonymous", "means the opposite": "antonymous",
        "Write a caption for the picture": "distractor", "Explain in one sentence why": "reasoning",
        "sounds like an explanation": "distractor_reasoning",
    }  # fmt: skip
    name = next((name for words, name in replies.items() if words in role), "")
    return GIVEN["distractor"] if last.startswith("MARKED 10") else GIVEN.get(name, "")


def crat_structured(schema: dict[str, Any], last: str) -> Behavior | None:
    """What CRAT's roles reply that follow a schema: the better sense of the bell is its sound."""
    match sorted(schema.get("properties", ())):
        case ["terms"]:
            return as_json(terms=[{"term": "bell", "kind": "polysemy"}])
        case ["relations"]:
            return as_json(relations=[{"term": "bell", "relation": "is in", "object": "church"}])
        case ["senses"]:
            return as_json(senses=[dict(zip(("meaning", "translation"), METAL, strict=True))])
        case ["entry", "here", "relevant"]:
            return as_json(here="an image", entry="an image", relevant=True)
        case ["first", "last", "same"]:
            return as_json(first="a bell", last="a bell", same=True)
        case ["better", "changes", "reason"]:
            better = "entry" if f"Entry: {SOUND[1]}" in last else "rival"
            return as_json(reason="One hears it.", changes=True, better=better)
    return None


def reply_to(seen: Seen) -> Behavior:
    """A proper reply for the role that asks: known by its schema, or by its last message."""
    messages = asked(seen)
    last = messages[-1]["content"]
    if reply := structured(seen, last):
        return reply
    if reply := maths_reply(seen, messages):
        return reply
    if "You are shown a sentence" in messages[0]["content"] or last.startswith("MARKED English"):
        return Answer(BELL)
    if text := punchbench_reply(messages[0]["content"], last):
        return Answer(text)
    if text := deeprag_reply(seen, messages) or crat_reply(messages[0]["content"]):
        return Answer(text)
    if text := trainers_reply(last):
        return Answer(text)
    if "philosopher" in messages[0]["content"]:
        return Answer(f"<thought>\nHmm.\n</thought>\n<output>\n{DRAFTS[2]}\n</output>")
    if decision := re.search(r"Final translation: (⟦\d⟧)", last):
        others = sorted({*re.findall(r"⟦\d⟧", last)} - {decision[1]})
        paragraphs = ["I start.", *(f"I try {mark}." for mark in others), "It is better.", "It is good."]
        return Answer("\n\n".join([*paragraphs, f"I keep {decision[1]}"]))
    if any(translation in last for translation in (*DRAFTS, EDITED)):
        return Answer(ADVICE)
    return Answer(DRAFTS[min(2, sum(message["content"] in (*DRAFTS, EDITED) for message in messages))])


def trainers_reply(last: str) -> str:
    """What the roles of the graphs in trainers/ write: a forecast in a sentence, two answers compared; else empty."""
    if numbers := re.search(r"(?:Forecast: |MARKED )(\S+)(?:\nRange: |,)(\S+)(?: to |,)(\S+)$", last):
        return "Expect {} ({} to {}).".format(*numbers.groups())
    if answers := re.search(r"(?:General answer: |MARKED )(\w+)(?:\nPersonal answer: | or )(\w+)$", last):
        return "Without {}, with {}.".format(*answers.groups())
    return ""


def crat_reply(role: str) -> str:
    """What CRAT's roles write that follow no schema, by their system prompts; empty for the others."""
    if "You gloss sentences" in role:
        return "bell = 钟\nchurch = 教堂"
    if "close to the words" in role:
        return "Her laugh was a ringing in a church."
    return REPAIRED if "how to render one term" in role or "You correct translations" in role else ""


def maths_reply(seen: Seen, messages: list[dict[str, str]]) -> Behavior | None:
    """The policy's next step, or where no stop string ends one all the rest; the judge's word."""
    first, last = messages[0]["content"], messages[-1]["content"]
    if "You check solutions" in first or last.startswith("MARKED Step"):
        return Answer("Yes")
    if "You solve mathematical problems" not in first:
        return None
    answer_so_far = prompt_of(seen).rpartition("<|im_start|>assistant\n")[2]
    if answer_so_far:
        return Answer(SOLVED[1])
    if seen.body.get("stop"):
        return Answer(SOLVED[0], finish="stop_sequence")  # no end of the turn, and not cut off
    return Answer("Step 2".join(SOLVED))


def deeprag_reply(seen: Seen, messages: list[dict[str, str]]) -> str:
    """The next line of a narrative, or what a role of stage I says; empty for another system."""
    first, last = messages[0]["content"], messages[-1]["content"]
    if "Think step by step" in first or last.startswith("MARKED briefly"):
        return "She comes from there.\n<answer long>She was born there.</answer long><answer short>Torby</answer short>"
    if "break questions into steps" in first:
        return f"{FINAL} Torby" if ANSWER in last else f"{FOLLOW_UP} {SUB_QUERIES[1]}"
    if "questions from memory" in first:
        return MEMORY
    if "from the passages given" in first or last == f"MARKED {SUB_QUERIES[1]}":
        return FOUND
    if QUESTION not in last:
        return ""
    answer_so_far = prompt_of(seen).rpartition("<|im_start|>assistant\n")[2]
    _, mark, step = answer_so_far.rpartition(FOLLOW_UP)
    if answer_so_far.endswith(FINAL):
        return " <answer long>She was born there.</answer long><answer short>Torby</answer short>"
    if answer_so_far.endswith(ANSWER):
        return f" {FOUND if SEARCH in step else MEMORY}"
    if mark and ANSWER not in step:
        return SEARCH if "Where" in step else f"{ANSWER} {MEMORY}"
    return [*(f"{FOLLOW_UP} {query}" for query in SUB_QUERIES), f"{FINAL} "][answer_so_far.count(FOLLOW_UP)]


def as_json(**fields: Any) -> Answer:
    return Answer(json.dumps(fields, ensure_ascii=False))
