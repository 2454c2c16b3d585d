"""Rows for students of other families: no system role, marks for learning, templates that open a thought."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsys.traces import Segment, Target
from agentsys.trainers.row_filter import Filters
from agentsys.trainers.rows import TargetOptions, make_rows, print_report, rows_of
from agentsys.trainers.tokenize_rows import RowTokenizer
from tests.support.tiny import TEMPLATE, make_tiny, make_tokenizer
from tests.support.traces import encode_plain, make_call, make_trace, prompt_of, reply_of, run_folder, sft_target

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
OPENS_THOUGHT = TEMPLATE.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
MARKED = TEMPLATE.replace(
    "{{ message.content }}",
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}",
)
PARTS = TEMPLATE.replace("{{ message.content }}", "{% for part in message.content %}{{ part.text }}{% endfor %}")


def student(template: str) -> RowTokenizer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return RowTokenizer(tokenizer, retokenize=True)


def text_of(target: Target, template: str, *calls: object) -> str:
    tokenizer = student(template)
    (row,) = rows_of(make_trace("a", list(calls), [target]), tokenizer)  # type: ignore[arg-type]
    return str(tokenizer.tokenizer.decode(row["input_ids"]))


def composed(*roles: str) -> Target:
    segments = [Segment(role, text=f"The {role}.", learned=role == "assistant") for role in roles]
    return Target("sft", tuple(segments))


@pytest.mark.parametrize("template", [MARKED, PARTS], ids=["generation", "parts"])
def test_templates_that_mean_the_same_make_the_same_rows(template: str) -> None:
    target = composed("system", "user", "assistant")
    assert text_of(target, template) == text_of(target, TEMPLATE)


def test_a_student_without_a_system_role_reads_its_text_before_the_user_s() -> None:
    text = text_of(composed("system", "user", "assistant"), NO_SYSTEM + TEMPLATE)
    assert (
        text == "<|im_start|>user\nThe system.\n\nThe user.<|im_end|>\n<|im_start|>assistant\nThe assistant.<|im_end|>"
    )


def test_a_system_text_without_a_user_s_is_a_user_message() -> None:
    text = text_of(composed("system", "assistant"), NO_SYSTEM + TEMPLATE)
    assert text.startswith("<|im_start|>user\nThe system.<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_with_a_system_text_is_merged_when_a_call_is_retokenized() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Translate."}]
    call = make_call("draft", "A kettle.", messages=messages, ids=None, prompt_ids=None)
    text = text_of(Target("role", (prompt_of("draft"), reply_of("draft"))), NO_SYSTEM + TEMPLATE, call)
    assert text.startswith("<|im_start|>user\nBe brief.\n\nTranslate.<|im_end|>")


def test_a_thought_that_the_template_opens_is_closed_before_the_answer() -> None:
    text = text_of(composed("user", "assistant"), OPENS_THOUGHT)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nThe assistant.<|im_end|>")
    call = make_call("draft", "A kettle.", ids=None, prompt_ids=None)
    text = text_of(Target("role", (prompt_of("draft"), reply_of("draft"))), OPENS_THOUGHT, call)
    assert text.endswith("<think>\n\n</think>\n\nA kettle.<|im_end|>")


def test_the_command_says_that_it_closes_thoughts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_tiny(tmp_path / "student")
    (folder / "chat_template.jinja").write_text(OPENS_THOUGHT)
    trace = make_trace("a", [], [sft_target("Say it.", ("Said.", True))])
    options = TargetOptions(str(folder), tmp_path / "rows")
    print_report(make_rows([run_folder(tmp_path / "run", trace)], options, Filters(near_duplicates=1)), options.out)
    assert "the student's template opens a thought" in " ".join(capsys.readouterr().out.split())


def test_a_thought_of_the_engine_is_learned_with_its_answer() -> None:
    thought = encode_plain("<think>\nkettle?\n</think>\n\n")
    call = make_call("draft", "A kettle.", reasoning="kettle?", reasoning_ids=thought)
    (row,) = rows_of(
        make_trace("a", [call], [Target("role", (prompt_of("draft"), reply_of("draft")))]), student(TEMPLATE)
    )
    assert row["input_ids"] == [*(call.prompt_ids or ()), *thought, *(call.ids or ())]
    assert sum(row["loss_mask"]) == len(thought) + len(call.ids or ())
    assert row["ids_source"] == "engine"


def test_turn_tokens_that_are_not_special_stay_text() -> None:
    """As DeepSeek's <｜User｜>, which is an added token with special=False."""
    from tokenizers import AddedToken

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<｜User｜>", special=False, normalized=False)])
    (row,) = rows_of(make_trace("a", [], [sft_target("a<｜User｜>b", ("c<｜User｜>d", True))]), RowTokenizer(tokenizer))
    assert tokenizer.convert_tokens_to_ids("<｜User｜>") not in row["input_ids"]
    assert tokenizer.decode(row["input_ids"]).count("<｜User｜>") == 2
