"""Evaluation: returns of whole episodes of a trained model, and the pictures of one.

Nothing here changes training: environments in training are copied first, and `predict`'s random stream is
put back afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from advantage.envs.async_envs import AsyncEnvs
from advantage.envs.atari import Atari, Film, is_atari_id, make_atari
from advantage.envs.jax import JaxEnv, check_mask, is_jax_env, make_jax, reset_envs, step_envs
from advantage.envs.make import JAX_PREFIXES, make_gymnasium, reserve_threads
from advantage.envs.masking import get_action_masks, is_masking_supported
from advantage.envs.native import EnvPool
from advantage.envs.normalise import taken_off
from advantage.envs.single import WrapperFacts, wrapper_facts
from advantage.envs.subproc import SubprocVecEnv
from advantage.envs.vec_env import DummyVecEnv
from advantage.envs.vector import HostEnvs, SyncEnvs, VectorEnvs, vector_spec
from advantage.training.hyperparameters import undisturbed
from advantage.types import Observed, Spec, TimeStep

MOST_ENVS = 256
"""JAX environments side by side in one evaluation: more take memory, not less time."""
HOST_ENVS = 16
"""Copies of a Gymnasium id side by side: one call of the policy serves all."""
SEGMENT_STEPS = 500
"""Steps of one compiled rollout: between two, Ctrl-C is heard."""
FRAMES_PER_SECOND = 30.0
"""Of pictures, where the environment does not say."""


def evaluate_policy(
    model: Any,
    env: Any,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    callback: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None,
    reward_threshold: float | None = None,
    return_episode_rewards: bool = False,
    warn: bool = True,
    *,
    use_masking: bool = True,
    seed_index: int = 0,
    seed: int | None = None,
    epsilon: float = 0.0,
) -> tuple[Any, Any]:
    """Mean and standard deviation of the return over episodes, as SB3's function of this name.

    Episodes are divided over the environments beforehand, so that short ones do not count more often.
    Environments that the model trains on are copied. A `RecordEpisodeStatistics` wrapper (or SB3's
    `Monitor`) decides about returns and lengths where every environment has one. Returns are never normalised. A
    `VecNormalize` is taken off: a model that normalises does so by its own statistics, which stay as they are.

    Args:
        model: anything with `predict(obs, state=..., episode_start=..., deterministic=...)`.
        env: an id, a Gymnasium environment, a `DummyVecEnv` or `SubprocVecEnv` (in a `VecNormalize` too), a
            `gymnasium.vector` or a JAX environment.
        n_eval_episodes: episodes in all.
        deterministic: the best action instead of a sampled one.
        render: call the environment's `render()` after every step.
        callback: `f(locals, globals)` after every step of every environment.
        reward_threshold: fail where the mean return is not above it.
        return_episode_rewards: return the episodes' `(returns, lengths)` instead.
        warn: warn where a wrapper changes rewards and nothing keeps the unchanged ones.
        use_masking: choose legal actions only, where the environment says which ones are.
        seed_index: which of the agents trained side by side acts.
        seed: of the environments. None goes on with those given; ids and JAX environments start from 0,
            so that the same call gives the same episodes.
        epsilon: probability of a random action in place of the policy's, as agents of Atari games are evaluated (0.05 by
            Mnih et al., 2015; 0.001 by Hessel et al., 2018): without it a game may stand still for ever.

    Returns:
        `(mean, standard deviation)`, or `(returns, lengths)`, lists with an entry for each episode.

    Raises:
        AssertionError: the mean return is not above `reward_threshold`.
        ValueError: no episodes, or an environment of other spaces than the model.
        EnvironmentFailure: the environment raised an exception.
    """
    _check_count(n_eval_episodes)
    model = getattr(model, "_model", model)  # `model.policy` acts as its model
    env = _jax_env(env) if _is_jax_id(env) else env
    check_epsilon(epsilon)
    if is_jax_env(env) and _is_ours(model) and callback is None and not render and use_masking and not epsilon:
        returns, lengths = _rollouts(model, env, n_eval_episodes, deterministic, [seed_index], seed or 0)
        returns, lengths = returns[0].tolist(), lengths[0].tolist()
    else:
        with _host(model, env, n_eval_episodes, seed) as host, _same_predictions(model):
            if warn:
                _warn_of_changed_rewards(host.envs)
            play = _Play(model, host, deterministic, seed_index, use_masking, epsilon)
            returns, lengths = _count_episodes(play, n_eval_episodes, render, callback)[:2]
    mean = float(np.mean(returns))
    if reward_threshold is not None:
        assert mean > reward_threshold, f"Mean reward below threshold: {mean:.2f} < {reward_threshold:.2f}"
    return (returns, lengths) if return_episode_rewards else (mean, float(np.std(returns)))


def evaluate_seeds(
    model: Any, env: Any, n_eval_episodes: int = 10, deterministic: bool = True, *, seed: int = 0, epsilon: float = 0.0
) -> Float[np.ndarray, "S episodes"]:
    """Returns of every seed's agent over episodes that begin alike for all; `model.best_seed` reads them.

    Args:
        model: one of the library's models.
        env: as for `evaluate_policy`.
        n_eval_episodes: for each seed.
        seed: of the environments.
        epsilon: probability of a random action.

    Raises:
        ValueError, EnvironmentFailure: as `evaluate_policy`.
    """
    return evaluate_every_seed(model, env, n_eval_episodes, deterministic, seed=seed, epsilon=epsilon).returns


class Episodes(NamedTuple):
    """Episodes of every seed's agent, in the environments' order: column j began alike for all seeds."""

    returns: Float[np.ndarray, "S episodes"]
    lengths: Int[np.ndarray, "S episodes"]
    successes: Float[np.ndarray, "S episodes"]  # the last info's `is_success`; NaN where there is none


def evaluate_every_seed(
    model: Any,
    env: Any,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    warn: bool = True,
    *,
    use_masking: bool = True,
    seed: int | None = None,
    epsilon: float = 0.0,
) -> Episodes:
    """What `evaluate_policy` counts, for every seed's agent; arguments and errors are its own.

    With `seed=None` an environment that is given goes on in its random stream, from one agent to the next.
    """
    _check_count(n_eval_episodes)
    check_epsilon(epsilon)
    env, seeds = _jax_env(env) if _is_jax_id(env) else env, list(range(model.num_seeds))
    if is_jax_env(env) and not render and use_masking and not epsilon:
        returns, lengths = _rollouts(model, env, n_eval_episodes, deterministic, seeds, seed or 0)
        return Episodes(np.asarray(returns, np.float64), lengths, np.full(returns.shape, np.nan))
    with _host(model, env, n_eval_episodes, seed) as host, _same_predictions(model):
        if warn:
            _warn_of_changed_rewards(host.envs)
        plays = (_Play(model, host, deterministic, seed_index, use_masking, epsilon) for seed_index in seeds)
        played = [_count_episodes(play, n_eval_episodes, render, None) for play in plays]
    orders = [np.argsort(one.places, kind="stable") for one in played]
    columns = [
        np.stack([np.asarray(one[column], dtype)[order] for one, order in zip(played, orders, strict=True)])
        for column, dtype in enumerate((np.float64, np.int64, np.float64))
    ]
    return Episodes(*columns)


def spec_to_evaluate(env: Any) -> Spec:
    """The spaces of what `evaluate_policy` takes as `env`, of which nothing is stepped or reset.

    Raises:
        TypeError: it takes no such thing.
        ValueError, ImportError: there is no environment of this id, or it needs a package.
    """
    reserve_threads(env)  # it may be given before there is a model
    env, _ = taken_off(env)
    env = _jax_env(env) if _is_jax_id(env) else env
    env = make_atari(env) if is_atari_id(env) else env
    if isinstance(env, str):
        with contextlib.closing(make_gymnasium(env)) as made:
            return Spec.from_gymnasium(made.observation_space, made.action_space)
    if is_jax_env(env):
        return env.spec
    if isinstance(env, gymnasium.vector.VectorEnv):
        return vector_spec(env)
    if isinstance(env, gymnasium.Env | DummyVecEnv | SubprocVecEnv):
        return Spec.from_gymnasium(env.observation_space, env.action_space)
    raise _no_environment(env)


def film(
    model: Any, env: Any, seed: int = 0, deterministic: bool = True, seed_index: int = 0
) -> Iterator[tuple[np.ndarray, float]]:
    """One episode as it is played: pairs of an RGB picture and the return so far.

    Args:
        env: an id, a Gymnasium environment with `render_mode="rgb_array"`, Atari games, or a JAX environment with
            `render(env_state)`.
        seed: of the environment.

    Raises:
        ValueError: the environment draws no RGB pictures.
        ImportError: drawing needs a package that is not installed.
    """
    _refuse_training(model, env)
    made = renderable(env) if isinstance(env, str) else env
    one: Any = (Film if isinstance(made, Atari) else _OneJaxEnv if is_jax_env(made) else _OneGymnasium)(made)
    try:
        with _same_predictions(model):
            obs, state, first, done, total = one.reset(seed), None, True, False, 0.0
            yield one.picture(), total
            while not done:
                options = _options(model, seed_index, one.mask())
                action, state = model.predict(
                    obs, state=state, episode_start=np.array([first]), deterministic=deterministic, **options
                )
                obs, reward, done = one.step(action)
                total, first = total + reward, False
                yield one.picture(), total
    finally:
        if isinstance(env, str):
            one.close()


def record_frames(
    model: Any,
    env: Any,
    max_steps: int = 1000,
    seed: int = 0,
    deterministic: bool = True,
    seed_index: int = 0,
) -> tuple[list[np.ndarray], float]:
    """`(RGB pictures, return)` of one episode, cut after `max_steps`; see `film`."""
    frames, total = [], 0.0
    with contextlib.closing(film(model, env, seed, deterministic, seed_index)) as pictures:
        for frame, total in pictures:
            frames.append(frame)
            if len(frames) > max_steps:
                break
    return frames, total


def renderable(env_id: str) -> Any:
    """The environment of an id, made so that `film` can draw it.

    Raises:
        ValueError, ImportError: there is no such environment, or it needs a package.
    """
    if is_atari_id(env_id):
        return make_atari(env_id)
    return _jax_env(env_id) if _is_jax_id(env_id) else make_gymnasium(env_id, render_mode="rgb_array")


def frames_per_second(env: Any) -> float:
    """The speed at which an environment's pictures show its true time."""
    metadata = getattr(env, "metadata", None) or {}
    return float(metadata.get("render_fps") or FRAMES_PER_SECOND)


# -- episodes on the host -----------------------------------------------------------------------------


class _Host(NamedTuple):
    """Environments ready to be played: `view` is what callbacks see, `seeds [1, N]` begins them."""

    envs: Any
    view: Any
    seeds: np.ndarray | None
    seen: Callable[[PyTree], PyTree]  # what the model is shown of observations


@contextlib.contextmanager
def _host(model: Any, env: Any, episodes: int, seed: int | None) -> Iterator[_Host]:
    """Any environment as one that is stepped; what is made here is closed afterwards."""
    made, (env, wrapper) = None, taken_off(env)
    seen = _as_it_is if wrapper is None or _normalises(model) else wrapper.normalize_obs
    if is_atari_id(env):
        env = made = make_atari(env, min(episodes, HOST_ENVS), training=False)
    elif isinstance(env, Atari) and (env.training or _in_training(model, env)):
        env = made = env.played_whole()
    elif isinstance(env, str):
        copies = min(episodes, HOST_ENVS)
        env = made = DummyVecEnv([functools.partial(make_gymnasium, env)] * copies)
    elif is_jax_env(env):
        env = _SteppedJaxEnvs(env, min(episodes, HOST_ENVS))
    elif _in_training(model, env):
        env = made = _copied(env)
    pending = None
    if isinstance(env, DummyVecEnv | SubprocVecEnv):
        envs: Any = SyncEnvs([env.envs]) if isinstance(env, DummyVecEnv) else env.host
        if env._seeds[0] is not None:  # the caller's `env.seed(...)` holds for the next reset
            pending = np.asarray([env._seeds])
            env._seeds = [None] * env.num_envs
    elif isinstance(env, gymnasium.Env):
        envs = SyncEnvs([[env]])
    elif isinstance(env, gymnasium.vector.VectorEnv):
        envs = VectorEnvs([env])
    elif isinstance(env, _SteppedJaxEnvs):
        envs = env
    else:
        raise _no_environment(env)
    if seed is None and (made is not None or envs is env):
        seed = 0
    try:
        check_spaces(model, envs.spec)
        yield _Host(envs, env, pending if seed is None else _reset_seeds(seed, envs.num_envs), seen)
    finally:
        if made is not None:
            made.close()


def _no_environment(env: Any) -> TypeError:
    return TypeError(
        f"env is a {type(env).__name__}: give an id, a gymnasium.Env, a DummyVecEnv, a"
        " SubprocVecEnv, a gymnasium.vector.VectorEnv or a JAX environment"
    )


class _Play:
    """A policy in N environments that are stepped one after the other."""

    def __init__(
        self, model: Any, host: _Host, deterministic: bool, seed_index: int, use_masking: bool, epsilon: float
    ):
        self.model, self.host, self.deterministic, self.seed_index = model, host, deterministic, seed_index
        self.use_masking, self.epsilon = use_masking, epsilon
        # Drawn beside the environments' streams: all agents meet the same beginnings.
        self.chance = np.random.default_rng([0xE95, *np.ravel(0 if host.seeds is None else host.seeds)])
        self.observed: Observed = _first(host.envs.reset(host.seeds))
        self.state: Any = None

    def step(self) -> tuple[np.ndarray, TimeStep]:
        """`(actions [N, ...], what followed [N, ...])`."""
        mask = self.observed.action_mask if self.use_masking else None
        options = _options(self.model, self.seed_index, mask)
        actions, self.state = self.model.predict(
            self.host.seen(self.observed.obs),
            state=self.state,
            episode_start=np.asarray(self.observed.is_first),
            deterministic=self.deterministic,
            **options,
        )
        if self.epsilon:
            actions = self._some_random(np.asarray(actions), mask)
        step: TimeStep = _first(self.host.envs.step(np.asarray(actions)[None]))
        self.observed = step.observed
        return actions, step

    def _some_random(self, actions: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Each with probability epsilon any legal one in its place."""
        space = self.host.envs.spec.action
        if space.kind != "discrete":
            raise ValueError(f"epsilon={self.epsilon} is for Discrete actions, not {space.to_gymnasium()}: leave it out")
        every = np.ones((len(actions), space.n[0]), bool)
        legal = every if mask is None else np.asarray(mask)
        others = np.array([self.chance.choice(np.flatnonzero(row)) for row in legal]) + space.start[0]
        return np.where(self.chance.random(len(actions)) < self.epsilon, others, actions)


class _Counted(NamedTuple):
    """Episodes in the order of their ends."""

    returns: list[float]
    lengths: list[int]
    successes: list[float]  # NaN where the environment says nothing
    places: list[int]  # the environment


def _count_episodes(
    play: _Play, episodes: int, render: bool, callback: Callable[..., Any] | None
) -> _Counted:
    """Play until every environment has had its share of the episodes."""
    count, envs = play.host.envs.num_envs, play.host.envs
    targets = (episodes + np.arange(count)) // count
    counts, running, steps = np.zeros(count, int), np.zeros(count), np.zeros(count, int)
    recorded = isinstance(envs, SyncEnvs | AsyncEnvs) and all(map(_keeps_statistics, envs.each(wrapper_facts)))
    counted = _Counted([], [], [], [])
    while (counts < targets).any():
        before = play.observed
        actions, step = play.step()
        valid = np.ones(count, bool) if step.valid is None else step.valid
        reward, _, ended = step.reported(None, step.terminated | step.truncated)
        running, steps = running + np.where(valid, reward, 0.0), steps + valid
        dones, infos = valid & ended, getattr(envs, "infos", [{}] * count)
        for i in np.flatnonzero(valid & (counts < targets)).tolist():
            if callback is not None:
                callback(_callback_locals(play, i, before, actions, step, dones, infos, running, steps), {})
            # A wrapper inside may end episodes (a life lost) that its statistics do not count as one.
            if dones[i] and (not recorded or "episode" in infos[i]):
                kept = infos[i]["episode"] if recorded else {"r": running[i], "l": steps[i]}
                counted.returns.append(float(np.asarray(kept["r"]).item()))
                counted.lengths.append(int(np.asarray(kept["l"]).item()))
                success = infos[i].get("is_success")
                counted.successes.append(float("nan") if success is None else float(success))
                counted.places.append(i)
                counts[i] += 1
        over = dones | step.observed.is_first  # also what was lost with its process, and is no episode
        running, steps = np.where(over, 0.0, running), np.where(over, 0, steps)
        if render:
            play.host.view.render()
    return counted


def _callback_locals(
    play: _Play,
    i: int,
    before: Observed,
    actions: np.ndarray,
    step: TimeStep,
    dones: np.ndarray,
    infos: Sequence[dict[str, Any]],
    returns: np.ndarray,
    lengths: np.ndarray,
) -> dict[str, Any]:
    """What SB3's loop holds while it looks at environment `i`."""
    return {
        "model": play.model,
        "env": play.host.view,
        "n_envs": len(dones),
        "i": i,
        "observations": before.obs,
        "episode_starts": before.is_first,
        "states": play.state,
        "actions": actions,
        "new_observations": step.observed.obs,
        "rewards": step.reward,
        "dones": dones,
        "infos": infos,
        "reward": step.reward[i],
        "done": bool(dones[i]),
        "info": infos[i],
        "current_rewards": returns,
        "current_lengths": lengths,
    }


class _SteppedJaxEnvs:
    """N copies of a JAX environment stepped by hand: for callbacks, and for policies that are not ours."""

    def __init__(self, env: JaxEnv, num_envs: int):
        self.env, self.spec, self.num_seeds, self.num_envs = env, env.spec, 1, num_envs
        self._reset, self._step = _jitted(env)

    def reset(self, seeds: np.ndarray | None) -> Observed:
        key = jax.random.PRNGKey(0 if seeds is None else int(seeds[0, 0]))
        self.key, now = jax.random.split(key)
        self.env_state, self.observed = self._reset(jax.random.split(now, self.num_envs))
        return jax.tree.map(lambda x: np.asarray(x)[None], self.observed)

    def step(self, action: np.ndarray) -> TimeStep:
        self.key, now = jax.random.split(self.key)
        self.env_state, step = self._step(self.env_state, self.observed, jnp.asarray(action[0]), now)
        self.observed = step.observed
        return jax.tree.map(lambda x: np.asarray(x)[None], step)

    def render(self) -> np.ndarray:
        return self.env.render(jax.tree.map(lambda x: np.asarray(x[0]), self.env_state))

    def close(self) -> None:
        """Nothing is held."""


@functools.lru_cache(maxsize=16)
def _jitted(env: JaxEnv) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return jax.jit(functools.partial(reset_envs, env)), jax.jit(functools.partial(step_envs, env))


# -- episodes in one compiled program --------------------------------------------------------------------


class _Rollout(NamedTuple):
    """N episodes, one in each environment; what follows an environment's first episode is not counted."""

    env_state: PyTree
    observed: Observed
    carry: PyTree
    key: Array
    returns: Float[Array, "*S N"]
    lengths: Int[Array, "*S N"]
    done: Bool[Array, "*S N"]


def _rollouts(
    model: Any, env: JaxEnv, episodes: int, deterministic: bool, seeds: list[int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(returns, lengths) [S, episodes]` of the agents `seeds`, all from the same beginnings."""
    check_spaces(model, env.spec)
    check_mask(env)
    batches = -(-episodes // MOST_ENVS)
    num_envs = -(-episodes // batches)
    begin, go_on = _rollout_programs(model.algorithm, undisturbed(model._config), env, num_envs, not deterministic)
    returns, lengths = [], []
    with model._on_device():
        actors = jax.tree.map(lambda *x: jnp.stack(x), *[model._actor(s) for s in seeds])
        for batch in range(batches):
            # Not training's stream of the same number.
            key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), 0xE7A1), batch)
            rollout = jax.tree.map(lambda x: jnp.stack([x] * len(seeds)), begin(key))
            while not bool(jnp.all(rollout.done)):
                rollout = go_on(actors, rollout)
            returns.append(np.asarray(rollout.returns))
            lengths.append(np.asarray(rollout.lengths))
    return np.concatenate(returns, axis=1)[:, :episodes], np.concatenate(lengths, axis=1)[:, :episodes]


@functools.lru_cache(maxsize=32)
def _rollout_programs(
    algorithm: Any, config: Any, env: JaxEnv, num_envs: int, explore: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(begin(key), go_on(actors [S, ...], rollout [S, ...]))`."""

    def begin(key: Array) -> _Rollout:
        key, now = jax.random.split(key)
        env_state, observed = reset_envs(env, jax.random.split(now, num_envs))
        carry = algorithm.initial_carry(config, env.spec, num_envs)
        returns, lengths = jnp.zeros(num_envs, jnp.float32), jnp.zeros(num_envs, jnp.int32)
        return _Rollout(env_state, observed, carry, key, returns, lengths, jnp.zeros(num_envs, bool))

    def step(actor: PyTree, rollout: _Rollout) -> _Rollout:
        key, act_key, step_key = jax.random.split(rollout.key, 3)
        action, carry = algorithm.act(config, actor, rollout.carry, rollout.observed, act_key, explore)
        env_action = algorithm.to_env(env.spec.action, action)
        env_state, after = step_envs(env, rollout.env_state, rollout.observed, env_action, step_key)
        counted = ~rollout.done
        return _Rollout(
            env_state, after.observed, carry, key,
            rollout.returns + jnp.where(counted, after.reward, 0.0),
            rollout.lengths + counted.astype(jnp.int32),
            rollout.done | after.terminated | after.truncated,
        )  # fmt: skip

    def go_on(actor: PyTree, rollout: _Rollout) -> _Rollout:
        def unfinished(carried: tuple[Array, _Rollout]) -> Array:
            return (carried[0] < SEGMENT_STEPS) & ~jnp.all(carried[1].done)

        def advance(carried: tuple[Array, _Rollout]) -> tuple[Array, _Rollout]:
            return carried[0] + jnp.int32(1), step(actor, carried[1])

        return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), rollout))[1]

    return jax.jit(begin), jax.jit(jax.vmap(go_on))


# -- one environment and its pictures ---------------------------------------------------------------------


class _OneGymnasium:
    """A Gymnasium environment that is filmed."""

    def __init__(self, env: Any):
        if not isinstance(env, gymnasium.Env) or env.render_mode != "rgb_array":
            mode = getattr(env, "render_mode", None)
            raise ValueError(
                f"env has render_mode={mode!r}: pictures need one gymnasium.Env with render_mode='rgb_array'"
            )
        self.env = env

    def reset(self, seed: int) -> Any:
        return self.env.reset(seed=seed)[0]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool]:
        # Discrete environments want a plain integer.
        obs, reward, terminated, truncated, _ = self.env.step(action.item() if action.ndim == 0 else action)
        return obs, float(reward), bool(terminated or truncated)

    def mask(self) -> np.ndarray | None:
        return get_action_masks(self.env) if is_masking_supported(self.env) else None

    def picture(self) -> np.ndarray:
        try:
            frame = self.env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(
                f"pictures of {self.env.unwrapped} need a package that is not installed: {error}"
            ) from None
        return np.asarray(frame, np.uint8)

    def close(self) -> None:
        self.env.close()


class _OneJaxEnv:
    """A JAX environment that is filmed."""

    def __init__(self, env: Any):
        if not callable(getattr(env, "render", None)):
            raise ValueError(f"{env.id} draws no pictures: a JAX environment needs render(env_state)")
        self.env = env
        self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)

    def reset(self, seed: int) -> Any:
        self.key, now = jax.random.split(jax.random.PRNGKey(seed))
        self.env_state, obs = self._reset(now)
        return obs

    def step(self, action: np.ndarray) -> tuple[Any, float, bool]:
        self.key, now = jax.random.split(self.key)
        self.env_state, after = self._step(self.env_state, jnp.asarray(action), now)
        return after.obs, float(after.reward), bool(after.terminated | after.truncated)

    def mask(self) -> np.ndarray | None:
        return np.asarray(self.env.action_mask(self.env_state)) if hasattr(self.env, "action_mask") else None

    def picture(self) -> np.ndarray:
        return self.env.render(self.env_state)

    def close(self) -> None:
        """Nothing is held."""


# -- the model and its environments ------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _jax_env(env_id: str) -> JaxEnv:
    """One instance per id: programs are compiled for instances."""
    return make_jax(env_id)


def _is_jax_id(env: Any) -> bool:
    return isinstance(env, str) and env.startswith(JAX_PREFIXES)


def _is_ours(model: Any) -> bool:
    return hasattr(model, "_actor") and hasattr(model, "algorithm")


def _normalises(model: Any) -> bool:
    """Whether the model takes raw observations and normalises them itself."""
    return _is_ours(model) and model.normalize is not None


def _options(model: Any, seed_index: int, mask: Any) -> dict[str, Any]:
    """What our `predict` takes beyond SB3's."""
    return {"seed_index": seed_index, "action_masks": mask} if _is_ours(model) else {}


@contextlib.contextmanager
def _same_predictions(model: Any) -> Iterator[None]:
    """Put the count that `predict` draws its random numbers by back to what it was."""
    before = model._predictions if _is_ours(model) else None
    try:
        yield
    finally:
        if before is not None:
            model._predictions = before


def _bases(env: Any) -> set[int]:
    """The identities of the environments under all wrappers."""
    env, _ = taken_off(env)
    envs = env.envs if isinstance(env, DummyVecEnv) else [env]
    return {id(getattr(one, "unwrapped", one)) for one in envs}


def _in_training(model: Any, env: Any) -> bool:
    """Whether the model trains on this environment, whatever wraps it."""
    training = model.get_env() if hasattr(model, "get_env") else None
    if training is None or is_jax_env(training):  # a JAX environment holds no state
        return False
    return bool(_bases(training) & _bases(env))


def _refuse_training(model: Any, env: Any) -> None:
    if not isinstance(env, str) and not is_jax_env(env) and _in_training(model, env):
        raise ValueError("env is the one the model trains on: give its id, or another instance")


def _copied(env: Any) -> Any:
    """An environment like the one in training: a copy as it is now, or else built anew."""
    try:
        if isinstance(env, DummyVecEnv):
            copies = [_copied_one(one, make) for one, make in zip(env.envs, env.env_fns, strict=True)]
            return DummyVecEnv([functools.partial(_itself, one) for one in copies])
        if isinstance(env, SubprocVecEnv | EnvPool | Atari):
            return env.copy()
        if isinstance(env, gymnasium.vector.VectorEnv):
            return gymnasium.make_vec(env.spec)
        return _copied_one(env, functools.partial(gymnasium.make, env.spec, disable_env_checker=True))
    except Exception as error:
        raise ValueError(
            f"env is the one the model trains on and cannot be copied ({error}): evaluate on another"
        ) from error


def _copied_one(env: gymnasium.Env, make: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    try:
        return copy.deepcopy(env)
    except Exception:  # windows, simulators and open files cannot be copied: each in its own words
        made = make()
        if _bases(made) & _bases(env):
            raise ValueError("its factory returns the same instance again") from None
        return made


def _itself(env: gymnasium.Env) -> gymnasium.Env:
    return env


def _as_it_is(obs: PyTree) -> PyTree:
    return obs


def _first(tree: PyTree) -> PyTree:
    """Without the axis of seeds."""
    return jax.tree.map(lambda x: x[0], tree)


def _reset_seeds(seed: int, num_envs: int) -> np.ndarray:
    """Seeds `[1, N]`, not those that training derives from the same number."""
    drawn = np.random.SeedSequence((seed, 0xE7A1)).generate_state(num_envs)
    return (drawn.astype(np.int64) & 0x7FFFFFFF)[None]


def _check_count(episodes: int) -> None:
    if isinstance(episodes, bool) or int(episodes) != episodes or episodes < 1:
        raise ValueError(f"n_eval_episodes={episodes!r} has to be a whole number of at least 1")


def check_epsilon(epsilon: float) -> float:
    """`epsilon`; raises `ValueError` unless it is a probability."""
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon={epsilon!r} is a probability: give one between 0 and 1")
    return epsilon


def check_spaces(model: Any, spec: Spec) -> None:
    """The kinds and shapes have to agree; bounds may differ."""
    ours = getattr(model, "_spec", None)
    if ours is None:
        return
    for name in ("observation", "action"):
        mine, theirs = getattr(ours, name), getattr(spec, name)
        if (mine.kind, mine.shape, mine.n) != (theirs.kind, theirs.shape, theirs.n):
            raise ValueError(
                f"env's {name} space is {theirs.to_gymnasium()}, the model's {mine.to_gymnasium()}:"
                " evaluate on an environment of the same spaces"
            )


def _keeps_statistics(wrappers: list[WrapperFacts]) -> bool:
    return any(wrapper.keeps_statistics for wrapper in wrappers)


def _warn_of_changed_rewards(envs: HostEnvs) -> None:
    for wrappers in envs.each(wrapper_facts) if isinstance(envs, SyncEnvs | AsyncEnvs) else []:
        names = [wrapper.name for wrapper in wrappers if wrapper.changes_rewards]
        if names and not _keeps_statistics(wrappers):
            warnings.warn(
                f"{names[0]} changes the rewards that are evaluated: put RecordEpisodeStatistics (of"
                " gymnasium.wrappers) inside it to evaluate the unchanged ones",
                UserWarning,
                stacklevel=3,
            )
            return
