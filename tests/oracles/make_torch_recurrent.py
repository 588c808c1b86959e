"""Answers of torch's recurrent layers, stored for our tests: writes `torch_recurrent.npz` beside itself.

    python -m venv .bench/sb3 && .bench/sb3/bin/pip install torch==2.13.0
    .bench/sb3/bin/python tests/oracles/make_torch_recurrent.py

Run by hand, never by the tests. The file holds plain arrays (read it with `allow_pickle=False`); names have parts
separated by "/". Weights are as torch has them, `[gates * 5, in]`, by torch's names.

`versions`: name=version strings.
`obs` `[6, 3, 4]`: six steps of three sequences.

`lstm/`, `gru/`: two layers of 5.
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, and of l1.
    h `[2, 3, 5]` (lstm: and c): what is remembered at the start.
    outputs `[6, 3, 5]`, last_h (last_c) `[2, 3, 5]`: the answers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

STEPS, SEQUENCES, INPUTS, SIZE, LAYERS = 6, 3, 4, 5, 2


def answers(name: str, network: torch.nn.RNNBase, obs: torch.Tensor) -> dict[str, np.ndarray]:
    """Weights, start and what torch makes of it."""
    names = ("h", "c") if name == "lstm" else ("h",)
    start = [torch.randn(LAYERS, SEQUENCES, SIZE) for _ in names]
    with torch.no_grad():
        outputs, last = network(obs, tuple(start) if name == "lstm" else start[0])
    last = last if name == "lstm" else (last,)
    arrays = {k: v.detach().numpy() for k, v in network.named_parameters()} | {"outputs": outputs.numpy()}
    arrays |= {k: x.numpy() for k, x in zip(names, start, strict=True)}
    arrays |= {f"last_{k}": x.numpy() for k, x in zip(names, last, strict=True)}
    return {f"{name}/{k}": x for k, x in arrays.items()}


def main() -> None:
    """Compute and write."""
    torch.manual_seed(0)
    obs = torch.randn(STEPS, SEQUENCES, INPUTS)
    arrays = {"versions": np.array([f"torch={torch.__version__}"]), "obs": obs.numpy()}
    for name, make in (("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)):
        arrays |= answers(name, make(INPUTS, SIZE, LAYERS), obs)
    np.savez_compressed(Path(__file__).with_name("torch_recurrent.npz"), **arrays)


if __name__ == "__main__":
    main()
