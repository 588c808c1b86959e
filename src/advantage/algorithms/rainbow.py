"""Rainbow: six improvements of DQN in one agent (Hessel et al., 2018, https://arxiv.org/abs/1710.02298).

It has no equation of its own. Each part is a setting of `dqn` or of `c51`, which `settings` puts together: all of them
for Rainbow, all but one for the paper's ablations, one alone to see what it brings.
"""

from collections.abc import Collection
from typing import Any

from advantage.algorithms.double_dqn import double_action, double_value, greedy_action
from advantage.algorithms.dqn import greedy_value
from advantage.memory.prioritised import PrioritizedReplayBuffer
from advantage.networks.dueling import dueling_network
from advantage.networks.noisy import noisy_dueling_network, noisy_q_network
from advantage.networks.optimisers import adam_rainbow
from advantage.networks.q_network import q_network

PARTS = ("double", "prioritised", "dueling", "multi-step", "distributional", "noisy")

NETWORKS = {
    frozenset(): q_network,
    frozenset({"dueling"}): dueling_network,
    frozenset({"noisy"}): noisy_q_network,
    frozenset({"dueling", "noisy"}): noisy_dueling_network,
}


def settings(parts: Collection[str]) -> dict[str, Any]:
    """The hyper-parameters that bring these parts: of `C51` where `"distributional"` is one of them, else of `DQN`.

    Raises:
        ValueError: there is no such part.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"parts={sorted(unknown)} are not known: choose from {', '.join(PARTS)}")
    double = "double" in parts
    given: dict[str, Any] = {"network": NETWORKS[frozenset(parts) & {"dueling", "noisy"}]}
    if "distributional" in parts:
        given["next_action"] = double_action if double else greedy_action
    else:
        given["bootstrap"] = double_value if double else greedy_value
    if "prioritised" in parts:
        given |= {"replay_buffer_class": PrioritizedReplayBuffer, "replay_buffer_kwargs": {"alpha": 0.5}}
    if "multi-step" in parts:
        given["n_steps"] = 3
    if "noisy" in parts:  # which explores in place of epsilon
        given |= {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}
    return given


SETTINGS = settings(PARTS) | {
    "learning_rate": 6.25e-5, "learning_starts": 20_000, "target_update_interval": 8_000, "optimizer": adam_rainbow,
}  # fmt: skip
"""Rainbow's defaults: those of the paper's table 1, in agent steps of four frames."""
