"""A generator's own images: a pool of them is sampled, scored, and cut down to images with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.scorers.base import score_pictures
from irpipe.models.training.checkpoints import Checkpoints
from irpipe.models.training.objective import Figures, Samples, Save, noise_seed, shuffled
from irpipe.models.training.sharing import shared_rows
from irpipe.models.tuning.captions import CaptionedImages, denoising_losses
from irpipe.models.tuning.choose import Chosen, best_and_worst, best_of_each, weighted
from irpipe.models.tuning.denoiser import as_pixels, sample_images
from irpipe.models.tuning.evaluation import REWARD
from irpipe.models.tuning.pretraining import SampleObjective
from irpipe.models.tuning.session import Session
from irpipe.pipeline.errors import StageError
from irpipe.stages.finetune import FinetuneConfig


def choose(config: FinetuneConfig, rewards: NDArray[np.float64]) -> list[Chosen]:
    """What is trained on.

    Args:
        rewards: (prompts, images per prompt), higher is better; NaN for a blackened image.
    """
    if config.select == "best":
        return best_of_each(rewards, config.best)
    if config.select == "weighted":
        return weighted(rewards, by_prompt=config.scale == "prompt")
    return best_and_worst(rewards, config.alpha)


class PoolObjective(SampleObjective):
    """The denoising loss on chosen images of a pool; the prompts of bad ones begin with the identifier."""

    def __init__(self, config: FinetuneConfig, session: Session) -> None:
        super().__init__("pool_loss", 1.0, config.batch_size, config, session.accelerator)
        self._config, self._session = config, session
        texts = list(session.prompts.values())
        self._conditions = session.denoiser.encode(texts)
        self._marked = self._conditions
        if config.select == "best-and-worst":
            self._marked = session.denoiser.encode([config.identifier + text for text in texts])
        self._texts = texts
        self._sampling = session.denoiser.noise_schedule(config.num_steps, "ddpm")
        self._checkpoints = Checkpoints(session.context.work)
        self._pool: dict[str, Any] | None = None

    # -- pools --------------------------------------------------------------------------------------------------------

    def prepare(self, step: int, save: Save) -> None:
        """Make a pool where one is due; all processes share the work, and train on the whole of it."""
        every = self._config.pool_every or self._config.steps
        first = step // every * every
        if step == first:
            save()  # so that a kill comes back to the weights that this pool is of
        elif self._pool is not None:
            return
        self._pool = self._checkpoints.read(f"pool-{first}.pt") or self._make(first)

    def _make(self, step: int) -> dict[str, Any]:
        """Sample a pool, score it, choose of it, and keep what was chosen."""
        config = self._config
        count, each = min(config.pool_prompts, len(self._texts)), config.images_per_prompt
        turn = step // (config.pool_every or config.steps)
        prompts = shuffled(len(self._texts), config.training.seed, "pool", range(turn * count, (turn + 1) * count))
        latents, scores = self._sample(step, prompts)
        chosen = choose(config, scores)
        if not chosen:
            raise StageError(f"of {count * each:,} images none was chosen", fix="a larger pool_prompts or images_per_prompt")
        pool = {
            "latents": torch.stack([latents[one.prompt, one.image] for one in chosen]),
            "prompts": [prompts[one.prompt] for one in chosen],
            "weights": [one.weight for one in chosen],
            "bad": [one.bad for one in chosen],
            "drawn": count * each,
            "blackened": int(np.isnan(scores).sum()),
        }
        if self._session.accelerator.is_main_process:
            self._checkpoints.write(f"pool-{step}.pt", pool)
        self._say(scores, chosen)
        return pool

    def _sample(self, step: int, prompts: Sequence[int]) -> tuple[Tensor, NDArray[np.float64]]:
        """Latents (prompts, images per prompt, c, h, w) and scores (prompts, images per prompt), NaN for blackened images."""
        config, session = self._config, self._session
        each, size = config.images_per_prompt, config.training.sample_batch_size

        def draw(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
            rows = [prompts[number // each] for number in numbers]
            seeds = [noise_seed(config.training.seed, "pool", step, number) for number in numbers]
            with torch.no_grad(), session.accelerator.autocast():
                latents = sample_images(session.denoiser, self._sampling, self._conditions, rows, seeds, config.guidance_scale)
            return latents, torch.from_numpy(self._score(latents, rows))

        count = len(prompts) * each
        with session.context.progress("sampling a pool", count, "images") as bar:
            latents, scores = shared_rows(session.accelerator, count, size, draw, bar.advance)
        shape = (len(prompts), each)
        return latents.view(*shape, *session.denoiser.shape), scores.numpy().reshape(shape)

    def _score(self, latents: Tensor, rows: Sequence[int]) -> NDArray[np.float64]:
        """(n,) normalised rewards of latents (n, c, h, w) for prompts by index; NaN for what the safety checker blackens."""
        session = self._session
        with torch.no_grad():
            pictures = session.denoiser.decode(latents)
        texts = [self._texts[row] for row in rows]
        scores = score_pictures(session.evaluator.scorers[REWARD], texts, as_pixels(pictures), normalised=True)
        scores[np.array(session.denoiser.blackened(pictures))] = np.nan
        return scores

    def _say(self, scores: NDArray[np.float64], chosen: Sequence[Chosen]) -> None:
        good = [float(scores[one.prompt, one.image]) for one in chosen if not one.bad]
        blackened = int(np.isnan(scores).sum())
        self._session.context.say(
            f"  a pool of {scores.size:,} images, mean reward {np.nanmean(scores):.3f}: {len(chosen):,} are trained on"
            + (f", the good ones of mean reward {np.mean(good):.3f}" if good else "")
            + (f"; {blackened:,} were blackened" if blackened else "")
        )

    # -- losses -------------------------------------------------------------------------------------------------------

    def losses(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Figures]:
        """See `SampleObjective`."""
        assert self._pool is not None, "prepared"
        pool, session, seed = self._pool, self._session, self._config.training.seed
        rows = shuffled(len(pool["weights"]), seed, "chosen", [step * self.batch_size + index for index in indices])
        seeds = [noise_seed(seed, "chosen", step, index) for index in indices]
        kinds = [(self._marked if pool["bad"][row] else self._conditions, pool["prompts"][row]) for row in rows]
        conditions = {name: torch.stack([kind[name][prompt] for kind, prompt in kinds]).numpy() for name in self._conditions}
        latents = pool["latents"][rows]
        images = CaptionedImages(torch.stack([latents, torch.zeros_like(latents)], dim=1).numpy(), conditions)
        losses = denoising_losses(session.denoiser, session.schedule, images, range(len(rows)), seeds)
        weights = torch.tensor([pool["weights"][row] for row in rows], device=losses.device)
        return losses * weights, {self.name: Samples(losses)}

    @property
    def figures(self) -> dict[str, int]:
        """Images that were sampled, and blackened of these, in all pools."""
        pools = [self._checkpoints.read(path.name) for path in sorted(self._session.context.work.glob("pool-*.pt"))]
        return {"images_drawn": sum(pool["drawn"] for pool in pools), "blackened": sum(pool["blackened"] for pool in pools)}
