"""Algorithms: one file each, pure functions of arrays, run unchanged by every driver."""
