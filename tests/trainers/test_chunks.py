"""Chunks of a corpus: nothing is lost, and they end with a sentence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentsys.trainers.pretrain.chunks import Document, Encoder, chunk_documents
from agentsys.trainers.pretrain.corpus import ChunkFolder, read_chunks
from tests.support.corpora import by_domain, documents_of, make_chunks, make_corpus, run, write_jsonl
from tests.support.tiny import SENTENCES, make_tiny, make_tokenizer


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(make_tokenizer())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model"))


PIECES = [
    *SENTENCES,
    "\n",
    " ",
    "3.14",
    "枯井。",
    "😀",
    "é",
    "e\u0301",
    "<|im_end|>",
    "<|endoftext|>",
    "?",
    "x",
    "\r\n\t",
    "ж",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.sampled_from("ab"))),
    st.integers(8, 70),
)
def test_nothing_of_a_corpus_is_lost(encoder: Encoder, given: list[tuple[str, str]], length: int) -> None:
    documents = [Document(text, domain) for text, domain in given]
    chunks = list(chunk_documents(documents, encoder, length))
    assert documents_of(chunks) == by_domain(documents)
    for domain, texts in by_domain(documents).items():
        ids = [i for chunk in chunks if chunk.domain == domain for i in chunk.input_ids]
        assert ids == [i for one in encoder.encode(texts) for i in one.ids]
    assert all(len(chunk.input_ids) <= length for chunk in chunks)


def test_a_chunks_text_is_its_ids_decoded(encoder: Encoder) -> None:
    tokenizer = make_tokenizer()
    texts = [" ".join(SENTENCES), "枯井" * 40 + "😀" * 40]
    for chunk in chunk_documents([Document(text, "a") for text in texts], encoder, 20):
        assert tokenizer.decode([i for i in chunk.input_ids if i != encoder.end_id]) == chunk.text


def test_special_tokens_in_a_document_stay_text(encoder: Encoder) -> None:
    (chunk,) = chunk_documents([Document("a<|endoftext|>b", "a")], encoder, 100)
    assert chunk.input_ids.count(encoder.end_id) == 1 and chunk.input_ids[-1] == encoder.end_id
    assert chunk.text == "a<|endoftext|>b"


def test_a_window_is_split_after_the_last_sentence(encoder: Encoder) -> None:
    text = "A widow sang. " + "The well is 3.14159 deep and the kettle " * 3
    first, *_ = chunk_documents([Document(text, "a")], encoder, len(encoder.encode(["A widow sang."])[0].ids) + 20)
    assert first.text == "A widow sang."


@pytest.mark.parametrize(
    ("text", "stops"),
    [("he.", True), ("he. She", True), ("3.14", False), ("a.b", False), ("井。他", True),
     ("one\ntwo", True), ("who? He", True), ("one, two", False), ("Wait", False)],
)  # fmt: skip
def test_what_ends_a_sentence(encoder: Encoder, text: str, stops: bool) -> None:
    ids = encoder.encode([text], close=False)[0].ids
    following = [*ids[1:], None]
    inside = [encoder.is_stop(one, behind) for one, behind in zip(ids, following, strict=True)]
    assert any(inside) == stops


def test_quotation_marks_close_a_sentence_in_one_token() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(['."', '"?'])
    encoder = Encoder(tokenizer)
    (one,), (other,) = (encoder.encode([text], close=False)[0].ids for text in ('."', '"?'))
    (space, *_), (word, *_) = (encoder.encode([text], close=False)[0].ids for text in (" she", "she"))
    assert encoder.is_stop(one, space) and encoder.is_stop(other, space) and not encoder.is_stop(one, word)


def test_a_window_without_a_stop_is_one_chunk_but_never_splits_a_character(encoder: Encoder) -> None:
    assert len(encoder.encode(["😀"], close=False)[0].ids) > 1  # a character of several tokens
    chunks = list(chunk_documents([Document("x" + "😀" * 50, "a")], encoder, 9))
    assert len(chunks) > 20 and "".join(chunk.text for chunk in chunks) == "x" + "😀" * 50
    tokenizer = make_tokenizer()
    for chunk in chunks:  # half a character would be decoded as U+FFFD
        assert tokenizer.decode([i for i in chunk.input_ids if i != encoder.end_id]) == chunk.text


def test_a_document_of_thousands_of_chunks_is_kept(encoder: Encoder) -> None:
    """The released code drops a buffer that fills more than 2,000 chunks at once."""
    text = " ".join(SENTENCES[i % 5] for i in range(1600))
    chunks = list(chunk_documents([Document(text, "a")], encoder, 16))
    assert len(chunks) > 2000 and "".join(chunk.text for chunk in chunks) == text


def test_no_chunk_is_too_short_to_predict_anything(encoder: Encoder) -> None:
    words = encoder.encode(["x"], close=False)[0].ids
    assert len(words) == 1
    # The document's end falls on the first place of the second window, and nothing else in there is a stop.
    text, more = "x " * 40, "y" * 60
    length = next(n for n in range(10, 100) if len(encoder.encode([text])[0].ids) % n == 1)
    chunks = list(chunk_documents([Document(text, "a"), Document(more, "a")], encoder, length))
    assert documents_of(chunks) == {"a": [text, more]}
    assert all(len(chunk.input_ids) > 1 for chunk in chunks)


def test_a_beginning_of_sequence_token_opens_every_chunk() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    encoder = Encoder(tokenizer)
    documents = [Document(text, "a") for text in SENTENCES]
    chunks = list(chunk_documents(documents, encoder, 20))
    assert all(chunk.input_ids[0] == tokenizer.bos_token_id for chunk in chunks)
    assert max(len(chunk.input_ids) for chunk in chunks) <= 20 and documents_of(chunks) == {"a": list(SENTENCES)}


def test_chunk_reads_every_format(tmp_path: Path, model: Path) -> None:
    books = tmp_path / "book.txt"
    books.write_bytes(b"One line.\r\nAnother.\n\n\nLast")
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"text": ["from parquet", ""], "domain": ["p", None]}), table)
    lines = write_jsonl(tmp_path / "lines.jsonl", [{"text": "一行", "domain": "z"}, {"text": "two"}])
    out = tmp_path / "chunks"
    files = ("--corpus", books, "--corpus", table, "--corpus", lines)
    assert run("chunk", *files, "--tokenizer", model, "--max-length", 20, "--out", out) == 0
    assert documents_of(read_chunks(ChunkFolder(out))) == {
        "corpus": ["One line.\r\nAnother.\n\n\nLast", "", "two"], "p": ["from parquet"], "z": ["一行"],
    }  # fmt: skip


def test_shards_have_the_requested_size(tmp_path: Path, model: Path) -> None:
    folder = make_chunks(make_corpus(tmp_path), model, tmp_path / "chunks", shard=100)
    assert len(folder.shards) > 2
    assert [shard.chunks for shard in folder.shards[:-1]] == [100] * (len(folder.shards) - 1)
    assert sum(shard.read("id").num_rows for shard in folder.shards) == folder.chunks


def test_a_finished_corpus_is_not_overwritten(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path)
    chunks = make_chunks(corpus, model, tmp_path / "chunks").folder
    before = ChunkFolder(chunks).manifest
    assert run("chunk", "--corpus", corpus, "--tokenizer", model, "--out", chunks) == 2
    assert "already has a corpus" in capsys.readouterr().err and ChunkFolder(chunks).manifest == before
