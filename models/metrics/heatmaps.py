"""Agreement of a predicted heatmap with an annotated one (RichHF, section 4.2 and tables 2 and 3).

Figures as the released evaluation of RichHF has them, but for the fault of its AUC-Judd. Where the truth is empty, only the mean
squared error is defined; the paper gives it apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

_EPS = 1e-8  # of the released code, so that constant and empty predictions have figures


def heatmap_metrics(truth: ArrayLike, prediction: ArrayLike, fixation: float = 0.0) -> dict[str, float]:
    """Figures of one predicted map, NaN where one is not defined.

    Args:
        truth, prediction: (h, w), values from 0 to 1.
        fixation: pixels of the truth above it are fixations. JPEG's ringing makes some above 0: 8 / 255 brings their number back.

    Returns:
        mse; on a truth that is not empty also cc (Pearson's correlation of pixels), kld (Kullback-Leibler divergence of the truth
        from the prediction, both of sum 1; lower is better), sim (the sum of their minima) and, on fixations, nss (the mean
        of the prediction, in standard deviations above its mean), auc_judd and auc_judd_as_published.

    Raises:
        ValueError: the maps differ in shape, or are no maps.
    """
    true, predicted = (np.asarray(part, dtype=np.float64) for part in (truth, prediction))
    if true.ndim != 2 or true.shape != predicted.shape:
        raise ValueError(
            f"heatmaps of shapes {true.shape} and {predicted.shape}: two maps (height, width) of one shape are compared"
        )
    figures = dict.fromkeys(("mse", "cc", "kld", "sim", "nss", "auc_judd", "auc_judd_as_published"), float("nan"))
    figures["mse"] = float(np.mean((true - predicted) ** 2))
    if not true.any():
        return figures
    figures |= {"cc": _correlation(true, predicted), "kld": _divergence(true, predicted), "sim": _similarity(true, predicted)}
    fixated = true > fixation
    if fixated.any():
        figures["nss"] = float(_standardised(predicted)[fixated].mean())
        figures["auc_judd"] = auc_judd(fixated, predicted)
        figures["auc_judd_as_published"] = auc_judd_as_published(fixated, predicted)
    return figures


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(h, w) in standard deviations (n - 1) above the mean."""
    result: NDArray[np.float64] = (values - values.mean()) / (values.std(ddof=1) + _EPS)
    return result


def _shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(h, w) scaled to a sum of 1."""
    result: NDArray[np.float64] = values / (values.sum() + _EPS)
    return result


def _correlation(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    first, second = _standardised(true), _standardised(predicted)
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm > 0 else 0.0


def _divergence(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    first, second = _shares(true), _shares(predicted)
    return float((first * np.log(first / (second + _EPS) + _EPS)).sum())


def _similarity(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    return float(np.minimum(_shares(true), _shares(predicted)).sum())


def auc_judd(fixated: NDArray[np.bool_], predicted: NDArray[np.float64]) -> float:
    """How probably a fixated pixel has a higher value than another one, equal values as half: the area under the ROC curve
    (Judd et al., 2012). NaN where all pixels, or none, are fixated.

    Args:
        fixated, predicted: (h, w).
    """
    count, others = int(fixated.sum()), int((~fixated).sum())
    if not count or not others:
        return float("nan")
    ranks = rankdata(predicted.ravel())[fixated.ravel()]
    return float((ranks.sum() - count * (count + 1) / 2) / (count * others))


def auc_judd_as_published(fixated: NDArray[np.bool_], predicted: NDArray[np.float64]) -> float:
    """The released figure without its random jitter: thresholds at the values of fixated pixels, of which the i-th counts as a
    false positive too, so that a perfect map has .998. NaN for a constant prediction, which has no threshold.

    Args:
        fixated, predicted: (h, w).
    """
    span: Any = np.ptp(predicted)
    count, pixels = int(fixated.sum()), predicted.size
    if not span or not 0 < count < pixels:
        return float("nan")
    scaled = np.sort((predicted.ravel() - predicted.min()) / span)
    thresholds = np.sort(((predicted - predicted.min()) / span)[fixated])[::-1]
    above = pixels - np.searchsorted(scaled, thresholds, side="left")
    places = np.arange(1, count + 1)
    hits = np.concatenate([[0.0], places / count, [1.0]])
    false = np.concatenate([[0.0], (above - places + 1) / (pixels - count), [1.0]])
    return float(np.trapezoid(hits, false))
