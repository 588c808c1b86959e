"""Deep reinforcement learning: as easy as Stable-Baselines3, compiled, and tested equation by equation.

Names load when first used, so that `import advantage` and the command line's help stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "DQN": "advantage.models",
    "DoubleDQN": "advantage.models",
    "DuelingDQN": "advantage.models",
    "C51": "advantage.models",
    "QRDQN": "advantage.models",
    "IQN": "advantage.models",
    "Rainbow": "advantage.models",
    "PPO": "advantage.models",
    "RecurrentPPO": "advantage.models",
    "MaskablePPO": "advantage.models",
    "A2C": "advantage.models",
    "TRPO": "advantage.models",
    "REINFORCE": "advantage.models",
    "SAC": "advantage.models",
    "DiscreteSAC": "advantage.models",
    "TD3": "advantage.models",
    "DDPG": "advantage.models",
    "TQC": "advantage.models",
    "CrossQ": "advantage.models",
    "NormalActionNoise": "advantage.equations.noise",
    "OrnsteinUhlenbeckActionNoise": "advantage.equations.noise",
    "HerReplayBuffer": "advantage.memory.goals",
    "PrioritizedReplayBuffer": "advantage.memory.prioritised",
    "ALGORITHMS": "advantage.models",
    "DummyVecEnv": "advantage.envs.vec_env",
    "SubprocVecEnv": "advantage.envs.subproc",
    "make_vec_env": "advantage.envs.vec_env",
    "make_atari": "advantage.envs.atari",
    "make_atari_env": "advantage.envs.atari",
    "VecFrameStack": "advantage.envs.atari",
    "human_normalized_score": "advantage.experiments.atari",
    "NatureCNN": "advantage.networks.cnn",
    "ImpalaCNN": "advantage.networks.cnn",
    "CombinedExtractor": "advantage.networks.extractors",
    "VecNormalize": "advantage.envs.normalise",
    "sync_envs_normalization": "advantage.envs.normalise",
    "check_env": "advantage.envs.check",
    "ActionMasker": "advantage.envs.masking",
    "get_action_masks": "advantage.envs.masking",
    "is_masking_supported": "advantage.envs.masking",
    "PotentialShaping": "advantage.envs.shaping",
    "ActionRepeat": "advantage.envs.wrappers",
    "ClipReward": "advantage.envs.wrappers",
    "FrameStack": "advantage.envs.wrappers",
    "Monitor": "advantage.envs.wrappers",
    "ScaleReward": "advantage.envs.wrappers",
    "StickyActions": "advantage.envs.wrappers",
    "TimeLimit": "advantage.envs.wrappers",
    "evaluate_policy": "advantage.training.evaluation",
    "compare": "advantage.experiments.compare",
    "ablate": "advantage.experiments.ablate",
    "Preset": "advantage.experiments.preset",
    "preset": "advantage.experiments.preset",
    "RewardMonitor": "advantage.experiments.reward_monitor",
    "suggest": "advantage.experiments.suggest",
    "BaseCallback": "advantage.training.callbacks",
    "CallbackList": "advantage.training.callbacks",
    "CheckpointCallback": "advantage.training.ready_callbacks",
    "EvalCallback": "advantage.training.ready_callbacks",
    "MaskableEvalCallback": "advantage.training.ready_callbacks",
    "EventCallback": "advantage.training.ready_callbacks",
    "EveryNTimesteps": "advantage.training.ready_callbacks",
    "LogEveryNTimesteps": "advantage.training.ready_callbacks",
    "ProgressBarCallback": "advantage.training.ready_callbacks",
    "StopTrainingOnMaxEpisodes": "advantage.training.ready_callbacks",
    "StopTrainingOnNoModelImprovement": "advantage.training.ready_callbacks",
    "StopTrainingOnRewardThreshold": "advantage.training.ready_callbacks",
    "Linear": "advantage.equations.schedules",
    "Spec": "advantage.types",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from advantage.envs.atari import VecFrameStack, make_atari, make_atari_env
    from advantage.envs.check import check_env
    from advantage.envs.masking import ActionMasker, get_action_masks, is_masking_supported
    from advantage.envs.normalise import VecNormalize, sync_envs_normalization
    from advantage.envs.shaping import PotentialShaping
    from advantage.envs.subproc import SubprocVecEnv
    from advantage.envs.vec_env import DummyVecEnv, make_vec_env
    from advantage.envs.wrappers import (
        ActionRepeat,
        ClipReward,
        FrameStack,
        Monitor,
        ScaleReward,
        StickyActions,
        TimeLimit,
    )
    from advantage.equations.schedules import Linear
    from advantage.experiments.ablate import ablate
    from advantage.experiments.atari import human_normalized_score
    from advantage.experiments.compare import compare
    from advantage.experiments.preset import Preset, preset
    from advantage.experiments.reward_monitor import RewardMonitor
    from advantage.experiments.suggest import suggest
    from advantage.equations.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
    from advantage.memory.goals import HerReplayBuffer
    from advantage.memory.prioritised import PrioritizedReplayBuffer
    from advantage.models import (
        A2C,
        ALGORITHMS,
        C51,
        DDPG,
        DQN,
        DoubleDQN,
        DuelingDQN,
        IQN,
        PPO,
        QRDQN,
        Rainbow,
        REINFORCE,
        SAC,
        TD3,
        TQC,
        TRPO,
        CrossQ,
        DiscreteSAC,
        MaskablePPO,
        RecurrentPPO,
    )
    from advantage.networks.cnn import ImpalaCNN, NatureCNN
    from advantage.networks.extractors import CombinedExtractor
    from advantage.training.callbacks import BaseCallback, CallbackList
    from advantage.training.evaluation import evaluate_policy
    from advantage.training.ready_callbacks import (
        CheckpointCallback,
        EvalCallback,
        MaskableEvalCallback,
        EventCallback,
        EveryNTimesteps,
        LogEveryNTimesteps,
        ProgressBarCallback,
        StopTrainingOnMaxEpisodes,
        StopTrainingOnNoModelImprovement,
        StopTrainingOnRewardThreshold,
    )
    from advantage.types import Spec


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'advantage' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
