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

from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import Determinism, FilePath, Stage, setting

MPNET = "sentence-transformers/all-mpnet-base-v2@e8c3b32edf5434bc2275fc9bab85f82640a19130"


class EmbedPromptsConfig(MapConfig):
    path: FilePath | None = setting(
        None, role="external", meaning="File of prompts. Unset: the recipe's stage that writes prompts."
    )
    format: Literal["diffusiondb", "jsonl", "csv", "parquet", "text"] | None = setting(
        None, meaning="Format of path. Unset: by its ending (and, for Parquet, its columns)."
    )
    prompt_column: str = setting("prompt", meaning="Name of the column or field that holds the prompt.")
    clean: bool = setting(True, meaning="Write texts in Unicode NFC with single spaces. Ids are of such texts in any case.")
    duplicates: Literal["exact", "normalised", "keep"] = setting(
        "normalised",
        meaning="Which prompts are duplicates: equal after Unicode NFC and white space (exact), after case and"
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
        1, ge=1, meaning="Least number of rows with the same prompt.", source="ImageReward 2.1 has 4-9 images per prompt"
    )
    embedder: Literal["sentence-transformers", "lexical"] = setting(
        "sentence-transformers", meaning="lexical: hashed character n-grams; needs no weights.", source="ImageReward A.1"
    )
    model: str = setting(
        MPNET,
        role="model",
        meaning="Sentence model: hub/name@revision, or a local folder.",
        source="the paper cites Sentence-BERT and MPNet and names no model",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "bfloat16", meaning="Precision of the sentence model. Vectors are stored as float16."
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
    batch_size: int = setting(32, ge=1, meaning="Prompts per batch; batches are cut inside a shard, by length.")
    shard_size: int = setting(4096, ge=1, meaning="Prompts per shard: a kill costs at most one shard per process.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of bad rows (of at least 100) that stops the run."
    )
    device: str = setting("auto", role="execution", meaning="Where the sentence model runs: auto, cpu, cuda, cuda:1, mps.")

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.path is None:
            why |= dict.fromkeys(("format", "vectors"), "it describes the rows of path, which is not given")
        if self.duplicates == "keep":
            why["min_images"] = "duplicates = 'keep' counts every row as a prompt of its own"
        if self.max_prompt_nsfw is None and self.max_image_nsfw is None:
            why["keep_unscored"] = "there is neither max_prompt_nsfw nor max_image_nsfw"
        if self.vectors is None and self.embedder == "lexical":
            why |= dict.fromkeys(("model", "dtype", "batch_size", "device"), "embedder = 'lexical' has no model")
        if self.vectors is None and self.embedder != "lexical":
            why["dimensions"] = "the model decides, unless embedder = 'lexical'"
        return why

    def replaced(self) -> set[str]:
        idle = {"embedder", "model", "dtype", "dimensions", "batch_size", "shard_size", "num_processes", "executor"}
        return idle if self.vectors is not None else set()


def _reads(config: EmbedPromptsConfig) -> Sequence[str]:
    return () if config.path is not None else ("prompt-pool",)


def _determinism(config: EmbedPromptsConfig) -> Determinism:
    """A model's last bits depend on the device, which is not part of the key."""
    return "bitwise" if config.vectors is not None or config.embedder == "lexical" else "numeric"


def _extra(config: EmbedPromptsConfig) -> str | None:
    """Vectors that are given, and lexical ones, need no sentence model."""
    return None if config.vectors is not None or config.embedder == "lexical" else "embed"


STAGE = Stage(
    name="embed-prompts",
    version=2,
    reads=_reads,
    extra=_extra,
    writes="embeddings",
    determinism=_determinism,
    config=EmbedPromptsConfig,
    run="irpipe.stages.embed_prompts.run:run",
)
