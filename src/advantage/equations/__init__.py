"""The textbook: per-sample terms of returns, objectives and distributions. Arrays in, arrays out."""
