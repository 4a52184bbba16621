"""People of the micro world who give rich feedback: statistics like the paper's, and what they mark is what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from irpipe.microworld.grammar import parse, prompts
from irpipe.microworld.oracle import best_match, best_reading, look
from irpipe.microworld.render import SIDE
from irpipe.microworld.rich import Slips, answer, implausible_points, misaligned_points, rich_truth, wrong_regions
from irpipe.schemas.rich_feedback import prompt_tokens

NO_SLIPS = Slips(miss=0.0, stray=0.0, jitter=0.0, word_miss=0.0, word_false=0.0, score=0.0, strictness=0.0)


def picture(*squares):
    """A dark picture with coloured squares: (x, y, half a side, colour)."""
    image = np.zeros((SIDE, SIDE, 3)) + 0.12
    for x, y, half, colour in squares:
        image[y - half : y + half, x - half : x + half] = colour
    return image


RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.7, 0.1), (0.1, 0.2, 0.9)


class TestWhatIsWrong:
    def test_tokens_are_the_words_that_the_oracle_counts(self):
        """Places of wrong words are places among the prompt's tokens, whatever punctuation there is."""
        for text in prompts(300, None, 0.3, 0.1, seed=1):
            assert [word.strip(",.") for word in text.split()] == prompt_tokens(text), text

    def test_a_thing_of_another_colour_is_marked_where_it_is(self):
        truth = rich_truth("a red square on a dark background", picture((20, 12, 4, GREEN)))
        assert [region.kind for region in truth.regions] == ["thing"]
        assert (truth.regions[0].x, truth.regions[0].y) == (pytest.approx(20, abs=1), pytest.approx(12, abs=1))
        assert truth.wrong == (1,)
        given = answer(truth, NO_SLIPS, np.random.default_rng(0))
        assert given.words == (1,)
        assert np.hypot(given.misaligned[0][0] - 20, given.misaligned[0][1] - 12) < 5

    def test_a_missing_thing_is_marked_where_it_should_be_and_what_stands_for_it_where_it_is(self):
        image = picture((8, 16, 4, RED))
        scene, requirements = parse("a red square left of a blue square")
        view = look(image)
        reading, standing = best_match(scene, requirements, view)
        assert standing[0] is not None and standing[1] is None and reading == best_reading(scene, requirements, view)
        regions = wrong_regions(scene, requirements, reading, standing, view)
        (missing,) = [region for region in regions if region.kind == "missing"]
        assert missing.x > SIDE / 2 and missing.y == pytest.approx(16, abs=1.5)

    def test_damage_is_marked_most_first_until_nothing_catches_the_eye(self):
        defects = np.zeros((SIDE, SIDE))
        defects[5:8, 5:8], defects[20:22, 25:27] = 1.0, 1.0
        points = implausible_points(defects, Slips(miss=0, stray=0, jitter=0, patience=20), np.random.default_rng(2))
        assert all(5 <= x <= 8.5 and 5 <= y <= 8.5 for x, y in points[:1]) and any(x > 20 for x, _ in points)
        assert implausible_points(np.zeros((SIDE, SIDE)), Slips(stray=0), np.random.default_rng(0)) == []
        assert misaligned_points((), Slips(), np.random.default_rng(0)) == []


def test_an_answer_of_somebody_without_slips_is_the_truth():
    truth = rich_truth("a red square on a dark background", picture((16, 16, 4, RED)))
    given = answer(truth, NO_SLIPS, np.random.default_rng(0))
    assert given.words == () and given.misaligned == ()
    assert given.scores == tuple(float(value) for value in np.clip(np.rint(1 + 4 * truth.scores), 1, 5))
