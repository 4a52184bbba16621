"""The micro world: a grammar and its parser, a renderer, an oracle that cannot be fooled, people whose noise is known."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from irpipe.microworld.annotators import (
    MOST_PER_SLOT,
    SLOTS,
    TIE,
    Annotator,
    Impression,
    annotate,
    best_accuracy,
    crowd,
    slots,
)
from irpipe.microworld.grammar import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    canonical,
    corrupt,
    describe,
    parse,
    prompts,
    sample_scene,
    split_of,
    turned,
    words,
)
from irpipe.microworld.oracle import judge, look, utility
from irpipe.microworld.render import RGB, SIDE, compose, coverage, damage, render, to_pixels

SCENES = 400


@pytest.fixture(scope="module")
def world():
    """Scenes with a sentence, a perfect picture (as it is after encoding), where things stand, and the background."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(SCENES):
        scene = sample_scene(rng)
        image, placed, background = render(scene, rng)
        found.append((scene, describe(scene, rng), to_pixels(image) / 255, placed, background))
    return found


def scores(sentences, images):
    """(n, 3) alignment, fidelity, utility."""
    verdicts = [judge(sentence, image) for sentence, image in zip(sentences, images, strict=True)]
    return np.array([(verdict.alignment, verdict.fidelity, verdict.utility) for verdict in verdicts])


class TestGrammar:
    def test_a_sentence_says_its_scene_however_it_is_worded(self):
        rng = np.random.default_rng(0)
        for _ in range(2000):
            scene = sample_scene(rng)
            for sentence in (describe(scene), describe(scene, rng), describe(scene, rng).upper() + " "):
                assert canonical(parse(sentence)[0]) == canonical(scene), sentence

    def test_every_requirement_knows_its_words(self):
        sentence = "A picture of a huge red circle to the left of a blue square on a dark background, flat colours"
        _, requirements = parse(sentence)
        told = {(r.kind, r.thing): " ".join(sentence.split()[word] for word in r.words) for r in requirements}
        assert told == {
            ("size", 0): "huge",
            ("colour", 0): "red",
            ("shape", 0): "circle",
            ("relation", None): "to the left of",
            ("colour", 1): "blue",
            ("shape", 1): "square",
            ("background", None): "dark",
        }

    @pytest.mark.parametrize("text", ["", "a cat", "a red circle and a dog", "red circle", "a red circle on a pink background"])
    def test_other_sentences_are_refused(self, text):
        with pytest.raises(ValueError, match="not a sentence of the micro world"):
            parse(text)

    def test_the_parts_of_the_world_share_no_scene(self):
        parts = {}
        for split in ("train", "validation", "test"):
            rng = np.random.default_rng(1)
            scenes = [sample_scene(rng, split) for _ in range(1500)]
            assert {split_of(scene) for scene in scenes} == {split}
            assert {split_of(turned(scene)) for scene in scenes if scene.relation} == {split}, "however it is told"
            parts[split] = {canonical(scene) for scene in scenes}
        for one, two in itertools.combinations(parts.values(), 2):
            assert not one & two

    def test_there_are_thousands_of_simple_scenes(self):
        rng = np.random.default_rng(0)
        assert len({scene for scene in (sample_scene(rng) for _ in range(30_000)) if scene.relation is None}) > 2000

    def test_a_pool_has_paraphrases_and_duplicates(self):
        pool = list(prompts(2000, None, 0.3, 0.05, seed=0))
        scenes = Counter(canonical(parse(sentence)[0]) for sentence in pool)
        assert len(pool) == 2000 and len(scenes) < 0.75 * len(pool)
        assert sum(sentence.isupper() for sentence in pool) == pytest.approx(100, abs=40)
        assert {split_of(parse(sentence)[0]) for sentence in prompts(200, "test", 0.3, 0.05, seed=0)} == {"test"}

    def test_a_corruption_contradicts_in_one_requirement(self):
        rng = np.random.default_rng(0)
        for _ in range(500):
            scene = sample_scene(rng)
            before, after = (parse(describe(s))[1] for s in (scene, corrupt(scene, rng)))
            assert [r.kind for r in before] == [r.kind for r in after]
            assert sum(a.value != b.value for a, b in zip(before, after, strict=True)) == 1

    def test_every_word_is_known_to_the_tokenizers(self):
        rng = np.random.default_rng(0)
        said = {word.strip(",").lower() for _ in range(3000) for word in describe(sample_scene(rng), rng).split()}
        assert said <= set(words())


class TestOracle:
    def test_clean_renders_score_nearly_one(self, world):
        found = scores([sentence for _, sentence, *_ in world], [image for _, _, image, *_ in world])
        assert found.mean(axis=0).min() > 0.99
        assert np.quantile(found[:, 2], 0.02) > 0.95

    def test_every_planted_wrong_word_is_found_and_no_other(self, world):
        rng = np.random.default_rng(5)
        exact = 0
        for scene, _, image, *_ in world:
            wrong = corrupt(scene, rng)
            sentence = describe(wrong)
            right = {(r.kind, r.thing, r.value) for r in parse(describe(scene))[1]}
            planted = {word for r in parse(sentence)[1] if (r.kind, r.thing, r.value) not in right for word in r.words}
            found = set(judge(sentence, image).wrong_words)
            assert planted <= found, sentence
            exact += planted == found
        assert exact > 0.98 * len(world)

    def test_planted_damage_is_found_where_it_is(self, world):
        rng = np.random.default_rng(6)
        overlaps, fidelities, sizes = [], [], []
        for _, sentence, image, placed, background in world:
            spoilt, where = damage(image, placed, background, rng)
            verdict = judge(sentence, spoilt)
            marked = verdict.defects > 0.3
            overlaps.append((marked & where).sum() / max(1, (marked | where).sum()))
            fidelities.append(verdict.fidelity)
            sizes.append(where.sum())
        assert np.mean(overlaps) > 0.6
        assert np.mean(fidelities) < 0.45
        assert np.mean(np.array(fidelities) < 0.95) > 0.95
        assert np.corrcoef(sizes, fidelities)[0, 1] < -0.4, "the more damage, the less fidelity"

    def test_it_says_the_same_twice(self, world):
        _, sentence, image, *_ = world[0]
        one, two = judge(sentence, image), judge(sentence, image.copy())
        assert one.utility == two.utility and np.array_equal(one.defects, two.defects)

    def test_images_of_another_size_are_refused(self):
        with pytest.raises(ValueError, match="32 x 32 x 3"):
            judge("a red circle", np.zeros((16, 16, 3)))


def flat(scene, image, placed, background):
    return np.broadcast_to(np.array(RGB[background]), image.shape).copy()


def tiny_things(scene, image, placed, background):
    parts = [(coverage(thing.shape, thing.x, thing.y, 1.8), np.array(RGB[thing.colour])) for thing in placed]
    return compose(np.array(RGB[background]), parts)


def over_full(scene, image, placed, background):
    cells = itertools.product((5, 16, 27), (5, 16, 27))
    parts = [(coverage(SHAPES[n % 4], x, y, 3.6), np.array(RGB[COLOURS[n % 6]])) for n, (x, y) in enumerate(cells)]
    return compose(np.array(RGB[background]), parts)


def twice(scene, image, placed, background):
    """The wanted things, and each once more where there is room."""
    again = [(thing, 32 - thing.x, 32 - thing.y) for thing in placed]
    parts = [(coverage(thing.shape, x, y, thing.radius), np.array(RGB[thing.colour])) for thing, x, y in again]
    return compose(np.array(RGB[background]), parts) * 0.5 + image * 0.5


ATTACKS = {
    "flat": (flat, 0.2),
    "noise": (lambda scene, image, *_: np.random.default_rng(0).random(image.shape), 0.1),
    "over-full": (over_full, 0.2),
    "tiny things": (tiny_things, 0.25),
    "twice over": (twice, 0.5),
    "washed out to grey": (lambda scene, image, *_: 0.5 + 0.5 * (image - 0.5), 0.4),
    "washed out to white": (lambda scene, image, *_: 0.5 + 0.5 * image, 0.3),
    "grainy": (lambda scene, image, *_: np.clip(image + np.random.default_rng(1).normal(0, 0.15, image.shape), 0, 1), 0.4),
    "blurred": (lambda scene, image, *_: ndimage.gaussian_filter(image, (2, 2, 0)), 0.5),
    "inverted": (lambda scene, image, *_: 1 - image, 0.55),
    "chequered": (lambda scene, image, *_: np.where((np.indices((SIDE, SIDE)).sum(axis=0) % 2)[..., None], image, 0.5), 0.2),
    "halved": (lambda scene, image, *_: np.concatenate([image[:16], image[:16]]), 0.75),
    "grey all over": (lambda scene, image, *_: np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2), 0.5),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_pictures_that_only_look_like_something_score_low(world, name):
    attack, most = ATTACKS[name]
    images = [attack(scene, image, placed, background) for scene, _, image, placed, background in world]
    assert scores([sentence for _, sentence, *_ in world], images)[:, 2].mean() < most


def test_the_picture_of_another_prompt_scores_low(world):
    sentences = [sentence for _, sentence, *_ in world]
    found = scores(sentences[1:] + sentences[:1], [image for _, _, image, *_ in world])
    assert found[:, 0].mean() < 0.3 and found[:, 2].mean() < 0.5


TRANSFORMATIONS = {
    "brighter": lambda image: np.clip(image * 1.1, 0, 1),
    "darker": lambda image: image * 0.9,
    "more contrast": lambda image: np.clip(0.5 + 1.2 * (image - 0.5), 0, 1),
    "less contrast": lambda image: 0.5 + 0.85 * (image - 0.5),
    "more colour": lambda image: np.clip(image.mean(2, keepdims=True) + 1.3 * (image - image.mean(2, keepdims=True)), 0, 1),
    "less colour": lambda image: image.mean(2, keepdims=True) + 0.7 * (image - image.mean(2, keepdims=True)),
    "sharper": lambda image: np.clip(2 * image - ndimage.gaussian_filter(image, (1, 1, 0)), 0, 1),
    "softer": lambda image: ndimage.gaussian_filter(image, (0.7, 0.7, 0)),
    "median": lambda image: ndimage.median_filter(image, (3, 3, 1)),
    "posterised": lambda image: np.rint(image * 4) / 4,
    "framed": lambda image: np.pad(image[3:-3, 3:-3], ((3, 3), (3, 3), (0, 0)), mode="constant"),
    "zoomed in": lambda image: np.repeat(np.repeat(image[8:24, 8:24], 2, axis=0), 2, axis=1),
    "tiled": lambda image: np.tile(image[::2, ::2], (2, 2, 1)),
    "grain": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 0.06, image.shape), 0, 1),
    "moved": lambda image: np.roll(image, 3, axis=1),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("kind", ["clean", "damaged", "of another prompt"])
def test_no_filter_raises_the_score(world, name, kind):
    """What a generator could learn without drawing better pictures. Median filters do remove noise: that is better."""
    rng = np.random.default_rng(9)
    sentences = [sentence for _, sentence, *_ in world]
    images = [image for _, _, image, *_ in world]
    if kind == "damaged":
        images = [damage(image, placed, background, rng)[0] for _, _, image, placed, background in world]
    if kind == "of another prompt":
        sentences = sentences[1:] + sentences[:1]
    before, after = scores(sentences, images), scores(sentences, [TRANSFORMATIONS[name](image) for image in images])
    if name == "median" and kind == "damaged":
        pytest.skip("a median filter fixes scratches")
    assert (after - before).mean(axis=0).max() < 0.01


def test_the_trade_off_rules_of_the_annotation_document():
    assert utility(0.5, 0.9) > utility(0.9, 0.5), "usually fidelity outranks alignment (ImageReward B.4, rule 1)"
    assert utility(0.9, 0.8) > utility(0.5, 0.9), "clearly better aligned and only slightly less clean wins (rule 2)"
    assert utility(1.0, 0.0) < 0.25 and utility(0.0, 1.0) < 0.35, "neither is worth much alone"
    assert utility(1, 1) == 1 and utility(0, 0) == 0


def test_what_the_oracle_sees():
    scene = Scene((Thing("large", "red", "cross"), Thing("small", "cyan", "triangle")), "left of", None, "brown")
    view = look(render(scene, np.random.default_rng(0))[0])
    assert view.background == "brown" and view.fidelity > 0.95
    assert [(thing.size, thing.colour, thing.shape) for thing in view.things] == [
        ("large", "red", "cross"),
        ("small", "cyan", "triangle"),
    ]


def people(count=6, noise=0.1, lean=0.05):
    return crowd(count, noise, lean, np.random.default_rng(2))


def impressions(count, rng):
    return [Impression(float(rng.uniform(0.2, 1)), float(rng.uniform(0.2, 1)), 0, 0) for _ in range(count)]


class TestAnnotators:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
    def test_rankings_have_five_slots_of_two_and_keep_the_order(self, seen):
        ranks = slots(np.array(seen))
        assert min(ranks) == 1 and max(ranks) <= SLOTS
        assert max(Counter(ranks).values()) <= MOST_PER_SLOT
        for one, two in itertools.permutations(range(len(seen)), 2):
            if seen[one] > seen[two]:
                assert ranks[one] <= ranks[two]

    @given(st.lists(st.floats(0, 1), min_size=2, max_size=7))
    def test_ties_lose_as_little_as_any_other_way(self, seen):
        """Against all ways to put neighbours together, tried one by one."""
        ordered = np.sort(np.array(seen))[::-1]
        gaps = -np.diff(ordered)

        def loss(tied):
            return sum(gaps[place] - TIE for place in tied)

        ways = [
            tied
            for size in range(len(gaps) + 1)
            for tied in itertools.combinations(range(len(gaps)), size)
            if all(b - a > 1 for a, b in itertools.pairwise(tied)) and len(ordered) - len(tied) <= SLOTS
        ]
        ranks = sorted(slots(np.array(seen)))
        mine = [place for place, (a, b) in enumerate(itertools.pairwise(ranks)) if a == b]
        assert loss(mine) == pytest.approx(min(loss(tied) for tied in ways), abs=1e-9)

    def test_gaps_are_left_where_images_are_far_apart(self):
        assert slots(np.array([0.9, 0.5, 0.495, 0.1])) == [1, 3, 3, 5]

    def test_ratings_go_with_the_ranking_unless_contradictions_are_asked_for(self):
        rng = np.random.default_rng(0)
        for contradicts in (False, True):
            against = 0
            for _ in range(100):
                record = annotate(people()[0], impressions(6, rng), contradicts, rng)
                against += any(
                    record["ranking"][i] < record["ranking"][j] and record["overall"][i] < record["overall"][j]
                    for i, j in itertools.permutations(range(6), 2)
                )
                for aspect in ("overall", "alignment", "fidelity"):
                    assert all(1 <= value <= 7 for value in record[aspect])
            assert against == 0 if not contradicts else against > 80

    def test_problem_boxes_say_what_the_oracle_saw(self):
        rng = np.random.default_rng(0)
        images = [Impression(1, 1, 0, 0), Impression(1, 1, 2, 0), Impression(1, 1, 0, 1), Impression(0, 0.05, 0, 0)]
        ticked = [annotate(people()[0], images, False, rng)["problems"] for _ in range(200)]
        shares = [Counter(problem for boxes in column for problem in boxes) for column in zip(*ticked, strict=True)]
        assert shares[0] == {}
        for column, name in ((1, "repeated_generation"), (2, "body_problem"), (3, "too_blurred")):
            assert set(shares[column]) == {name} and shares[column][name] == pytest.approx(180, abs=20)

    def test_a_lean_moves_weight_to_alignment(self):
        aligned, clean = Impression(0.9, 0.6, 0, 0), Impression(0.6, 0.9, 0, 0)
        for lean, better in ((0.15, 0), (-0.15, 1)):
            person = Annotator("p", lean, 1e-6, 0.0)
            ranking = annotate(person, [aligned, clean], False, np.random.default_rng(0))["ranking"]
            assert ranking[better] == 1 and ranking[1 - better] > 1

    def test_the_bound_is_what_the_noise_model_says(self):
        """Two images a distance d apart, one person: they agree with the truth with probability Phi(d / (sqrt(2) noise)),
        and ties, closer than TIE, do not count."""
        from scipy.stats import norm

        noise, apart = 0.1, 0.1
        pair = [Impression(1, 1, 0, 0), Impression(1, 1 - apart / 0.8, 0, 0)]
        assert utility(1, 1) - utility(pair[1].alignment, pair[1].fidelity) == pytest.approx(apart)
        spread = np.sqrt(2) * noise
        right, wrong = norm.sf((TIE - apart) / spread), norm.cdf((-TIE - apart) / spread)
        bound, count = best_accuracy([pair], [Annotator("p", 0.0, noise, 0.0)], 40_000, np.random.default_rng(0))
        assert bound == pytest.approx(right / (right + wrong), abs=0.006)
        assert count == pytest.approx(40_000 * (right + wrong), rel=0.02)

    def test_between_equal_images_any_guess_is_right_half_the_time(self):
        bound, count = best_accuracy([[Impression(1, 1, 0, 0)] * 4], people(), 2000, np.random.default_rng(0))
        assert count > 1000 and bound == 0.5

    def test_eleven_images_do_not_fit(self):
        with pytest.raises(ValueError, match="11 images do not fit 5 slots of 2"):
            slots(np.zeros(11))

    def test_nobody_beats_the_bound(self):
        rng = np.random.default_rng(4)
        crowd_, prompts_ = people(noise=0.15), [impressions(6, rng) for _ in range(60)]
        bound, _ = best_accuracy(prompts_, crowd_, 30, rng)
        for judge_by in (lambda i: i.alignment, lambda i: i.fidelity, lambda i: i.alignment + i.fidelity):
            agreed = counted = 0
            for images in prompts_:
                score = np.array([judge_by(image) for image in images])
                for _ in range(30):
                    person = crowd_[int(rng.integers(len(crowd_)))]
                    ranks = np.array(annotate(person, images, False, rng)["ranking"])
                    better = ranks[:, None] < ranks[None, :]
                    agreed += (better & (score[:, None] > score[None, :])).sum()
                    counted += better.sum()
            assert agreed / counted < bound + 0.01
        assert 0.7 < bound < 0.95


def test_the_constants_of_the_papers():
    assert (SLOTS, MOST_PER_SLOT) == (5, 2)
    assert len(COLOURS) == 6 and len(SHAPES) == 4 and len(SIZES) == 2 and len(BACKGROUNDS) == 4
