"""Schedules: a hyper-parameter as a function of the remaining progress, which falls from 1 to 0."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

Schedule = Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class Linear:
    """From `start` to `end` over the first `fraction` of training, `end` from then on.

    Takes the remaining progress, 1 at the start of training and 0 at its end.
    """

    start: float
    end: float = 0.0
    fraction: float = 1.0

    def __call__(self, progress_remaining: float) -> float:
        done = np.minimum((1.0 - progress_remaining) / max(self.fraction, 1e-12), 1.0)
        return self.start + done * (self.end - self.start)


@dataclasses.dataclass(frozen=True)
class Table:
    """Linear interpolation between values at evenly spaced remaining progress, from 1 to 0.

    What a function of the user's becomes in a model file, which holds no code.
    """

    values: tuple[float, ...]

    def __call__(self, progress_remaining: float) -> float:
        return np.interp(1.0 - progress_remaining, np.linspace(0.0, 1.0, len(self.values)), self.values)


def parse(text: str) -> float | Linear:
    """A number, or a schedule by name: `lin_0.001` and `linear_0.001` fall to 0 over training.

    Raises:
        ValueError: the text is neither.
    """
    match = re.fullmatch(r"(?:lin|linear)_(.+)", text)
    try:
        return Linear(float(match[1])) if match else float(text)
    except ValueError:
        raise ValueError(
            f"schedule {text!r} is not known: give a number, 'linear_0.001' (falls to 0) or a function"
            " of the remaining progress"
        ) from None
