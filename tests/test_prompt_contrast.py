"""Feedback on images under several prompts: the error of how heatmaps differ between them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from irpipe.models.reward.rahf_start import start_from_blip
from irpipe.pipeline.errors import InputError, ModelError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.stages.train_rahf import TrainRahfConfig
from irpipe.stages.train_rahf.objective import RahfObjective, about_mean
from irpipe.stages.train_rahf.run import start
from tests import rahfs

BLIP = Model("micro-blip", "r", shipped_folder("micro-blip"))


@pytest.fixture(scope="module")
def objective(tmp_path_factory) -> RahfObjective:
    """Of ten rows: three images under three, four and one prompts, twice one alone."""
    return rahfs.rahf(contrast=4.0)(tmp_path_factory.mktemp("x"), 2)[0]


def test_values_less_the_mean_of_their_group():
    values = torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 7.0], [8.0, 40.0]])
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert torch.equal(about_mean(values, [7, 7, 3, 9]), expected)


def test_images_are_told_apart_by_their_pixels(objective):
    assert sorted(objective.images) == [[0, 4, 9], [1, 3, 6, 8], [2], [5], [7]]


def test_a_step_has_each_image_under_all_its_prompts(objective):
    parts = objective.parts(0)
    drawn = objective.step_images(0)
    assert len(drawn) == 3 and [row for part in parts for row in part.rows] == [r for i in drawn for r in objective.images[i]]
    for part in parts:
        assert len(set(part.images)) <= 2, "a micro-batch is of images"
        assert [objective.images[image][0] for image in part.images] == [
            next(rows[0] for rows in objective.images if row in rows) for row in part.rows
        ]
        assert part.step_rows == sum(len(objective.images[image]) for image in drawn)


def test_the_loss_is_the_weighted_sum_of_errors_and_of_their_differences_between_prompts(objective):
    """Against a plain computation, image by image."""
    model = objective.model
    pictures = torch.rand(3, 32, 32).expand(3, 3, 32, 32).permute(1, 0, 2, 3)
    maps = torch.rand(3, 2, 32, 32)
    rows = objective.images[0]
    with torch.no_grad():
        found, _ = objective.losses(rows, pictures, maps, images=[5, 5, 5])
        alone, _ = objective.losses(rows, pictures, maps)
        image = model.look(model.preprocess.normalised(pictures))
        texts = model.encode_texts([objective.examples.prompts[row] for row in rows])
        kinds = ("implausibility", "misalignment")
        heat = torch.stack([model.heatmap(model.preprocess.normalised(pictures), image, texts, kind) for kind in kinds], dim=1)
    errors = (heat - maps).double().numpy()
    losses = ((errors - errors.mean(axis=0)) ** 2).mean(axis=(2, 3)).sum(axis=1)
    np.testing.assert_allclose(found["contrast"], losses, rtol=1e-4)
    np.testing.assert_allclose(found["heatmaps"], (errors**2).mean(axis=(2, 3)).sum(axis=1), rtol=1e-4)
    assert "contrast" not in alone


def test_the_contrast_counts_by_its_weight(objective):
    """The difference between two weights is the weight times the contrast."""
    part = objective.parts(1)[0]
    with torch.no_grad():
        loss, figures = objective.loss(1, part)
        objective.config = objective.config.model_copy(update={"prompt_contrast": 1.0})
        less, _ = objective.loss(1, part)
    contrast = figures["contrast"].values.sum() / part.step_rows
    assert float(loss - less) == pytest.approx(3.0 * objective.config.heatmap_weight * float(contrast), rel=1e-4)


def test_images_of_one_prompt_each_are_refused():
    config = TrainRahfConfig(model="x", prompt_contrast=1.0)
    model = start_from_blip(BLIP, "multi-head", rahfs.HEADS, rahfs.T5, 0)
    pictures = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="no image has feedback under several prompts"):
        RahfObjective(config, model, rahfs.examples(), lambda rows: pictures[list(rows)], Accelerator(cpu=True))


def test_it_needs_heatmaps(project):
    project.recipe('recipe = "x"\n[train-rahf]\nmodel = "micro-blip"\nheatmap_weight = 0.0\nprompt_contrast = 1.0\n')
    assert "prompt_contrast has no effect: heatmap_weight is 0" in project("plan", "train-rahf", status=2).err


class TestFrozen:
    """What a RAHF has learnt of prompts is kept while the rest goes on."""

    def test_the_map_stays_and_the_rest_moves(self):
        model = start_from_blip(BLIP, "multi-head", rahfs.HEADS, rahfs.T5, 0)
        model.freeze(1.0)
        model.freeze_parts(("encoder", "misalignment"))
        trained = {
            name.split(".")[0] + "." + name.split(".")[1] for name, value in model.named_parameters() if value.requires_grad
        }
        assert trained == {"t5.decoder", "heatmaps.implausibility", *(f"scores.{aspect}" for aspect in model.aspects)}

    @pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
    def test_layers_of_the_towers(self, rate):
        model = start_from_blip(BLIP, "multi-head", rahfs.HEADS, rahfs.T5, 0)
        model.freeze(rate)
        layers = model.vision.encoder.layers
        free = [all(value.requires_grad for value in layer.parameters()) for layer in layers]
        assert free == [number >= int(rate * len(layers)) for number in range(len(layers))]
        assert all(value.requires_grad == (rate == 0) for value in model.vision.embeddings.parameters())

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({}, "freeze keeps parts of a RAHF, and model names none"),
            ({"model": "'micro-rahf'", "variant": "'augmented-prompt'"}, "augmented-prompt has one head for both"),
        ],
    )
    def test_what_cannot_be_kept_is_refused(self, project, settings, told):
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        project.recipe(f'recipe = "x"\n[train-rahf]\nfreeze = ["misalignment"]\n{lines}')
        assert told in project("plan", "train-rahf", status=2).err

    def test_a_weight_of_frozen_maps_has_no_effect(self, project):
        project.recipe(
            'recipe = "x"\n[train-rahf]\nmodel = "micro-rahf"\nfreeze_rate = 1.0\nheatmap_weight = 2.0\n'
            'freeze = ["encoder", "implausibility", "misalignment"]\n'
        )
        told = project("plan", "train-rahf", status=2).err
        assert "heatmap_weight has no effect: freeze keeps all that heatmaps are made of" in told

    def test_a_blip_has_nothing_to_keep(self):
        config = TrainRahfConfig(model="micro-blip", freeze=("encoder",), heads={"map_convs": (16,)})
        context = SimpleNamespace(models={"model": (BLIP,)})
        with pytest.raises(ModelError, match="micro-blip is no RAHF: it has no encoder to keep"):
            start(config, context)
