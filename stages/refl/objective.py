"""ReFL's loss: the reward of the image predicted at a random late denoising step (ImageReward, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from irpipe.models.training.checkpoints import Checkpoints
from irpipe.models.training.objective import Figures, Samples, Save, micro_batches, noise_seed, own_share, shuffled
from irpipe.models.training.sharing import shared_rows
from irpipe.models.tuning.denoiser import NoiseSchedule, rows_of, sample
from irpipe.models.tuning.pretraining import SampleObjective, median_above_zero
from irpipe.models.tuning.reward_gradient import RewardGradients, no_gradient
from irpipe.models.tuning.session import Session
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.progress import Progress
from irpipe.stages.refl import ReflConfig

_NORMS = 400  # of the last samples, whose median clips a reward gradient


@dataclass
class Rollouts:
    """Latents before each late step, (rollouts, late steps, c, h, w), and the index of each rollout's prompt.

    Attributes:
        row_of: rows of `latents` by the sample that they belong to, where each sample has a rollout of its own.
    """

    latents: Tensor
    prompts: list[int]
    row_of: dict[int, int] = field(default_factory=dict)


class ReflObjective(SampleObjective):
    """ReFL's loss on a session's prompts, whose texts are encoded once, for the generator and for the reward model.

    `carried` are the norms of the reward gradients of the last steps, of all processes, a list per step.
    """

    def __init__(self, config: ReflConfig, session: Session) -> None:
        super().__init__("reward_loss", config.reward_weight, config.batch_size, config, session.accelerator)
        self.config, self.context = config, session.context
        self.denoiser, reward, texts = session.denoiser, session.reward, list(session.prompts.values())
        self.schedule: NoiseSchedule = self.denoiser.noise_schedule(config.num_steps, config.scheduler)
        self.conditions = self.denoiser.encode(texts)
        self.texts = {name: values.cpu() for name, values in reward.encode_texts(texts).items()}
        self._count = len(texts)
        if config.weight_map is not None and not hasattr(reward, "heatmap"):
            raise ModelError(
                f"weight_map: a reward model of the format {reward.format!r} has no heatmaps",
                expected="a RAHF, or a ResNet with heads",
            )
        self.gradients = RewardGradients(
            reward, self.denoiser, config.phi, config.margin, config.noise_samples, config.noise_std, config.weight_map
        )
        self.checkpoints = Checkpoints(self.context.work)
        self._rollouts: Rollouts | None = None
        self._step_norms: list[float] = []
        self._limit = float("inf")

    # -- rollouts -----------------------------------------------------------------------------------------------------

    def prepare(self, step: int, save: Save) -> None:
        """Sample the rollouts that this step needs, and set the clipping norm by the samples of earlier steps."""
        config = self.config
        if config.clip_reward_gradient == "median":  # where phi is flat the loss has no gradient
            self._limit = median_above_zero(self.carried)
        if config.refresh_every == 1:
            self._rollouts = self._own_rollouts(step)
        elif step % config.refresh_every == 0:
            save()  # so that a kill comes back to the weights that these rollouts are of
            self._rollouts = self._read(step) or self._shared_rollouts(step)
        elif self._rollouts is None:  # resumed between two refreshments
            self._rollouts = self._read(step // config.refresh_every * config.refresh_every)

    def _own_rollouts(self, step: int) -> Rollouts:
        """A rollout for each of this process's samples."""
        numbers, size = own_share(self.batch_size, self.accelerator), self.config.training.sample_batch_size
        parts = [torch.empty(0)] if not numbers else []
        with self._progress(len(numbers)) as bar:
            for mine in micro_batches(numbers, size):
                parts.append(self._sample(step, mine).cpu())
                bar.advance(len(mine))
        return Rollouts(torch.cat(parts), self._prompts(step, numbers), {number: row for row, number in enumerate(numbers)})

    def _shared_rollouts(self, step: int) -> Rollouts:
        """The rollouts that serve this step and the next ones, in every process; they share the sampling."""
        count, size = self.config.rollouts_at_a_time, self.config.training.sample_batch_size
        with self._progress(count) as bar:
            (latents,) = shared_rows(self.accelerator, count, size, lambda numbers: [self._sample(step, numbers)], bar.advance)
        rollouts = Rollouts(latents, self._prompts(step, range(count)))
        if self.accelerator.is_main_process:
            self.checkpoints.write(f"rollouts-{step}.pt", {"latents": rollouts.latents, "prompts": rollouts.prompts})
            self.checkpoints.keep_only("rollouts-*.pt", [f"rollouts-{step}.pt"])
        return rollouts

    def _progress(self, count: int) -> AbstractContextManager[Progress]:
        return self.context.progress("sampling rollouts", count, "rollouts")

    def _prompts(self, step: int, numbers: Sequence[int]) -> list[int]:
        """The prompts of rollouts by their numbers among those of the step."""
        first = step // self.config.refresh_every * self.config.rollouts_at_a_time
        return shuffled(self._count, self.config.training.seed, "prompts", [first + number for number in numbers])

    def _sample(self, step: int, numbers: Sequence[int]) -> Tensor:
        """Rollouts (n, late steps, c, h, w) by their numbers among those of the step."""
        config, prompts = self.config, self._prompts(step, numbers)
        seeds = [noise_seed(config.training.seed, "rollout", step, number) for number in numbers]
        with self.accelerator.autocast():
            return sample(
                self.denoiser,
                self.schedule,
                rows_of(self.conditions, prompts, self.denoiser.device),
                seeds,
                stop=config.last_late_step,
                keep_from=config.first_late_step,
                guidance=config.guidance_scale,
            )

    def _read(self, step: int) -> Rollouts | None:
        saved = self.checkpoints.read(f"rollouts-{step}.pt")
        return Rollouts(saved["latents"], saved["prompts"]) if saved is not None else None

    # -- losses -------------------------------------------------------------------------------------------------------

    def losses(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Figures]:
        """Losses whose gradients are the reward's, backpropagated through the network from predicted x0."""
        assert self._rollouts is not None, "prepared"
        device = self.denoiser.device
        rows, late = zip(*(self._drawn(step, index) for index in indices), strict=True)
        latents = self._rollouts.latents[list(rows), list(late)].to(device)
        prompts = [self._rollouts.prompts[row] for row in rows]
        timesteps = self.schedule.timesteps[[self.config.first_late_step + one for one in late]]
        x0 = self._predicted_x0(latents, timesteps, prompts)
        texts = rows_of(self.texts, prompts, device)
        seeds = [noise_seed(self.config.training.seed, "grain", step, index) for index in indices]
        reward = self.gradients.at(x0, texts, seeds)
        norms = reward.norms
        self._step_norms += norms.tolist()
        factors = (self._limit / norms.clamp_min(1e-12)).clamp(max=1.0)
        kept = torch.tensor([not black for black in self.denoiser.blackened(reward.pictures)], device=device)
        # The surrogate's gradient is the clipped reward gradient; its value is the loss.
        surrogate = (x0 * (reward.gradients * factors.view(-1, 1, 1, 1)).detach()).flatten(1).sum(dim=1)
        losses = torch.where(kept, reward.losses + surrogate - surrogate.detach(), torch.zeros_like(surrogate))
        return losses, {
            "reward": Samples(reward.rewards),
            "reward_loss": Samples(reward.losses),
            "reward_gradient": Samples(norms, tails=True),
            "clipped_share": Samples((factors < 1).float()),
            "blackened_share": Samples((~kept).float()),
        }

    def _predicted_x0(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[int]) -> Tensor:
        """(n, c, h, w), with a graph, of latents (n, c, h, w) before timesteps (n,) for prompts by index."""
        conditions = rows_of(self.conditions, prompts, self.denoiser.device)
        predicted = self.denoiser.predict(latents, timesteps, conditions, self.config.guidance_scale)
        return self.denoiser.predicted_x0(latents, timesteps, predicted, self.schedule)

    def _drawn(self, step: int, index: int) -> tuple[int, int]:
        """A sample's rollout, as a row, and its late step, counted from the first."""
        config = self.config
        assert self._rollouts is not None, "prepared"
        count = config.last_late_step - config.first_late_step + 1
        draw = torch.Generator().manual_seed(noise_seed(config.training.seed, "late step", step, index))
        if config.refresh_every > 1:
            row = int(torch.randint(len(self._rollouts.prompts), (), generator=draw))
            return row, int(torch.randint(count, (), generator=draw))
        return self._rollouts.row_of[index], int(torch.randperm(count, generator=draw)[0])

    def finish(self, step: int) -> None:  # noqa: ARG002 # every step's norms count alike
        """Norms of this step, of all processes, join those that clip the next ones; the oldest steps are dropped whole."""
        norms = torch.tensor(sorted(self._step_norms), dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            padded = self.accelerator.pad_across_processes(norms.to(self.accelerator.device), pad_index=-1)
            norms = self.accelerator.gather(padded).cpu()
            norms = norms[norms >= 0].sort().values
        self.carried.append(norms.tolist())
        while sum(map(len, self.carried[1:])) >= _NORMS:
            self.carried.pop(0)
        self._step_norms = []

    # -- before the first step ----------------------------------------------------------------------------------------

    def check_gradient(self, parameters: Sequence[Tensor]) -> None:
        """Check that a gradient of the reward reaches what is trained, through decoder and network, before anything is spent.

        Raises:
            TrainingError: it does not, or it is not finite.
        """
        rows = [0]  # one sample shows it, and takes no more memory than training does
        timesteps = self.schedule.timesteps[self.config.last_late_step].expand(1)
        draw = torch.Generator().manual_seed(self.config.training.seed)
        latents = torch.randn((1, *self.denoiser.shape), generator=draw).to(self.denoiser.device)
        with self.accelerator.autocast():
            x0 = self._predicted_x0(latents, timesteps, rows)
        texts = rows_of(self.texts, rows, self.denoiser.device)
        plain = RewardGradients(self.gradients.model, self.denoiser).at(x0, texts, [])
        if not torch.isfinite(plain.gradients).all():
            raise no_gradient("it is not finite behind the decoder")
        if not plain.gradients.any():
            raise no_gradient("it is zero behind the decoder: the reward does not depend on the image")
        gradients = torch.autograd.grad(x0, list(parameters), grad_outputs=plain.gradients, allow_unused=True)
        reached = [value for value in gradients if value is not None]
        if not all(bool(torch.isfinite(value).all()) for value in reached):
            raise no_gradient("it is not finite behind the network")
        if not any(bool(value.any()) for value in reached):
            raise no_gradient("it is zero behind the network")
