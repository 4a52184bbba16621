"""Small decisions by hand, each of which a mutant has once survived: defaults, edges, weights, what is written in a row."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from irpipe.models.training.loop import State
from irpipe.models.training.objective import Samples
from irpipe.models.tuning import captions
from irpipe.models.tuning.captions import CaptionedImages, denoising_losses, encode_captioned, fitted
from irpipe.models.tuning.choose import best_and_worst, best_of_each
from irpipe.models.tuning.denoiser import Denoiser
from irpipe.models.tuning.evaluation import image_statistics
from irpipe.pipeline.commit import remove, set_aside
from irpipe.pipeline.errors import InputError, StoreError, TrainingError
from irpipe.pipeline.plan import Planner
from irpipe.pipeline.settings import Group, setting
from irpipe.pipeline.store import disk_errors
from irpipe.schemas.annotations import RANKINGS
from irpipe.stages.build_pairs.expand import _tail, read_rankings
from irpipe.stages.build_pairs.facts import Facts, Images
from irpipe.stages.compare_generators import CompareGeneratorsConfig
from irpipe.stages.compare_generators.table import compare, table_4
from irpipe.stages.evaluate_rm import EvaluateRmConfig
from irpipe.stages.evaluate_rm.accuracy import calibration, intervals
from irpipe.stages.evaluate_rm.data import ScorerData
from irpipe.stages.evaluate_rm.run import best_of_rows, figures
from irpipe.stages.finetune import FinetuneConfig
from irpipe.stages.finetune.pool import choose
from irpipe.stages.refl.objective import ReflObjective
from irpipe.stages.split_prompts import SplitPromptsConfig
from irpipe.stages.split_prompts.cut import cut
from irpipe.stages.split_prompts.links import near_links
from irpipe.stages.train_rm.data import PairRows, check_splits
from irpipe.stages.train_rm.objective import PairwiseObjective, sums_of
from tests.test_choices import part_of


class TestTuning:
    def test_what_is_chosen_is_good_unless_it_is_marked(self):
        assert [one.bad for one in best_of_each(np.array([[0.1, 0.9]]), 1)] == [False]

    def test_a_setting_for_each_way_to_choose(self):
        rewards = np.array([[0.0, 1.0, 4.0], [0.0, 0.0, 1.0]])

        def chosen(**settings):
            return [(one.prompt, one.image, one.weight, one.bad) for one in choose(FinetuneConfig(**settings), rewards)]

        assert chosen(select="best", best=1) == [(0, 2, 1.0, False), (1, 2, 1.0, False)]
        assert chosen(select="weighted")[1] == (0, 1, 0.25, False)
        assert chosen(select="best-and-worst", alpha=2.0) == [(0, 2, 1.0, False), (0, 0, 1.0, True)]

    def test_a_share_must_pass_alpha_of_n(self):
        """softmax(0, 0, 1.2) has .62 for the best: above 1.8 / 3, not above 2 / 3."""
        row = np.array([[0.0, 0.0, 1.2]])
        assert [(one.image, one.bad) for one in best_and_worst(row, 1.8)] == [(2, False)]
        assert best_and_worst(row, 2.0) == []

    def test_the_newest_norms_are_carried_whole_steps_at_a_time(self):
        alone = SimpleNamespace(num_processes=1)
        objective = part_of(ReflObjective, accelerator=alone, carried=[], _step_norms=[])
        for step in range(6):
            objective._step_norms = [float(step)] * 100
            objective.finish(step)
        assert [norms[0] for norms in objective.carried] == [2.0, 3.0, 4.0, 5.0], "400 norms, without the oldest steps"
        objective._step_norms = [6.0] * 99
        objective.finish(6)
        assert [norms[0] for norms in objective.carried] == [2.0, 3.0, 4.0, 5.0, 6.0], "399 would be too few"

    def test_places_without_a_norm_do_not_count(self):
        """Of several processes, one with fewer samples fills up with -1."""
        several = SimpleNamespace(
            num_processes=2,
            device="cpu",
            pad_across_processes=lambda values, pad_index: torch.cat([values, torch.tensor([float(pad_index)]).double()]),
            gather=lambda values: torch.cat([values, torch.tensor([3.0, 0.0]).double()]),
        )
        objective = part_of(ReflObjective, accelerator=several, carried=[], _step_norms=[2.0])
        objective.finish(0)
        assert objective.carried == [[0.0, 2.0, 3.0]]


class Plain:
    """A denoiser of nothing: its output is 0, its target the latents, and its moments and texts are told by the input."""

    device, shape, width, height = torch.device("cpu"), (1, 2, 2), 4, 2

    def noised(self, latents, noise, timesteps, schedule):
        return latents

    def target(self, latents, noise, timesteps, schedule):
        return latents

    def predict(self, latents, timesteps, conditions):
        return torch.zeros_like(latents)

    def moments(self, batch):
        mean = batch.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
        return torch.cat([mean, mean + 1], dim=1).expand(-1, 2, *self.shape)

    def encode(self, texts, batch_size=64):
        return {"prompt_embeds": torch.tensor([[float(len(text))] for text in texts])}


class TestCaptioned:
    def test_latents_are_the_mean_and_a_draw_of_the_spread(self):
        moments = np.zeros((1, 2, *Plain.shape), np.float32)
        moments[0, 0] = 3.0  # and no spread: the loss is the mean squared
        captioned = CaptionedImages(moments, {"prompt_embeds": np.zeros((1, 1), np.float32)})
        loss = denoising_losses(Plain(), SimpleNamespace(alphas=torch.ones(10)), captioned, [0], [7])
        assert loss.tolist() == [9.0]

    def encoded(self, folder, opened):
        shades = (0, 51, 255, 102, 204)

        def pictures():
            opened.append(1)
            return iter(Image.new("RGB", (4, 2), (shade,) * 3) for shade in shades)

        advanced = []
        made = encode_captioned(Plain(), [n * "a" for n in range(1, 6)], pictures, "x", folder, 2, advanced.append)
        assert sum(advanced) == 5
        return made

    def test_every_picture_and_caption_is_encoded_once(self, tmp_path):
        opened: list[int] = []
        made = self.encoded(tmp_path, opened)
        np.testing.assert_allclose(made.moments[:, 0, 0, 0, 0], [0, 0.2, 1, 0.4, 0.8], atol=1e-6)
        assert made.conditions["prompt_embeds"][:, 0].tolist() == [1, 2, 3, 4, 5]
        again = self.encoded(tmp_path, opened)
        assert opened == [1], "what is there is used"
        np.testing.assert_array_equal(again.moments, made.moments)

    def test_room_is_asked_for_all_of_it(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(captions, "need_room", lambda path, size, what: asked.append(size))
        self.encoded(tmp_path, [])
        assert asked == [4 * 5 * (2 * 4 + 1)]

    def test_the_middle_of_a_wide_and_of_a_high_picture(self):
        wide = np.repeat(np.arange(12, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
        assert fitted(Image.fromarray(wide), 4, 4)[0, :, 0].tolist() == [4, 5, 6, 7]
        assert fitted(Image.fromarray(wide.transpose(1, 0, 2).copy()), 4, 4)[:, 0, 0].tolist() == [4, 5, 6, 7]

    def test_a_safety_checker_sees_rows_of_pixels(self):
        seen = []
        checker = SimpleNamespace(
            safety_checker=True, run_safety_checker=lambda shown, device, dtype: (seen.append(shown), (None, [True]))[1]
        )
        denoiser = part_of(Denoiser, pipeline=checker, unet=torch.nn.Linear(1, 1))
        denoiser.unet.dtype = torch.float32
        images = torch.zeros(1, 3, 2, 4)
        images[0, 1, 0, 3] = 1.0
        assert denoiser.blackened(images) == [True]
        assert seen[0].shape == (1, 2, 4, 3) and seen[0][0, 0, 3].tolist() == [0, 1, 0]


class TestTraining:
    def test_nothing_was_evaluated_at_first(self):
        assert State().best == -math.inf

    def objective(self, loss: float, std: float):
        config = SimpleNamespace(collapse_after=2)
        made = part_of(
            PairwiseObjective,
            config=config,
            steps=[0] * 5,
            carried=[],
            accelerator=SimpleNamespace(num_processes=1),
            _sums=np.zeros(4),
        )
        for step in range(2):
            made._sums = np.array([4 * loss, 4.0, 8 * std, 8.0])
            made.finish(step)
        return made

    @pytest.mark.parametrize(
        ("loss", "std", "flat"),
        [(0.0, 0.0, True), (0.0, 0.05, False), (0.0, 1.0, False), (-0.1, 0.0, False), (0.1, 0, False)],
    )
    def test_collapse_is_ln_2_and_scores_all_alike(self, loss, std, flat):
        if flat:
            with pytest.raises(TrainingError, match="collapsed: after 2 steps the loss is that of equal scores"):
                self.objective(loss, std)
        else:
            assert self.objective(loss, std).carried == []

    def test_it_is_not_asked_before_its_step(self):
        made = part_of(
            PairwiseObjective,
            config=SimpleNamespace(collapse_after=3),
            steps=[0] * 5,
            carried=[],
            accelerator=SimpleNamespace(num_processes=1),
            _sums=np.array([0.0, 1.0, 0.0, 1.0]),
        )
        made.finish(0)
        assert len(made.carried) == 1

    def test_sums_weigh_the_pairs(self):
        loss = Samples(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.25]))
        sums = sums_of({"loss": loss, "score_std": Samples(torch.tensor([0.2, 0.4]))}, torch.tensor([0.5, 1.0]))
        assert sums.tolist() == pytest.approx([0.75, 0.75, 0.6, 2])

    def test_scores_that_are_not_finite_are_named_by_prompt(self):
        batch = SimpleNamespace(counts=[2, 1], prompts=[10, 11])
        error = PairwiseObjective._not_finite(part_of(PairwiseObjective), 4, batch, torch.tensor([1.0, 2.0, math.nan]))
        assert "step 5" in str(error) and f"{11:016x}" in str(error) and f"{10:016x}" not in str(error)


class TestPairs:
    def facts(self):
        images = Images(np.array([2, 5, 9], np.uint64), np.array([7, 8, 7], np.int64))
        return SimpleNamespace(images=images)

    def test_images_of_equal_bytes(self):
        first, second = np.array([2, 2, 5, 9, 2], np.uint64), np.array([9, 5, 9, 11, 2], np.uint64)
        assert Facts.same_image(self.facts(), first, second).tolist() == [True, False, False, False, True]

    def test_a_pair_counts_as_problematic_if_either_image_or_both_are(self):
        images = np.array([4, 5, 6], np.uint64)
        found = Facts.in_either(None, np.array([4, 5], np.uint64), images, np.array([0, 0, 2]), np.array([1, 2, 2]))
        assert found.tolist() == [True, True, False]

    def test_a_ranking_that_may_go_on_waits(self):
        assert _tail(np.array([1, 1, 2, 3, 3, 3], np.uint64)) == 3
        assert _tail(np.array([1, 1], np.uint64)) == 0

    def test_a_share_of_nothing_is_nothing(self):
        texts = [f"prompt number {n}" for n in range(20)]
        splits = cut(texts, [], {}, (0.0, 0.1), 0)
        assert np.bincount(splits, minlength=3).tolist() == [18, 0, 2]


def judged(truth: bool = False):
    worths = {
        judge: {"base": np.array([[0.0, 0.0], [1.0, 1.0]]), "tuned": np.array([[0.5, 0.5], [1.0, 2.0]])}
        for judge in ("clip", "oracle")
    }
    return compare(worths, {"base": 4, "tuned": 4}, 50, 0)


class TestTables:
    def test_table_4_has_a_block_for_each_judge_and_a_row_for_each_generator(self):
        text = table_4(judged(), 2, CompareGeneratorsConfig())
        lines = text.splitlines()
        assert lines[0] == "2 prompts of the test split, 2 images each, the same noise for all"
        assert [line.split()[0] for line in lines if line] == ["2", "clip", "base", "tuned", "oracle", "base", "tuned"]
        tuned = next(line for line in lines if line.startswith("  tuned"))
        assert "87.5%" in tuned and "+0.5000" in tuned
        assert table_4(judged(), 2, CompareGeneratorsConfig(prompts=Path("x.txt"))).startswith("2 given prompts")

    def test_an_interval_of_prompts_that_are_all_alike_is_a_point(self):
        correct, prompts = np.array([1.0, 1, 1, 0] * 3), np.repeat(np.arange(3, dtype=np.uint64), 4)
        assert intervals(correct, prompts, 1500, 0) == {"accuracy": (0.75, 0.75), "accuracy_by_prompt": (0.75, 0.75)}

    def test_calibration_has_ten_bins(self):
        gaps = np.linspace(0, 8, 1000)
        assert len(calibration(gaps, np.ones(1000))) == 10

    def test_the_share_of_the_gap_from_chance_to_the_bound(self):
        rows = [{"scorer": "rm", "figure": "accuracy", "value": 0.6, "count": 7}]
        generators = [{"generator": g, "scorer": "rm", "mean": m, "human": h} for g, m, h in (("a", 1.0, 3.0), ("b", 2.0, 4.0))]
        found = figures(rows, [], 0.75, (None, 0), generators, ["rm"])
        assert found == {"pairs": 7, "accuracy_rm": 0.6, "bayes_bound": 0.75, "share_of_gap_rm": 0.4, "rho_rm": 1.0}

    def test_best_of_n_is_a_mean_over_prompts_that_have_n_images(self):
        truth = [
            {"prompt_id": p, "image_id": i, "utility": u, "alignment": 0.0, "fidelity": 1.0}
            for p, i, u in ((1, 1, 0.0), (1, 2, 1.0), (2, 3, 0.5))
        ]
        scorer = SimpleNamespace(scores={1: 0.1, 2: 0.9, 3: 0.5})
        rows = best_of_rows(SimpleNamespace(best_of=(2,)), truth, np.array([1, 2]), {"rm": scorer})
        assert [(row["n"], row["prompts"], row["utility"], row["alignment"], row["fidelity"]) for row in rows] == [
            (1, 2, 0.5, 0.0, 1.0),
            (2, 1, 1.0, 0.0, 1.0),
        ]


class TestStore:
    def test_folders_within_read_only_folders_are_removed(self, tmp_path):
        inner = tmp_path / "object" / "a" / "b"
        inner.mkdir(parents=True)
        (inner / "file").write_text("x")
        for folder in (inner, inner.parent, tmp_path / "object"):
            folder.chmod(0o555)
        made = []
        real = Path.chmod
        try:
            Path.chmod = lambda self, mode, **kw: (made.append((self.name, mode)), real(self, mode, **kw))[1]
            remove(tmp_path / "object")
        finally:
            Path.chmod = real
        assert {("a", 0o700), ("b", 0o700)} <= set(made), "root may delete without, others not"
        assert not (tmp_path / "object").exists()

    def test_a_damaged_object_is_set_aside_in_a_new_store(self, tmp_path):
        (tmp_path / "store" / "objects" / "x").mkdir(parents=True)
        set_aside(SimpleNamespace(root=tmp_path / "store"), tmp_path / "store" / "objects" / "x")
        assert (tmp_path / "store" / "damaged" / "x").is_dir()

    @pytest.mark.parametrize(("inside", "kind"), [(True, StoreError), (None, StoreError), (False, InputError)])
    def test_a_full_disk_of_the_store_and_a_file_beside_it(self, tmp_path, inside, kind):
        name = None if inside is None else os.fspath(tmp_path / ("store" if inside else "beside") / "file")
        with pytest.raises(kind), disk_errors(tmp_path / "store"):
            raise OSError(errno.ENOSPC, "No space left on device", name)

    def test_a_store_without_a_lock_is_not_locked(self, tmp_path):
        from irpipe.pipeline.store import Store

        assert Store(tmp_path).is_locked("0" * 64) is False

    def test_results_of_other_code_are_reused_unless_one_says_otherwise(self):
        assert Planner.strict_code is False


def test_the_fix_names_the_table_of_a_stage_that_writes_what_is_missing(project):
    project.recipe('recipe = "x"\n[prompt-graph]\n')
    assert "fix:      add a table [embed-prompts] to irpipe.toml" in project("plan", "prompt-graph", status=2).err


def test_a_node_without_a_fault_does_not_wait_for_one_that_it_does_not_read(project):
    project.recipe('recipe = "x"\n[z]\nstage = "simulate-prompts"\ncount = 0\n[a]\nstage = "simulate-prompts"\n')
    assert {row["stage"]: row["state"] for row in project("status", "--json").json["stages"]} == {
        "z": "cannot run",
        "a": "not made",
    }


def test_a_plan_says_which_input_changed(project):
    project.recipe('recipe = "x"\n[simulate-prompts]\ncount = 9\n[embed-prompts]\nembedder = "lexical"\n')
    before = project.last("embed-prompts")
    pool = project.store.newest("x", "simulate-prompts").content_id[:12]
    after = project.last("simulate-prompts", "simulate-prompts.count=10")["content_id"][:12]
    out = project("plan", "embed-prompts", "--set", "simulate-prompts.count=10").out
    assert f"prompt-pool changed: {pool} -> {after}" in out and before["rows"]["kept"] == 9
    (project.root / "own.txt").write_text("a\nb\n")
    assert "no longer reads prompt-pool" in project("plan", "embed-prompts", "--set", "embed-prompts.path=own.txt").out


class TestEdges:
    def test_edge_energy_is_of_squares_in_both_directions(self):
        picture = np.zeros((1, 3, 3, 3))
        picture[0, 1, 1] = 0.5  # grey: four neighbours differ by a half, of six differences each way
        energy = image_statistics(picture)["edge_energy"][0]
        assert energy == pytest.approx(2 * 0.25 / 6 + 2 * 0.25 / 6)

    def test_training_pairs_are_missing(self):
        columns = {name: np.zeros(1) for name in PairRows.__dataclass_fields__}
        for split, missing in (("validation", "train"), ("train", "validation")):
            with pytest.raises(InputError, match=f"no {missing} split"):
                check_splits(PairRows(**columns | {"split": np.array([split])}), {0: "x"})

    def test_an_image_without_a_score_is_picked_last(self):
        truth = [
            {"prompt_id": 1, "image_id": image, "utility": worth, "alignment": worth, "fidelity": worth}
            for image, worth in ((1, 0.2), (2, 0.9))
        ]
        scorers = {"s": ScorerData({1: -5.0}, {1: -5.0})}
        rows = best_of_rows(EvaluateRmConfig(truth=True, best_of=[2]), truth, np.array([1], np.uint64), scorers)
        assert {row["n"]: row["utility"] for row in rows} == {1: pytest.approx(0.55), 2: pytest.approx(0.2)}

    def test_calibration_is_a_figure_where_there_is_one(self):
        rows = [{"scorer": "s", "figure": "accuracy", "value": 0.7, "count": 3}]
        bins = [{"scorer": "s", "sure": 0.8, "right": 0.6, "pairs": 4.0}]
        assert figures(rows, bins, None, (None, 0), [], [])["calibration_error_s"] == 0.2
        assert not any("calibration" in name for name in figures(rows, [], None, (None, 0), [], []))

    def test_no_vectors_no_links(self):
        assert near_links(SplitPromptsConfig(), {}, np.empty(0, np.uint64)) == ([], {"prompts_with_vector": 0})

    def test_a_table_without_rankings_has_no_blocks(self, tmp_path):
        columns = {column.name: [] for column in RANKINGS.columns}
        RANKINGS.write(tmp_path, columns)
        assert list(read_rankings([tmp_path / "rankings.parquet"])) == []

    def test_defaults_are_checked_like_given_values(self):
        class Wrong(Group):
            count: int = setting(0, ge=1, meaning="A count.")

        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            Wrong()

    def test_a_plan_says_what_a_setting_makes_unnecessary(self, project):
        out = project("plan", "select-prompts", "--set", "select-prompts.method=random").out
        assert "select-prompts.method makes prompt-graph unnecessary" in out
        assert "unnecessary" not in project("plan", "select-prompts").out
