"""Images to be annotated: as many of each kind as there are, drawn by lot, and test prompts of their own."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from irpipe.models.vqa import VisualQuestions
from irpipe.pipeline.errors import InputError, ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.images import ImageReader
from irpipe.stages.select_images.answers import read_labels
from irpipe.stages.select_images.questions import faults_of, parse, quotas, weights_of
from irpipe.stages.select_images.run import test_images as images_of_test_prompts
from tests.blips import question_blip

RECIPE = """recipe = "chosen"
[reads]
images = "generate-images"
[embed-prompts]
path = "pool.txt"
embedder = "lexical"
[select-prompts]
method = "random"
count = 12
[generate-images]
models = ["micro-generator"]
num_steps = 1
guidance_scale = 1.0
dtype = "float32"
min_images = 3
max_images = 3
[select-images]
labels = "labels.csv"
questions = ["photorealistic: is the image photorealistic? yes 3, no", "category: what is it? human, animal"]
count = 12
test_prompts = 3
[split-prompts]
source = "images"
near_duplicate = "off"
validation_share = 0.2
test_share = 0.0
reads.images = "select-images"
"""


@pytest.fixture
def small(project):
    """36 images of 12 prompts: of each prompt one that is no photograph, and animals are rare."""
    project.recipe(RECIPE)
    prompts = [f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "blue") for shape in SHAPES]
    (project.root / "pool.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    project.last("generate-images")
    images = project.rows("SELECT image_id, prompt_id, image.path AS path FROM images ORDER BY prompt_id, path")
    rows = [
        (
            row["path"] if number % 2 else f"{int(row['image_id'], 16):016x}",
            "no" if number % 3 == 0 else "yes",
            KINDS[number % 9 == 1],
        )
        for number, row in enumerate(images)
    ]
    write_labels(project, rows)
    return project


SHAPES = ("circle", "square", "cross")
KINDS = ("human", "animal")


def write_labels(project, rows, header="image,photorealistic,category"):
    lines = [header, *(",".join(row) for row in rows)]
    (project.root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


class TestQuotas:
    def test_in_the_ratio_of_weights_and_all_of_what_is_scarce(self):
        available = {("a",): 100, ("b",): 100, ("c",): 4}
        assert quotas(available, {("a",): 2, ("b",): 1, ("c",): 1}, 40) == {("a",): 24, ("b",): 12, ("c",): 4}
        assert quotas(available, {("a",): 1, ("b",): 1, ("c",): 1}, 11) == {("a",): 4, ("b",): 4, ("c",): 3}
        assert quotas(available, {("a",): 0, ("b",): 1, ("c",): 1}, 500) == {("a",): 0, ("b",): 100, ("c",): 4}

    def test_it_is_the_plain_filling(self):
        """Against giving images one by one to the kind that has the least for its weight."""
        rng = np.random.default_rng(0)
        for _ in range(50):
            available = {(str(kind),): int(n) for kind, n in enumerate(rng.integers(0, 30, 5))}
            count = int(rng.integers(1, 100))
            taken = dict.fromkeys(available, 0)
            for _ in range(min(count, sum(available.values()))):
                free = [kind for kind in available if taken[kind] < available[kind]]
                taken[min(free, key=lambda kind: taken[kind])] += 1
            assert quotas(available, dict.fromkeys(available, 1.0), count) == taken


class TestQuestions:
    def test_a_question_with_weights(self):
        question = parse("category: which one? human 2, indoor scene .5, animal")
        assert question.text == "which one?"
        assert question.weights == {"human": 2.0, "indoor scene": 0.5, "animal": 1.0}
        other = parse("photo: is it? yes 3, no")
        assert weights_of([other, question])["yes", "indoor scene"] == 1.5

    @pytest.mark.parametrize("wrong", ["is it? yes, no", "photo: is it yes, no", "photo: is it? yes", "photo: is it? yes, yes"])
    def test_what_is_no_question(self, wrong):
        assert "is not spelled as" in next(faults_of([wrong]))
        assert "'photo' is there twice" in next(faults_of(["photo: is it? yes, no"] * 2))

    @pytest.mark.parametrize("answers", ["yes -1, no", "yes 1e3, no", "yes 4., no"])
    def test_what_looks_like_a_weight_and_is_none(self, answers):
        assert "is not spelled as" in next(faults_of([f"photo: is it? {answers}"]))

    def test_the_column_of_images_is_no_question(self):
        assert "no question is named 'image'" in next(faults_of(["image: is it one? yes, no"]))


class TestTestImages:
    def test_prompts_that_are_equal_count_as_one(self):
        texts = {1: "a cat", 2: "a cat", 3: "a dog", 4: "a tree"}
        for seed in range(8):
            chosen = images_of_test_prompts(texts, 2, seed)
            assert len(chosen) == 2 and len({texts[image] for image in chosen}) == 2
        assert images_of_test_prompts(texts, 2, 0) == images_of_test_prompts(dict(reversed(texts.items())), 2, 0)


class TestStage:
    def test_a_balanced_sample_and_test_prompts(self, small):
        done = small.last("select-images")
        rows = small.rows("SELECT image_id, prompt_id, split FROM selected_images")
        test = [row for row in rows if row["split"] == "test"]
        assert len(test) == 3 == len({row["prompt_id"] for row in test}) == done["metrics"]["test"]
        others = [row for row in rows if row["split"] is None]
        assert len(others) == 12 and not {row["prompt_id"] for row in others} & {row["prompt_id"] for row in test}
        kept = small.rows("SELECT image_id FROM select_images.images")
        assert {row["image_id"] for row in kept} == {row["image_id"] for row in rows}
        counts = {row["answers"]: row for row in small.rows("SELECT * FROM attribute_counts")}
        assert sum(row["before"] for row in counts.values()) == 36
        chosen = {tuple(part.split(": ")[1] for part in name.split(", ")): row["chosen"] for name, row in counts.items()}
        pool = small.rows(
            "SELECT max(answer) FILTER (attribute = 'photorealistic') AS photo,"
            " max(answer) FILTER (attribute = 'category') AS kind"
            " FROM image_answers JOIN generate_images.images USING (image_id)"
            " WHERE prompt_id NOT IN (SELECT prompt_id FROM selected_images WHERE split = 'test') GROUP BY image_id"
        )
        available = Counter((row["photo"], row["kind"]) for row in pool)
        assert sum(available.values()) == 27 and available["yes", "animal"] <= 4
        assert chosen["yes", "animal"] == available["yes", "animal"]  # they are rare: all of them
        assert chosen["yes", "human"] + chosen["no", "human"] == 12 - chosen["yes", "animal"]
        assert abs(chosen["yes", "human"] - 3 * chosen["no", "human"]) <= 3
        assert "Kinds of images" in small("show", "select-images").out
        reasons = done["metrics"]["rejected_for"]
        assert reasons["another image of a test prompt"] == 6 and sum(reasons.values()) == 36 - 15

    def test_the_test_prompts_are_the_test_split(self, small):
        done = small.last("split-prompts")
        assert done["metrics"]["prompts_by_split"]["test"] == 3
        tests = small.rows("SELECT prompt_id FROM selected_images WHERE split = 'test'")
        split = small.rows("SELECT prompt_id FROM prompt_splits WHERE split = 'test'")
        assert {row["prompt_id"] for row in tests} == {row["prompt_id"] for row in split}
        told = small.run("split-prompts", "split-prompts.reads.images=generate-images", status=2).err
        assert "the images are not those that select-images chose" in told

    def test_labels_that_cannot_be_used(self, small):
        lines = (small.root / "labels.csv").read_text(encoding="utf-8").splitlines()
        good = [tuple(line.split(",")) for line in lines[1:]]
        write_labels(small, [(good[0][0], "maybe", "human"), *good[2:], ("no-such.png", "yes", "human")])
        done = small.last("select-images", "select-images.max_rejected=0.2")
        reasons = done["metrics"]["rejected_for"]
        assert reasons["its label photorealistic is maybe, which is no answer"] == reasons["it has no label"] == 1
        assert done["metrics"]["labels_of_no_image"] == 1
        weighed = 'select-images.questions=["photorealistic: is it? yes, no 0", "category: what is it? human, animal"]'
        write_labels(small, good)
        none = small.last("select-images", weighed, "select-images.count=100")
        assert none["metrics"]["rejected_for"]["its kind has the weight 0"] == 12
        photos = small.rows(
            "SELECT answer FROM image_answers SEMI JOIN selected_images USING (image_id) WHERE attribute[1] = 'p'"
        )
        assert {row["answer"] for row in photos} == {"yes"}
        assert (
            "100 images were asked for, and 1"
            in small.run("select-images", weighed, "select-images.count=100", "select-images.seed=1").err
        )
        write_labels(small, [*good, good[0]])
        assert "labels the image" in small.run("select-images", status=2).err
        write_labels(small, good, "image,photo,category")
        assert "there is no column 'photorealistic'" in small.run("select-images", status=2).err
        write_labels(small, good)
        assert (
            "12 test prompts leave none of 12 prompts"
            in small.run("select-images", "select-images.test_prompts=12", status=2).err
        )

    def test_no_image_can_be_used(self, small):
        lines = (small.root / "labels.csv").read_text(encoding="utf-8").splitlines()
        write_labels(small, [(line.split(",")[0], "maybe", "human") for line in lines[1:]])
        told = small.run("select-images", "select-images.max_rejected=1", status=2).err
        assert "none of 36 rows can be kept" in told and "its label photorealistic is maybe" in told

    def test_images_that_nobody_should_judge(self, small, monkeypatch):
        """Also where labels have answers for them."""
        rows = ImageReader.rows

        def blackened(reader, columns, image_ids=None):
            for number, row in enumerate(rows(reader, columns, image_ids)):
                yield dict(row) | ({"fault": "blackened"} if "fault" in columns and len(columns) == 2 and number == 0 else {})

        monkeypatch.setattr(ImageReader, "rows", blackened)
        assert small.last("select-images")["metrics"]["rejected_for"]["blackened"] == 1

    def test_a_path_of_several_images(self, small):
        images = small.rows("SELECT image_id, image.path AS path FROM generate_images.images")
        reader = SimpleNamespace(
            rows=lambda columns: [{"image_id": number, "image": {"path": "a.png"}} for number in (1, 2)], ids=np.array([1, 2])
        )
        questions = [parse("photo: is it? yes, no")]
        (small.root / "two.csv").write_text("image,photo\n0000000000000001,yes\n0000000000000002,no\n", encoding="utf-8")
        answers, faults, strangers = read_labels(small.root / "two.csv", questions, reader)
        assert answers == {1: [("yes", None)], 2: [("no", None)]} and not faults and not strangers and images
        (small.root / "two.csv").write_text("image,photo\na.png,yes\n", encoding="utf-8")
        with pytest.raises(InputError, match="the path of several images"):
            read_labels(small.root / "two.csv", questions, reader)
        (small.root / "two.jsonl").write_text('{"image": "0000000000000001", "photo": ["yes"]}\n', encoding="utf-8")
        _, faults, _ = read_labels(small.root / "two.jsonl", questions, reader)
        assert faults[1] == "its label photo is ['yes'], which is no answer"

    def test_it_chooses_what_is_annotated(self, small):
        """The annotations of a recipe come after it."""
        text = (small.root / "irpipe.toml").read_text(encoding="utf-8")
        small.recipe(text + '[simulate-annotations]\nreads.images = "select-images"\n[load-annotations]\n')
        assert "select-images" in small("plan", "load-annotations").out

    def test_a_model_answers(self, small):
        question_blip(small.root / "vqa")
        text = (small.root / "irpipe.toml").read_text(encoding="utf-8")
        small.recipe(text.replace('labels = "labels.csv"', 'model = "vqa"\nbatch_size = 5'))
        small.last("select-images")
        rows = small.rows("SELECT attribute, answer, share FROM image_answers")
        assert len(rows) == 72 and {row["answer"] for row in rows if row["attribute"] == "category"} <= set(KINDS)
        assert all(0.5 <= row["share"] <= 1 for row in rows)
        other = small.run("select-images", "select-images.model=micro-blip", status=2).err
        assert "the question answering BLIP" in other


class TestModel:
    def test_shares_are_those_of_the_models_own_loss(self, tmp_path):
        """Of each answer by itself, with what transformers computes when it trains on it."""
        model, tokenizer = question_blip(tmp_path)
        asker = VisualQuestions(Model("vqa", "r", tmp_path), "cpu", torch.float32)
        rng = np.random.default_rng(0)
        pictures = [Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]
        pixels, answers = asker.pixels(pictures), ["red", "a blue square", "cross"]
        found = asker.shares(asker.look(pixels), "what is in the picture?", answers)
        question = tokenizer("what is in the picture?", return_tensors="pt")
        plain = torch.zeros(3, 3)
        for row in range(3):
            for column, answer in enumerate(answers):
                words = tokenizer(answer, add_special_tokens=False)["input_ids"]
                labels = torch.tensor([[model.config.text_config.bos_token_id, *words, model.config.text_config.sep_token_id]])
                with torch.no_grad():
                    loss = model(
                        input_ids=question["input_ids"],
                        attention_mask=question["attention_mask"],
                        pixel_values=pixels[row : row + 1],
                        decoder_input_ids=labels,
                        labels=labels,
                    ).loss
                plain[row, column] = -loss * (labels.shape[1] - 1)
        assert found.numpy() == pytest.approx(plain.softmax(dim=1).numpy(), abs=1e-5)

    def test_one_that_is_not_whole(self, tmp_path):
        model, _ = question_blip(tmp_path)
        weights = model.state_dict()
        name = next(name for name in weights if name.startswith("text_decoder.bert.encoder"))
        model.save_pretrained(tmp_path, state_dict={key: value for key, value in weights.items() if key != name})
        with pytest.raises(ModelError, match=f"lacks {name}"):
            VisualQuestions(Model("vqa", "r", tmp_path), "cpu", torch.float32)
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert config["model_type"] == "blip"
