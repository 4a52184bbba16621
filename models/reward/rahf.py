"""RAHF, the model of Rich Human Feedback (arXiv 2312.10240, section 4): scores, heatmaps and misaligned words of an image.

A vision tower's states of the image and the embedded prompt go through a T5 encoder together; heads read maps and scores from the
image's states, and the T5 decoder, which sees both, writes the prompt again with a flag behind each misaligned word.

What differs from the paper: padding is masked, so that an answer does not depend on its batch. The flag is one token of its own,
not the letters ``_0``, so that no word reads as flagged. Words are decoded by force: after each word only the flag or the next
word of the prompt may follow, so that no other words can come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import T5Config, T5ForConditionalGeneration

from irpipe.models.loading import load_errors
from irpipe.models.reward.preprocessing import Preprocessing
from irpipe.models.reward.rahf_heads import HeadSizes, HeatmapHead, ScoreHead
from irpipe.models.reward.rich import Output, RichRewardModel
from irpipe.models.weights import fill, load_tokenizer, read_config, save_model
from irpipe.models.whole import check_vocabulary
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import CARD, CONFIG, WEIGHTS, ScoreCard
from irpipe.schemas.rich_feedback import ASPECTS, KINDS, prompt_tokens

FORMAT = "rahf"
Variant = Literal["multi-head", "augmented-prompt"]
VARIANTS: tuple[Variant, ...] = ("multi-head", "augmented-prompt")
Part = Literal["encoder", "implausibility", "misalignment"]
# The task strings of the augmented prompt (section 4.2), by output.
TASKS = {
    **{kind: f"{kind} heatmap" for kind in KINDS},
    **{aspect: f"{aspect} score" for aspect in ASPECTS},
    "words": "misaligned keywords",
}
_VISION = {
    "vit": ("ViTConfig", "ViTModel"),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel"),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel"),
    "blip_vision_model": ("BlipVisionConfig", "BlipVisionModel"),
}


@dataclass(frozen=True)
class RahfConfig:
    """What a RAHF is made of.

    Attributes:
        vision, t5, text_tower: configs of transformers, as tables; text_tower: of a BLIP's text encoder, whose states, which have
            looked at the image, are added to the prompt's embeddings. None: embeddings alone, as the paper has it.
        flag: the token behind a misaligned word; tasks: tokens before the prompt by output (augmented-prompt).
        end: the token behind the prompt; start: the token before it for the text tower.
        max_length: tokens of a prompt that are read.
        reads_prompt: False: the towers see the image alone, as a baseline; the decoder still writes the prompt's words.
        word_cut: a word is called misaligned if its probability is above; chosen on validation data.
    """

    variant: Variant
    vision: Mapping[str, Any]
    t5: Mapping[str, Any]
    flag: int
    end: int
    tasks: Mapping[str, Sequence[int]]
    text_tower: Mapping[str, Any] | None = None
    start: int = 0
    heads: HeadSizes = field(default_factory=HeadSizes)
    max_length: int = 128
    reads_prompt: bool = True
    word_cut: float = 0.5


Fused = tuple[Tensor, Tensor]
"""Encoder states (n, l, d) of an image and a prompt together, and their mask (n, l)."""


@dataclass(frozen=True)
class Words:
    """Prompts as token ids, word by word.

    Attributes:
        pieces: of each prompt, of each word, its ids; only as many words as fit.
        counts: words of each prompt, with those that do not fit.
    """

    pieces: Sequence[Sequence[Sequence[int]]]
    counts: Sequence[int]


class Rahf(RichRewardModel):
    """See the module. Start one with `irpipe.models.reward.rahf_start`."""

    format: ClassVar[str] = FORMAT
    outputs: tuple[Output, ...] = ("scores", "heatmaps", "words")
    preprocess: Preprocessing

    def __init__(
        self, config: RahfConfig, preprocessing: Preprocessing, tokenizer: Any, cards: Mapping[str, ScoreCard] | None = None
    ) -> None:
        super().__init__(preprocessing, cards)
        self.config, self.tokenizer = config, tokenizer
        self.vision = _make_vision(config.vision)
        self.t5 = T5ForConditionalGeneration(T5Config(**config.t5))
        width, side = self.t5.config.d_model, preprocessing.image_size // self.vision.config.patch_size
        self.side = side
        self.join = nn.Linear(self.vision.config.hidden_size, width)
        self.text_tower: Any = None
        if config.text_tower is not None:
            text = transformers.BlipTextConfig(**config.text_tower)
            self.text_tower = transformers.models.blip.modeling_blip_text.BlipTextModel(text, add_pooling_layer=False)
            self.join_text = nn.Linear(text.hidden_size, width)
        multi = config.variant == "multi-head"
        self.heatmaps = nn.ModuleDict({kind: HeatmapHead(width, config.heads) for kind in (KINDS if multi else ("any",))})
        self.scores = nn.ModuleDict({aspect: ScoreHead(width, side, config.heads) for aspect in (ASPECTS if multi else ("any",))})
        self.eval()

    # -- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, location: str | Path) -> Self:
        """The model in a folder that `save_pretrained` wrote.

        Raises:
            ModelError: it is damaged, or of another format.
        """
        from safetensors.torch import load_file

        folder = Path(location)
        known = Model(str(folder), "", folder)
        with load_errors(known, "the RAHF", f"{CONFIG}, {WEIGHTS}, {CARD} and a tokenizer"):
            document = read_config(known)
            if document.get("format") != FORMAT:
                raise ModelError(f"{folder} holds no RAHF", expected=f"{CONFIG} with the format {FORMAT!r}")
            config = document["rahf"] | {"heads": HeadSizes.from_json(document["rahf"]["heads"])}
            cards = {aspect: ScoreCard(**card) for aspect, card in document["cards"].items()}
            model = cls(RahfConfig(**config), Preprocessing.from_json(document["preprocessing"]), load_tokenizer(folder), cards)
            fill(model, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
            check_vocabulary(model.tokenizer, model.t5, str(folder))
            return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights, tokenizer and the score cards; `from_pretrained` reads them."""
        cards = {aspect: asdict(self.card_of(aspect)) for aspect in ASPECTS}
        document = {"format": FORMAT, "rahf": asdict(self.config), "preprocessing": asdict(self.preprocess), "cards": cards}
        tied = {"t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight", "t5.lm_head.weight"}
        own = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        shared = own["t5.shared.weight"].data_ptr()
        weights = {n: v.clone() if n in tied and v.data_ptr() == shared else v for n, v in own.items()}
        save_model(Path(folder), document, self.card, weights, self.tokenizer)

    # -- a reward model -----------------------------------------------------------------------------------------------

    def encode_texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Ids (n, l) of the prompts' words and the end, and their mask, padded to the longest."""
        seen = prompts if self.config.reads_prompt else [""] * len(prompts)
        rows = [[*(piece for word in words for piece in word), self.config.end] for words in self.words_of(seen).pieces]
        return {
            "input_ids": padded(rows, self.t5.config.pad_token_id, self.device),
            "attention_mask": padded([[1] * len(row) for row in rows], 0, self.device),
        }

    @property
    def heads(self) -> HeadSizes:
        """Sizes of its heads."""
        return self.config.heads

    def freeze(self, rate: float) -> None:
        """Fix a share of the lower layers of the vision tower (and the text tower); 1 fixes them whole, 0 nothing."""
        for tower in filter(None, (self.vision, self.text_tower)):
            tower.requires_grad_(rate == 0)
            layers = _layers_of(tower)
            for layer in layers[int(rate * len(layers)) :]:
                layer.requires_grad_(True)

    def freeze_parts(self, parts: Sequence[Part]) -> None:
        """Fix the T5's encoder, with the embeddings and what joins images to it, or the head of a heatmap (multi-head)."""
        encoder = [self.t5.encoder, self.t5.shared, self.join, *([self.join_text] if self.text_tower is not None else [])]
        for part in parts:
            for module in encoder if part == "encoder" else [self.heatmaps[part]]:
                module.requires_grad_(False)

    def checkpoint_activations(self) -> None:
        """Keep only what enters each layer, and compute the rest again on the way back."""
        for layer in (*_layers_of(self.vision), *self.t5.encoder.block, *self.t5.decoder.block):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    # -- image and prompt together ------------------------------------------------------------------------------------

    def look(self, pixels: Tensor) -> Tensor:
        """States (n, t, d) of preprocessed images (n, 3, size, size): one pass of the vision tower, for all outputs."""
        states: Tensor = self.vision(pixel_values=pixels).last_hidden_state
        return states

    def fuse(self, image: Tensor, texts: Mapping[str, Tensor], output: str) -> Fused:
        """Encoder states (n, t + l, d) of image states (n, t, d') and texts, and their mask.

        Args:
            output: which one they are for; the augmented prompt names it before the text.
        """
        ids, mask = texts["input_ids"], texts["attention_mask"]
        embedded = self.t5.shared(ids)
        if self.text_tower is not None:
            embedded = embedded + self.join_text(self._text_states(image, ids, mask))
        if self.config.variant == "augmented-prompt":
            task = torch.tensor(self.config.tasks[output], device=ids.device).expand(len(ids), -1)
            embedded = torch.cat([self.t5.shared(task), embedded], dim=1)
            mask = torch.cat([torch.ones_like(task), mask], dim=1)
        joined = torch.cat([self.join(image).to(embedded.dtype), embedded], dim=1)
        mask = torch.cat([mask.new_ones(image.shape[:2]), mask], dim=1)
        states: Tensor = self.t5.encoder(inputs_embeds=joined, attention_mask=mask).last_hidden_state
        return states, mask

    def _text_states(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The text tower's states (n, l, d) of the prompt's tokens, having looked at the image."""
        start = ids.new_full((len(ids), 1), self.config.start)
        states: Tensor = self.text_tower(
            input_ids=torch.cat([start, ids], dim=1),
            attention_mask=torch.cat([mask.new_ones(len(mask), 1), mask], dim=1),
            encoder_hidden_states=image,
            encoder_attention_mask=mask.new_ones(image.shape[:2]),
            is_decoder=False,
        ).last_hidden_state
        return states[:, 1:]

    def grid(self, states: Tensor, image: Tensor) -> Tensor:
        """(n, d, s, s) the encoder states of the image's patches, without its class token."""
        first = image.shape[1] - self.side**2
        return states[:, first : first + self.side**2].transpose(1, 2).unflatten(2, (self.side, self.side))

    def shared(self, image: Tensor, texts: Mapping[str, Tensor]) -> Fused | None:
        """The encoder states that all outputs share (multi-head), to be given to each; None where each has its own."""
        return self.fuse(image, texts, "words") if self.config.variant == "multi-head" else None

    def score(self, image: Tensor, texts: Mapping[str, Tensor], aspect: str, shared: Fused | None = None) -> Tensor:
        """One score (n,) of image states."""
        states, _ = shared or self.fuse(image, texts, aspect)
        head = self.scores[aspect if aspect in self.scores else "any"]
        found: Tensor = head(self.grid(states, image))
        return found

    def heatmap(
        self, pixels: Tensor, image: Tensor, texts: Mapping[str, Tensor], kind: str, shared: Fused | None = None
    ) -> Tensor:
        """One map (n, size, size) of preprocessed pixels and their image states."""
        states, _ = shared or self.fuse(image, texts, kind)
        head = self.heatmaps[kind if kind in self.heatmaps else "any"]
        found: Tensor = head(self.grid(states, image), pixels)
        return found

    # -- words --------------------------------------------------------------------------------------------------------

    def words_of(self, prompts: Sequence[str]) -> Words:
        """The words of prompts, by RichHF's rule, as ids; cut at `max_length` tokens, whole words only."""
        tokens = [prompt_tokens(prompt) for prompt in prompts]
        known = {word: self._ids_of(word) for word in dict.fromkeys(word for words in tokens for word in words)}
        pieces: list[list[Sequence[int]]] = []
        for words in tokens:
            room = self.config.max_length - 1
            fitting: list[Sequence[int]] = []
            for word in words:
                room -= len(known[word])
                if room < 0:
                    break
                fitting.append(known[word])
            pieces.append(fitting)
        return Words(pieces, [len(words) for words in tokens])

    def cut_prompts(self, prompts: Sequence[str]) -> int:
        """How many prompts have words that do not fit."""
        words = self.words_of(prompts)
        return sum(len(pieces) < count for pieces, count in zip(words.pieces, words.counts, strict=True))

    def _ids_of(self, word: str) -> list[int]:
        ids: list[int] = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids or [self.tokenizer.unk_token_id]

    def sequence(self, words: Sequence[Sequence[int]], misaligned: Sequence[bool]) -> list[int]:
        """A prompt's words with the flag behind misaligned ones, and the end: what the decoder writes."""
        flagged = [[*word, self.config.flag] if wrong else list(word) for word, wrong in zip(words, misaligned, strict=False)]
        return [*(piece for word in flagged for piece in word), self.config.end]

    def sequence_logits(self, states: Tensor, mask: Tensor, sequences: Tensor) -> Tensor:
        """Logits (n, l, v) of each next token of sequences (n, l), given the ones before it."""
        before = torch.cat([sequences.new_full((len(sequences), 1), self.t5.config.decoder_start_token_id), sequences[:, :-1]], 1)
        logits: Tensor = self.t5(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=before, use_cache=False).logits
        return logits

    def word_probabilities(
        self,
        image: Tensor,
        texts: Mapping[str, Tensor],
        prompts: Sequence[str],
        shared: Fused | None = None,
        cut: float = 0.5,
    ) -> list[list[float]]:
        """How probable it is that each word of the prompts is misaligned; 0 for words beyond `max_length`.

        The flag or the prompt's next word must follow each word: of the two the flag's share counts. Flags above `cut` stand in
        what is decoded after them (by default the likelier of the two does, whatever `word_cut` makes of the share). All words
        are decoded at once, again until no flag changes: that is what decoding one word after another gives.
        """
        words = self.words_of(prompts)
        states, mask = shared or self.fuse(image, texts, "words")
        flags = [[False] * len(pieces) for pieces in words.pieces]
        probabilities: list[list[float]] = []
        for _ in range(1 + max(map(len, flags), default=0)):
            probabilities = self._flag_shares(states, mask, words, flags)
            decided = [[share > cut for share in shares] for shares in probabilities]
            if decided == flags:
                break
            flags = decided
        return [shares + [0.0] * (count - len(shares)) for shares, count in zip(probabilities, words.counts, strict=True)]

    def _flag_shares(self, states: Tensor, mask: Tensor, words: Words, flags: Sequence[Sequence[bool]]) -> list[list[float]]:
        rows = [self.sequence(pieces, wrong) for pieces, wrong in zip(words.pieces, flags, strict=True)]
        logits = self.sequence_logits(states, mask, padded(rows, self.t5.config.pad_token_id, self.device)).float()
        shares = []
        for number, (pieces, wrong) in enumerate(zip(words.pieces, flags, strict=True)):
            place, places, following = 0, [], []
            for index, word in enumerate(pieces):
                place += len(word)
                places.append(place)
                following.append(pieces[index + 1][0] if index + 1 < len(pieces) else self.config.end)
                place += wrong[index]
            there = logits[number, places]
            gaps = there[:, self.config.flag] - there[torch.arange(len(places)), following]
            shares.append(torch.sigmoid(gaps).tolist())
        return shares


def padded(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    """(n, longest) of rows, the rest a value."""
    longest = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)


def _make_vision(config: Mapping[str, Any]) -> Any:
    """A vision tower of transformers.

    Raises:
        ModelError: it is of another class than those that are known.
    """
    kind = config.get("model_type")
    if kind not in _VISION:
        raise ModelError(f"a vision tower of the type {kind!r} is not known", expected=", ".join(_VISION))
    config_name, model_name = _VISION[str(kind)]
    made = getattr(transformers, config_name)(**{name: value for name, value in config.items() if name != "model_type"})
    return getattr(transformers, model_name)(made, **({"add_pooling_layer": False} if kind == "vit" else {}))


def _layers_of(tower: Any) -> list[nn.Module]:
    """The transformer layers of a tower, the lowest first."""
    inner = getattr(tower, "vision_model", tower).encoder if hasattr(getattr(tower, "vision_model", tower), "encoder") else tower
    for name in ("layers", "layer"):
        if hasattr(inner, name):
            return list(getattr(inner, name))
    raise ModelError(f"{type(tower).__name__} has no layers that are known")
