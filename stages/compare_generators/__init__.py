"""Compare tuned generators with the one they were tuned from: the same prompts, the same seeds, every scorer that is given.

Reads: the tuned generators that the recipe names, the prompts with their splits (images of those of `test` are made), and the
    reward models if they are asked, or best-of-n or score guidance is.
Writes: the tables `comparison` (table 4 of the paper), `worths` (every judge of every image), `images` and `rejected`,
    `report.txt` and images side by side.
Paper: ImageReward, section 4.2, table 4 and figure 6; RichHF, section 5.3 (score guidance).
Deviates: scorers judge, and in the micro world the oracle, where the paper asked people. Rates come with intervals by bootstrap
    over prompts. A tie is half a win.
Cost: one image per generator, prompt and seed, n for best-of-n, and of four to nine times the cost per step with score guidance;
    one forward pass per image and scorer. A kill costs at
    most one shard of about 64 images per process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, Strict

from irpipe.models.guidance.config import ComparedGuidance, GuidanceSettings
from irpipe.models.plugins import plugins
from irpipe.models.published import STABLE_DIFFUSION
from irpipe.models.scorers.config import ScorersConfig
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import FilePath, Many, Stage, group, setting


class CompareGeneratorsConfig(ScorersConfig, MapConfig):
    model: str = setting(
        STABLE_DIFFUSION,
        role="model",
        check="irpipe.models.classes:generator",
        meaning="The generator that all were tuned from.",
        source="ImageReward 4.2",
    )
    best_of: Annotated[tuple[Annotated[int, Field(ge=2, le=64)], ...], Strict(False)] = setting(
        (), meaning="Also the base's best of n images by the reward model, at n times the cost."
    )
    tuned: bool = setting(
        True,
        role="neutral",
        meaning="Compare the tuned generators that the recipe names. false: only the base (best_of, score_guidance).",
    )
    score_guidance: ComparedGuidance = group(ComparedGuidance)
    negative_prompts: bool = setting(
        False,
        role="neutral",
        meaning="For each generator with a negative prompt, also compare NODE-plain, itself without it, NODE-marked, which has it"
        " before its prompts instead, and base-as-NODE, the base with it.",
    )
    prompts: FilePath | None = setting(
        None,
        role="external",
        meaning="A file of evaluation prompts, instead of the test split's.",
        source="ImageReward 4.2: 466 real prompts and MT-Bench",
    )
    images_per_prompt: int = setting(2, ge=1, le=64, meaning="Images of each prompt and generator.")
    num_steps: int = setting(50, ge=1, le=1000, meaning="Denoising steps.", source="DiffusionDB's default")
    guidance_scale: float = setting(
        7.5, ge=0, le=100, meaning="Classifier-free guidance; 1 and less is none.", source="ImageReward appendix E"
    )
    scheduler: Literal["own", "ddpm", "ddim", "pndm", "lms", "euler", "euler-ancestral", "dpm-solver++", "unipc"] = setting(
        "own",
        meaning="Sampler; own: the one the model comes with.",
        source="ImageReward appendix E: PNDM, which SD v1.4 comes with",
    )
    width: int | None = setting(None, ge=8, le=8192, multiple_of=8, meaning="Pixels. Unset: the model's own.")
    height: int | None = setting(None, ge=8, le=8192, multiple_of=8, meaning="Pixels. Unset: the model's own.")
    scorers: Annotated[tuple[str, ...], Strict(False)] = setting(
        ("reward-model", "clip", "blip"),
        min_length=1,
        meaning="Who scores: reward-model (all that the recipe names), clip, aesthetic, blip, random, or what installed packages"
        " declare as irpipe.scorers.",
    )
    truth: bool = setting(False, meaning="Also ask the micro world's oracle: its utility, alignment and fidelity.")
    bootstrap: int = setting(2000, ge=100, le=100_000, meaning="Resamplings for 95 % intervals.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float16", meaning="Precision of the generators; scorers are float32."
    )
    safety_checker: bool = setting(
        True, meaning="Run the model's safety checker, if it has one; prompts with a blackened image are left out."
    )
    seed: int = setting(0, ge=0, meaning="Seed of all noise and of the resampling.")
    batch_size: int = setting(8, ge=1, le=4096, meaning="Images a batch. Counts towards the key: it can change the last bits.")
    device: str = setting("auto", role="execution", meaning="Where the models run: auto, cpu, cuda, cuda:1, mps.")

    @property
    def needs_reward_model(self) -> bool:
        """Whether a reward model is asked at all."""
        return super().needs_reward_model or bool(self.best_of or self.score_guidance.scales)

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.score_guidance.scales:
            yield from self.score_guidance.faults_for(self.num_steps, self.dtype, self.scheduler)
        if not (self.tuned or self.best_of or self.score_guidance.scales):
            yield "nothing is compared: tuned is false, and best_of and score_guidance.scales are empty"

    def unused(self) -> dict[str, str]:
        idle = {} if self.tuned else {"negative_prompts": "tuned is false"}
        if not self.score_guidance.scales:
            names = (f"score_guidance.{name}" for name in GuidanceSettings.model_fields)
            idle |= dict.fromkeys(names, "score_guidance.scales is empty")
        return super().unused() | idle


def _reads(config: CompareGeneratorsConfig) -> Sequence[str | Many]:
    tuned = (Many("generator"),) if config.tuned else ()
    splits = ("splits",) if config.prompts is None else ()
    return (*tuned, *splits, *config.reads_reward_models())


STAGE = Stage(
    name="compare-generators",
    version=1,
    reads=_reads,
    writes="comparison",
    determinism="numeric",
    extra="tune",
    config=CompareGeneratorsConfig,
    run="irpipe.stages.compare_generators.run:run",
    plugins=plugins,
    evaluation=True,
)
