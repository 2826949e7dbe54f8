"""The earth mover's distance between uniform distributions, exact."""

from __future__ import annotations

import importlib.util

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import eye_array, kron, vstack


def uniform_emd(cost: np.ndarray) -> float:
    """Least mean cost of moving a uniform distribution over rows to one over columns, for cost [m, n].

    POT's network simplex solves it where it is installed (the extra `matcher`), else SciPy's linear programming: to
    about 1e-7 the same value, but much slower for the patches of a whole photo.
    """
    m, n = cost.shape
    if importlib.util.find_spec("ot"):
        import ot

        return float(ot.emd2(np.full(m, 1 / m), np.full(n, 1 / n), cost.astype(np.float64), numItermax=1_000_000))
    rows, columns = kron(eye_array(m), np.ones((1, n))), kron(np.ones((1, m)), eye_array(n))
    found = linprog(cost.astype(np.float64).ravel(), A_eq=vstack([rows, columns]).tocsr(),
                    b_eq=np.concatenate([np.full(m, 1 / m), np.full(n, 1 / n)]), method="highs")
    return float(found.fun)
