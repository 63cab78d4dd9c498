"""Fréchet distance between two sets of features, each seen as a Gaussian (Heusel et al., 2017, with another network's features)."""

import numpy as np
from numpy.typing import NDArray


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """|mean_a - mean_b|² + trace(C_a + C_b - 2 (C_a C_b)^½) of features [N, D] and [M, D].

    With centred features A and B, whose covariances are AᵀA and BᵀB, the trace of the root is the sum of the singular values of
    A Bᵀ, exact where there are fewer pictures than features. Those are the singular values of R_A R_Bᵀ, from QR decompositions,
    which has at most D rows and columns.
    """
    mean_a, mean_b = a.mean(axis=0, dtype=np.float64), b.mean(axis=0, dtype=np.float64)
    centred_a, centred_b = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    root_a, root_b = np.linalg.qr(centred_a).R, np.linalg.qr(centred_b).R
    root = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    squared = ((mean_a - mean_b) ** 2).sum() + (centred_a**2).sum() + (centred_b**2).sum() - 2 * root
    return float(np.maximum(squared, 0))  # of equal sets, rounding may leave less
