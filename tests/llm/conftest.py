"""Small models with what transformers and PEFT computed of them (`oracles/transformers`)."""

import json
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest

from advantage.llm.decoder import DecoderConfig, init
from advantage.llm.folder import read_decoder
from advantage.llm.tokenizer import Tokenizer

FOLDERS = Path(__file__).parents[1] / "oracles" / "transformers"
ANSWERS = np.load(FOLDERS / "answers.npz", allow_pickle=False)
CHATS = json.loads((FOLDERS / "chat.json").read_text(encoding="utf-8"))
FAMILIES = sorted(path.name for path in FOLDERS.iterdir() if (path / "config.json").is_file())
SMALL = DecoderConfig(
    model_type="llama", vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="session")
def llama():
    """A decoder of random weights that transformers made."""
    return read_decoder(FOLDERS / "llama")[0]


@pytest.fixture(scope="session")
def small():
    """One of ours."""
    return loud(SMALL)


def loud(config):
    """A decoder with weights large enough that its words differ."""
    return jax.tree.map(lambda x: x * 8.0 if x.ndim > 1 and x.shape[-1] > 1 else x, init(config, jax.random.key(0)))


@pytest.fixture(scope="session")
def tokenizer():
    """That of transformers' folder: bytes and a few merges."""
    return Tokenizer.read(FOLDERS / "llama")


@pytest.fixture
def unchecked_types():
    """As users have it: what is of another class meets our own checks, not those of the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def real(start: np.ndarray, slots: int) -> np.ndarray:
    """Where there is no padding, `[B,T,1]`."""
    return (np.arange(slots)[None] >= start[:, None])[..., None]
