"""Tuning on a generator's own images, chosen by the reward: what RAFT, reward weighting and filtering have in common.

A pool is drawn, scored, and cut down to images with weights; the denoising loss on these is the objective. They differ in how
they choose, and in how often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.scorers.base import score_pictures
from irpipe.models.training import Checkpoints
from irpipe.models.tuning.config import PoolConfig
from irpipe.models.tuning.denoiser import as_pixels, roll, rows_of, sampling_memory
from irpipe.models.tuning.loop import Figures, Save, noise_seed, shuffled
from irpipe.models.tuning.monitors import REWARD
from irpipe.models.tuning.pairs import RealPairs, denoising_losses
from irpipe.models.tuning.session import Session
from irpipe.pipeline.errors import StageError


@dataclass(frozen=True)
class Chosen:
    """An image that is trained on: its prompt and its number among the prompt's, its weight, and whether it is marked as bad."""

    prompt: int
    image: int
    weight: float
    bad: bool = False


Choose = Callable[[NDArray[np.float64]], Sequence[Chosen]]
"""From normalised rewards (prompts, images each) to what is trained on."""


class PoolObjective:
    """See `irpipe.models.tuning.loop.Objective`."""

    def __init__(self, config: PoolConfig, session: Session, choose: Choose, mark: str = "") -> None:
        self.name, self.weight, self.batch_size = "pool_loss", 1.0, config.batch_size
        self.carried: list[list[float]] = []
        self._config, self._session, self._choose = config, session, choose
        texts = list(session.prompts.values())
        self._conditions = session.denoiser.encode(texts)
        self._marked = session.denoiser.encode([mark + text for text in texts]) if mark else self._conditions
        self._texts = texts
        self._course = session.denoiser.course(config.num_steps, "ddpm")
        self._checkpoints = Checkpoints(session.context.work)
        self._pool: dict[str, Any] | None = None

    def prepare(self, step: int, places: Sequence[int], save: Save) -> None:  # noqa: ARG002 # all processes share one pool
        """Draw a pool where one is due."""
        every = self._config.pool_every or self._config.steps
        first = step // every * every
        if step == first:
            save()  # so that a kill comes back to the weights that this pool is of
        elif self._pool is not None:
            return
        with self._session.accelerator.main_process_first():
            self._pool = self._checkpoints.read(f"pool-{first}.pt") or self._draw(first)

    def _draw(self, step: int) -> dict[str, Any]:
        """Draw a pool, score it, choose of it, and keep what was chosen."""
        config, session = self._config, self._session
        count, each = min(config.pool_prompts, len(self._texts)), config.images_per_prompt
        turn = step // (config.pool_every or config.steps)
        prompts = [shuffled(len(self._texts), config.seed, "pool", turn * count + number) for number in range(count)]
        latents, rewards, blackened = [], [], 0
        judge, device = session.monitor.judges[REWARD], session.denoiser.device
        with session.context.progress("drawing a pool", count * each, "images") as bar:
            order = [(number, image) for number in range(count) for image in range(each)]
            for start in range(0, len(order), config.sample_batch):
                part = order[start : start + config.sample_batch]
                rows = [prompts[number] for number, _ in part]
                seeds = [noise_seed(config.seed, "pool", step, number * each + image) for number, image in part]
                with sampling_memory(config.sample_batch), torch.no_grad(), session.accelerator.autocast():
                    found = roll(
                        session.denoiser,
                        self._course,
                        rows_of(self._conditions, rows, device),
                        seeds,
                        stop=config.num_steps,
                        keep_from=config.num_steps,
                        guidance=config.guidance_scale,
                    )[:, -1]
                with torch.no_grad():
                    pictures = session.denoiser.decode(found)
                scores = score_pictures(judge, [self._texts[row] for row in rows], as_pixels(pictures), normalised=True)
                black = np.array(session.denoiser.blackened(pictures))
                scores[black] = np.nan
                blackened += int(black.sum())
                rewards.append(scores)
                latents.append(found.cpu())
                bar.advance(len(part))
        score = np.concatenate(rewards).reshape(count, each)
        chosen = self._choose(score)
        if not chosen:
            raise StageError(f"of {count * each:,} images none was chosen", fix="a larger pool_prompts or images_per_prompt")
        every = torch.cat(latents).view(count, each, *session.denoiser.shape)
        kept = {
            "latents": torch.stack([every[one.prompt, one.image] for one in chosen]),
            "prompts": [prompts[one.prompt] for one in chosen],
            "weights": [one.weight for one in chosen],
            "bad": [one.bad for one in chosen],
            "drawn": count * each,
            "blackened": blackened,
        }
        good = [float(score[one.prompt, one.image]) for one in chosen if not one.bad]
        self._checkpoints.write(f"pool-{step}.pt", kept)
        session.context.say(
            f"  a pool of {count * each:,} images, mean reward {np.nanmean(score):.3f}: {len(chosen):,} are trained on"
            + (f", the good ones of mean reward {np.mean(good):.3f}" if good else "")
            + (f"; {blackened:,} were blackened" if blackened else "")
        )
        return kept

    def losses(self, step: int, places: Sequence[int]) -> tuple[Tensor, Figures]:
        """See `Objective`."""
        assert self._pool is not None
        config, session = self._config, self._session
        pool, count = self._pool, len(self._pool["weights"])
        rows = [shuffled(count, config.seed, "chosen", step * self.batch_size + place) for place in places]
        seeds = [noise_seed(config.seed, "chosen", step, place) for place in places]
        kinds = [(self._marked if pool["bad"][row] else self._conditions, pool["prompts"][row]) for row in rows]
        conditions = {name: torch.stack([kind[name][prompt] for kind, prompt in kinds]).numpy() for name in self._conditions}
        latents = pool["latents"][rows]
        images = RealPairs(torch.stack([latents, torch.zeros_like(latents)], dim=1).numpy(), conditions)
        found = denoising_losses(session.denoiser, session.course, images, range(len(rows)), seeds)
        weights = torch.tensor([pool["weights"][row] for row in rows], device=found.device)
        return found * weights, {self.name: found.detach()}

    def finish(self) -> None:
        """Nothing."""

    @property
    def figures(self) -> dict[str, int]:
        """Images that were drawn, and blackened of these, in all pools."""
        pools = [self._checkpoints.read(path.name) for path in sorted(self._session.context.work.glob("pool-*.pt"))]
        return {"images_drawn": sum(pool["drawn"] for pool in pools), "blackened": sum(pool["blackened"] for pool in pools)}
