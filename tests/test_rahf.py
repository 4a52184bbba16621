"""RAHF: the model, its training, its predictions and their evaluation, on small models of the real classes."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from irpipe.models.inpainting import mask_of
from irpipe.models.maps import map_squares, of_shape, unpadded
from irpipe.models.metrics.words import best_cut, labels_by_matching, labels_by_place, per_sample, precision_recall_f1
from irpipe.models.reward.base import load_reward_model, of_aspect
from irpipe.models.reward.rahf import Rahf
from irpipe.models.reward.rahf_start import start_from_blip
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.stages.evaluate_rahf import EvaluateRahfConfig
from irpipe.stages.evaluate_rahf.run import common_rows, key_of
from tests.rahfs import HEADS, RICH_RECIPE, T5

BLIP = Model("micro-blip", "r", shipped_folder("micro-blip"))
PROMPTS = ["a large red circle on the left", "a blue square above a green cross, flat colours", "a cross"]


def small(variant="multi-head", seed=0) -> Rahf:
    model = start_from_blip(BLIP, variant, HEADS, T5, seed)
    with torch.no_grad():  # an untrained decoder says nearly the same of every word
        for name, value in model.t5.named_parameters():
            if "decoder" in name or "shared" in name:
                value.mul_(3.0)
    return model


@pytest.fixture(params=["multi-head", "augmented-prompt"])
def model(request) -> Rahf:
    return small(request.param)


PIXELS = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32))


class TestModel:
    def test_an_answer_does_not_depend_on_its_batch(self, model):
        """Padding is masked: scores, maps and words of a prompt are the same alone and beside longer ones.

        In double precision: rounding in single precision depends on the batch, and on the processor.
        """
        model, pixels = model.double(), PIXELS.double()
        with torch.no_grad():
            together = self.answers(model, pixels, PROMPTS)
            for number, prompt in enumerate(PROMPTS):
                alone = self.answers(model, pixels[number : number + 1], [prompt])
                for mine, ours in zip(alone[:2], together[:2], strict=True):
                    assert torch.allclose(mine[0], ours[number], atol=1e-5)
                assert alone[2][0] == pytest.approx(together[2][number], abs=1e-5)

    def answers(self, model, pixels, prompts):
        image, texts = model.look(pixels), model.encode_texts(prompts)
        maps = torch.stack([model.heatmap(pixels, image, texts, kind) for kind in ("implausibility", "misalignment")], dim=1)
        scores = torch.stack([model.score(image, texts, aspect) for aspect in model.aspects], dim=1)
        return scores, maps, model.word_probabilities(image, texts, prompts)

    def test_shapes_and_ranges(self, model):
        with torch.no_grad():
            scores, maps, words = self.answers(model, PIXELS, PROMPTS)
        assert scores.shape == (3, 4) and maps.shape == (3, 2, 32, 32)
        assert bool(((scores > 0) & (scores < 1)).all() and ((maps >= 0) & (maps <= 1)).all())
        assert [len(row) for row in words] == [7, 9, 2]

    def test_the_augmented_prompt_asks_for_one_output(self):
        """One head for all scores: what tells them apart is the task before the prompt."""
        model = small("augmented-prompt")
        assert set(model.scores) == {"any"} and set(model.heatmaps) == {"any"}
        with torch.no_grad():
            image, texts = model.look(PIXELS), model.encode_texts(PROMPTS)
            plausibility, overall = (model.score(image, texts, aspect) for aspect in ("plausibility", "overall"))
        assert not torch.allclose(plausibility, overall, atol=1e-6)
        assert model.shared(image, texts) is None and small().shared(image, texts) is not None

    def test_words_are_decoded_as_one_after_another_would_be(self, model):
        """Decoding all at once until nothing changes is the greedy decoding, flag by flag."""
        model = model.double()
        with torch.no_grad():
            image, texts = model.look(PIXELS.double()), model.encode_texts(PROMPTS)
            for cut in (0.3, 0.5, 0.7):
                found = model.word_probabilities(image, texts, PROMPTS, cut=cut)
                states, mask = model.fuse(image, texts, "words")
                for number, pieces in enumerate(model.words_of(PROMPTS).pieces):
                    flags: list[bool] = []
                    for place, word in enumerate(pieces):
                        before = model.sequence(pieces[: place + 1], [*flags, False])[:-1]
                        following = pieces[place + 1][0] if place + 1 < len(pieces) else model.config.end
                        row = torch.tensor([[*before, following]])
                        logits = model.sequence_logits(states[number : number + 1], mask[number : number + 1], row)[0, -1]
                        share = float(torch.sigmoid(logits[model.config.flag] - logits[following]))
                        assert found[number][place] == pytest.approx(share, abs=1e-5), (cut, word)
                        flags.append(share > cut)

    def test_the_cut_labels_words_and_does_not_change_their_probabilities(self):
        """The cut is fitted on probabilities; they are the same ones when it is used."""
        model = small()
        with torch.no_grad():
            image, texts = model.look(PIXELS), model.encode_texts(PROMPTS)
            found = model.word_probabilities(image, texts, PROMPTS)
            model.config = replace(model.config, word_cut=min(map(min, found)) / 2)
            assert model.word_probabilities(image, texts, PROMPTS) == found

    def test_with_its_prompts_hidden_it_sees_the_image_alone(self, model):
        """Scores and maps are the same whatever the prompt, and differ between images; words are still the prompt's."""
        model.config = replace(model.config, reads_prompt=False)
        with torch.no_grad():
            scores, maps, words = self.answers(model, PIXELS, PROMPTS)
            others = self.answers(model, PIXELS, PROMPTS[::-1])
        assert torch.allclose(scores, others[0], atol=1e-6) and torch.allclose(maps, others[1], atol=1e-6)
        assert float((scores[0] - scores[1]).abs().max()) > 1e-4
        assert [len(row) for row in words] == [7, 9, 2]

    def test_saved_and_loaded(self, model, tmp_path):
        model.save_pretrained(tmp_path / "rahf")
        again = load_reward_model(tmp_path / "rahf")
        texts = model.encode_texts(PROMPTS)
        with torch.no_grad():
            assert torch.equal(again(PIXELS, again.encode_texts(PROMPTS)), model(PIXELS, texts))
        assert json.loads(json.dumps(asdict(model.config))) == json.loads(json.dumps(asdict(again.config)))
        assert again.card == model.card

    def test_a_missing_weight_is_an_error(self, model, tmp_path):
        from safetensors.torch import load_file, save_file

        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights.pop("join.weight")
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"join\.weight"):
            load_reward_model(tmp_path)

    def test_each_score_is_a_reward(self, model):
        """`of_aspect` shares the weights, and gradients reach the picture."""
        texts = model.encode_texts(PROMPTS)
        overall = of_aspect(model, "overall")
        pixels = PIXELS.clone().requires_grad_()
        score = overall(pixels, texts)
        score.sum().backward()
        assert float(pixels.grad.abs().sum()) > 0 and (model.aspect, overall.aspect) == ("plausibility", "overall")
        with torch.no_grad():
            assert torch.allclose(score, model.score(model.look(PIXELS), texts, "overall"), atol=1e-6)
        assert overall.join is model.join
        with pytest.raises(ModelError, match="there is no score 'beauty'"):
            of_aspect(model, "beauty")

    def test_long_prompts_lose_whole_words_and_say_so(self):
        model = small()
        words = model.words_of(["red " * 200])
        assert words.counts == [200] and sum(map(len, words.pieces[0])) <= model.config.max_length - 1
        with torch.no_grad():
            shares = model.word_probabilities(model.look(PIXELS[:1]), model.encode_texts(["red " * 200]), ["red " * 200])
        assert len(shares[0]) == 200 and shares[0][-1] == 0.0

    def test_freezing(self):
        model = small()
        model.freeze(1.0)
        trained = {name.partition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
        assert trained == {"t5", "join", "join_text", "heatmaps", "scores"}
        model.freeze(0.0)
        assert all(value.requires_grad for value in model.parameters())


def array_of(cell) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


def test_masks_grow_in_pixels_of_the_height():
    heat = np.zeros((40, 80))
    heat[20, 10] = 0.5
    assert mask_of(heat, 0.5, 0.1).sum() == 0, "above, not at, the threshold"
    mask = mask_of(heat, 0.4, 0.1)
    assert mask[16:25, 10].all() and mask[20, 6:15].all() and mask.sum() == 49 and not mask[15, 10]
    assert (mask_of(heat, 0.4, 0.1, moved=True) == np.roll(mask, (20, 40), axis=(0, 1))).all()


class TestMaps:
    def encoded(self, array):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return buffer.getvalue()

    def test_maps_are_padded_as_pictures_are(self):
        """A wide map lies in the middle of the square, and comes back out of it."""
        wide = np.zeros((16, 32), dtype=np.uint8)
        wide[3:6, 20:28] = 255
        data = self.encoded(wide)
        square = map_squares([{"implausibility": data, "misalignment": data}], 32)[0, 0]
        assert (square[8:24] == wide).all() and not square[:8].any() and not square[24:].any()
        assert (unpadded(square, 32, 16) == wide).all()
        assert (of_shape(square / 255.0, (16, 32)) * 255 == wide).all()
        assert of_shape(square / 255.0, (64, 128)).shape == (64, 128)


class TestWords:
    def test_recorded_figures(self, shared):
        from safetensors import safe_open

        with safe_open(shared / "golden" / "richhf_metrics_a.safetensors", "np") as file:
            golden = json.loads(file.metadata()["keywords"])
        found, true = [], []
        for item in golden["items"]:
            mine, theirs = labels_by_place(item["predicted"], item["target"])
            assert (mine, theirs) == (item["predicted_labels"], item["true_labels"]), item
            found.append([label == 1 for label in mine])
            true.append([label == 1 for label in theirs])
        pooled = precision_recall_f1(found, true)
        assert pooled == pytest.approx({name: golden["pooled"][name] for name in pooled})
        assert per_sample(found, true) == pytest.approx({name: golden["per_sample_mean"][name] for name in pooled})

    def test_a_lost_word_shifts_nothing_where_words_are_matched(self):
        assert labels_by_matching("yellow_0 cat", "a yellow_0 cat") == ([False, True, False], [False, True, False])
        assert labels_by_matching("a big yellow_0 cat", "a yellow_0 cat")[0] == [False, True, False]

    def test_the_cut_of_the_highest_f1(self):
        shares, true = [[0.1, 0.25, 0.6], [0.22, 0.9, 0.3]], [[False, False, True], [False, True, True]]
        cut, f1 = best_cut(shares, true)
        assert f1 == 1.0 and cut == 0.25


class TestStages:
    @pytest.fixture
    def rich(self, world):
        world.recipe(RICH_RECIPE)
        return world

    def test_from_raw_answers_to_tables_1_to_4(self, rich):
        """simulate, load, train, predict, evaluate: predictions look like annotations, and every table has its rows."""
        done = rich.last("train-rahf")
        assert done["metrics"]["best_step"] in (0, 2, 4) and 0 < done["metrics"]["word_cut"] < 1
        model = load_reward_model(done["path"])
        assert model.config.word_cut == done["metrics"]["word_cut"]
        assert {model.card_of(aspect).normalised_on for aspect in model.aspects} == {model.card.normalised_on}
        curves = {row["figure"] for row in rich.rows("SELECT DISTINCT figure FROM curves WHERE split = 'validation'")}
        assert {"loss", "heatmaps", "scores", "words", "plcc_overall"} <= curves
        evaluated = rich.last("evaluate-rahf", "evaluate-rahf.reads.rich-predictions=['predict-rich-feedback']")
        rows = rich.rows("SELECT * FROM rahf_figures")
        names = {row["predictor"] for row in rows}
        assert names == {
            "constant",
            "predict-rich-feedback",
            "another person",
            "the truth allows",
            "every content word",
            "people",
        }
        found = {(row["predictor"], row["output"], row["figure"]): row for row in rows}
        assert found["the truth allows", "overall", "plcc"]["value"] > found["another person", "overall", "plcc"]["value"] > 0.5
        constant, bound = (found[name, "implausibility", "mse"]["value"] for name in ("constant", "the truth allows"))
        assert bound < constant and found["constant", "overall", "plcc"]["value"] is None
        assert found["constant", "overall", "srcc"]["value"] is None
        assert found["every content word", "words", "recall"]["value"] == 1.0
        for row in rows:
            if row["low"] is not None and row["figure"] in ("plcc", "cc", "f1"):
                assert row["low"] <= row["value"] <= row["high"], row
        report = (Path(evaluated["path"]) / "report.txt").read_text()
        assert all(f"Table {number}" in report for number in (1, 2, 3, 4))

    def test_published_figures_and_a_clips_gradient_stand_beside(self, rich):
        paper = Path(__file__).parents[1] / "docs" / "richhf-published.csv"
        done = rich.last("evaluate-rahf", f"evaluate-rahf.published={paper}", "evaluate-rahf.truth=false")
        rows = rich.rows("SELECT * FROM rahf_figures WHERE count = 0 AND output = 'words'")
        assert {(row["predictor"], row["figure"], row["value"]) for row in rows} >= {("multi-head (paper)", "f1", 0.433)}
        assert "augmented prompt (paper)" in (Path(done["path"]) / "report.txt").read_text()
        gradient = rich.last(
            "evaluate-rahf",
            "evaluate-rahf.truth=false",
            "evaluate-rahf.clip_gradient=true",
            "evaluate-rahf.clip_model=micro-clip",
        )
        assert gradient["key"] != done["key"]
        told = rich.rows("SELECT output, figure, value FROM rahf_figures WHERE predictor = 'CLIP gradient'")
        assert {row["output"] for row in told} == {"misalignment"}
        found = {row["figure"]: row["value"] for row in told}
        assert -0.3 < found["cc"] < 0.3 and found["mse"] > 0  # it was never trained on any
        wrong = rich.root / "wrong.csv"
        wrong.write_text("predictor,output,figure,value\nours,words,f1,.5\ntheirs,words,plcc,.5\n", encoding="utf-8")
        told = rich.run("evaluate-rahf", f"evaluate-rahf.published={wrong}", "evaluate-rahf.truth=false", status=2).err
        assert "row 1 is no figure: 'words', 'plcc', '.5'" in told

    def test_feedback_whose_uids_are_no_image_ids(self, rich):
        """As RichHF-18K's are: predictions are found by the image's id."""
        rich.run("load-rich-feedback")
        folder = rich.store.open(rich.store.newest("micro", "load-rich-feedback").content_id).path
        feedback, maps = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("rich_feedback", "heatmaps"))
        people = {row["uid"]: row | {"maps": {}} for row in feedback}
        for one in maps:
            people[one["uid"]]["maps"][one["kind"]] = one["image"]["bytes"]
        renamed = {f"uuid-{place}": row | {"uid": f"uuid-{place}"} for place, row in enumerate(people.values())}
        rows, rejected = common_rows(EvaluateRahfConfig(), renamed, {"node": people})
        assert len(rows) == len(people) and not rejected
        assert [key_of(renamed[uid], people) for uid in rows] == list(people)

    def test_predictions_have_the_tables_of_annotations(self, rich):
        rich.run("predict-rich-feedback")
        predicted, annotated = (
            rich.store.open(rich.store.newest("micro", node).content_id)
            for node in ("predict-rich-feedback", "load-rich-feedback")
        )
        for name in ("rich_feedback", "heatmaps"):
            mine, theirs = (pq.read_table(one.path / f"{name}.parquet") for one in (predicted, annotated))
            assert mine.schema == theirs.schema and mine.num_rows == theirs.num_rows
        rows = pq.read_table(predicted.path / "rich_feedback.parquet").to_pylist()
        words = {row["uid"]: row["words"] for row in pq.read_table(annotated.path / "rich_feedback.parquet").to_pylist()}
        assert all([word["word"] for word in row["words"]] == [word["word"] for word in words[row["uid"]]] for row in rows)
        again = rich.run("predict-rich-feedback", "predict-rich-feedback.batch_size=7", "predict-rich-feedback.num_processes=2")
        assert "reused" in again.err

    def test_every_score_is_a_scorer(self, rich, tmp_path):
        rich.run("score-images", "score-images.scorers=['reward-model']", "score-images.reads.reward-model=['train-rahf']")
        scorers = {row["scorer"] for row in rich.rows("SELECT DISTINCT scorer FROM scores")}
        assert scorers == {"reward-model", *(f"reward-model.{aspect}" for aspect in ("alignment", "aesthetics", "overall"))}
        picture = tmp_path / "x.png"
        Image.new("RGB", (32, 32), "red").save(picture)
        shared = ("score", str(picture), "--prompt", "a red circle", "--model", "train-rahf", "--json")
        plain, overall = rich(*shared).json, rich(*shared, "--aspect", "overall").json
        assert plain["meaning"].startswith("plausibility") and overall["meaning"].startswith("overall")
        assert plain["scores"][0]["raw"] != overall["scores"][0]["raw"]
        assert "there is no score 'beauty'" in rich(*shared, "--aspect", "beauty", status=2).err

    @pytest.mark.slow
    def test_a_score_is_refls_reward(self, rich):
        done = rich.last("refl", "refl.reads.reward-model=train-rahf", "refl.aspect=overall", "refl.steps=2")
        assert done["metrics"]["steps"] == 2
        told = rich.run("refl", "refl.reads.reward-model=train-rm", "refl.aspect=overall", "refl.steps=2", status=2).err
        assert "there is no score 'overall': the reward model has one score" in told

    @pytest.mark.slow
    def test_a_heatmap_weighs_refls_gradient(self, rich):
        weighed = ("refl.steps=1", "refl.weight_map=implausibility")
        assert rich.last("refl", "refl.reads.reward-model=train-rahf", *weighed)["metrics"]["steps"] == 1
        told = rich.run("refl", "refl.reads.reward-model=train-rm", *weighed, status=2).err
        assert "weight_map: a reward model of the format 'irpipe-imagereward' has no heatmaps" in told

    @pytest.mark.slow
    def test_what_is_implausible_is_drawn_anew(self, rich):
        """Pixels outside of the mask stay as they were; what is kept is the more plausible; empty masks change nothing."""
        some = ("inpaint-images.threshold=0.055", "inpaint-images.dilation=0.03")
        done = rich.last("inpaint-images", *some)
        folder = Path(done["path"])
        rows = {row["original_id"]: row for row in pq.read_table(folder / "inpainted.parquet").to_pylist()}
        masks = {row["original_id"]: array_of(row["image"]) for row in pq.read_table(folder / "masks.parquet").to_pylist()}
        source = rich.store.open(rich.store.newest("micro", "generate-images").content_id)
        before, after = (
            {row["image_id"]: array_of(row["image"]) for row in pq.read_table(path).to_pylist()}
            for path in (source.path / "images", folder / "images")
        )
        assert set(rows) == set(before) and len(after) == len(before)
        drawn = [row for row in rows.values() if row["candidate"] is not None]
        assert drawn and done["metrics"]["drawn_anew"] == len(drawn)
        for original, row in rows.items():
            old, new, mask = before[original], after[row["image_id"]], masks[original] > 0
            assert (old[~mask] == new[~mask]).all() and row["masked"] == pytest.approx(mask.mean())
            if row["candidate"] is None:
                assert row["image_id"] == original and (old == new).all()
            else:
                assert row["plausibility"] > row["plausibility_before"] and (old[mask] != new[mask]).any()
        page = rich.root / "report.html"
        rich("report", "inpaint-images", "--out", str(page))
        assert "Drawn anew" in page.read_text(encoding="utf-8") and 'role="alert"' not in page.read_text(encoding="utf-8")
        moved = rich.last("inpaint-images", *some, "inpaint-images.moved=true")
        elsewhere = {
            row["original_id"]: array_of(row["image"]) for row in pq.read_table(Path(moved["path"]) / "masks.parquet").to_pylist()
        }
        assert all((np.roll(masks[key], (16, 16), axis=(0, 1)) == mask).all() for key, mask in elsewhere.items())
        whole = rich.last("inpaint-images", "inpaint-images.threshold=0", "inpaint-images.keep_original=false")["metrics"]
        assert whole["masked_share"] > 0.9 and whole["no_better_try"] == 0
        nothing = rich.last("inpaint-images", "inpaint-images.threshold=0.99")["metrics"]
        assert nothing["without_mask"] == len(rows) and nothing["drawn_anew"] == 0

    def test_faults(self, rich):
        rahf = rich.last("train-rahf", "train-rahf.steps=2")["path"]
        for settings, told in (
            (("train-rahf.heads.map_deconvs=[8]",), "1 deconvolutions make heatmaps of 16 pixels, and pictures have 32"),
            (("train-rahf.vision=micro-clip",), "model is given"),
            (("train-rahf.model=micro-clip",), "train-rahf.model"),
            (("train-rahf.heatmap_weight=0", "train-rahf.score_weight=0", "train-rahf.word_weight=0"), "all weights are 0"),
            (("train-rahf.model={rahf}", "train-rahf.t5_sizes.d_ff=64"), "the rahf has other sizes: t5_sizes.d_ff is 32"),
            (("train-rahf.captions.replaced=0.2",), "captions.weight is 0"),
            (("split-prompts.validation_share=0",), "no images of the validation split"),
        ):
            given = [setting.format(rahf=rahf) for setting in settings]
            assert told in rich.run("train-rahf", *given, status=2).err, settings
        told = rich.run("predict-rich-feedback", "predict-rich-feedback.reads.reward-model=train-rm", status=2).err
        assert "is no RichRewardModel" in told
