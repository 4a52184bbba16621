"""FID, KID and Inception Score: against plain references in float64, and the stage over what the recipe has."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.linalg import sqrtm

from irpipe.models.metrics.extractors import ClipFeatures, InceptionFeatures
from irpipe.models.metrics.sets import FrechetDistance, inception_score, kernel_distance
from irpipe.models.pictures import decode
from irpipe.pipeline.errors import ModelError, StageError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.registry import EXTRACTORS
from irpipe.pipeline.stage import Model
from irpipe.schemas.images import ImageShards, encoded_row, row_groups
from irpipe.stages.measure_images import MeasureImagesConfig
from irpipe.stages.measure_images.features import FeatureMaker
from irpipe.stages.measure_images.run import ImageSet, centred, fid_rows
from tests.paired import RECIPE

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(size=(500, 6))
OTHER = RNG.normal(0.3, 1.2, size=(400, 6))
CLIP = Model("micro-clip", "r", shipped_folder("micro-clip"))


def plain_fid(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real))


class TestFigures:
    def test_fid(self):
        distance = FrechetDistance(REFERENCE)
        assert distance(OTHER) == pytest.approx(plain_fid(OTHER, REFERENCE), rel=1e-9)
        assert distance(REFERENCE) == pytest.approx(0, abs=1e-9)
        assert distance(OTHER) == distance(OTHER)  # the reference stays, what was measured goes

    def test_fid_with_fewer_images_than_features(self):
        few = RNG.normal(size=(4, 6))
        assert FrechetDistance(REFERENCE)(few) == pytest.approx(plain_fid(few, REFERENCE), rel=1e-5)

    def test_kid(self):
        a, b = OTHER[:50], REFERENCE[:50]

        def kernel(x, y):
            return (x @ y.T / 6 + 1) ** 3

        within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (50 * 49) for x in (a, b)]
        assert kernel_distance(a, b, 0) == pytest.approx(sum(within) - 2 * kernel(a, b).mean(), rel=1e-6)

    def test_inception_score(self):
        sure = np.eye(4)[RNG.integers(0, 4, 4000)] * 50.0
        assert inception_score(sure, 1, 0)[0] == pytest.approx(4, rel=0.01)
        assert inception_score(np.zeros((40, 4)), 10, 0) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
        state = torch.random.get_rng_state()
        assert inception_score(sure, 10, 3) == inception_score(sure, 10, 3)
        assert torch.equal(state, torch.random.get_rng_state())

    def test_intervals_are_around_the_figure(self, context):
        """Sets of one distribution differ by chance: the interval of their difference holds 0, that of a shifted one does not."""
        prompts = np.arange(300, dtype=np.uint64)
        base = RNG.normal(size=(300, 3))
        sets = {"a": ImageSet(prompts, base, None), "b": ImageSet(prompts, RNG.normal(size=(300, 3)), None)}
        sets["far"] = ImageSet(prompts, base + 1.0, None)
        config = MeasureImagesConfig(bootstrap=200)
        rows = {(row["set"], row["figure"]): row for row in fid_rows(config, sets, RNG.normal(size=(500, 3)), context)}
        assert rows["b", "fid_over_a"]["low"] < 0 < rows["b", "fid_over_a"]["high"]
        assert rows["far", "fid_over_a"]["low"] > 0 and rows["far", "fid"]["value"] == pytest.approx(3, abs=0.5)
        assert all(row["low"] < row["value"] < row["high"] for row in rows.values())
        assert centred(5.0, np.array([7.0, 8.0, 9.0]))[0] == pytest.approx(4.05, abs=0.01)
        assert centred(5.0, np.empty(0)) == (None, None)


class TestExtractors:
    def test_a_clip(self):
        pictures = [RNG.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
        features, logits = ClipFeatures(CLIP, ["a red circle", "a blue square"], "cpu")(pictures)
        assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5) and logits.shape == (3, 2)
        assert ClipFeatures(CLIP, [], "cpu")(pictures)[1] is None

    def test_inception_without_its_package(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
        with pytest.raises(StageError, match="need torch-fidelity and torchvision"):
            InceptionFeatures(tmp_path / "x.pth", "cpu")

    def test_inceptions_weights_are_tensors_alone(self, tmp_path, monkeypatch):
        """torch-fidelity would unpickle anything: it is given what was read as tensors."""

        class Network(torch.nn.Module):
            def __init__(self, _name, features, feature_extractor_weights_path):
                super().__init__()
                self.given = torch.load(feature_extractor_weights_path, weights_only=True)
                assert features == ["2048", "logits_unbiased"]

            def forward(self, image):
                assert image.dtype == torch.uint8 and image.shape == (1, 3, 5, 4)
                return torch.ones(1, 2048), torch.ones(1, 1008)

        module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
        module.FeatureExtractorInceptionV3 = Network
        monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "good.pth")
        features, logits = InceptionFeatures(tmp_path / "good.pth", "cpu")([np.zeros((5, 4, 3), np.uint8)] * 2)
        assert features.shape == (2, 2048) and logits.shape == (2, 1008)
        torch.save({"fc.weight": print}, tmp_path / "bad.pth")
        for name in ("bad.pth", "missing.pth"):
            with pytest.raises(ModelError):
                InceptionFeatures(tmp_path / name, "cpu")


def test_an_image_that_nobody_should_judge_has_no_features(tmp_path):
    """It does not end the run, and does not count."""
    with ImageShards(tmp_path) as shards:
        for number in range(4):
            picture = RNG.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            fault = "blackened" if number == 2 else None
            shards.append(encoded_row(picture, 1, f"{number}.png") | {"fault": fault})
    maker = FeatureMaker(MeasureImagesConfig(), {"model": (CLIP,)}, None)
    maker(row_groups(sorted((tmp_path / "images").iterdir())), tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as file:
        assert np.isnan(file["features"]).all(axis=1).tolist() == [False, False, True, False]
        assert np.isfinite(file["features"]).all(axis=1).tolist() == [True, True, False, True]


class TestStage:
    SMALL = ("measure-images.model=micro-clip", "measure-images.bootstrap=20")

    @pytest.fixture
    def measured(self, world):
        world.recipe(RECIPE + "[measure-images]\n")
        return world

    def test_a_comparison_by_generator(self, measured):
        done = measured.last("measure-images", *self.SMALL)
        rows = measured.rows("SELECT * FROM image_sets")
        assert [row["set"] for row in rows if row["figure"] == "fid"] == ["base", "refl"]
        assert [row["set"] for row in rows if row["figure"] == "fid_over_base"] == ["refl"]
        fids = {row["set"]: row["value"] for row in rows if row["figure"] == "fid"}
        (gap,) = (row["value"] for row in rows if row["figure"] == "fid_over_base")
        assert gap == pytest.approx(fids["refl"] - fids["base"])
        assert {row["reference_images"] for row in rows} == {40}
        assert done["metrics"]["fewer_images_than_features"] == ["base", "refl"]
        assert "Metrics of sets" in measured("show", "measure-images").out

    def test_chosen_images_and_scores_of_classes(self, measured):
        classes = "measure-images.classes=['a red circle', 'a blue square', 'a green cross']"
        chosen = ("choose-images.scorer=random", "score-images.scorers=['random']", "choose-images.annotated_prompts=use")
        only = (
            "measure-images.of=chosen-images",
            "measure-images.metrics=['inception-score']",
            "measure-images.model=micro-clip",
        )
        measured.run("measure-images", *chosen, *only, classes, "choose-images.alpha=1.0")
        rows = measured.rows("SELECT * FROM image_sets")
        assert [row["set"] for row in rows] == ["preferred", "non-preferred"]
        assert all(1 < row["value"] < 3 and row["reference_images"] is None for row in rows)

    def outside(self, measured):
        """Real images in a folder, and settings that measure the generated ones against them."""
        from PIL import Image

        folder = measured.root / "real"
        folder.mkdir()
        for number in range(6):
            Image.new("RGB", (40, 32), (40 * number, 0, 0)).save(folder / f"{number}.png")
        lines = [f'{{"file_name": "{number}.png", "text": "x"}}\n' for number in range(6)]
        (folder / "metadata.jsonl").write_text("".join(lines))
        return "measure-images.of=images", "measure-images.reference_data=real", "measure-images.metrics=['kid']"

    EXTRACTOR = """
        import numpy as np

        class MeanColour:
            image_size = None
            resize_rule = "none"
            def __init__(self, device):
                self.device = device
            def __call__(self, pictures):
                return np.stack([picture.mean(axis=(0, 1)) for picture in pictures]) / 255, None

        class Flat(MeanColour):
            def __call__(self, pictures):
                return super().__call__(pictures)[0].ravel(), None

        def nothing(device):
            return None
    """

    def test_an_extractor_of_another_package(self, measured, tmp_path, monkeypatch, install):
        """Its features are used, its code counts towards the key, and what it cannot do is an error."""
        package = tmp_path / "theirs" / "colours.py"
        package.parent.mkdir()
        package.write_text(textwrap.dedent(self.EXTRACTOR))
        monkeypatch.syspath_prepend(str(package.parent))
        install({"colour": "colours:MeanColour", "flat": "colours:Flat", "nothing": "colours:nothing"}, EXTRACTORS)
        more = self.outside(measured)
        measured.run("measure-images", *more, "measure-images.extractor=colour")
        (row,) = measured.rows("SELECT * FROM image_sets")
        images = measured.store.open(measured.store.newest("micro", "generate-images").content_id)
        encoded = pq.read_table(images.table("images"), columns=["image"])["image"].to_pylist()
        features = [np.asarray(decode(one["bytes"])).mean(axis=(0, 1)) / 255 for one in encoded]
        real = np.stack([np.array([40 * number / 255, 0, 0]) for number in range(6)])
        assert row["value"] == pytest.approx(kernel_distance(np.stack(features), real, 0), rel=1e-6)
        report = (
            Path(measured.last("measure-images", *more, "measure-images.extractor=colour")["path"]) / "report.txt"
        ).read_text()
        assert "3 features by colour" in report
        record = measured.store.newest("micro", "measure-images")
        assert record.external["irpipe.extractors:colour"]["given"] == "somebodys 1.0"
        for name, told in (("flat", "gave (192,) for 64 images"), ("nothing", "is no extractor"), ("colours", "did you mean")):
            assert told in measured.run("measure-images", *more, f"measure-images.extractor={name}", status=2).err, name
        classes = (*more[:2], "measure-images.metrics=['inception-score','kid']")
        assert "has no classes" in measured.run("measure-images", *classes, "measure-images.extractor=colour", status=2).err

    def test_images_and_a_reference_from_outside(self, measured):
        more = self.outside(measured)
        measured.run("measure-images", *more, "measure-images.model=micro-clip", "measure-images.max_reference=5")
        (row,) = measured.rows("SELECT * FROM image_sets")
        assert (row["set"], row["figure"], row["reference_images"]) == ("generate-images", "kid", 5)

    def test_faults(self, measured):
        for settings, told in (
            (("measure-images.extractor=inception",), "inception_weights names no file"),
            (("measure-images.metrics=['inception-score']",), "needs two or more classes"),
            (("measure-images.classes=['a', 'b']",), "metrics has no inception-score"),
        ):
            assert told in measured.run("measure-images", *settings, status=2).err
