"""Environments: the protocols drivers step, our own small ones, and checks before training."""
