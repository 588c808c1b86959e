"""Atari games as the literature plays them, on the Arcade Learning Environment's own vectorised environment (ALE).

Mnih et al. (2015, https://doi.org/10.1038/nature14236) and Machado et al. (2018, https://arxiv.org/abs/1709.06009).
"""

from __future__ import annotations

import difflib
import numbers
import os
import re
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

PROTOCOLS: dict[str, dict[str, Any]] = {
    "classic": {
        "noop_max": 30, "terminal_on_life_loss": True, "action_repeat_probability": 0.0, "full_action_space": False,
        "fire_on_reset": True,
    },
    "machado": {
        "noop_max": 0, "terminal_on_life_loss": False, "action_repeat_probability": 0.25, "full_action_space": True,
        "fire_on_reset": False,
    },
}  # fmt: skip
"""How a game is played: `classic` as Mnih et al. (2015) did, `machado` with sticky actions, as Machado et al. (2018) advise."""
SETTINGS: dict[str, Any] = {"frame_skip": 4, "stack": 4, "screen_size": 84, "max_frames": 108_000, "clip_reward": True}
"""What both protocols share: 108,000 frames are half an hour of play."""
PLAYED_WHOLE = {"terminal_on_life_loss": False, "clip_reward": False}
FULL_SCREEN = (210, 160)


def make_atari(
    env_id: str,
    n_envs: int = 1,
    *,
    protocol: str | None = None,
    training: bool = True,
    seed: int | None = None,
    num_threads: int | None = None,
    **settings: Any,
) -> Atari:
    """Atari games side by side: 84 x 84 pixels of grey, the last 4 frames, each action repeated for 4 frames.

    Every repetition's last two frames are maximised over, since some games draw things in every other frame only.

    Args:
        env_id: the game: `"ALE/Pong-v5"`, `"PongNoFrameskip-v4"` or `"pong"`; a protocol may follow it:
            `"ALE/Pong-v5@machado"`.
        n_envs: how many games.
        protocol: `"classic"`, unless `env_id` names another: no sticky actions, up to 30 idle frames at the start of a
            game, the actions that the game knows, and in training a lost life ends an episode. `"machado"`: sticky
            actions (with probability 0.25 the last one is repeated), all 18 actions, and only the game's end ends an
            episode.
        training: rewards are their signs, and a lost life may end an episode, though the game goes on. False: games are
            played whole and rewards are the game's own. What training reports are raw scores of whole games in any case.
        seed: of the first game; the others follow it. None: what trains on them decides.
        num_threads: of ALE; None: one for each game, at most one for each core.
        settings: in place of the protocol's: `noop_max` and `max_frames` of a game (frames), `frame_skip`, `stack`,
            `screen_size` (pixels), `terminal_on_life_loss`, `clip_reward`, `action_repeat_probability`,
            `full_action_space`, `fire_on_reset` (a game that waits for the fire button gets it).

    Raises:
        ValueError: no such game (near names are listed), protocol or setting.
        ImportError: ALE is not installed.
    """
    if not isinstance(env_id, str):
        raise ValueError(f"env_id={env_id!r} is no id: give one such as 'ALE/Pong-v5'")
    game, _, of_id = env_id.partition("@")
    if of_id and protocol not in (None, of_id):
        raise ValueError(f"protocol={protocol!r}, and env={env_id!r} names another: give one of them")
    protocol = protocol or of_id or "classic"
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is not known: choose from {', '.join(PROTOCOLS)}")
    known = {**SETTINGS, **PROTOCOLS[protocol]}
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise ValueError(f"make_atari has no setting {name!r}: {remedy}")
    settings = _checked({**known, **({} if training else PLAYED_WHOLE), **settings})
    threads = None if num_threads is None else _whole("num_threads", num_threads, 1)
    env = Atari(rom_of(game), _whole("n_envs", n_envs, 1), settings, threads)
    env.first_seed = env._pending = None if seed is None else env._seed(seed)
    game = game if is_atari_id(game) else f"ALE/{''.join(word.capitalize() for word in env.rom.split('_'))}-v5"
    env.env_id, env.protocol, env.training = game if protocol == "classic" else f"{game}@{protocol}", protocol, training
    return env


def make_atari_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    wrapper_kwargs: dict[str, Any] | None = None,
    vec_env_cls: Any = None,
) -> Atari:
    """Atari games for training with one frame an observation, as SB3's function of this name; `VecFrameStack` stacks them.

    Args:
        env_id: as for `make_atari`.
        n_envs: how many games.
        seed: of the first game.
        wrapper_kwargs: settings of `make_atari`, which are those of SB3's `AtariWrapper`.
        vec_env_cls: not needed; ALE has threads of its own.

    Raises:
        ValueError, ImportError: as `make_atari`.
    """
    return make_atari(env_id, n_envs, seed=seed, **{"stack": 1, **(wrapper_kwargs or {})})


def VecFrameStack(venv: Any, n_stack: int) -> Atari:  # noqa: N802  (SB3's name)
    """Atari games with `n_stack` frames an observation.

    Raises:
        ValueError: these are no Atari games, or have a stack already.
    """
    if not isinstance(venv, Atari):
        raise ValueError(
            f"VecFrameStack stacks the frames of make_atari_env(...), and this is a {type(venv).__name__}: wrap each"
            f" environment, make_vec_env(..., wrapper_class=FrameStack, wrapper_kwargs={{'stack_size': {n_stack}}})"
        )
    if venv.stack > 1:
        raise ValueError(f"n_stack={n_stack}: these games have stacks of {venv.stack} frames: leave VecFrameStack out")
    other = venv.like(stack=_whole("n_stack", n_stack, 1))
    other.first_seed = other._pending = venv.first_seed
    return other


def is_atari_id(env: Any) -> bool:
    """Whether this is an id of ALE's, or one of Gymnasium's older ids of a game without frame skip."""
    return isinstance(env, str) and (env.startswith("ALE/") or bool(re.fullmatch(r"\w+NoFrameskip-v\d(@\w+)?", env)))


def rom_of(env_id: str) -> str:
    """ALE's name of a game, such as `"ms_pacman"` for `"ALE/MsPacman-v5"`.

    Raises:
        ValueError: there is no such game.
        ImportError: ALE is not installed.
    """
    roms, plain = {plain_name(name): name for name in _ale().roms.get_all_rom_ids()}, plain_name(env_id)
    if plain not in roms:
        near = [roms[name] for name in difflib.get_close_matches(plain, roms, n=4, cutoff=0.5)]
        raise ValueError(
            f"env={env_id!r} is no game of ALE's: "
            + (f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(sorted(roms.values()))}")
        )
    return roms[plain]


def plain_name(env_id: str) -> str:
    """A game's name in small letters and nothing else, whichever way it is written."""
    game = re.sub(r"(NoFrameskip|Deterministic)?(-v\d+)?(@\w+)?$", "", env_id.removeprefix("ALE/"))
    return re.sub(r"[^a-z0-9]", "", game.lower())


class Atari(gymnasium.vector.VectorEnv):
    """Games of ALE side by side, each begun anew in the step in which it ends. `make_atari` makes them.

    Observations are `[stack, screen_size, screen_size]` uint8; after the start of a game the frames that are not there are
    black. Where a life is lost in training, `terminated` is true and the game goes on: nothing is reset, the stack too.

    `infos["score"]` holds the raw scores of the step `[N]`, `infos["lives"]` the lives left; `infos["_final_obs"]` says
    which games are over and begun anew, and `infos["final_obs"]` has their last observations.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": 15}
    first_seed: int | None = None  # also what a model that trains on it takes
    _pending: int | None = None  # the seed of the next reset that is given none
    env_id: str
    protocol: str
    training: bool

    def __init__(
        self,
        rom: str,
        n_envs: int,
        settings: Mapping[str, Any],
        num_threads: int | None = None,
        colour: bool = False,
    ):
        self.rom, self.num_envs, self.settings, self.num_threads = rom, n_envs, dict(settings), num_threads
        size = self.settings["screen_size"]
        height, width = FULL_SCREEN if colour else (size, size)
        self._games = _ale().vector_env.AtariVectorEnv(
            rom, n_envs, autoreset_mode=AutoresetMode.SAME_STEP, num_threads=num_threads or min(n_envs, os.cpu_count() or 1),
            max_num_frames_per_episode=settings["max_frames"], repeat_action_probability=settings["action_repeat_probability"],
            full_action_space=settings["full_action_space"], img_height=height, img_width=width, grayscale=not colour,
            stack_num=1 if colour else settings["stack"], frameskip=settings["frame_skip"], noop_max=settings["noop_max"],
            use_fire_reset=settings["fire_on_reset"], reward_clipping=False, episodic_life=False, life_loss_info=False,
        )  # fmt: skip
        self.single_observation_space = self._games.single_observation_space
        self.single_action_space = self._games.single_action_space
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)
        self._lives = np.zeros(n_envs, np.int32)

    @property
    def stack(self) -> int:
        """Frames of an observation."""
        return self.settings["stack"]

    @property
    def id(self) -> str:
        """As it was asked for."""
        return self.env_id

    def is_plain(self) -> bool:
        """Whether the id alone makes such games."""
        return self.training and self.settings == {**SETTINGS, **PROTOCOLS[self.protocol]}

    def like(self, n_envs: int | None = None, **settings: Any) -> Atari:
        """Other games by the same settings, except for these."""
        other = Atari(self.rom, n_envs or self.num_envs, {**self.settings, **settings}, self.num_threads)
        other.env_id, other.protocol, other.training = self.env_id, self.protocol, self.training
        return other

    copy = like

    def played_whole(self, n_envs: int | None = None) -> Atari:
        """The same for evaluation."""
        other = self.like(n_envs, **PLAYED_WHOLE)
        other.training = False
        return other

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """New games everywhere, game i with seed + i."""
        seed, self._pending = self._pending if seed is None else self._seed(seed), None
        obs, info = self._games.reset(seed=seed, options=options)
        self._lives = info["lives"]
        return obs, info

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play the games on by an action each `[N]`.

        Raises:
            ValueError: that are no actions of the game's, for which ALE would wait for ever.
        """
        actions, most = np.asarray(actions), self.single_action_space.n
        whole = actions.dtype.kind in "iu" and actions.shape == (self.num_envs,)
        if not whole or not ((actions >= 0) & (actions < most)).all():
            raise ValueError(f"actions={actions.tolist()} have to be {self.num_envs} whole number(s) of 0 to {most - 1}")
        obs, score, over, cut, info = self._games.step(actions.astype(np.int64))
        lives, terminated = info["lives"], over
        info["score"], info["_final_obs"] = score.astype(np.float32), over | cut
        if self.settings["terminal_on_life_loss"]:
            terminated = over | ((lives < self._lives) & (lives > 0) & ~cut)
        self._lives = lives
        reward = np.sign(info["score"]) if self.settings["clip_reward"] else info["score"]
        return obs, reward, terminated, cut, info

    def close(self, **kwargs: Any) -> None:
        """End ALE's threads."""
        self._games = None

    def _seed(self, seed: Any) -> int:
        """A seed that ALE takes, of the first game."""
        return _whole("seed", seed, 0, most=2**31 - 1 - self.num_envs)


class Film:
    """One game in colour, and what a policy sees of it: two copies of the same game, played alike."""

    metadata = Atari.metadata

    def __init__(self, env: Atari):
        self.seen = env.played_whole(1)
        self.shown = Atari(env.rom, 1, self.seen.settings, 1, colour=True)

    def reset(self, seed: int) -> np.ndarray:
        """The first observation of a game."""
        self._picture = self.shown.reset(seed=seed)[0][0, -1]
        return self.seen.reset(seed=seed)[0][0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """`(observation, raw score of the step, whether the game is over)`."""
        shown = self.shown.step(np.reshape(action, 1))[0][0, -1]
        obs, score, over, cut, _ = self.seen.step(np.reshape(action, 1))
        done = bool(over[0] | cut[0])
        self._picture = self._picture if done else shown  # the next game has begun
        return obs[0], float(score[0]), done

    def mask(self) -> None:
        """All actions are legal."""

    def picture(self) -> np.ndarray:
        """The screen `[210, 160, 3]` uint8."""
        return self._picture

    def close(self) -> None:
        """End ALE's threads."""
        self.seen.close(), self.shown.close()


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    for name, least in (("noop_max", 0), ("frame_skip", 1), ("stack", 1), ("screen_size", 1), ("max_frames", 1)):
        settings[name] = _whole(name, settings[name], least)
    for name in ("terminal_on_life_loss", "clip_reward", "full_action_space", "fire_on_reset"):
        if settings[name] not in (True, False):
            raise ValueError(f"{name}={settings[name]!r} has to be True or False")
    sticky = settings["action_repeat_probability"]
    if isinstance(sticky, bool) or not isinstance(sticky, numbers.Real) or not 0 <= sticky < 1:
        raise ValueError(f"action_repeat_probability={sticky!r} has to be at least 0 and less than 1")
    return settings


def _whole(name: str, given: Any, least: int, most: int | None = None) -> int:
    if isinstance(given, bool) or not isinstance(given, numbers.Integral) or given < least:
        raise ValueError(f"{name}={given!r} has to be a whole number of at least {least}")
    if most is not None and given > most:
        raise ValueError(f"{name}={given!r} has to be at most {most}")
    return int(given)


def _ale() -> Any:
    try:
        import ale_py
        import ale_py.roms
        import ale_py.vector_env
    except ImportError:
        raise ImportError('Atari games need ALE: pip install "advantage[atari]"') from None
    return ale_py
