"""Visual question answering: which of some answers a model of transformers gives to a question about a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from irpipe.models.loading import files_of, load_errors
from irpipe.models.reward.preprocessing import read_preprocessing
from irpipe.models.weights import load_tokenizer
from irpipe.models.whole import check_vocabulary
from irpipe.pipeline.stage import Model


class VisualQuestions:
    """A BLIP that answers questions (Li et al. 2022, section 5.4): it ranks given answers by their likelihood.

    Args:
        dtype: of the arithmetic.

    Raises:
        ModelError: it is not at hand, not whole, or of another kind.
    """

    def __init__(self, model: Model, device: str, dtype: torch.dtype) -> None:
        from transformers import BlipForQuestionAnswering

        folder = files_of(model)
        with load_errors(
            model, "the question answering BLIP", "a Hugging Face BlipForQuestionAnswering: config.json, safetensors"
        ):
            self._blip = BlipForQuestionAnswering.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=dtype
            )
            self._blip.to(device).eval()
            self._tokenizer = load_tokenizer(folder)
            check_vocabulary(self._tokenizer, self._blip.text_encoder, model.shown)
            size = self._blip.config.vision_config.image_size
            self._preprocessing = read_preprocessing(folder, size, colours_only=True)
        self.image_size = self._preprocessing.image_size

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, 3, size, size): pictures stretched to a square, as BLIP was trained to answer."""
        side = (self.image_size, self.image_size)
        shown = [picture.convert("RGB").resize(side, Image.Resampling.BICUBIC) for picture in pictures]
        values = torch.stack([torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8).view(*side, 3) for one in shown])
        where = values.to(self._blip.device).permute(0, 3, 1, 2).to(self._blip.dtype) / 255
        return self._preprocessing.normalised(where)

    def look(self, pixels: Tensor) -> Tensor:
        """States (n, t, d) of pictures (n, 3, size, size), for any number of questions."""
        with torch.no_grad():
            states: Tensor = self._blip.vision_model(pixel_values=pixels).last_hidden_state
        return states

    def shares(self, image: Tensor, question: str, answers: Sequence[str]) -> Tensor:
        """How likely each of the answers is among them, (n, answers), by the states (n, t, d) of pictures."""
        asked = self._tokenizer([question] * len(image), return_tensors="pt").to(self._blip.device)
        ids, mask = asked["input_ids"], asked["attention_mask"]
        with torch.no_grad():
            encoded = self._blip.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=image)
            likelihoods = [self._likelihood(encoded.last_hidden_state, mask, answer) for answer in answers]
        return torch.stack(likelihoods, dim=1).softmax(dim=1)

    def _likelihood(self, states: Tensor, mask: Tensor, answer: str) -> Tensor:
        """Log likelihood (n,) of an answer, its end included, after a question's states (n, l, d)."""
        text = self._blip.config.text_config
        words = [*self._tokenizer(answer, add_special_tokens=False)["input_ids"], text.sep_token_id]
        given = torch.tensor([[text.bos_token_id, *words[:-1]]], device=states.device).expand(len(states), -1)
        logits = self._blip.text_decoder(input_ids=given, encoder_hidden_states=states, encoder_attention_mask=mask).logits
        following = torch.tensor(words, device=states.device).view(1, -1, 1).expand(len(states), -1, 1)
        return logits.float().log_softmax(dim=-1).gather(2, following)[..., 0].sum(dim=1)
