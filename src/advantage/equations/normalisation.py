"""What is normalised, and how: one set of settings for `VecNormalize` and for `normalize=...`."""

import dataclasses

import numpy as np

from advantage.types import Space


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """How observations and rewards are normalised by running statistics, under `VecNormalize`'s names.

    Raises:
        ValueError: `clip_obs` or `clip_reward` is not positive, `gamma` not within 0..1, `epsilon` negative.
    """

    norm_obs: bool = True
    norm_reward: bool = True  # divided by the standard deviation of the discounted return
    clip_obs: float = 10.0  # largest magnitude of a normalised observation
    clip_reward: float = 10.0  # largest magnitude of a normalised reward
    gamma: float | None = None  # discount of that return; None: the algorithm's
    epsilon: float = 1e-8  # added to variances
    norm_obs_keys: tuple[str, ...] | None = None  # of Dict observations; None: every Box that is no picture

    def __post_init__(self) -> None:
        allowed = {
            "clip_obs": (lambda x: x > 0, "a positive number"),
            "clip_reward": (lambda x: x > 0, "a positive number"),
            "gamma": (lambda x: 0 <= x <= 1, "a number between 0 and 1"),
            "epsilon": (lambda x: 0 <= x < float("inf"), "a number of at least 0"),
        }
        for name, (fits, wanted) in allowed.items():
            value = getattr(self, name)
            if value is None and name == "gamma":
                continue
            # Not `not x > 0`: NaN is refused too.
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not fits(value):
                raise ValueError(f"{name}={value!r} of the normalisation is out of range: give {wanted}")
            object.__setattr__(self, name, float(value))
        for name in ("norm_obs", "norm_reward"):
            object.__setattr__(self, name, bool(getattr(self, name)))
        if self.norm_obs_keys is not None:
            if isinstance(self.norm_obs_keys, str):
                raise ValueError(f"norm_obs_keys={self.norm_obs_keys!r} has to be a list of names: [...]")
            object.__setattr__(self, "norm_obs_keys", tuple(self.norm_obs_keys))

    def parts(self, space: Space) -> dict[str, Space]:
        """The Boxes of an observation space that are normalised, by key; that of a plain Box is `"obs"`.

        Raises:
            ValueError: there is nothing to normalise, or a key that isn't there or is no Box.
        """
        if not self.norm_obs:
            return {}
        if space.kind != "dict":
            if self.norm_obs_keys is not None:
                raise ValueError(f"norm_obs_keys={list(self.norm_obs_keys)} is for Dict observations only: leave it out")
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
