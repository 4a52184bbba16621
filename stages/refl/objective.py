"""ReFL's loss: a reward at a clean picture foretold from a random late step (ImageReward, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from irpipe.models.training import Checkpoints
from irpipe.models.tuning.denoiser import Course, Denoiser, roll, rows_of, sampling_memory
from irpipe.models.tuning.loop import Figures, Save, noise_seed, shuffled
from irpipe.models.tuning.reward import RewardSlope, no_gradient
from irpipe.pipeline.stage import Context
from irpipe.stages.refl import ReflConfig

_NORMS = 400  # of the last samples, whose median bounds a slope


@dataclass
class Rollouts:
    """Latents before each late step, (rollouts, late steps, c, h, w), and whose they are."""

    latents: Tensor
    prompts: list[int]
    row_of: dict[int, int] = field(default_factory=dict)


@dataclass
class ReflObjective:
    """See `irpipe.models.tuning.loop.Objective`.

    Attributes:
        conditions: encoded prompts; texts: the same for the reward model, a row per prompt.
        carried: norms of the last steps' slopes, of all processes, a list a step.
    """

    config: ReflConfig
    denoiser: Denoiser
    course: Course
    conditions: dict[str, Tensor]
    texts: dict[str, Tensor]
    slope: RewardSlope
    accelerator: Accelerator
    context: Context
    name: str = "reward_loss"
    carried: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.context.work)
        self.weight, self.batch_size = self.config.reward, self.config.batch_size
        self._rollouts: Rollouts | None = None
        self._step_norms: list[float] = []
        self._limit = float("inf")

    @property
    def _count(self) -> int:
        return len(next(iter(self.texts.values())))

    # -- rollouts -----------------------------------------------------------------------------------------------------

    def prepare(self, step: int, places: Sequence[int], save: Save) -> None:
        """Roll out what this step's samples need, and set the longest slope by the samples of earlier steps."""
        config = self.config
        if config.max_slope == "median":
            sloping = [norm for norms in self.carried for norm in norms if norm > 0]  # behind its bend a loss has none
            self._limit = float(torch.tensor(sloping).median()) if sloping else float("inf")
        if config.refresh_every == 1:
            wanted = sorted({place // config.late_steps for place in places})
            self._rollouts = self._roll(step, wanted)
        elif step % config.refresh_every == 0:
            save()  # so that a kill comes back to the weights that these rollouts are of
            self._rollouts = self._read(step) or self._roll(step, range(config.rollouts_at_a_time))
        elif self._rollouts is None:  # resumed between two refreshments
            self._rollouts = self._read(step // config.refresh_every * config.refresh_every)

    def _roll(self, step: int, numbers: Sequence[int]) -> Rollouts:
        config, found = self.config, []
        total = config.rollouts_at_a_time
        rows = [
            shuffled(self._count, config.seed, "prompts", step // config.refresh_every * total + number) for number in numbers
        ]
        seeds = [noise_seed(config.seed, "rollout", step, number) for number in numbers]
        with self.context.progress("rolling out", len(rows), "rollouts") as bar:
            for start in range(0, len(rows), config.sample_batch):
                part = slice(start, start + config.sample_batch)
                conditions = rows_of(self.conditions, rows[part], self.denoiser.device)
                with sampling_memory(config.sample_batch), self.accelerator.autocast():
                    found.append(
                        roll(
                            self.denoiser,
                            self.course,
                            conditions,
                            seeds[part],
                            stop=config.last_late_step,
                            keep_from=config.first_late_step,
                            guidance=config.guidance_scale,
                        ).cpu()
                    )
                bar.advance(len(rows[part]))
        latents = torch.cat(found) if found else torch.empty(0)
        rollouts = Rollouts(latents, rows, {number: row for row, number in enumerate(numbers)})
        if config.refresh_every > 1 and self.accelerator.is_main_process:
            self.checkpoints.write(f"rollouts-{step}.pt", {"latents": rollouts.latents, "prompts": rollouts.prompts})
            self.checkpoints.keep_only("rollouts-*.pt", [f"rollouts-{step}.pt"])
        return rollouts

    def _read(self, step: int) -> Rollouts | None:
        saved = self.checkpoints.read(f"rollouts-{step}.pt")
        return Rollouts(saved["latents"], saved["prompts"]) if saved is not None else None

    # -- losses -------------------------------------------------------------------------------------------------------

    def losses(self, step: int, places: Sequence[int]) -> tuple[Tensor, Figures]:
        """Losses whose gradients are the reward's, led back through the network from its slope at the clean latents."""
        assert self._rollouts is not None
        device = self.denoiser.device
        rows, late = zip(*(self._drawn(step, place) for place in places), strict=True)
        latents = self._rollouts.latents[list(rows), list(late)].to(device)
        prompts = [self._rollouts.prompts[row] for row in rows]
        timesteps = self.course.timesteps[[self.config.first_late_step + one for one in late]]
        conditions = rows_of(self.conditions, prompts, device)
        predicted = self.denoiser.predict(latents, timesteps, conditions, self.config.guidance_scale)
        clean = self.denoiser.clean(latents, timesteps, predicted, self.course)
        texts = {name: values[prompts].to(device) for name, values in self.texts.items()}
        slope = self.slope.at(clean, texts, [noise_seed(self.config.seed, "grain", step, place) for place in places])
        norms = slope.norms
        self._step_norms += norms.tolist()
        factors = (self._limit / norms.clamp_min(1e-12)).clamp(max=1.0)
        kept = torch.tensor([not black for black in slope.blackened], device=device)
        # The surrogate's gradient is the clipped slope's; its value is the loss.
        led = (clean * (slope.gradients * factors.view(-1, 1, 1, 1)).detach()).flatten(1).sum(dim=1)
        losses = torch.where(kept, slope.losses + led - led.detach(), torch.zeros_like(led))
        return losses, {
            "reward": slope.rewards,
            "reward_loss": slope.losses,
            "slope": norms,
            "clipped_share": (factors < 1).float(),
            "blackened_share": (~kept).float(),
        }

    def _drawn(self, step: int, place: int) -> tuple[int, int]:
        """A sample's rollout, as a row, and its late step, counted from the first."""
        config = self.config
        assert self._rollouts is not None
        count = config.last_late_step - config.first_late_step + 1
        if config.refresh_every > 1:
            draw = torch.Generator().manual_seed(noise_seed(config.seed, "late step", step, place))
            row = int(torch.randint(len(self._rollouts.prompts), (), generator=draw))
            return row, int(torch.randint(count, (), generator=draw))
        number, turn = divmod(place, config.late_steps)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(noise_seed(config.seed, "late step", step, number)))
        return self._rollouts.row_of[number], int(order[turn])

    def finish(self) -> None:
        """Slopes of this step, of all processes, join those that bound the next ones; whole steps go, the oldest first."""
        found = torch.tensor(sorted(self._step_norms), dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            padded = self.accelerator.pad_across_processes(found.to(self.accelerator.device), pad_index=-1)
            found = self.accelerator.gather(padded).cpu()
            found = found[found >= 0].sort().values
        self.carried.append(found.tolist())
        while sum(map(len, self.carried[1:])) >= _NORMS:
            self.carried.pop(0)
        self._step_norms = []

    # -- the proof ----------------------------------------------------------------------------------------------------

    def prove(self, parameters: Sequence[Tensor]) -> None:
        """That a gradient of the reward reaches what is trained, through decoder and network, before anything is spent.

        Raises:
            TrainingError: it does not, or it is not finite.
        """
        device, count = self.denoiser.device, min(2, self._count)
        conditions = rows_of(self.conditions, range(count), device)
        timesteps = self.course.timesteps[self.config.last_late_step].expand(count)
        draw = torch.Generator().manual_seed(self.config.seed)
        latents = torch.randn((count, *self.denoiser.shape), generator=draw).to(device)
        with self.accelerator.autocast():
            predicted = self.denoiser.predict(latents, timesteps, conditions, self.config.guidance_scale)
            clean = self.denoiser.clean(latents, timesteps, predicted, self.course)
        texts = {name: values[:count].to(device) for name, values in self.texts.items()}
        plain = RewardSlope(self.slope.model, self.denoiser, "linear", 0.0, 0, 0.0).at(clean, texts, [])
        if not torch.isfinite(plain.gradients).all():
            raise no_gradient("it is not finite behind the decoder")
        if not plain.gradients.any():
            raise no_gradient("it is zero behind the decoder: the reward does not depend on the picture")
        found = torch.autograd.grad(clean, list(parameters), grad_outputs=plain.gradients, allow_unused=True)
        reached = [value for value in found if value is not None]
        if not all(bool(torch.isfinite(value).all()) for value in reached):
            raise no_gradient("it is not finite behind the network")
        if not any(bool(value.any()) for value in reached):
            raise no_gradient("it is zero behind the network")
