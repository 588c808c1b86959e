"""Which replay memory, in SB3's two arguments."""

import dataclasses
import difflib
from typing import Any

from advantage.memory.goals import HerReplayBuffer
from advantage.memory.prioritised import PrioritizedReplayBuffer

CLASSES = (HerReplayBuffer, PrioritizedReplayBuffer)


def replay_settings(
    replay_buffer_class: Any, replay_buffer_kwargs: Any
) -> HerReplayBuffer | PrioritizedReplayBuffer | None:
    """The settings that SB3's two arguments give; None: every row is equally likely, and nothing is relabelled.

    Raises:
        TypeError: the class takes no such argument; the nearest is named.
        ValueError: another class, arguments without one, or a setting that cannot work.
    """
    given, names = dict(replay_buffer_kwargs or {}), " or ".join(f"advantage.{one.__name__}" for one in CLASSES)
    if replay_buffer_class is None:
        if given:
            raise ValueError(f"replay_buffer_kwargs={given} needs replay_buffer_class={names}")
        return None
    if replay_buffer_class not in CLASSES:
        raise ValueError(f"replay_buffer_class={replay_buffer_class!r} is not known: give {names} (one of them), or None")
    known = [field.name for field in dataclasses.fields(replay_buffer_class)]
    for name in given.keys() - set(known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
        raise TypeError(f"{replay_buffer_class.__name__} has no setting {name!r}: {hint}")
    return replay_buffer_class(**given)
