"""Make images of the selected prompts with one or more text-to-image models.

Reads: the selected prompts, and with score guidance the reward model, unless a setting names one.
Writes: the tables `images` (shards of whole prompts), `overlong_prompts` and `rejected`, and contact sheets.
Paper: ImageReward, section 2.1 (4-9 images per prompt) and table 1 (several models on one set of prompts); RichHF, section 5.3
    (score guidance).
Deviates: the paper took DiffusionDB's images; here they are generated, each from its own seed.
Cost: O(images * num_steps) of the model, four to nine times as much for a step with score guidance; memory O(batch_size)
    of images; a kill costs at most one shard per process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Strict

from irpipe.models.guidance.config import GuidanceSettings, ScoreGuidance
from irpipe.models.plugins import plugins
from irpipe.models.published import NO_GENERATOR, STABLE_DIFFUSION
from irpipe.models.scorers.config import REWARD_MODEL_MEANING
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import FilePath, Stage, group, setting


class GenerateImagesConfig(MapConfig):
    models: Annotated[tuple[str, ...], Strict(False)] = setting(
        (STABLE_DIFFUSION,),
        role="model",
        check="irpipe.models.classes:generator",
        min_length=1,
        meaning="Generators: hub/name@revision, local folders, or shipped ones. They take turns on a prompt's images.",
        source="ImageReward 4.2: SD v1.4",
    )
    lora: FilePath | None = setting(
        None,
        role="external",
        meaning="LoRA weights to add to the generators' UNet, at scale 1: as diffusers saves them, or HPS's own file (.bin).",
        source="HPS 6",
    )
    min_images: int = setting(4, ge=1, le=10, meaning="Least number of images per prompt.", source="ImageReward 2.1")
    max_images: int = setting(
        9, ge=1, le=10, meaning="Greatest number of images per prompt; the number is drawn at random.", source="ImageReward 2.1"
    )
    num_steps: int = setting(50, ge=1, le=1000, meaning="Denoising steps.", source="DiffusionDB's default")
    guidance_scale: float = setting(
        7.5, ge=0, le=100, meaning="Scale of classifier-free guidance; 1 or less: none.", source="ImageReward appendix E: 7.5"
    )
    scheduler: Literal["own", "ddpm", "ddim", "pndm", "lms", "euler", "euler-ancestral", "dpm-solver++", "unipc"] = setting(
        "own",
        meaning="Scheduler; own: the model's own.",
        source="ImageReward appendix E: PNDM, which SD v1.4 comes with",
    )
    width: int | None = setting(None, ge=8, le=8192, multiple_of=8, meaning="Pixels. Unset: the model's own.")
    height: int | None = setting(None, ge=8, le=8192, multiple_of=8, meaning="Pixels. Unset: the model's own.")
    negative_prompt: str = setting(
        "", meaning="Negative prompt for the guidance; {prompt} in it is the image's own prompt.", source="HPS 6: 'Weird image. '"
    )
    score_guidance: ScoreGuidance = group(ScoreGuidance)
    reward_model: str | None = setting(None, role="model", check=NO_GENERATOR, meaning=REWARD_MODEL_MEANING)
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float16", meaning="Precision of the model.")
    safety_checker: bool = setting(
        True, meaning="Run the model's safety checker, if it has one; images that it blackens are rejected."
    )
    image_format: Literal["png", "webp"] = setting("png", meaning="How images are encoded; both are lossless.")
    sheets: int = setting(4, ge=0, le=1000, meaning="Number of contact sheets, of 8 prompts each.")
    seed: int = setting(
        0, ge=0, meaning="Seed of all noise. An image's seed is derived from it, the prompt's id and the image's number."
    )
    batch_size: int = setting(8, ge=1, le=4096, meaning="Images per batch. Counts towards the key: it can change the last bits.")
    shard_size: int = setting(256, ge=1, le=1 << 16, meaning="Least number of images per shard; shards are cut between prompts.")
    max_rejected: float = setting(
        0.2, ge=0, le=1, role="execution", meaning="Share of faulty images (of at least 100) that stops the run."
    )
    device: str = setting("auto", role="execution", meaning="Where the model runs: auto, cpu, cuda, cuda:1, mps.")

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.min_images > self.max_images:
            yield "min_images is above max_images"
        if self.score_guidance.scale:
            yield from self.score_guidance.faults_for(self.num_steps, self.dtype, self.scheduler)

    def unused(self) -> dict[str, str]:
        idle = {"negative_prompt": "guidance_scale is 1 or less"} if self.guidance_scale <= 1 else {}
        if not self.score_guidance.scale:
            idle |= dict.fromkeys(
                ("reward_model", *(f"score_guidance.{name}" for name in GuidanceSettings.model_fields)),
                "score_guidance.scale is 0",
            )
        return super().unused() | idle


def _reads(config: GenerateImagesConfig) -> Sequence[str]:
    guided = config.score_guidance.scale and config.reward_model is None
    return ("selected-prompts", *(("reward-model",) if guided else ()))


STAGE = Stage(
    name="generate-images",
    version=1,
    reads=_reads,
    plugins=plugins,
    extra="generate",
    writes="images",
    determinism="numeric",
    config=GenerateImagesConfig,
    run="irpipe.stages.generate_images.run:run",
)
