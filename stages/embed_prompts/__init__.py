"""Clean a pool of prompts and embed each as a vector.

Reads: a file of prompts (`path`), or the prompts of a stage that writes them.
Writes: the tables `prompts` and `rejected`, and `vectors.npy`, float16 (n, d).
Paper: ImageReward, appendix A.1 (Sentence-BERT vectors of DiffusionDB prompts).
Deviates: the paper does not name its sentence model; the default is all-mpnet-base-v2.
Cost: one pass over the rows; O(n) of the encoder; memory O(n) of texts, vectors on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from irpipe.pipeline.stage import Config, FilePath, Stage, given, setting

MPNET = "sentence-transformers/all-mpnet-base-v2@e8c3b32edf5434bc2275fc9bab85f82640a19130"


class EmbedPromptsConfig(Config):
    path: FilePath | None = setting(
        None, role="external", meaning="File of prompts. Unset: the recipe's stage that writes prompts."
    )
    format: Literal["diffusiondb", "jsonl", "csv", "parquet", "text"] | None = setting(
        None, meaning="Format of path. Unset: guessed from its ending (and, for Parquet, its columns)."
    )
    prompt_column: str = setting("prompt", meaning="Name of the column or field that holds the prompt.")
    duplicates: Literal["exact", "normalised", "keep"] = setting(
        "normalised",
        meaning="Which prompts count as one: equal after Unicode NFC and white space (exact), after case and"
        " punctuation as well (normalised), or none (keep).",
    )
    min_characters: int = setting(1, ge=1, meaning="Shorter prompts are dropped; empty ones always are.")
    max_characters: int | None = setting(None, ge=1, meaning="Longer prompts are dropped. Unset: none is too long.")
    max_prompt_nsfw: float | None = setting(
        None, ge=0, le=2, meaning="Rows whose prompt_nsfw is higher are dropped (DiffusionDB). Unset: no limit."
    )
    max_image_nsfw: float | None = setting(
        None, ge=0, le=2, meaning="Rows whose image_nsfw is higher are dropped; 1.0 drops just the blurred ones, which have 2.0."
    )
    keep_unscored: bool = setting(True, meaning="Whether rows without an NSFW score pass the limits.")
    min_images: int = setting(
        1, ge=1, meaning="Least number of rows with the same prompt.", source="ImageReward 2.1 has 4-9 images a prompt"
    )
    embedder: Literal["sentence-transformers", "lexical"] = setting(
        "sentence-transformers", meaning="lexical: hashed character n-grams; needs no weights.", source="ImageReward A.1"
    )
    model: str = setting(
        MPNET, role="model", meaning="Sentence model: hub/name@revision, or a local folder.",
        source="the paper cites Sentence-BERT and MPNet and names no model",
    )  # fmt: skip
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "bfloat16", meaning="Precision of the sentence model. Vectors are float16 at rest."
    )
    dimensions: int = setting(512, ge=8, le=1 << 16, meaning="Length of lexical vectors.")
    vectors: FilePath | None = setting(
        None, role="external", meaning="An .npy of given vectors, one row per input row, instead of an embedder."
    )
    center: bool = setting(
        False,
        meaning="Subtract the mean vector before vectors are compared.",
        source="Su et al. 2022 (fast vote-k) centre in code; ImageReward is silent",
    )
    batch_size: int = setting(32, ge=1, meaning="Prompts a batch; batches are cut inside a shard, by length.")
    shard_size: int = setting(4096, ge=1, meaning="Prompts a shard: a kill costs at most one.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of bad rows (of at least 100) that stops the run."
    )
    device: str = setting("auto", role="execution", meaning="Where the sentence model runs: auto, cpu, cuda, cuda:1, mps.")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> EmbedPromptsConfig:
        if self.path is None and (given(self, "format") or given(self, "vectors")):
            raise ValueError("format and vectors describe the rows of path, which is not given")
        if self.embedder == "lexical" and (given(self, "model") or given(self, "dtype")):
            raise ValueError("model and dtype have no effect with embedder = 'lexical'")
        if self.embedder != "lexical" and given(self, "dimensions"):
            raise ValueError("dimensions has no effect unless embedder = 'lexical'")
        if given(self, "keep_unscored") and self.max_prompt_nsfw is None and self.max_image_nsfw is None:
            raise ValueError("keep_unscored has no effect without max_prompt_nsfw or max_image_nsfw")
        return self


def _reads(config: EmbedPromptsConfig) -> Sequence[str]:
    return () if config.path is not None else ("prompt-pool",)


STAGE = Stage(
    name="embed-prompts",
    version=1,
    reads=_reads,
    writes="embeddings",
    determinism="bitwise",
    config=EmbedPromptsConfig,
    run="irpipe.stages.embed_prompts.run:run",
)
