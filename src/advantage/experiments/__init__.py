"""Experiments: comparisons of algorithms, statistics over seeds and the figures that show them."""
