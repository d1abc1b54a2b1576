"""Non-negative least squares, because no work can take negative time."""

from collections.abc import Sequence

import numpy as np


def non_negative(rows: Sequence[Sequence[float]], values: Sequence[float], keep: int | None = None) -> list[float]:
    """Solve `rows · coefficients ≈ values` for the relative error; columns that would become negative get 0.

    Column `keep` is the last one to be dropped.
    """
    matrix, wanted = np.array(rows, dtype=float), np.array(values, dtype=float)
    weights = 1 / np.maximum(np.abs(wanted), 1e-9)
    used = list(range(matrix.shape[1]))
    coefficients = [0.0] * matrix.shape[1]
    while used:
        solution = np.linalg.lstsq(matrix[:, used] * weights[:, None], wanted * weights, rcond=None)[0]
        if (solution >= 0).all():
            for column, value in zip(used, solution, strict=True):
                coefficients[column] = float(value)
            break
        share = solution * np.abs(matrix[:, used]).mean(axis=0)  # contribution of each column to the sum
        given_up = [column for column in np.argsort(share) if used[column] != keep] or [0]
        used.pop(int(given_up[0]))
    return coefficients
