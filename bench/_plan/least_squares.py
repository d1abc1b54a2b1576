"""Least squares with no coefficient below zero: what costs time does not cost less of it."""

from collections.abc import Sequence

import numpy as np


def non_negative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Coefficients of `rows · coefficients ≈ values`, by relative error. Columns that would go below zero are left out."""
    matrix, wanted = np.array(rows, dtype=float), np.array(values, dtype=float)
    weights = 1 / np.maximum(np.abs(wanted), 1e-9)
    used = list(range(matrix.shape[1]))
    while used:
        found = np.linalg.lstsq(matrix[:, used] * weights[:, None], wanted * weights, rcond=None)[0]
        if (found >= 0).all():
            break
        used.pop(int(np.argmin(found * np.abs(matrix[:, used]).mean(axis=0))))
    coefficients = [0.0] * matrix.shape[1]
    for column, value in zip(used, found if used else (), strict=True):
        coefficients[column] = float(value)
    return coefficients
