"""Keys in what servers say: in every form, cut anywhere, and in no file and no line of a run."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from agentsys.models import ModelError, SpecError, load_model
from agentsys.models.endpoint import Endpoint
from agentsys.models.secrets import MANY, PART, SecretFilter, holds_key, mask_key, mask_secrets
from tests.support.raw_server import MODELS, RawReply, raw_server
from tests.support.toys import call_drt

KEY = "sk-REL1ABIL1TY/secret+key=0123456789abcdef"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


FORMS = {
    "plain": KEY,
    "quoted": repr(KEY),
    "bearer": f"Bearer {KEY}",
    "json": json.dumps(KEY).replace("/", "\\/"),
    "json twice": json.dumps(json.dumps(KEY).replace("/", "\\/")),
    "unicode escapes": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "hex escapes": "".join(f"\\x{ord(c):02x}" for c in KEY),
    "url": quote(KEY, safe=""),
    "url in lower case": quote(KEY, safe="").replace("%2F", "%2f").replace("%3D", "%3d"),
    "url plus": quote_plus(KEY),
    "url twice": quote(quote(KEY, safe=""), safe=""),
    "html": KEY.replace("/", "&#x2F;").replace("+", "&#43;").replace("=", "&equals;"),
    "base64": b64(KEY),
    "basic": b64(f"user:{KEY}"),
    "basic without a user": b64(f":{KEY}"),
    "basic with another user": b64(f"me:{KEY}"),
    "base64 of a header": b64(f"Authorization: Bearer {KEY}\n"),
    "base64 for URLs": base64.urlsafe_b64encode(f"a:{KEY}".encode()).decode(),
    "hexadecimal": KEY.encode().hex(),
    "upper case": KEY.upper(),
    "lower case": KEY.lower(),
    "line break": f"{KEY[:20]}\n{KEY[20:]}",
    "escaped line break": f"{KEY[:20]}\\n{KEY[20:]}",
    "carriage return": f"{KEY[:9]}\r\n{KEY[9:]}",
    "spaces": " ".join(KEY),
    "zero-width": "\u200b".join(KEY),
    "first half": KEY[:20],
    "last half": KEY[20:],
    "beginning": KEY[:PART],
    "end": KEY[-PART:],
    "middle": KEY[11 : 11 + PART],
    "both ends": f"{KEY[:10]}...{KEY[-10:]}",
}


def parts_of(text: str) -> list[str]:
    """Every part of the key of PART characters that a text holds, whatever its form."""
    read = re.sub(r"[\s\u200b]|\\n", "", text)
    return [KEY[i : i + PART] for i in range(len(KEY) - PART + 1) if KEY[i : i + PART].lower() in read.lower()]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AGENTSYS_API_KEY", f"{KEY}\n")
    return KEY


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "around", ["{}", "Incorrect API key provided: {}. You can find it", '{{"auth": "{}", "n": 1}}', "x{}x"]
)
def test_a_key_is_masked_in_every_form(key: str, form: str, around: str) -> None:
    masked = mask_key(around.format(form))
    assert "***" in masked
    assert parts_of(masked) == []
    before, after = around.format("|").split("|")
    if not form.startswith('"') and around != "x{}x":  # a letter beside Base64 is taken for a part of it
        assert masked.startswith(before) and masked.endswith(after)
    encoded = {b64(KEY)[i : i + 12] for i in range(40)}
    assert not any(part in masked for part in encoded)


@pytest.mark.parametrize("length", range(PART, len(KEY) + 1))
def test_a_key_that_is_cut_anywhere(key: str, length: int) -> None:
    for start in range(len(KEY) - length + 1):
        assert mask_key(f"<{KEY[start : start + length]}>") == "<***>"


def test_a_key_that_is_cut_by_us(key: str) -> None:
    """Masked before a message is shortened: no length of what stands before it matters."""
    for padding in range(60):
        assert parts_of(mask_key("x" * padding + KEY)[:80]) == []


@pytest.mark.parametrize(
    "text",
    [
        "unexpected token in prompt", "", "sk-", "secret key", "status 404: not found", "\\", "%", "%zz", "&;", "&amp;",
        "\\u12", "100% of &nothing; \\", "İstanbul ß ﬁ", "\ud800", "a" * 5000, "🙂\u200d", KEY[: PART - 1],
    ],
)  # fmt: skip
def test_what_is_no_key_stays(key: str, text: str) -> None:
    assert mask_key(text) == text


@pytest.mark.parametrize(
    ("variable", "value", "is_masked"),
    [
        ("AGENTSYS_API_KEY_JUDGE", "judge-key-1", True),
        ("AGENTSYS_HEADER_ORG", "org-4711", True),
        ("AGENTSYS_HEADER_AUTH", "Token abc def 12345", True),
        ("OPENAI_API_KEY", "sk-of-another-provider", True),
        ("HF_TOKEN", "hf_abcdefghijklmnop", True),
        ("AWS_SECRET_ACCESS_KEY", "abcdefghijklmnopqrst", True),
        ("OPENAI_API_KEY", "short", False),
        ("EDITOR", "sk-of-another-provider", False),
        ("AGENTSYS_API_KEY", "abc", False),
    ],
)
def test_whose_keys(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, is_masked: bool) -> None:
    monkeypatch.setenv(variable, value)
    assert (mask_key(f"the value {value} is wrong") == "the value *** is wrong") is is_masked


def test_replies() -> None:
    """Only long keys, and MANY characters of them, are looked for in replies: their words must stay."""
    secrets = SecretFilter([KEY, "EMPTY", "not-needed", "12345678"])
    for form in ("plain", "bearer", "url", "base64", "basic", "line break", "unicode escapes", "first half"):
        body = {"text": f"a {FORMS[form]} !", "list": [{FORMS[form]: 1}], "n": 1.5, "none": None}
        raw = json.dumps(body).encode()
        assert secrets.may_be_in(raw), form
        assert secrets.mask(body)["text"] in ("a *** !", "a Bearer *** !", "a dXNlcjp*** !")
        assert "***" in next(iter(secrets.mask(body)["list"][0]))
    for text in ("EMPTY 12345678 not-needed", KEY[: MANY - 8]):
        assert secrets.mask({"text": text}) == {"text": text}
    assert not secrets.may_be_in(b"an ordinary reply")
    assert not SecretFilter([]).may_be_in(b"\\u0041" * 100)
    assert mask_secrets("nothing", [], PART) == "nothing"


@pytest.mark.parametrize(
    "url",
    [
        "http://user:{key}@127.0.0.1:9/v1", "http://user:pa/ss@127.0.0.1:9/v1", "http://user/x@127.0.0.1:9/v1",
        "http://{key}@127.0.0.1:9", "http://127.0.0.1:9/{key}/v1", "http://127.0.0.1:9/v1/{key}", "http://a/v1,http://u:{key}@b/v1",
    ],
)  # fmt: skip
def test_a_key_in_a_url(key: str, url: str) -> None:
    with pytest.raises(SpecError) as refusal:
        load_model(url.format(key=KEY))
    assert str(refusal.value).startswith("a URL must not contain a key; set AGENTSYS_API_KEY")
    assert parts_of(str(refusal.value)) == [] and "pa/ss" not in str(refusal.value)


def test_keys_of_the_user(key: str) -> None:
    assert holds_key(f"x{KEY}x") and not holds_key(KEY[: MANY - 1])


# Whole runs


def reply(**choice: Any) -> RawReply:
    body = {"choices": [{"message": {"content": "First [1]"}, "finish_reason": "stop", **choice}]}
    return RawReply(body=json.dumps(body).encode())


GENERATED = {
    "error": RawReply(400, f"Incorrect API key provided: {KEY}.".encode()),
    "server error": RawReply(400, json.dumps({"error": {"message": f"no {KEY}", "code": KEY, "param": KEY}}).encode()),
    "json": RawReply(400, f"key {FORMS['json']}".encode()),
    "url": RawReply(400, f"key {FORMS['url']}".encode()),
    "basic": RawReply(400, f"Authorization: Basic {FORMS['basic']}".encode()),
    "line break": RawReply(400, f"key {FORMS['line break']}".encode()),
    "no JSON, cut": RawReply(200, (" " * 3 + "x" * 45 + KEY).encode()),
    "no reply": RawReply(200, json.dumps({"seen": "y" * 160, "auth": KEY}).encode()),
    "finish reason": reply(finish_reason=KEY),
    "reply text": reply(message={"content": f"Authorization: Bearer {KEY}"}),
    "reply text, Base64": reply(message={"content": f"Basic {FORMS['basic']}"}),
    "thought": reply(message={"content": "x", "reasoning_content": f"my key is {KEY}"}),
    "log-probabilities": reply(message={"content": KEY}, logprobs={"content": [{"token": KEY, "logprob": -1.0}]}),
    "redirect": RawReply(307, b"", {"Location": f"http://127.0.0.1:9/?key={KEY}"}),
    "header": RawReply(429, b"", {"X-Key": KEY, "Retry-After": KEY}),
    "bad header": RawReply(400, b"", {"Content-Length": KEY}),
    "encoding": RawReply(200, b"", {"Content-Encoding": KEY}),
}
LISTED = {
    "models 401": RawReply(401, f"bad key {KEY}".encode()),
    "models name": RawReply(200, json.dumps({"data": [{"id": f"m-{KEY}"}]}).encode()),
    "many models": RawReply(200, json.dumps({"data": [{"id": f"m-{KEY}"}, {"id": "b"}]}).encode()),
    "models no JSON": RawReply(200, f"<html>{KEY}".encode()),
}


@pytest.mark.parametrize("name", [*GENERATED, *LISTED])
def test_no_file_and_no_line_of_a_run_has_the_key(
    tmp_path: Path, name: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Endpoint, "_backoff_seconds", lambda *_: 0.0)
    (tmp_path / "in.jsonl").write_text('{"text": "like a moon"}\n')
    generated, listed = GENERATED.get(name, reply(message={"content": "no"})), LISTED.get(name, MODELS)
    options = ("--input", tmp_path / "in.jsonl", "--out", tmp_path / "run")
    with raw_server(lambda body: generated, lambda: listed) as url:
        code, out, err = call_drt(capsys, "--model", f"{url}?timeout=3", *options)
    assert code in (1, 2, 3), err
    assert "Traceback" not in err
    assert parts_of(out + err) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "in.jsonl"]
    assert files or name in LISTED
    for path in files:
        text = path.read_bytes().decode(errors="replace")
        assert parts_of(text) == [], path
        assert b64(f"user:{KEY}")[6:-4] not in text, path


@pytest.mark.parametrize("key", ["sk-a\rX-Evil: 1", "sk-ключ-0000", "sk-\x00-0000", "sk-a\nb", "sk-\x7f"])
def test_a_key_that_no_header_can_hold_is_said_by_its_variable(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    from agentsys.models.access import Access

    if "\0" not in key:  # the environment cannot hold it
        monkeypatch.setenv("AGENTSYS_API_KEY_JUDGE", key)
        with pytest.raises(
            SpecError, match=r"^AGENTSYS_API_KEY_JUDGE has a line break or another character"
        ) as refusal:
            Access(key="JUDGE").read_headers()
        assert key not in str(refusal.value)


def test_a_line_break_at_the_end_of_a_key_is_left_out(key: str) -> None:
    from agentsys.models.access import Access

    assert Access().read_headers() == {"Authorization": f"Bearer {KEY}"}


async def test_a_huge_reply_with_the_key_is_refused_at_once(key: str) -> None:
    """Masking it would block all other calls for a minute."""
    huge = reply(message={"content": f"{KEY} " * 100_000})
    with raw_server(lambda body: huge) as url:
        model = load_model(f"{url}?timeout=20")
        with pytest.raises(ModelError, match="bytes repeats the API key; not recorded"):
            await model.ainvoke("x")
        await model.aclose()  # type: ignore[attr-defined]


def test_escapes_of_other_languages_cost_nothing() -> None:
    secrets = SecretFilter([KEY])
    assert not secrets.may_be_in(json.dumps({"text": "é à ü ñ 中文" * 100}).encode())
    assert secrets.may_be_in(f'{{"text": "{FORMS["unicode escapes"]}"}}'.encode())
