"""What is normalised, and how: one set of settings for `VecNormalize` and for `normalize=...`."""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from advantage.types import Space


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """How observations and rewards are normalised by running statistics, under `VecNormalize`'s names."""

    norm_obs: bool = True
    norm_reward: bool = True  # divided by the standard deviation of the discounted return
    clip_obs: float = 10.0  # largest magnitude of a normalised observation
    clip_reward: float = 10.0  # largest magnitude of a normalised reward
    gamma: float | None = None  # discount of that return; None: the algorithm's
    epsilon: float = 1e-8  # added to variances
    norm_obs_keys: tuple[str, ...] | None = None  # of Dict observations; None: every Box that is no picture

    def parts(self, space: Space) -> dict[str, Space]:
        """The Boxes of an observation space that are normalised, by key; that of a plain Box is `"obs"`.

        Raises:
            ValueError: there is nothing to normalise, or a key that isn't there or is no Box.
        """
        if not self.norm_obs:
            return {}
        if space.kind != "dict":
            if self.norm_obs_keys is not None:
                keys = list(self.norm_obs_keys)
                raise ValueError(f"norm_obs_keys={keys} is for Dict observations only: leave it out")
            if space.kind != "box" or space.is_image():
                found = "pictures" if space.is_image() else f"a {space.kind} space"
                raise ValueError(f"norm_obs=True needs observations of a Box, not {found}: set norm_obs=False")
            return {"obs": space}
        parts = dict(space.parts)
        boxes = {name: part for name, part in space.parts if part.kind == "box" and not part.is_image()}
        for name in self.norm_obs_keys or ():
            if name not in boxes:
                found = "not in the observation space" if name not in parts else "no Box, or a picture"
                raise ValueError(f"norm_obs_keys: {name!r} is {found}: choose from {', '.join(boxes) or 'none'}")
        chosen = boxes if self.norm_obs_keys is None else {name: boxes[name] for name in self.norm_obs_keys}
        if not chosen:
            raise ValueError("norm_obs=True finds no Box in the Dict observations: set norm_obs=False")
        return chosen

    def seen(self, space: Space) -> Space:
        """The space of normalised observations: floating, where numbers were whole."""
        parts = self.parts(space)

        def one(name: str, part: Space) -> Space:
            if name not in parts or part.dtype.startswith("float"):
                return part
            return dataclasses.replace(part, dtype="float32", low=-self.clip_obs, high=self.clip_obs)

        if space.kind != "dict":
            return one("obs", space)
        return dataclasses.replace(space, parts=tuple((name, one(name, part)) for name, part in space.parts))


NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "clip_obs": (lambda x: x > 0, "a positive number"),
    "clip_reward": (lambda x: x > 0, "a positive number"),
    "gamma": (lambda x: 0 <= x <= 1, "a number between 0 and 1"),
    "epsilon": (lambda x: 0 <= x < float("inf"), "a number of at least 0"),
}


def normalisation(**given: Any) -> Normalisation:
    """The settings of these names, checked and cast.

    Raises:
        ValueError: there is no such setting, or a value that cannot work.
    """
    names, checked = [field.name for field in dataclasses.fields(Normalisation)], {}
    for name, value in given.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
            raise ValueError(f"normalisation has no setting {name!r}: {hint}")
        if name in NUMBERS and not (name == "gamma" and value is None):
            fits, wanted = NUMBERS[name]
            # NaN fits nowhere.
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not fits(float(value)):
                raise ValueError(f"{name}={value!r} is out of range: give {wanted}")
            value = float(value)
        elif name == "norm_obs_keys" and value is not None:
            if isinstance(value, str):
                raise ValueError(f"norm_obs_keys={value!r} has to be a list of names, such as [{value!r}]")
            value = tuple(value)
        elif name in ("norm_obs", "norm_reward"):
            value = bool(value)
        checked[name] = value
    return Normalisation(**checked)
