"""Metrics of heatmaps against the recorded figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from irpipe.models.metrics.heatmaps import heatmap_metrics

NAMES = {
    "mse": "mse",
    "cc": "cc",
    "kld": "kld",
    "sim": "similarity",
    "nss": "nss",
    "auc_judd": "auc_ordinary_roc",
    "auc_judd_as_published": "auc_judd_no_jitter",
}


def test_as_recorded(shared):
    golden = load_file(shared / "golden" / "richhf_metrics_a.safetensors")
    for number in range(len(golden["ground_truth"])):
        figures = heatmap_metrics(golden["ground_truth"][number], golden["prediction"][number])
        for name, recorded in NAMES.items():
            close = 1e-4 if name == "nss" else 1e-5
            assert figures[name] == pytest.approx(float(golden[recorded][number]), rel=close, abs=close, nan_ok=True), (
                number,
                name,
            )


def test_a_perfect_map_is_perfect():
    """Where the released figure has less than 1."""
    truth = np.zeros((20, 20))
    truth[4:7, 5:9] = 1 / 3
    figures = heatmap_metrics(truth, truth)
    assert figures["auc_judd"] == 1.0 and figures["auc_judd_as_published"] < 1.0
    assert (figures["mse"], figures["cc"], figures["sim"]) == (0.0, pytest.approx(1.0), pytest.approx(1.0))


def test_the_threshold_takes_ringing_out_of_the_fixations():
    truth = np.zeros((20, 20))
    truth[4:7, 5:9], truth[4:7, 9] = 1.0, 2 / 255
    prediction = np.where(truth == 1, 0.9, 0.1)
    assert heatmap_metrics(truth, prediction)["auc_judd"] < 1.0
    assert heatmap_metrics(truth, prediction, fixation=8 / 255)["auc_judd"] == 1.0


def test_an_empty_truth_has_its_error_only():
    figures = heatmap_metrics(np.zeros((4, 4)), np.full((4, 4), 0.5))
    assert figures.pop("mse") == 0.25 and all(math.isnan(value) for value in figures.values())


def test_other_shapes():
    with pytest.raises(ValueError, match="one shape"):
        heatmap_metrics(np.zeros((4, 4)), np.zeros((4, 5)))
