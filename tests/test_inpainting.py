"""Parts of pictures drawn anew: nothing else changes, whoever draws, and each picture draws from its own seed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from irpipe.models.classes import inpainting_generator
from irpipe.models.inpainting import load_painter
from irpipe.pipeline.errors import InputError, ModelError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from tests.pipelines import stable_diffusion_inpainting

PROMPTS = ["a red circle", "a large blue square", "a small green cross"]


@pytest.fixture(scope="module", params=["pipeline", "masked sampling"])
def painted(request, tmp_path_factory):
    """A painter, the side of its pictures, and a function from rows to pictures that were drawn on."""
    pipeline = request.param == "pipeline"
    folder = stable_diffusion_inpainting(tmp_path_factory.mktemp("models")) if pipeline else shipped_folder("micro-generator")
    painter = load_painter(Model("m", "r", folder), "cpu", "float32", num_steps=4, strength=0.8, guidance=3.0)
    side = 16 if pipeline else 32
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (3, side, side, 3), dtype=np.uint8)
    masks = np.zeros((3, side, side), dtype=bool)
    masks[:, : side // 2] = True

    def draw(rows):
        return painter.draw(
            [pictures[row] for row in rows],
            [masks[row] for row in rows],
            [PROMPTS[row] for row in rows],
            [7 + row for row in rows],
        )

    return painter, pictures, masks, draw


def test_only_what_is_masked_changes(painted):
    _, pictures, masks, draw = painted
    for made, old, mask in zip(draw([0, 1, 2]), pictures, masks, strict=True):
        assert (made[~mask] == old[~mask]).all()
        assert np.abs(made[mask].astype(int) - old[mask]).mean() > 5


def test_a_picture_does_not_depend_on_its_batch(painted):
    *_, draw = painted
    assert np.abs(draw([2])[0].astype(int) - draw([0, 1, 2])[2]).max() <= 1


def test_sizes(painted):
    painter, pictures, *_ = painted
    side = pictures.shape[1]
    painter.check_size(side, side)
    with pytest.raises(InputError, match=f"{side + 1} x {side} pixels"):
        painter.check_size(side + 1, side)


def test_pictures_of_several_sizes_go_through_a_pipeline(tmp_path):
    painter = load_painter(
        Model("m", "r", stable_diffusion_inpainting(tmp_path)), "cpu", "float32", num_steps=2, strength=1.0, guidance=1.0
    )
    shapes = [(16, 16), (8, 24), (16, 16)]
    pictures = [np.full((*shape, 3), 40 * number, dtype=np.uint8) for number, shape in enumerate(shapes)]
    masks = [np.ones(shape, dtype=bool) for shape in shapes]
    made = painter.draw(pictures, masks, PROMPTS, [1, 2, 3])
    assert [one.shape[:2] for one in made] == shapes
    alone = painter.draw(pictures[1:2], masks[1:2], PROMPTS[1:2], [2])
    assert (np.abs(made[1].astype(int) - alone[0]) <= 1).all()


def test_other_classes_are_refused(tmp_path):
    index = {"_class_name": "StableDiffusionControlNetInpaintPipeline", "_diffusers_version": "0.35.0"}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match="which takes control_image"):
        load_painter(Model("m", "r", tmp_path), "cpu", "float32", num_steps=2, strength=1.0, guidance=1.0)
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match="which draws no part of a picture anew"):
        inpainting_generator(Model("m", "r", tmp_path, "inpaint-images.model"))
