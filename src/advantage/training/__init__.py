"""Training services around the drivers: the loop, logs, progress, callbacks, evaluation, files."""
