"""Experiments: statistics over seeds and the figures that show them."""
