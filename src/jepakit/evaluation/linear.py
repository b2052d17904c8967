"""Linear probe: multinomial logistic regression on standardised frozen features, by scikit-learn's L-BFGS."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from torch import Tensor

STRENGTHS = (0.001, 0.01, 0.1)  # sklearn's C, chosen on a fifth of the training samples


def linear(train: Tensor, labels: Tensor, test: Tensor) -> tuple[Tensor, float]:
    """Predicted labels (m,) of test (m, D) from train (n, D) with labels (n,), and the C that was chosen."""
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    x, y, z = ((train - mean) / std).numpy(), labels.numpy(), ((test - mean) / std).numpy()
    held = np.arange(len(x)) % 5 == 4
    scores = [(_fit(x[~held], y[~held], c).score(x[held], y[held]), c) for c in STRENGTHS]
    best = max(scores)[1]
    return labels.new_tensor(_fit(x, y, best).predict(z)), best


def _fit(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=100, tol=1e-3).fit(x, y)
