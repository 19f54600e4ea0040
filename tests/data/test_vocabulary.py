"""Texts as tokens of a Hugging Face tokenizer: what it gives itself, however texts are cut, and what it cannot be."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lsgd_jax.data import vocabulary
from lsgd_jax.data.text import text_file_source
from lsgd_jax.data.vocabulary import BYTES, pieces_of, read_vocabulary

STORY = "Größer und größer wurde 1 Haus;\nund noch eins.\n\n  Dann\tkam 'der' Schnee \N{SNOWMAN}.\n" * 30


@pytest.fixture(scope="module")
def trained() -> Any:
    """A byte-level tokenizer such as GPT-2's, of 300 tokens, that would begin each text with a special one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator([STORY], how)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


@pytest.fixture(scope="module")
def file(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained.enable_truncation(5)
    trained.enable_padding(length=7)
    trained.save(str(path))
    trained.no_truncation()
    trained.no_padding()
    return str(path)


def as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def test_a_text_becomes_the_tokens_that_its_tokenizer_gives_it_in_one_piece(
    trained: Any, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_vocabulary(file)
    expected = trained.encode(STORY, add_special_tokens=False).ids
    assert found.size == 300
    for piece, together in ((2**16, 256), (1, 2), (40, 1), (100, 3)):
        monkeypatch.setattr(vocabulary, "PIECE", piece)
        monkeypatch.setattr(vocabulary, "TOGETHER", together)
        tokens = found.encode(as_bytes(STORY))
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == expected
    assert trained.decode(expected) == STORY


@given(st.text(alphabet="ab \n\té", max_size=60), st.integers(1, 20))
def test_pieces_make_up_the_text_and_end_with_a_line_break_alone(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "PIECE", size)
        pieces = list(pieces_of(text))
    assert "".join(pieces) == text
    for piece, after in itertools.pairwise(pieces):
        assert len(piece) > size
        assert piece.endswith("\n")
        assert not piece[-2].isspace()
        assert not after[0].isspace()


def test_splits_of_a_text_are_those_of_its_bytes_and_characters_that_are_cut_are_left_out(
    file: str, trained: Any, tmp_path: Path
) -> None:
    path = tmp_path / "snow.txt"
    path.write_text("\N{SNOWMAN}" * 100, encoding="utf-8")  # 300 bytes: the splits begin at 270 and 285
    (tmp_path / "odd.txt").write_text("a" + "\N{SNOWMAN}" * 99 + "bc", encoding="utf-8")
    plain, found = (text_file_source(str(path), of).read() for of in (BYTES, read_vocabulary(file)))
    assert [split.bytes for split in found] == [split.bytes for split in plain] == [270, 15, 15]
    for split, expected in zip(found, (90, 5, 5), strict=True):
        assert trained.decode(split.tokens.tolist()) == "\N{SNOWMAN}" * expected
    odd = text_file_source(str(tmp_path / "odd.txt"), read_vocabulary(file)).read()
    assert [trained.decode(split.tokens.tolist()) for split in odd] == [
        "a" + "\N{SNOWMAN}" * 89, "\N{SNOWMAN}" * 4, "\N{SNOWMAN}" * 4 + "bc"
    ]  # fmt: skip


def test_the_data_of_a_run_are_others_with_another_tokenizer(file: str, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    other = tmp_path / "other.json"
    other.write_text(Path(file).read_text() + "\n")
    moved = tmp_path / "moved.json"
    moved.write_text(Path(file).read_text())
    digests = [text_file_source(str(path), read_vocabulary(each)).digest for each in (None, file, other, moved)]
    assert len(set(digests)) == 3
    assert digests[1] == digests[3]
    source = text_file_source(str(path), read_vocabulary(file))
    assert source.train_tokens == len(source.read().train.tokens) < source.read().train.bytes


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    with refusal("cannot read --tokenizer=", "missing.json", "No such file", "tokenizer.json of Hugging Face"):
        read_vocabulary(str(tmp_path / "missing.json"))
    with refusal("cannot read --tokenizer=", "Is a directory"):
        read_vocabulary(str(tmp_path))
    for content in (b"\xff\xfe", b"not JSON", b"{}", b"[1, 2]"):
        path.write_bytes(content)
        with refusal(f"--tokenizer={path} is no tokenizer", "tokenizer.json of Hugging Face"):
            read_vocabulary(str(path))
    Tokenizer(models.BPE()).save(str(path))
    with refusal(f"--tokenizer={path} has 0 tokens"):
        read_vocabulary(str(path))
    assert json.loads(path.read_text())["model"]["vocab"] == {}
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refusal("--tokenizer=", "pip install 'lsgd_jax[tokenizers]'"):
        read_vocabulary(file)
