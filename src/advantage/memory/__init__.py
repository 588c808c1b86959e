"""Memories: what off-policy algorithms remember, and the update that replays it."""
