"""Drivers: ways to make chunks of experience and feed them to an algorithm. They know none by name."""
