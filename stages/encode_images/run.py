"""The work of `encode-images`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irpipe.models.loading import device_errors, memory_errors, pick_device
from irpipe.models.pictures import decode_stream, need_room
from irpipe.models.reward.imagereward import ImageReward
from irpipe.models.reward.start import init_reward_model
from irpipe.pipeline.errors import StageError
from irpipe.pipeline.progress import size as shown_size
from irpipe.pipeline.shards import put_in_place
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact, write_durably
from irpipe.schemas.features import DATA, FEATURES, FeatureCard
from irpipe.schemas.images import ImageReader
from irpipe.schemas.rejected import Rejections
from irpipe.stages.encode_images import EncodeImagesConfig

_CHUNK = 256  # images between two marks of how far it is


def run(config: EncodeImagesConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    named = context.models["model"][0]
    model, _ = init_reward_model(named, "auto", 0, config.image_size)
    card = card_of(model, named.revision, config)
    reader = ImageReader(inputs["images"].table("images"))
    need_room(context.work / DATA, len(reader) * card.bytes_each, "features")
    context.say(f"{shown_size(len(reader) * card.bytes_each)} on the disk: {shown_size(card.bytes_each)} an image")
    device = pick_device(config.device)
    with device_errors(device):
        model.to(device)
    faults = encode(model, card, reader, config, context)
    rejections = Rejections(config.max_rejected, "images")
    for place, reason in faults.items():
        rejections.refuse(place, reason)
    rejections.check(len(reader), len(reader) - len(faults))
    card.write(out)
    put_in_place(context.work / DATA, out / DATA)
    write_index(reader, faults, out)
    metrics = {"blocks": card.blocks, "bytes_an_image": card.bytes_each, "rejected_for": rejections.counts()}
    return Report(Rows(len(reader), len(reader) - len(faults), rejections.write(out)), metrics)


def card_of(model: ImageReward, revision: str, config: EncodeImagesConfig) -> FeatureCard:
    """What the file will hold.

    Raises:
        StageError: nothing is frozen at this rate.
    """
    vision = model.vision.config
    blocks = int(config.freeze_rate * vision.num_hidden_layers)
    if not blocks:
        raise StageError(
            f"at freeze_rate = {config.freeze_rate} no block of {vision.num_hidden_layers} is frozen: there is nothing to keep",
            fix="--set train-rm.frozen_part=recomputed",
        )
    tokens = 1 + (vision.image_size // vision.patch_size) ** 2
    return FeatureCard(revision, blocks, vision.image_size, tokens, vision.hidden_size, config.dtype)


def encode(
    model: ImageReward, card: FeatureCard, reader: ImageReader, config: EncodeImagesConfig, context: Context
) -> dict[int, str]:
    """Write every image's features into the scratch file, from where an earlier attempt was stopped.

    Returns:
        why some images have none, by their place.
    """
    mark = context.work / "mark.json"
    told: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {"done": 0, "faults": {}}
    done, faults = int(told["done"]), {int(place): reason for place, reason in told["faults"].items()}
    with (
        context.progress("encoding", len(reader), "images") as bar,
        (context.work / DATA).open("r+b" if done else "wb") as file,
    ):
        bar.advance(done)
        file.truncate(done * card.bytes_each)
        file.seek(done * card.bytes_each)
        for start_place, pictures, bad in decode_stream(reader, done, _CHUNK, card.image_size, config.num_workers):
            for states in batches(model, pictures, card, config):
                file.write(states)
            faults |= {start_place + place: reason for place, reason in bad.items()}
            file.flush()
            os.fsync(file.fileno())
            write_durably(mark, json.dumps({"done": start_place + len(pictures), "faults": faults}))
            bar.advance(len(pictures))
    return faults


def batches(model: ImageReward, pictures: Any, card: FeatureCard, config: EncodeImagesConfig) -> Iterator[memoryview]:
    """The bytes of the features of pictures (n, size, size, 3), a batch at a time."""
    device = model.device
    dtype = torch.bfloat16 if card.dtype == "bfloat16" else torch.float32
    for first in range(0, len(pictures), config.batch_size):
        part = torch.from_numpy(np.stack(pictures[first : first + config.batch_size])).to(device)
        half = device.type == "cuda" and dtype == torch.bfloat16
        smaller = f"--set encode-images.batch_size={max(1, len(part) // 2)}"
        with (
            memory_errors(f"{len(part)} images a forward pass", smaller),
            torch.no_grad(),
            torch.autocast("cuda", dtype, enabled=half),
        ):
            pixels = model.preprocess.normalised(part.permute(0, 3, 1, 2).float() / 255)
            states = model.lower(pixels, card.blocks).to(dtype).cpu().contiguous()
        if not torch.isfinite(states).all():
            raise StageError("the features of an image are not finite", fix="--set encode-images.dtype=float32")
        yield memoryview(states.view(torch.uint8).numpy().reshape(-1))


def write_index(reader: ImageReader, faults: Mapping[int, str], out: Path) -> None:
    """The table `image_features`: places in the images artifact are rows of the file; an unusable image's row holds nothing."""
    prompts = [row["prompt_id"] for row in reader.rows(["prompt_id"])]
    FEATURES.write(
        out,
        {
            "image_id": reader.ids,
            "prompt_id": np.array(prompts, dtype=np.uint64),
            "row": [None if place in faults else place for place in range(len(reader))],
            "fault": [faults.get(place) for place in range(len(reader))],
        },
    )
