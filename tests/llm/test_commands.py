"""`advantage llm`: what is printed, and one line for what cannot be done."""

import dataclasses
import io
import sys

import pytest

from advantage.cli import main
from advantage.llm import LanguageModel, load_model

from .conftest import SMALL, loud


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A model's folder."""
    path = tmp_path_factory.mktemp("llm") / "model"
    LanguageModel(loud(dataclasses.replace(SMALL, vocab_size=300, max_position_embeddings=512)), tokenizer).save(path)
    return str(path)


def test_generate(folder, capsys):
    """Chats where there is a template, else the text goes on; `--stop` and the seed reach the model."""
    assert main(["llm", "generate", folder, "The fox", "Count", "--max-new-tokens", "8", "--stop", "e", "--seed", "3"]) == 0
    chats = [[{"role": "user", "content": prompt}] for prompt in ("The fox", "Count")]
    expected = load_model(folder).generate(chats, seed=3, max_new_tokens=8, temperature=0.7, top_p=0.95, stop_strings=["e"])
    assert capsys.readouterr().out == "".join(answer + "\n" for answer in expected)
    assert main(["llm", "generate", folder, "The fox", "--plain", "--max-new-tokens", "4", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("The fox")


def test_chat(folder, capsys, monkeypatch):
    """Each answer is to all that was said; an empty line ends it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("The fox\nAgain\n\nnot read\n"))
    assert main(["llm", "chat", folder, "--system", "Be brief.", "--max-new-tokens", "6", "--temperature", "0"]) == 0
    model, said = load_model(folder), [{"role": "system", "content": "Be brief."}]
    expected = ""
    for line in ("The fox", "Again"):
        said.append({"role": "user", "content": line})
        (answer,) = model.generate([said], max_new_tokens=6, temperature=0)
        said.append({"role": "assistant", "content": answer})
        expected += answer + "\n"
    assert capsys.readouterr().out == expected


def test_sft(folder, tmp_path, capsys):
    """An adapter that answers better, saved where it was wanted; the numbers on the screen are those of the trainer."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "The fox", "completion": " jumps"}\n', encoding="utf-8")
    rows, out = str(tmp_path / "rows.jsonl"), tmp_path / "out"
    options = ["--max-steps", "40", "--lora", "8", "--learning-rate", "2e-2", "--eval-dataset", rows, "--out", str(out)]
    assert main(["llm", "sft", folder, rows, *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"saved the adapter to {out}"
    before, after = (float(word) for word in said[-2].replace(",", "").split() if word.replace(".", "").isdigit())
    assert after < before - 1.5
    tuned = load_model(folder, adapter=out).decoder
    assert float(abs(tuned.blocks.query.lora.up).max()) > 0
    assert main(["llm", "sft", folder, str(tmp_path / "none.jsonl")]) == 2
    assert "no dataset at" in capsys.readouterr().err


def test_a_long_chat_forgets_its_beginning(folder, capsys, monkeypatch):
    """And says so, where it would have ended the program: 512 tokens hold two of these questions."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(("x" * 150 + "\n") * 5))
    assert main(["llm", "chat", folder, "--max-new-tokens", "100", "--temperature", "0"]) == 0
    assert "(the oldest question and answer are forgotten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nowhere", "x"], "error: no model at nowhere: give a local folder or .gguf file; nothing is downloaded"),
        (["generate", "FOLDER", "x", "--temperature", "-1"], "error: temperature=-1.0 has to be at least 0"),
        (["generate", "FOLDER"], None),
        (["poetry", "FOLDER"], None),
    ],
)
def test_what_cannot_be_done(arguments, message, folder, capsys):
    assert main(["llm", *(folder if word == "FOLDER" else word for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.strip() == message if message else error


def test_help(capsys):
    assert main(["llm"]) == 0
    text = capsys.readouterr().out
    assert "advantage llm" in text and all(command in text for command in ("generate", "chat", "sft"))
    assert main(["--help"]) == 0
    assert "llm" in capsys.readouterr().out
