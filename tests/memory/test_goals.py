"""Hindsight: goals come from the same episode, rewards belong to them, and nothing else changes."""

import copy

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from advantage.drivers.host import Rollout
from advantage.memory.goals import HerReplayBuffer, Hindsight, goal_steps, relabelled
from advantage.memory.settings import replay_settings
from advantage.types import Space, Spec

S, N, T, K = 2, 3, 5, 3
BOX = Space("box", (1,), low=-np.inf, high=np.inf)
SPEC = Spec(
    Space("dict", parts=tuple((name, BOX) for name in ("achieved_goal", "desired_goal", "observation"))),
    Space("discrete", (), "int32", n=(9,), start=(0,)),
    masked=True,
)
STRATEGIES = ("future", "final", "episode")


def reward_of(achieved, desired):
    """No two pairs of goals have the same."""
    return (1000 * achieved - desired)[:, 0].astype(np.float32)


def observation(number, leading=()):
    """Nothing is shown twice: what was achieved tells when, and the environment's own goal is negative."""
    shown = {"observation": number, "achieved_goal": number + 0.5, "desired_goal": -number}
    return {name: np.full((*leading, 1), x, np.float32) for name, x in shown.items()}


def legal(number):
    """The masks `[..., 9]` of observations by their numbers `[...]`: no two that follow each other have the same."""
    return np.nan_to_num(np.asarray(number))[..., None].astype(int) * np.array([3, 5, 7, 11, 13, 17, 19, 23, 29]) % 8 < 3


class World:
    """S x N environments, and each episode that ended as `(numbers, final number, terminated)`."""

    def __init__(self):
        self.number = 0
        self.now = {(s, n): self.new() for s in range(S) for n in range(N)}
        self.first = dict.fromkeys(self.now, True)
        self.running = {place: [] for place in self.now}

    def new(self):
        self.number += 1
        return self.number

    def rollout(self, events):
        """A chunk, and the episodes that ended in it. `events [T, S, N]`: what happens in a step."""
        length = len(events) + 1  # the last row is padding: nobody stepped
        obs, final_obs = (observation(np.nan, (S, length + more, N)) for more in (1, 0))
        action, reward = np.full((S, length, N), -1, np.int32), np.full((S, length, N), np.nan, np.float32)
        flags, ended = np.zeros((S, 4, length, N), bool), []
        for t in range(len(events)):
            for s, n in self.now:
                event, place = events[t][s][n], (s, n)
                if event == "reset":  # from outside: what ran has no end
                    self.now[place], self.first[place], event = self.new(), True, "goes on"
                if self.first[place]:
                    self.running[place] = []
                number = self.now[place]
                over, cut = event == "terminated", event == "truncated"
                following = self.new()
                self.now[place] = self.new() if over or cut else following
                flags[s, :, t, n] = self.first[place], over, cut, event != "lost"
                self.first[place] = over or cut
                if event == "lost":  # drivers begin an episode after a gap
                    self.running[place], self.first[place] = [], True
                    continue
                for name, x in observation(number).items():
                    obs[name][s, t, n] = x
                action[s, t, n] = number % 9
                self.running[place].append(number)
                if over or cut:
                    for name, x in observation(following).items():
                        final_obs[name][s, t, n] = x
                    ended.append((s, n, self.running[place], following, over))
                    self.running[place] = []
        masks = [legal(x["observation"][..., 0]) for x in (obs, final_obs)]
        return Rollout(obs, masks[0], action, reward, flags, final_obs, masks[1]), ended


EVENTS = st.sampled_from(["goes on"] * 6 + ["terminated", "truncated", "lost", "reset"])
CHUNKS = st.lists(
    st.lists(st.lists(st.lists(EVENTS, min_size=N, max_size=N), min_size=S, max_size=S), min_size=1, max_size=T),
    min_size=1, max_size=4,
)  # fmt: skip


def hindsight(strategy="future", asked=None):
    def compute_reward(place, achieved, desired):
        if asked is not None:
            asked.append(place)
        return reward_of(achieved, desired)

    return Hindsight(HerReplayBuffer(K, strategy), SPEC, range(7, 7 + S), N, compute_reward)


def check(made, numbers, final, terminated, strategy):
    """Each transition of the episode K times, and only goals that the episode reached."""
    length, following = len(numbers), np.array([*numbers[1:], final])
    step = np.tile(np.arange(length), K)
    np.testing.assert_array_equal(made.obs["observation"][:, 0], np.array(numbers)[step])
    np.testing.assert_array_equal(made.next_obs["observation"][:, 0], following[step])
    np.testing.assert_array_equal(made.obs["achieved_goal"][:, 0], np.array(numbers)[step] + 0.5)
    np.testing.assert_array_equal(made.next_obs["achieved_goal"][:, 0], following[step] + 0.5)
    np.testing.assert_array_equal(made.action, np.array(numbers)[step] % 9)
    np.testing.assert_array_equal(made.mask, legal(np.array(numbers)[step]))
    np.testing.assert_array_equal(made.next_mask, legal(following[step]))
    goal = made.obs["desired_goal"]
    np.testing.assert_array_equal(made.next_obs["desired_goal"], goal)
    reached = {number + 0.5: t for t, number in enumerate(following)}  # after which step
    at = np.array([reached[x] for x in goal[:, 0].tolist()])
    assert strategy != "future" or (at >= step).all()
    assert strategy != "final" or (at == length - 1).all()
    np.testing.assert_array_equal(made.reward, reward_of(made.next_obs["achieved_goal"], goal))
    np.testing.assert_array_equal(made.terminated, (step == length - 1) & terminated)


@pytest.mark.parametrize("strategy", STRATEGIES)
@hypothesis.given(chunks=CHUNKS)
@hypothesis.settings(max_examples=40)
def test_goals_are_of_the_same_episode(strategy, chunks):
    """Whatever ends, is lost or begun anew, and wherever chunks are cut: each episode that ended with an end of its
    own is relabelled once, with goals that it reached (`future`: later), their rewards, and nothing else changed."""
    world, asked = World(), []
    ours = hindsight(strategy, asked)
    for events in chunks:
        rollout, ended = world.rollout(events)
        asked.clear()
        made = ours.take(rollout)
        assert [(s, n) for s, n, _ in made] == [(s, n) for s, n, *_ in ended]
        assert asked == [s * N + n for s, n, *_ in ended]  # each by its own environment
        for (_, _, transitions), (_, _, numbers, final, terminated) in zip(made, ended, strict=True):
            check(transitions, numbers, final, terminated, strategy)


def test_by_hand():
    """Three steps from 0 to 3, with the goals of steps 2, 1 and 2: what was wanted is reached at 2 only."""
    obs = {name: np.arange(3.0)[:, None] for name in ("observation", "achieved_goal")}
    obs["desired_goal"] = np.full((3, 1), 9.0)
    final = {"observation": np.array([3.0]), "achieved_goal": np.array([3.0]), "desired_goal": np.array([9.0])}

    def sparse(achieved, desired):
        return -(achieved != desired)[:, 0].astype(np.float32)

    made = relabelled(obs, np.arange(3), final, False, np.array([[2, 1, 2]]), sparse)
    assert made.obs["desired_goal"][:, 0].tolist() == made.next_obs["desired_goal"][:, 0].tolist() == [3, 2, 3]
    assert made.next_obs["achieved_goal"][:, 0].tolist() == [1, 2, 3]
    assert made.reward.tolist() == [-1, 0, 0] and made.terminated.tolist() == [False] * 3


@pytest.mark.parametrize(("strategy", "choices"), [("future", (4, 3, 2, 1)), ("episode", (4, 4, 4, 4)), ("final", (1,) * 4)])
def test_every_choice_is_equally_likely(strategy, choices):
    """`future` draws from the step itself to the last, `episode` from all, `final` only the last."""
    drawn = goal_steps(strategy, 4000, 4, np.random.default_rng(0))
    for t, expected in enumerate(choices):
        values, counts = np.unique(drawn[:, t], return_counts=True)
        assert values.tolist() == list(range(4 - expected, 4))
        assert expected == 1 or scipy.stats.chisquare(counts).pvalue > 1e-3


def test_long_episodes():
    """Room grows: an episode of 300 steps in chunks of one is relabelled whole."""
    world, ours = World(), hindsight()
    for _ in range(299):
        assert ours.take(world.rollout([[["goes on"] * N] * S])[0]) == []
    rollout, ended = world.rollout([[["truncated"] * N] * S])
    for (_, _, transitions), (_, _, numbers, final, terminated) in zip(ours.take(rollout), ended, strict=True):
        assert len(numbers) == 300
        check(transitions, numbers, final, terminated, "future")


def test_seeds_draw_their_own_goals():
    """A seed's goals do not depend on the seeds beside it, differ from theirs, and change from episode to episode."""
    episode = [[["goes on"] * N] * S] * 20 + [[["truncated"] * N] * S]

    def steps(ours, rollout):
        """The steps whose goals were taken, by seed and environment."""
        first = rollout.obs["observation"][:, 0, :, 0]
        goals = {(s, n): x.obs["desired_goal"][:, 0] - first[s, n] for s, n, x in ours.take(rollout)}
        return {place: np.round(x / (2 * S * N) * 2).tolist() for place, x in goals.items()}

    ours = hindsight()
    rollout, _ = World().rollout(episode)
    together, again = steps(ours, rollout), steps(ours, rollout)
    assert len({str(x) for x in (*together.values(), *again.values())}) == 2 * S * N
    alone = Hindsight(HerReplayBuffer(K), SPEC, [8], N, lambda place, *goals: reward_of(*goals))
    one = rollout._replace(**{
        name: {k: v[1:] for k, v in x.items()} if isinstance(x, dict) else x[1:]
        for name, x in rollout._asdict().items() if x is not None
    })  # fmt: skip
    assert steps(alone, one) == {(0, n): together[1, n] for n in range(N)}


@hypothesis.given(chunks=CHUNKS, more=CHUNKS)
@hypothesis.settings(max_examples=20)
def test_what_is_kept_goes_on(chunks, more):
    """In mid-episode another one is given what was kept: from then on both make the same, and share no memory."""
    world, ours = World(), hindsight()
    for events in chunks:
        ours.take(world.rollout(events)[0])
    kept = copy.deepcopy(ours.kept())
    like = hindsight().like(int(ours.count.max()))
    assert [x.shape for x in leaves(kept)] == [x.shape for x in leaves(like)]
    other = hindsight()
    other.put(kept)
    for events in more:
        rollout, _ = world.rollout(events)
        one, two = ours.take(rollout), other.take(rollout)
        assert len(one) == len(two)
        for x, y in zip(leaves(one), leaves(two), strict=True):
            np.testing.assert_array_equal(x, y)


def leaves(tree):
    if isinstance(tree, dict):
        tree = [tree[name] for name in sorted(tree)]
    return [x for part in tree for x in leaves(part)] if isinstance(tree, list | tuple) else [np.asarray(tree)]


def test_after_a_failure_nothing_goes_on_behind_the_gap():
    """Where rewards cannot be computed the chunk is lost: the episodes that ran do not go on with the next one."""
    world, ours = World(), hindsight()
    compute_reward = ours.compute_reward

    def fail(*_):
        raise RuntimeError("no reward")

    ours.compute_reward = fail
    with pytest.raises(RuntimeError, match="no reward"):
        ours.take(world.rollout([[["truncated"] + ["goes on"] * (N - 1)] * S, [["goes on"] * N] * S])[0])
    ours.compute_reward = compute_reward
    rollout, ended = world.rollout([[["truncated"] * N] * S])
    made = ours.take(rollout)
    assert len(made) == len(ended) == S * N
    assert all(len(x.reward) == K for *_, x in made)  # of one step each


class Enum:
    name = "FINAL"


@pytest.mark.parametrize("given", ["final", "FINAL", Enum])
def test_strategies_by_any_name(given):
    """Upper case and members of an enum, as SB3's users write them; equal settings are equal."""
    assert HerReplayBuffer(2, given) == replay_settings(
        HerReplayBuffer, {"n_sampled_goal": 2, "goal_selection_strategy": "final"}
    )
    assert replay_settings(None, None) is None and replay_settings(None, {}) is None
    assert replay_settings(HerReplayBuffer, None) == HerReplayBuffer(4, "future", False)


@pytest.mark.parametrize(
    ("given", "kwargs", "error", "message"),
    [
        (HerReplayBuffer, {"goal_selection_strategy": "random"}, ValueError, "'random' is not known.*future, final, episode"),
        (HerReplayBuffer, {"n_sampled_goal": 0}, ValueError, "n_sampled_goal=0"),
        (HerReplayBuffer, {"n_sampled_goal": 1.5}, ValueError, "n_sampled_goal=1.5"),
        (HerReplayBuffer, {"n_sampled_goal": True}, ValueError, "n_sampled_goal=True"),
        (HerReplayBuffer, {"copy_info_dict": True}, ValueError, "copy_info_dict=True is not built"),
        (HerReplayBuffer, {"n_sampled_goals": 4}, TypeError, "did you mean 'n_sampled_goal'"),
        (HerReplayBuffer, {"zzz": 4}, TypeError, "it takes n_sampled_goal, goal_selection_strategy"),
        (dict, {}, ValueError, "replay_buffer_class=<class 'dict'> is not known"),
        ("HerReplayBuffer", {}, ValueError, "give advantage.HerReplayBuffer"),
        (None, {"n_sampled_goal": 4}, ValueError, "needs replay_buffer_class"),
    ],
)
def test_bad_settings(given, kwargs, error, message):
    """One clear message each."""
    with pytest.raises(error, match=message):
        replay_settings(given, kwargs)
