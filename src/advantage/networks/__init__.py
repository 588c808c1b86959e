"""Networks: plain modules that take batches `[..., features]` and hold nothing but arrays and static facts."""
