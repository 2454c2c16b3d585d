"""What is particular to each graph in the Studio tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agentsys.graphs.crat.candidates import blank_candidate
from agentsys.graphs.longdpo.longbench_write import DIMENSIONS
from agentsys.terms.item import Item
from tests.support.punchbench import CAPTION, GIVEN
from tests.support.studio_replies import (
    ADVICE,
    BELL,
    DRAFTS,
    EDITED,
    FOUND,
    MEMORY,
    METAL,
    PASSAGES,
    PROBLEM,
    QUESTION,
    REPAIRED,
    SOLVED,
    SUB_QUERIES,
    TEXT,
)

if TYPE_CHECKING:
    from tests.support.studio_server import Studio


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
    steps: int = 0
    """Steps of a graph whose nodes run side by side; 0: as many as nodes that write tokens."""
    needle: str = EDITED
    """What the edit says; the next request has it."""
    input: Mapping[str, Any] = field(default_factory=lambda: {"text": TEXT})
    server: Literal["chat", "vllm"] = "chat"
    """Which server runs it: a narrative is gone on with only where the tokenizer is known."""
    knowledge: Literal["", "index", "sources", "forecaster"] = ""
    """The context field that names what is looked up."""
    other_form: frozenset[str] = frozenset()
    """Input fields of records in another form, which Studio's form leaves out; then it requires none."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Context fields that every run sets."""
    required: tuple[str, ...] = ()
    """The required fields of the form, where it is not the first one alone."""

    def context(self, studio: Studio, server: str = "") -> dict[str, Any]:
        """The model server, and what is looked up."""
        model = {"model": getattr(studio, server or self.server).url, **self.options}
        return model | ({self.knowledge: studio.knowledge[self.knowledge]} if self.knowledge else {})


def step(
    translation: str, score: float, key: str, feedback: str = ADVICE, reason: str = "The image."
) -> dict[str, Any]:
    scores = {"score": score, "stated": score}
    return {"translation": translation, "feedback": feedback, **scores, "reason": reason, "key": key}


def looked_up(sub_query: str, answer: str, decided: bool = True) -> dict[str, Any]:
    """A retrieved step; its opening was the model's choice, or forced."""
    decision = {"retrieve": True, "log_p_retrieve": -0.25, "log_p_parametric": None, "stated": True}
    fields = {"sub_query": sub_query, "answer": answer, "decision": decision if decided else None}
    return fields | {"retrieved": True, "passages": PASSAGES[:1]}


def rendered(translation: str, key: str = "translate/0", **found: Any) -> dict[str, Any]:
    """CRAT's one sentence."""
    nothing: dict[str, Any] = {"checked": [], "missing": [], "left": [], "repaired": False}
    return {"translation": translation, "status": "entries", "key": key, "asked": "translate/0", **nothing, **found}


def decided(meaning: str, target: str) -> dict[str, Any]:
    """CRAT's decision on the bell as a person would make it."""
    item = asdict(Item("bell", target, meaning, "", "a person"))
    candidate = {**blank_candidate(item, ["a person"]), "accepted": True}
    term = {"surface": "bell", "kind": "polysemy", "node": "", "sentence": 0, "number": 0}
    return {**term, "candidates": [candidate], "retrievals": 1, "reused": False, "faults": []}


REMEMBERED = {
    "sub_query": SUB_QUERIES[0], "retrieved": False, "passages": [], "answer": MEMORY,
    "decision": {"retrieve": False, "log_p_retrieve": None, "log_p_parametric": -0.25, "stated": True},
}  # fmt: skip
JUDGED = {"figurative": True, "literal": "空教堂里的钟 (Glocke)", "suitable": False, "reason": "A bell is loud."}
STEPS = [step(DRAFTS[0], 60, "draft"), step(DRAFTS[1], 75, "refine/1"), step(DRAFTS[2], 92, "refine/2")]
YES_NO = {
    "task": "perception", "format": "yes_no", "caption": CAPTION, "sentence": "", "options": [], "answer": "Yes",
}  # fmt: skip
PREDICTIONS = [
    {"strategy": name, "question": "perception/yes_no", "answer": "Yes", "right": True,
     "conversation": "plain/perception_yes_no"}
    for name in ("zero_shot", "sc_coq")
]  # fmt: skip
CASES = {
    "punchbench": Case(
        conditional={
            *(("filter", "label"), ("filter", "__end__"), ("label", "__end__")),
            *(("label", node) for node in ("split", "distract", "explain")),
        },
        tokens_from={"filter", "split", "rewrite", "distract", "explain", "misexplain", "write_options"},
        result={
            "has_punchline": True,
            "synonymous_caption": GIVEN["synonymous"],
            "antonymous_caption": GIVEN["antonymous"],
            "distractor_caption": GIVEN["distractor"],
            "reasoning_sentence": GIVEN["reasoning"],
            "distractor_sentence": GIVEN["distractor_reasoning"],
        },
        changed={
            "captioner_model": "vllm?max_tokens=77",
            "captioner_prompt": "# user\nMARKED {{ words }}",
            "filter": False,
        },
        changed_result={"distractor_caption": GIVEN["distractor"], "has_punchline": True},
        asked_of_vllm="MARKED 10",
        edit_before="filter",
        edit={"caption": "A lovely calm night of music at our house"},
        needle="A lovely calm night of music at our house",
        edit_as="__start__",
        steps=6,
        after_edit={"caption": "A lovely calm night of music at our house", "has_punchline": True},
        input={"image": "example:rain", "caption": CAPTION, "label": 1},
        required=("image", "caption"),
    ),
    "punchbench_sc_coq": Case(
        conditional={("answer", "answer"), ("answer", "score")},
        tokens_from={"answer"},
        result={"predictions": PREDICTIONS},
        changed={
            "answerer_model": "vllm?max_tokens=77",
            "answerer_prompt": "# user\nMARKED {{ question }}",
            "questions_prompt": "# user\n{{ caption }}",
        },
        changed_result={"predictions": PREDICTIONS},
        asked_of_vllm=f"MARKED {CAPTION}",
        edit_before="answer",
        edit={"questions": {"perception/yes_no": {**YES_NO, "caption": "Another caption of the picture"}}},
        needle="Another caption of the picture",
        edit_as="plan",
        after_edit={"predictions": PREDICTIONS},
        input={"image": "example:rain", "questions": {"perception/yes_no": YES_NO}},
        required=("questions",),
    ),
    "drt": Case(
        conditional={
            *(("translate", "advise"), ("translate", "evaluate"), ("translate", "__end__")),
            *(("evaluate", "refine"), ("evaluate", "select")),
            *(("refine", "advise"), ("refine", "evaluate"), ("refine", "select")),
            *(("select", "compare"), ("select", "narrate"), ("select", "__end__")),
        },
        tokens_from={"pick_keywords", "translate", "advise", "evaluate", "refine", "narrate"},
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
    "drt_refinement": Case(
        conditional={
            *(("translate", "advise"), ("translate", "evaluate"), ("translate", "__end__")),
            *(("evaluate", "refine"), ("evaluate", "select")),
            *(("refine", "advise"), ("refine", "evaluate"), ("refine", "select")),
        },
        tokens_from={"pick_keywords", "translate", "advise", "evaluate", "refine"},
        result={"steps": STEPS, "trans": DRAFTS[2], "last": DRAFTS[2], "stop": "threshold"},
        changed={
            "advisor_model": "vllm?max_tokens=77",
            "advisor_prompt": "# user\nMARKED {{ target_language }}: {{ translation }}",
            "target_language": "German",
            "threshold": 40,
        },
        changed_result={"steps": STEPS[:1], "trans": DRAFTS[0], "last": DRAFTS[0], "stop": "threshold"},
        asked_of_vllm=f"MARKED German: {DRAFTS[0]}",
        edit_before="advise",
        edit={"steps": [step(EDITED, 0, "draft", "", "")]},
        edit_as=None,
        after_edit={"steps": [step(EDITED, 50, "draft"), *STEPS[1:]], "last": DRAFTS[2]},
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
        knowledge="index",
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
        edit={"question": "Which town is that?", "answer": "Torby"},
        needle="Which town is that?",
        edit_as="__start__",
        after_edit={"question": "Which town is that?", "answer": "Torby"},
        input={"question": QUESTION, "answer": "Torby"},
        knowledge="index",
    ),
    "deeprag_baselines": Case(
        conditional=set(),
        tokens_from={"answer"},
        result={"answer": "Torby", "retrievals": 0, "well_formed": True},
        changed={
            "model": "vllm?max_tokens=77",
            "cot_prompt": "# user\nMARKED briefly {{ question }} {{ passages[0].title }}",
            "strategy": "cot_retrieve",
            "k": 1,
        },
        changed_result={"answer": "Torby", "retrievals": 1},
        asked_of_vllm=f"MARKED briefly {QUESTION} Ada Brandt",
        edit_before="answer",
        edit={"passages": [{"id": "p9", "title": "Torby", "text": "Torby lies on the sea."}]},
        needle="Torby lies on the sea.",
        edit_as="retrieve",
        after_edit={"answer": "Torby"},
        input={"question": QUESTION},
        knowledge="index",
    ),
    "longdpo": Case(
        conditional={
            *((node, "finish") for node in ("expand", "evaluate", "choose", "critique", "commit")),
            *(("expand", "evaluate"), ("evaluate", "choose"), ("choose", "critique"), ("commit", "expand")),
        },
        tokens_from={"expand", "evaluate"},
        result={"response": DRAFTS[0], "stop": "end", "dropped": "no pair (end)"},
        changed={"grader_model": "vllm?max_tokens=77", "grader_prompt": "# user\nMARKED {{ text }}", "width": 2},
        changed_result={"response": DRAFTS[0], "stop": "end"},
        asked_of_vllm=f"MARKED {DRAFTS[0]}",
        edit_before="evaluate",
        edit={"candidates": [{"key": "0/0", "text": EDITED, "ids": [], "final": True, "value": 0.0, "scores": []}]},
        needle=EDITED,
        edit_as="expand",
        after_edit={"response": EDITED},
        input={"prompt": "Write a letter about a lighthouse.", "length": 100},
    ),
    "longdpo_search": Case(
        conditional=set(),
        tokens_from={"search"},
        result={"response": DRAFTS[0], "stop": "end", "dropped": "no pair (end)"},
        changed={"grader_model": "vllm?max_tokens=77", "grader_prompt": "# user\nMARKED {{ text }}", "width": 2},
        changed_result={"response": DRAFTS[0], "stop": "end"},
        asked_of_vllm=f"MARKED {DRAFTS[0]}",
        edit_before="search",
        edit={"prompt": "Write a letter about a lamp.", "length": 100},
        needle="Write a letter about a lamp.",
        edit_as="__start__",
        after_edit={"prompt": "Write a letter about a lamp.", "response": DRAFTS[0]},
        input={"prompt": "Write a letter about a lighthouse.", "length": 100},
    ),
    "longbench_write": Case(
        conditional=set(),
        tokens_from={"write", "judge"},
        result={"response": DRAFTS[0], "truncated": False, "grades": dict.fromkeys(DIMENSIONS, 4), "unjudged": None},
        changed={
            "quality_model": "vllm?max_tokens=77",
            "quality_prompt": "# user\nMARKED {{ response }}",
            "writer_model": "llamacpp",
        },
        changed_result={"response": DRAFTS[0], "grades": dict.fromkeys(DIMENSIONS, 4)},
        asked_of_vllm=f"MARKED {DRAFTS[0]}",
        edit_before="judge",
        edit={"response": EDITED},
        edit_as="write",
        after_edit={"response": EDITED, "grades": dict.fromkeys(DIMENSIONS, 4)},
        input={"prompt": "Write a letter about a lighthouse."},
    ),
    "traffic": Case(
        conditional=set(),
        tokens_from={"read", "answer"},
        result={"answer": "Expect 36.0 (0 to 123.6)."},
        changed={
            "writer_model": "vllm?max_tokens=77",
            "writer_prompt": "# user\nMARKED {{ value }},{{ low }},{{ high }}",
        },
        changed_result={"answer": "Expect 36.0 (0 to 123.6)."},
        asked_of_vllm="MARKED 36.0,0,123.6",
        edit_before="look_up",
        edit={"query": {"sensor": "a", "day": "Monday 2024-02-26", "time": "09:00"}},
        needle="Sensor: a",
        edit_as="read",
        after_edit={"answer": "Expect 19.0 (0 to 106.6)."},
        input={"question": "How much traffic is there at b on Monday at eight?"},
        knowledge="forecaster",
    ),
    "idfree": Case(
        conditional=set(),
        tokens_from={"compare"},
        result={"general": "bad", "personal": "good", "comparison": "Without bad, with good."},
        changed={
            "comparer_model": "vllm?max_tokens=77",
            "comparer_prompt": "# user\nMARKED {{ general }} or {{ personal }}",
        },
        changed_result={"general": "bad", "personal": "good", "comparison": "Without bad, with good."},
        asked_of_vllm="MARKED bad or good",
        edit_before="compare",
        edit={"personal": "mixed"},
        needle="Personal answer: mixed",
        edit_as="personal",
        after_edit={"general": "bad", "comparison": "Without bad, with mixed."},
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
    "crat": Case(
        conditional={("build", "judge"), ("build", "document")},
        tokens_from={"identify", "build", "judge", "translate", "check"},
        result={
            "translation": REPAIRED,
            "rendered": [rendered(REPAIRED, "repair/0", checked=["钟声"], missing=["钟声"], repaired=True)],
        },
        changed={
            "llm_source_model": "vllm?max_tokens=77",
            "llm_source_prompt": "# user\nMARKED {{ target_language }}: {{ term }}",
            "translator_model": "llamacpp",
            "target_language": "German",
            "sources": "",
            "signals": "identifier",
            "judge": False,
        },
        changed_result={"translation": DRAFTS[0], "rendered": [rendered(DRAFTS[0])]},
        asked_of_vllm="MARKED German: bell",
        edit_before="translate",
        edit={"decisions": [decided(*METAL)]},
        needle="bell = 钟\n",
        edit_as="judge",
        after_edit={"translation": DRAFTS[0], "rendered": [rendered(DRAFTS[0], checked=["钟"])]},
        knowledge="sources",
        other_form=frozenset({"sentences"}),
    ),
    "ragtrans": Case(
        conditional=set(),
        tokens_from={"translate"},
        result={"translation": DRAFTS[0], "setting": "golden", "used": PASSAGES[0]["text"], "without": ""},
        changed={
            "labeler_model": "vllm?max_tokens=77",
            "labeler_prompt": "# user\nMARKED {{ target_language }}: {{ document }}",
            "target_language": "German",
            "setting": "retrieved",
            "style": "rated",
            "k": 1,
        },
        changed_result={"translation": DRAFTS[1], "setting": "retrieved", "relevance": 4, "found": "bell = 钟"},
        asked_of_vllm="MARKED German: 【Bells】A church bell rings.",
        edit_before="translate",
        edit={"used": "The bell of Torby is cracked."},
        needle="The bell of Torby is cracked.",
        edit_as="find",
        after_edit={"used": "The bell of Torby is cracked.", "translation": DRAFTS[0]},
        input={"text": TEXT, "document": PASSAGES[0]["text"], "reference": EDITED},
        knowledge="index",
    ),
    "ragtrans_tasks": Case(
        conditional={
            *(("check", node) for node in ("write", "teach", "__end__")),
            *(("write", node) for node in ("teach", "__end__")),
        },
        tokens_from={"write"},
        result={"knowledge": BELL, "leaks": 0, "dropped": None},
        changed={
            "model": "vllm?max_tokens=77",
            "knowledge_prompt": "# user\nMARKED {{ knowledge_language }} ({{ target_language }}): {{ text }}",
            "target_language": "German",
        },
        changed_result={"knowledge": BELL, "leaks": 0, "dropped": None},
        asked_of_vllm=f"MARKED English (German): {TEXT}",
        edit_before="write",
        edit={"text": "Time is a thief."},
        needle="Time is a thief.",
        edit_as="check",
        after_edit={"knowledge": BELL},
        input={"task": "sket", "text": TEXT, "answer": EDITED, "language": "en"},
        required=("task", "text"),
    ),
    "maths_samples": Case(
        conditional=set(),
        tokens_from={"sample"},
        options={"greedy": True, "samples": 1},
        result={"question": PROBLEM},
        changed={
            "judge_model": "vllm?max_tokens=77",
            "judge_prompt": "# user\nMARKED {{ solution }}",
            "greedy": False,
        },
        changed_result={"question": PROBLEM},
        asked_of_vllm=f"MARKED {'Step 2'.join(SOLVED)}",
        edit_before="sample",
        edit={"question": "What is 3 times 4, plus 6?", "answer": "18"},
        needle="What is 3 times 4, plus 6?",
        edit_as="__start__",
        after_edit={"question": "What is 3 times 4, plus 6?"},
        input={"question": PROBLEM, "answer": "3 * 4 + 5 = 17\n#### 17"},
        server="vllm",
        other_form=frozenset({"problem", "solution", "tests"}),
    ),
    "maths": Case(
        conditional=set(),
        tokens_from={"search"},
        result={"answer": "17", "right": True, "response": "Step 2".join(SOLVED)},
        changed={
            "judge_model": "vllm?max_tokens=77",
            "judge_prompt": "# user\nMARKED {{ solution }}",
            "value": "judge",
            "depth": 1,
        },
        changed_result={"answer": "17", "right": True, "response": "Step 2".join(SOLVED)},
        asked_of_vllm=f"MARKED {'Step 2'.join(SOLVED)}",
        edit_before="search",
        edit={"question": "What is 3 times 4, plus 6?", "answer": "18"},
        needle="What is 3 times 4, plus 6?",
        edit_as="__start__",
        after_edit={"question": "What is 3 times 4, plus 6?", "answer": "17", "right": False},
        input={"question": PROBLEM, "answer": "3 * 4 + 5 = 17\n#### 17"},
        server="vllm",
        other_form=frozenset({"problem", "solution", "tests"}),
    ),
}  # fmt: skip
