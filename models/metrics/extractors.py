"""Networks that make features of images, for metrics of sets.

Figures of different networks do not compare.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from irpipe.models.loading import files_of
from irpipe.models.reward.base import load_reward_model
from irpipe.models.reward.clip import ClipReward
from irpipe.models.scorers.base import Pictures
from irpipe.models.scorers.reward import squares
from irpipe.models.weights import read_checkpoint
from irpipe.pipeline.errors import ModelError, StageError
from irpipe.pipeline.memory import is_out_of_memory
from irpipe.pipeline.stage import Model

Features = tuple[NDArray[Any], NDArray[Any] | None]
"""Features (n, d), and class logits (n, c) where the network has classes."""


class Extractor(Protocol):
    """Takes pictures, and returns their features.

    Attributes:
        image_size: it takes squares of so many pixels, resized and cropped as ImageReward does it; None: pictures as they are.
        resize_rule: how pictures become what the network sees, for the report.
    """

    image_size: int | None
    resize_rule: str

    def __call__(self, pictures: Pictures) -> Features: ...


class ClipFeatures:
    """A CLIP's image embeddings, of length 1; its classes are texts (zero-shot)."""

    def __init__(self, model: Model, classes: Sequence[str], device: str) -> None:
        reward = load_reward_model(files_of(model))
        if not isinstance(reward, ClipReward):
            raise ModelError(f"{model.shown} is no CLIP", expected="a CLIP, or a preference classifier made of one")
        reward.to(device).eval()
        self.image_size: int | None = reward.preprocess.image_size
        self.resize_rule = f"bicubic with antialias, shorter side to {self.image_size}, centre crop"
        self._preprocess, self._clip = reward.preprocess, reward.clip
        self._classes = None
        if classes:
            texts = reward.encode_texts(list(classes))
            with torch.no_grad():
                self._classes = F.normalize(self._clip.text_projection(self._clip.text_model(**texts).pooler_output), dim=-1)

    def __call__(self, pictures: Pictures) -> Features:
        pixels = squares(pictures, self._preprocess, self._clip.device, torch.float32)
        with torch.no_grad():
            features = F.normalize(
                self._clip.visual_projection(self._clip.vision_model(pixel_values=pixels).pooler_output), dim=-1
            )
            logits = None if self._classes is None else self._clip.logit_scale.exp() * features @ self._classes.T
        return features.cpu().numpy(), None if logits is None else logits.cpu().numpy()


class InceptionFeatures:
    """Inception v3 with TensorFlow's weights of 2015, as FID is published with, by torch-fidelity.

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`. Nothing is downloaded.

    Raises:
        StageError: torch-fidelity is not installed.
        ModelError: the file is not of tensors alone, or not this network's.
    """

    image_size: int | None = None
    resize_rule = "bilinear without antialias to 299 x 299, as TensorFlow 1"

    def __init__(self, weights: Path, device: str) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise StageError(
                f"Inception features need torch-fidelity and torchvision: {error}", fix="pip install torch-fidelity torchvision"
            ) from None
        state = read_checkpoint(weights)
        if state is None:
            raise ModelError(f"there is no {weights}", expected="torch-fidelity's weights-inception-2015-12-05-6726825d.pth")
        checked = io.BytesIO()  # torch-fidelity would run code in a pickle: it gets tensors alone
        torch.save(state, checked)
        checked.seek(0)
        try:
            self._network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=checked
            ).to(device)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"{weights} is not of Inception v3: {str(error).splitlines()[0]}") from None
        self._device = device

    def __call__(self, pictures: Pictures) -> Features:
        parts: list[tuple[Any, Any]] = []
        for picture in pictures:  # of any size each
            image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].to(self._device)
            with torch.no_grad():
                parts.append(self._network(image))
        features, logits = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        return features, logits
