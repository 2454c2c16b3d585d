"""Thought and answer in a text: the tags of each family, and texts that only look like thoughts."""

from __future__ import annotations

import pytest

from agentsys.text.thoughts import HARMONY, TAGS, Tags, find_tags, may_begin_thought, split_thought

THINK = TAGS[0]


def split(text: str, opened: Tags | None = None, prompt: str = "") -> tuple[str | None, str]:
    result = split_thought(text, opened, lambda tag: tag in prompt)
    return result.thought, text[result.start : result.end]


@pytest.mark.parametrize("tags", TAGS, ids=lambda tags: tags.open)
def test_each_family_s_tags(tags: Tags) -> None:
    text = f"{tags.open}\nFirst the verb.\n{tags.close}\n\nThe answer."
    assert split(text) == ("First the verb.", "The answer.")
    assert split(text.removeprefix(tags.open), tags) == ("First the verb.", "The answer.")
    assert split(f"First the verb.\n{tags.close}\nThe answer.") == ("First the verb.", "The answer.")
    assert split(f"{tags.open}never ended") == ("never ended", "")
    assert split(f"{tags.no_thought}The answer.") == ("", "The answer.")


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "Hm.", "Yes."),
        ("<|channel|>final<|message|>Yes.<|return|>", None, "Yes."),
        ("<|channel|>analysis<|message|>Hm.", "Hm.", ""),
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|chan", "Hm.", ""),
        ("<|channel|>analy", "<|channel|>analy", ""),
        (
            "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>commentary<|message|>B<|end|>"
            "<|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
            "A\n\nB",
            "{}",
        ),
        ("analysisThe user asks for a noun.assistantfinalKettle", "The user asks for a noun.", "Kettle"),
        ("analysis of the poem", None, "analysis of the poem"),
        ("<think>a</think>\n<think>b</think>\nc", "a\n\nb", "c"),
        ("<Think>a</THINK>c", "a", "c"),
        ("  \n<think>a</think>c", "a", "c"),
        ("<think>a<think>b</think>c", "a<think>b", "c"),
        ("<think>a</think><answer>\nc\n</answer>\n", "a", "c\n"),
        ("<think>a</think><answer>c", "a", "c"),
        ('{"text": "a </think> b"}', None, '{"text": "a </think> b"}'),
        ('["</think>"]', None, '["</think>"]'),
        ("The tag <think> opens a thought.", None, "The tag <think> opens a thought."),
        ("<thinker>a</thinker>", None, "<thinker>a</thinker>"),
        ("", None, ""),
    ],
)
def test_forms(text: str, thought: str | None, answer: str) -> None:
    assert split(text) == (thought, answer)


def test_channels_that_the_prompt_opened() -> None:
    text = "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    assert split(text, HARMONY) == ("Hm.", "Yes.")
    assert split("Hm.", HARMONY) == ("Hm.", "")


def test_an_opened_thought_that_the_model_opens_again() -> None:
    assert split("<think>\na</think>b", THINK) == ("a", "b")
    assert split("a", THINK) == ("a", "")


def test_tags_that_the_prompt_asks_for_are_the_answer() -> None:
    text = "<reasoning>a</reasoning> b"
    assert split(text, prompt="Write <reasoning>...</reasoning> first.") == (None, text)
    assert split("say </think> here", prompt="What does </think> mean?") == (None, "say </think> here")
    assert split("<think>a</think>b", prompt="Think in <think> tags.") == ("a", "b"), "a thought is one all the same"
    boxed = "<think>a</think><answer>b</answer>"
    assert split(boxed, prompt="Answer in <answer> tags.") == ("a", "<answer>b</answer>")


def test_a_stream_shows_nothing_that_may_be_a_thought() -> None:
    assert may_begin_thought("")
    assert may_begin_thought("\n<thi")
    assert may_begin_thought("<think>so")
    assert not may_begin_thought("<b>")
    assert not may_begin_thought("The")


def test_the_tags_of_a_template() -> None:
    assert find_tags("{% if x %}<think>{% endif %}") is THINK
    assert find_tags("<|channel|>analysis<|message|>") is HARMONY
    assert find_tags("<|im_start|>assistant") is None
