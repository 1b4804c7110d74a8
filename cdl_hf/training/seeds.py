"""Seeds for single purposes, all from the one that the user sets."""

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 32-bit seed for one purpose, such as `derive_seed(0, "order", task)`: independent of all other purposes'."""
    words = [seed]
    for part in purpose:
        words += part.encode() if isinstance(part, str) else [part]
    return int(np.random.SeedSequence(words).generate_state(1)[0])
