"""How good a classifier of two classes is, and what its probabilities are worth."""

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit, xlogy
from scipy.stats import rankdata

RELIABILITY_BINS = 10
CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 where their log-odds are needed."""


def classification_metrics(scores: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """Returns precision, recall and F1 at 0.5 and at the best F1, ROC AUC and average precision.

    Args:
        scores: (n,) probability of the positive class.
        positive: (n,) bool, the truth.

    Raises:
        ValueError: one of the classes has no document, so nothing can be measured.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        raise ValueError(
            f"held-out documents: {n_positive} positive and {n_negative} negative; wanted some of "
            f"both. Give more labelled documents or a larger holdout."
        )
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(positive[order])[last_of_ties]
    called = np.flatnonzero(last_of_ties) + 1
    precision, recall = true_positives / called, true_positives / n_positive
    f1 = 2 * true_positives / (called + n_positive)
    best = int(f1.argmax())
    ranks = rankdata(scores)[positive].sum()
    area = (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    return {
        "documents": len(positive),
        "positive": n_positive,
        "roc_auc": _short(area),
        "average_precision": _short((np.diff(recall, prepend=0) * precision).sum()),
        "at_half": _at(scores, positive, 0.5),
        "at_best_f1": _at(scores, positive, float(scores[order][last_of_ties][best])),
    }


def _at(scores: np.ndarray, positive: np.ndarray, threshold: float) -> dict[str, float]:
    called = scores >= threshold
    hits = int((called & positive).sum())
    total = int(called.sum()) + int(positive.sum())
    return {
        "threshold": _short(threshold),
        "precision": _short(hits / max(int(called.sum()), 1)),
        "recall": _short(hits / int(positive.sum())),
        "f1": _short(2 * hits / total),
        "accuracy": _short((called == positive).mean()),
    }


def reliability(scores: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """Returns, for ten equal ranges of the score, its mean and the share that is positive.

    `expected_error` is the mean distance of the two, weighted by documents; `brier` the mean
    squared error; `log_loss` in nats.
    """
    place = np.minimum((scores * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    rows, error = [], 0.0
    for k in range(RELIABILITY_BINS):
        inside = place == k
        count = int(inside.sum())
        if count:
            mean, share = scores[inside].mean(), positive[inside].mean()
            error += abs(mean - share) * count / len(scores)
            rows.append(
                {"documents": count, "mean_score": _short(mean), "positive_share": _short(share)}
            )
    p = np.clip(scores, CLIP, 1 - CLIP)
    loss = -(xlogy(positive, p) + xlogy(~positive, 1 - p)).mean()
    return {
        "table": rows,
        "expected_error": _short(error),
        "brier": _short(((scores - positive) ** 2).mean()),
        "log_loss": _short(loss),
    }


def platt(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Returns (a, b) so that sigmoid(a log-odds + b) is a calibrated probability.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", with its smoothed
    targets, on the log-odds of the score.
    """
    x = logit(np.clip(scores, CLIP, 1 - CLIP))
    n_positive = positive.sum()
    n_negative = len(positive) - n_positive
    target = np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))

    def loss(ab: np.ndarray) -> tuple[float, np.ndarray]:
        z = ab[0] * x + ab[1]
        slope = expit(z) - target
        value = (np.logaddexp(0, z) - target * z).mean()
        return float(value), np.array([(slope * x).mean(), slope.mean()])

    a, b = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return _short(a), _short(b)


def calibrated(scores: np.ndarray, ab: tuple[float, float]) -> np.ndarray:
    """Returns the scores after Platt's scaling."""
    return expit(ab[0] * logit(np.clip(scores, CLIP, 1 - CLIP)) + ab[1])


def weighted_edges(scores: np.ndarray, weights: np.ndarray, bins: int = 20) -> list[float]:
    """Returns the bins - 1 scores that cut the weight into equal parts (inverted CDF).

    Of 20 bins each holds about 5 % of the weight where no score is repeated.

    Raises:
        ValueError: there is no score or no weight.
    """
    if not len(scores) or weights.sum() <= 0:
        raise ValueError(
            f"bin edges: {len(scores)} documents with {weights.sum()} bytes; wanted some text"
        )
    order = np.argsort(scores, kind="stable")
    total = np.cumsum(weights[order], dtype=np.int64)
    wanted = -(-total[-1] * np.arange(1, bins) // bins)  # the least whole weight that reaches it
    return [float(scores[order[i]]) for i in np.searchsorted(total, wanted)]


def _short(value: float | np.floating) -> float:
    """Six decimals: what goes into files does not show the last bits of a sum."""
    return round(float(value), 6)
