"""Language models: decoders in JAX that read and write Hugging Face's folders, and what is trained on their tokens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "LanguageModel": "advantage.llm.model",
    "load_model": "advantage.llm.model",
    "GenerationConfig": "advantage.llm.generate",
    "DecoderConfig": "advantage.llm.decoder",
    "Decoder": "advantage.llm.decoder",
    "Tokenizer": "advantage.llm.tokenizer",
    "LoraConfig": "advantage.llm.training",
    "SFTConfig": "advantage.llm.sft",
    "SFTTrainer": "advantage.llm.sft",
    "RewardConfig": "advantage.llm.reward",
    "RewardTrainer": "advantage.llm.reward",
    "RewardModel": "advantage.llm.scorer",
    "load_reward_model": "advantage.llm.scorer",
    "DPOConfig": "advantage.llm.dpo",
    "DPOTrainer": "advantage.llm.dpo",
    "TextEnvironment": "advantage.llm.dialogue",
    "PPOConfig": "advantage.llm.ppo",
    "PPOTrainer": "advantage.llm.ppo",
    "GRPOConfig": "advantage.llm.grpo",
    "GRPOTrainer": "advantage.llm.grpo",
    "RLOOConfig": "advantage.llm.rloo",
    "RLOOTrainer": "advantage.llm.rloo",
}

__all__ = [*_HOME]

if TYPE_CHECKING:
    from advantage.llm.decoder import Decoder, DecoderConfig
    from advantage.llm.dialogue import TextEnvironment
    from advantage.llm.dpo import DPOConfig, DPOTrainer
    from advantage.llm.generate import GenerationConfig
    from advantage.llm.grpo import GRPOConfig, GRPOTrainer
    from advantage.llm.model import LanguageModel, load_model
    from advantage.llm.ppo import PPOConfig, PPOTrainer
    from advantage.llm.reward import RewardConfig, RewardTrainer
    from advantage.llm.rloo import RLOOConfig, RLOOTrainer
    from advantage.llm.scorer import RewardModel, load_reward_model
    from advantage.llm.sft import SFTConfig, SFTTrainer
    from advantage.llm.tokenizer import Tokenizer
    from advantage.llm.training import LoraConfig


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'advantage.llm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
