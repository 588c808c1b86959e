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
    options = ["--max-steps", "40", "--lora", "8", "--learning-rate", "2e-2", "--eval-dataset", rows, "--output-dir", str(out)]
    assert main(["llm", "sft", folder, rows, *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == f"saved to {out}"
    before, after = (float(word) for word in said[-1].replace(",", "").split() if word.replace(".", "").isdigit())
    assert after < before - 1.5
    tuned = load_model(folder, adapter=out).decoder
    assert float(abs(tuned.blocks.query.lora.up).max()) > 0
    assert main(["llm", "sft", folder, str(tmp_path / "none.jsonl")]) == 2
    assert "no dataset at" in capsys.readouterr().err


def test_from_preferences_to_answers(folder, tmp_path, capsys, monkeypatch):
    """A reward model by pairs, then each kind of training by it or by a function of one's own; all save what `generate` reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "The fox", "chosen": " jumps", "rejected": " sleeps"}\n', encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The fox"}\n{"prompt": "The dog"}\n', encoding="utf-8")
    (tmp_path / "mine.py").write_text("def shorter(completions):\n    return [-len(text) for text in completions]\n", encoding="utf-8")
    quiet = ["--max-steps", "1", "--report-to", "none", "--learning-rate", "1e-3"]
    assert main(["llm", "reward", folder, "pairs.jsonl", *quiet, "--output-dir", "reward", "--eval-dataset", "pairs.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines() == ["saved to reward", "100.0% of the pairs of pairs.jsonl in the right order"]
    assert main(["llm", "dpo", folder, "pairs.jsonl", *quiet, "--output-dir", "dpo", "--lora", "2", "--eval-dataset", "pairs.jsonl"]) == 0
    assert "100.0% of the pairs" in capsys.readouterr().out
    prompts = ["prompts.jsonl", *quiet, "--max-completion-length", "4", "--eval-dataset", "prompts.jsonl"]
    assert main(["llm", "ppo", folder, *prompts, "--reward", "reward", "--output-dir", "ppo", "--target-kl", "2"]) == 0
    assert main(["llm", "grpo", folder, *prompts, "--reward", "mine.py:shorter", "--reward", "reward", "--reward-weights", "1", "0.5",
                 "--loss", "gspo", "--num-generations", "4", "--output-dir", "grpo"]) == 0  # fmt: skip
    assert main(["llm", "rloo", folder, *prompts, "--reward", "mine.py:shorter", "--output-dir", "rloo"]) == 0
    assert capsys.readouterr().out.count(" before, ") == 3
    assert all(load_model(name).decoder.config.vocab_size == 300 for name in ("ppo", "grpo", "rloo"))
    assert load_model(folder, adapter="dpo").decoder.blocks.query.lora is not None
    for given, message in (("none.py:f", "there is no file none.py"), ("mine.py:longer", "mine.py has no function longer")):
        assert main(["llm", "rloo", folder, *prompts, "--reward", given]) == 2
        assert message in capsys.readouterr().err


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
    assert "advantage llm" in text and all(command in text for command in ("generate", "chat", "sft", "reward", "dpo", "ppo", "grpo", "rloo"))
    assert main(["--help"]) == 0
    assert "llm" in capsys.readouterr().out
