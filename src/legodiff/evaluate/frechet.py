"""The Fréchet distance between two sets of features (Heusel et al. 2017)."""

import numpy as np


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two feature sets, (N, D) and (M, D).

    |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), in float64; the trace of the root is the sum of the
    roots of the eigenvalues of the symmetric S1^½ S2 S1^½. Raises ValueError for fewer than two
    features or features that are not finite.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("a Fréchet distance needs at least two images on each side")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a Fréchet distance needs finite features")
    first, second = first.astype(np.float64), second.astype(np.float64)
    shift = first.mean(axis=0) - second.mean(axis=0)
    cov1, cov2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    values, vectors = np.linalg.eigh(cov1)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    between = np.linalg.eigvalsh(root @ cov2 @ root)
    trace = np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(np.clip(between, 0, None)).sum()
    return float(shift @ shift + trace)
