"""Hindsight experience replay: what was reached by chance is learned from as if it had been wanted.

Andrychowicz et al., 2017, https://arxiv.org/abs/1707.01495. When an episode ends, each of its transitions is
remembered again with other goals, which the episode did reach, and with the rewards that these would have brought.
All of it is NumPy on the host; what comes out is pushed into the replay as any other transition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from advantage.types import Spec

STRATEGIES = ("future", "final", "episode")

ComputeReward = Callable[[int, np.ndarray, np.ndarray], Float[np.ndarray, " R"]]
"""`(place, achieved [R, ...], desired [R, ...]) -> rewards [R]`: `place` counts all seeds' environments."""


@dataclasses.dataclass(frozen=True)
class HerReplayBuffer:
    """How goals are relabelled: `SAC(..., replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs={...})`.

    Args:
        n_sampled_goal: relabelled copies of each transition; 4 to 8.
        goal_selection_strategy: whose achieved goal becomes the wanted one: `future` a later step's of the same
            episode, `final` its last step's, `episode` any step's of it. Upper case and SB3's enum are understood.
        copy_info_dict: only False: infos are not kept, `compute_reward` gets empty ones.

    Raises:
        ValueError: a setting that cannot work.
    """

    n_sampled_goal: int | np.integer | float = 4  # a fraction is refused
    goal_selection_strategy: Any = "future"
    copy_info_dict: bool = False

    def __post_init__(self) -> None:
        strategy = getattr(self.goal_selection_strategy, "name", self.goal_selection_strategy)
        if str(strategy).lower() not in STRATEGIES:
            raise ValueError(
                f"goal_selection_strategy={strategy!r} is not known: choose from {', '.join(STRATEGIES)}"
            )
        object.__setattr__(self, "goal_selection_strategy", str(strategy).lower())
        copies = self.n_sampled_goal
        if isinstance(copies, bool) or not isinstance(copies, int | np.integer) or copies < 1:
            raise ValueError(f"n_sampled_goal={copies!r} has to be a whole number, 1 or more: copies with other goals")
        object.__setattr__(self, "n_sampled_goal", int(copies))
        if self.copy_info_dict:
            raise ValueError(
                "copy_info_dict=True is not built: infos are not kept, so compute_reward has to do without; leave it out"
            )


class Transitions(NamedTuple):
    """R transitions of one step each."""

    obs: dict[str, np.ndarray]  # [R, ...]
    action: np.ndarray  # [R, ...]
    reward: Float[np.ndarray, " R"]
    terminated: Bool[np.ndarray, " R"]
    next_obs: dict[str, np.ndarray]  # [R, ...]
    mask: Bool[np.ndarray, "R A"] | None = None  # legal actions before and after, which depend on no goal
    next_mask: Bool[np.ndarray, "R A"] | None = None


def goal_steps(strategy: str, copies: int, length: int, rng: np.random.Generator) -> Int[np.ndarray, "K T"]:
    """The step of an episode of T steps whose outcome becomes the goal, for each copy of each step (section 4.5).

    `future` draws from the step itself on: its own outcome is the first that comes later.
    """
    if strategy == "final":
        return np.full((copies, length), length - 1)
    first = np.arange(length) if strategy == "future" else np.zeros(length, int)
    return rng.integers(first[None], length, (copies, length))


def relabelled(
    obs: dict[str, np.ndarray],
    action: np.ndarray,
    final_obs: dict[str, np.ndarray],
    terminated: bool,
    goals: Int[np.ndarray, "K T"],
    compute_reward: Callable[[np.ndarray, np.ndarray], Float[np.ndarray, " R"]],
) -> Transitions:
    """K times the T transitions of an episode, each with another goal and that goal's reward.

    Args:
        obs: what was seen before each step `[T, ...]`; `final_obs [...]` followed the last.
        action: the policy's own `[T, ...]`.
        terminated: whether the episode's last step ended the task: stays so, whatever the goal, as in SB3.
        goals: the steps whose achieved goals are taken.
        compute_reward: of achieved and wanted goals `[K * T, ...]`.
    """
    copies, length = goals.shape
    following = {name: np.concatenate([x[1:], final_obs[name][None]]) for name, x in obs.items()}
    step = np.tile(np.arange(length), copies)
    achieved = following["achieved_goal"]
    goal = achieved[goals.reshape(-1)]
    return Transitions(
        obs={name: x[step] for name, x in obs.items()} | {"desired_goal": goal},
        action=action[step],
        reward=compute_reward(achieved[step], goal),
        terminated=terminated & (step == length - 1),
        next_obs={name: x[step] for name, x in following.items()} | {"desired_goal": goal},
    )


class Hindsight:
    """The running episodes of `S` seeds of `N` environments, and what is made of them when they end."""

    def __init__(
        self,
        settings: HerReplayBuffer,
        spec: Spec,
        seeds: Sequence[int],
        num_envs: int,
        compute_reward: ComputeReward,
    ):
        """`spec` has the observations `achieved_goal` and `desired_goal`; each seed draws goals of its own."""
        self.settings, self.spec, self.seeds, self.compute_reward = settings, spec, seeds, compute_reward
        shape = (len(seeds), num_envs)
        self.count = np.zeros(shape, np.int32)  # steps of the running episodes
        self.ended = np.zeros(len(seeds), np.uint32)  # episodes relabelled so far
        self._rows = self._zeros(64)

    def take(self, rollout: Any) -> list[tuple[int, int, Transitions]]:
        """Go on with a chunk's rows; answers `(seed index, environment, transitions)` for each episode that ended.

        A row that does not count, or a reset from outside, drops the episode that ran: nobody knows its end.

        Args:
            rollout: of the host driver: `obs [S, T+1, N, ...]`, `action [S, T, N, ...]`, `flags [S, 4, T, N]` (is_first, terminated,
                truncated, valid), `final_obs [S, T, N, ...]`, and masks.

        Raises:
            EnvironmentFailure: an environment could not say what other goals would have brought.
        """
        made = []
        is_first, terminated, truncated, valid = np.moveaxis(rollout.flags, 1, 0)
        done = (terminated | truncated) & valid
        for t in range(done.shape[1]):
            # Where an invalid row is a gap, and no padding of a chunk that was cut, the next valid one begins anew.
            self.count[is_first[:, t] & valid[:, t]] = 0
            self._write(t, rollout, valid[:, t])
            for s, n in np.argwhere(done[:, t]).tolist():
                final = jax.tree.map(lambda x, at=(s, t, n): x[at], (rollout.final_obs, rollout.final_mask))
                try:
                    made.append((s, n, self._relabelled(s, n, final, bool(terminated[s, t, n]))))
                except Exception:
                    self.count[:] = 0  # the rest of the chunk is lost, and what runs would go on behind a gap
                    raise
                self.count[s, n] = 0
        return made

    def _relabelled(self, s: int, n: int, final: tuple[dict, np.ndarray | None], terminated: bool) -> Transitions:
        length = int(self.count[s, n])
        # By the count of episodes, so that there is no generator whose state has to be kept.
        rng = np.random.default_rng(np.random.SeedSequence(self.seeds[s], spawn_key=(1, int(self.ended[s]))))
        self.ended[s] += 1
        goals = goal_steps(self.settings.goal_selection_strategy, self.settings.n_sampled_goal, length, rng)
        obs, mask, action = jax.tree.map(lambda x: x[s, n, :length], self._rows)
        place = s * self.count.shape[1] + n
        made = relabelled(obs, action, final[0], terminated, goals, lambda *given: self.compute_reward(place, *given))
        if mask is None:
            return made
        copies, following = goals.shape[0], np.concatenate([mask[1:], final[1][None]])
        return made._replace(mask=np.tile(mask, (copies, 1)), next_mask=np.tile(following, (copies, 1)))

    def _write(self, t: int, rollout: Any, valid: Bool[np.ndarray, "S N"]) -> None:
        """Row t, behind each environment's last."""
        s, n = np.nonzero(valid)
        at = self.count[s, n]
        if at.size and at.max() == self._rows[-1].shape[2]:
            self._rows = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)], axis=2), self._rows)
        for into, x in zip(*map(jax.tree.leaves, (self._rows, rollout[:3])), strict=True):  # obs, mask, action
            into[s, n, at] = x[s, t, n]
        self.count[s, n] = at + 1

    def _zeros(self, length: int) -> tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray]:
        leading, choices = (*self.count.shape, length), self.spec.choices
        mask = np.zeros((*leading, choices), bool) if choices else None
        return self.spec.observation.zeros(leading), mask, self.spec.action.zeros(leading)

    # -- checkpoints -------------------------------------------------------------------------------

    def kept(self) -> PyTree[np.ndarray]:
        """All that `put` needs to go on."""
        longest = int(self.count.max())
        rows = jax.tree.map(lambda x: x[:, :, :longest], self._rows)
        return {"count": self.count, "ended": self.ended, "rows": rows}

    def like(self, longest: int) -> PyTree[np.ndarray]:
        """Zeros of `kept`'s structure, where the longest running episode has so many steps."""
        return {"count": self.count, "ended": self.ended, "rows": self._zeros(longest)}

    def put(self, kept: Mapping[str, Any]) -> None:
        """Go on where another one was."""
        self.count, self.ended = np.array(kept["count"]), np.array(kept["ended"])
        # Twice as long: there is room to go on, and copies that may be written to.
        self._rows = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)], axis=2), kept["rows"])
        if self._rows[-1].shape[2] == 0:
            self._rows = self._zeros(64)
