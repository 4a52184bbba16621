"""Vectors from a sentence model, hashed n-grams or a given file, written in shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.models.loading import load_errors, worker_device
from irpipe.models.whole import check_vocabulary
from irpipe.pipeline.errors import InputError, ModelError
from irpipe.pipeline.stage import Context, Model
from irpipe.schemas.embeddings import VECTORS_FILE, save_vectors, unit_rows
from irpipe.schemas.rejected import Rejections
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.pool import Pool, take

Encoder = Callable[[list[str]], NDArray[np.float32]]

_BLOCK = 1 << 16  # rows handled at once where vectors are only copied
_MAX_FLOAT16 = 65504.0


def write_vectors(
    config: EmbedPromptsConfig, pool: Pool, rejections: Rejections, out: Path, context: Context
) -> tuple[Pool, dict[str, Any]]:
    """Write `vectors.npy`, float16 (n, d). Returns the pool (without rows that have no vector) and figures."""
    if config.vectors is not None:
        vectors = open_given(context.sources["vectors"][0], pool.rows_read)
        pool = drop_unusable(vectors, pool, rejections)
        blocks = partial(given_blocks, vectors, np.array(pool.source_rows, dtype=np.int64))
        embedder, dimensions = "given vectors", vectors.shape[1]
        rejections.check(pool.rows_read, len(pool.ids))
    else:
        rejections.check(pool.rows_read, len(pool.ids))
        shards = embed_in_shards(config, pool.texts, context)
        blocks = partial(shard_blocks, shards)
        embedder, dimensions = config.embedder, next(blocks()).shape[1]
    shape = (len(pool.ids), dimensions)
    save_vectors(out / VECTORS_FILE, centred(blocks, len(pool.ids)) if config.center else blocks(), shape)
    return pool, {"embedder": embedder, "dimensions": dimensions, "centred": config.center}


def given_blocks(vectors: NDArray[Any], rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Rows (m,) of given vectors (n, d), in blocks (rows, d)."""
    for start in range(0, len(rows), _BLOCK):
        yield vectors[rows[start : start + _BLOCK]]


def shard_blocks(shards: Sequence[Path]) -> Iterator[NDArray[Any]]:
    """The vectors of saved shards, (rows, d) each."""
    for shard in shards:
        yield np.load(shard, allow_pickle=False)


def centred(blocks: Callable[[], Iterator[NDArray[Any]]], count: int) -> Iterator[NDArray[np.float32]]:
    """Blocks (rows, d) of unit vectors, less their mean and at unit length again. Two passes."""
    mean = (sum(unit_rows(block).sum(axis=0, dtype=np.float64) for block in blocks()) / count).astype(np.float32)
    for block in blocks():
        yield unit_rows(unit_rows(block) - mean)


def open_given(path: Path, rows: int) -> NDArray[Any]:
    """An .npy of vectors (rows, d), one row per input row, memory-mapped.

    Raises:
        InputError: it is no .npy, not of two dimensions, not of floats, or has another number of rows.
    """
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")  # np.load would also open zips and pickles
    except Exception as error:  # noqa: BLE001 # damaged bytes make numpy raise anything; this is where they come in
        raise InputError(f"{path} is not a readable .npy: {error}"[:300], where="embed-prompts.vectors") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise InputError(f"{path} is not a matrix of floats", where="embed-prompts.vectors", expected="(rows, dimensions)")
    if len(vectors) != rows:
        raise InputError(
            f"{path} has {len(vectors):,} rows and the prompts have {rows:,}",
            where="embed-prompts.vectors",
            expected="one vector per input row, in the same order",
        )
    return vectors


def drop_unusable(vectors: NDArray[Any], pool: Pool, rejections: Rejections) -> Pool:
    """Refuse rows whose vector, of vectors (n, d), is not finite, is zero, or does not fit float16."""
    rows = np.array(pool.source_rows, dtype=np.int64)
    keep = np.ones(len(rows), dtype=bool)
    for start in range(0, len(rows), _BLOCK):
        largest = np.abs(np.asarray(vectors[rows[start : start + _BLOCK]], dtype=np.float64)).max(axis=1, initial=0)
        keep[start : start + _BLOCK] = np.isfinite(largest) & (largest > 0) & (largest <= _MAX_FLOAT16)
    for row in rows[~keep].tolist():
        rejections.refuse(row, "unusable vector", "not finite, zero, or beyond float16")
    return pool if keep.all() else take(pool, keep)


def embed_in_shards(config: EmbedPromptsConfig, texts: list[str], context: Context) -> list[Path]:
    """Embed all texts into files of one shard each, so that a kill costs at most one. Returns the files in order."""
    starts = range(0, len(texts), config.shard_size)
    shards = {f"{number:05}.npy": texts[start : start + config.shard_size] for number, start in enumerate(starts)}
    model = context.models["model"][0] if config.embedder == "sentence-transformers" else None
    return context.map(
        Embedder(config, model),
        shards,
        "embedding",
        "prompts",
        size=len,
        processes=config.num_processes,
        executor=config.executor,
    )


@dataclass
class Embedder:
    """Writes the vectors of some texts, float16 (texts, d)."""

    config: EmbedPromptsConfig
    model: Model | None

    def __call__(self, texts: list[str], draft: Path) -> None:
        vectors = self._encode(texts)
        save_vectors(draft, [vectors], vectors.shape)

    @cached_property
    def _encode(self) -> Encoder:
        return lexical_encoder(self.config) if self.model is None else sentence_encoder(self.config, self.model)


def lexical_encoder(config: EmbedPromptsConfig) -> Encoder:
    """Hashed counts of character 3- to 5-grams within words, of length 1: similar spelling, no meaning."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=config.dimensions, norm="l2")
    return lambda texts: np.asarray(vectorizer.transform(texts).todense(), dtype=np.float32)


def sentence_encoder(config: EmbedPromptsConfig, model: Model) -> Encoder:
    """A sentence-transformers model. Texts of like length share a batch, so little is spent on padding.

    Raises:
        ModelError: the library is missing, or the model cannot be loaded whole.
    """
    try:
        import torch
        from sentence_transformers import SentenceTransformer  # noqa: F401 # whether the extra is installed
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise ModelError(
            "embedder = 'sentence-transformers' needs the extra 'embed'",
            fix="pip install 'irpipe[embed]', or --set embed-prompts.embedder=lexical",
        ) from None
    disable_progress_bar()  # our own bar follows
    encoder = _load_sentence_model(model, getattr(torch, config.dtype), worker_device(config.device))

    def encode(texts: list[str]) -> NDArray[np.float32]:
        """Vectors (n, d) of n texts."""
        with torch.inference_mode():
            vectors = encoder.encode(
                texts, batch_size=config.batch_size, show_progress_bar=False, convert_to_tensor=True, normalize_embeddings=False
            )
        return vectors.float().cpu().numpy()  # type: ignore[no-any-return]

    return encode


def _load_sentence_model(model: Model, dtype: Any, device: str) -> Any:
    from sentence_transformers import SentenceTransformer

    expected = "a sentence-transformers folder: modules.json, config.json, safetensors and a tokenizer"
    lexical = "without weights: --set embed-prompts.embedder=lexical"
    # Sentences are pooled from the states of words: a pooler and the heads of pre-training are not used.
    with load_errors(model, "the sentence model", expected, other=lexical, unused=r"(pooler|cls|lm_head)\."):
        if model.folder is not None and not (model.folder / "modules.json").is_file():
            raise ModelError(f"{model.shown} is no sentence model: it does not tell how words are pooled", expected=expected)
        encoder = SentenceTransformer(
            model.location["pretrained_model_name_or_path"],
            revision=model.location.get("revision"),
            device=device,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
            trust_remote_code=False,
        )
        network = getattr(encoder[0], "auto_model", None)
        if network is not None:
            check_vocabulary(encoder.tokenizer, network, model.shown)
    return encoder
