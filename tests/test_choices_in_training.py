"""Choices in training: which images they group, how batches weigh them, and the stage that trains on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from irpipe.stages.train_rm.batches import BatchReader, losses_of, losses_of_equal_scores
from irpipe.stages.train_rm.data import PairRows, group, of_loss


def rows_of(rankings) -> PairRows:
    """The pairs of some rankings: (prompt, ranking, images from the best to the worst)."""
    rows = [
        (prompt, ranking, better, worse)
        for prompt, ranking, images in rankings
        for place, better in enumerate(images)
        for worse in images[place + 1 :]
    ]
    ids = [np.array(column, dtype=np.uint64) for column in zip(*rows, strict=True)]
    count = len(rows)
    return PairRows(np.arange(count, dtype=np.uint64), *ids, weight=np.ones(count, np.float32), split=np.array(["train"] * count))


class TestChoices:
    """Two rankings of one prompt that share images, and one of another prompt."""

    PAIRS = rows_of([(1, 10, [5, 6, 7]), (1, 11, [7, 5]), (2, 12, [8, 9])])

    def test_a_choice_asks_about_the_first_image_of_each_ranking(self):
        kept = of_loss(self.PAIRS, "choice")
        assert list(zip(kept.ranking_id.tolist(), kept.better.tolist(), kept.worse.tolist(), strict=True)) == [
            (10, 5, 6),
            (10, 5, 7),
            (11, 7, 5),
            (12, 8, 9),
        ]
        assert len(of_loss(self.PAIRS, "plackett-luce")) == len(of_loss(self.PAIRS, "pairwise")) == 5

    def test_pairs_of_a_choice_share_one_weight(self):
        groups = group(self.PAIRS, self.PAIRS.images, "plackett-luce")
        of_each = [np.flatnonzero(groups.choices == number) for number in np.unique(groups.choices)]
        assert sorted(len(pairs) for pairs in of_each) == [1, 1, 1, 2]
        assert all(groups.weights[pairs].sum() == 1 for pairs in of_each)
        assert (group(self.PAIRS, self.PAIRS.images, "pairwise").weights == 1).all()

    @pytest.mark.parametrize("loss", ["pairwise", "choice", "plackett-luce"])
    def test_the_loss_is_that_of_each_ranking_by_hand(self, loss):
        """-log of the probability of each pick, one after the other, among what is left."""
        scores = {5: 0.3, 6: 1.1, 7: -0.4, 8: 2.0, 9: 0.5}
        pairs = of_loss(self.PAIRS, loss)
        groups = group(pairs, pairs.images, loss)
        alone = SimpleNamespace(num_processes=1, process_index=0)
        reader = BatchReader(torch.from_numpy, {}, {1: 0, 2: 1}, 100, alone)
        (batch,) = reader.batches(groups, [0, 1])
        given = torch.tensor([scores[int(image)] for image in pairs.images[batch.images.numpy()]], dtype=torch.float64)
        losses = losses_of(object(), given, batch)

        def pick(first, *others):
            return math.log(sum(math.exp(scores[image]) for image in (first, *others))) - scores[first]

        picks = {
            "pairwise": [pick(5, 6), pick(5, 7), pick(6, 7), pick(7, 5), pick(8, 9)],
            "choice": [pick(5, 6, 7), pick(7, 5), pick(8, 9)],
            "plackett-luce": [pick(5, 6, 7), pick(6, 7), pick(7, 5), pick(8, 9)],
        }[loss]
        assert float((losses * batch.weights).sum()) == pytest.approx(sum(picks), abs=1e-12)
        assert float(batch.weights.sum()) == len(picks)
        equal = losses_of(object(), torch.zeros_like(given), batch)
        torch.testing.assert_close(losses_of_equal_scores(batch), equal, rtol=0, atol=1e-12)

    def test_a_clip_is_compared_by_its_learnt_scale(self):
        model = SimpleNamespace(logits=lambda scores: 3 * scores)
        pairs = rows_of([(1, 10, [5, 6])])
        batch = SimpleNamespace(better=torch.tensor([0]), worse=torch.tensor([1]), choices=torch.tensor([0]))
        assert len(pairs) == 1
        assert losses_of(model, torch.tensor([0.2, 0.0]), batch).item() == pytest.approx(math.log1p(math.exp(-0.6)), abs=1e-6)


class TestStage:
    """In the micro world: a CLIP learns which image people chose, and stands where any reward model stands."""

    @pytest.mark.parametrize(
        ("model", "loss"), [("micro-clip", "choice"), ("micro-clip", "pairwise"), ("micro-blip", "plackett-luce")]
    )
    def test_it_is_trained_and_scored(self, rm, model, loss):
        flags = [f"train-rm.model={model}", f"train-rm.loss={loss}", "train-rm.epochs=2", "train-rm.freeze_rate=0"]
        flags += ["train-rm.optimizer.learning_rate=3e-4"]
        told = rm.last("train-rm", *flags)["metrics"]
        query = "SELECT value FROM train_rm.curves WHERE split = 'validation' AND figure = 'loss' ORDER BY step"
        losses = [row["value"] for row in rm.rows(query)]
        assert told["validation_loss"] == pytest.approx(min(losses), abs=1e-4) and min(losses) < losses[0]
        card = json.loads(rm("show", "train-rm", "--json").out)
        kind = json.loads((Path(card["path"]) / "config.json").read_text())["format"]
        assert kind == ("hps" if model == "micro-clip" else "irpipe-imagereward")
        rm.run("score-images", *flags, "score-images.scorers=['reward-model']")
        spread = rm.rows("SELECT stddev(score) AS spread, count(*) AS images FROM scores")[0]
        assert spread["images"] > 50 and spread["spread"] > 0.01

    def test_a_size_that_is_not_the_starts_own_is_told(self, rm):
        flags = ["train-rm.model=micro-blip", "train-rm.epochs=1"]
        assert "its start looks at images of 32 px" not in rm.run("train-rm", *flags).err
        error = rm.run("train-rm", *flags, "train-rm.image_size=40").err
        assert "its start looks at images of 32 px, and image_size is 40" in error
