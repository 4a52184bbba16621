"""Models come in whole or not at all: every loader, with every way in which a folder of weights can be incomplete."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import irpipe.microworld
from irpipe.models.generators import Sampling, load
from irpipe.models.inpainting import load_painter
from irpipe.models.reward.base import load_reward_model
from irpipe.models.reward.clip import ClipReward
from irpipe.models.reward.preprocessing import read_preprocessing
from irpipe.models.reward.start import init_reward_model
from irpipe.models.scorers.baselines import BlipScorer, ClipScorer, aesthetic_head
from irpipe.models.tuning.denoiser import load_denoiser
from irpipe.models.tuning.tuned import load_tuned
from irpipe.models.vqa import VisualQuestions
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.generator import LORA, GeneratorCard
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.vectors import sentence_encoder
from tests.blips import question_blip
from tests.pipelines import stable_diffusion, stable_diffusion_inpainting, stable_diffusion_xl

SHIPPED = Path(irpipe.microworld.__file__).parent / "weights"
ROOT = Path(__file__).parents[1]
SAMPLING = Sampling(1, 1.0, "own", None, None, "", "float32", True)
PICTURES = [np.full((32, 32, 3), shade, np.uint8) for shade in (0, 128, 255)]
PROMPTS = ["a red circle", "a large blue square", "a small green cross"]


def shipped(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(SHIPPED / name, folder)


def reward_model(folder: Path) -> None:
    init_reward_model(Model("blip", "r", SHIPPED / "blip"), "auto", 0)[0].save_pretrained(folder)


def clip_reward(folder: Path) -> None:
    ClipReward.from_pretrained(SHIPPED / "clip").save_pretrained(folder)


def adapters(folder: Path) -> None:
    """A base beside the adapters of its UNet, as `refl` writes them."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = load_denoiser(Model("base", "r", SHIPPED / "generator"), "cpu", "float32").pipeline
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    type(pipeline).save_lora_weights(folder / LORA, unet_lora_layers=weights, safe_serialization=True)


def tuned(model: Model) -> Any:
    card = GeneratorCard("base", "r", "refl", "lora", 1, 1, "", {})
    return load_tuned(Model("base", "r", SHIPPED / "generator"), model.folder, card, SAMPLING, "cpu")


@dataclass(frozen=True)
class Loader:
    """How a model is saved, loaded, and used.

    Attributes:
        weights: its files of weights; tokenizers: the folders with tokenizers.
    """

    save: Callable[[Path], Any]
    load: Callable[[Model], Any]
    weights: tuple[str, ...]
    tokenizers: tuple[str, ...] = ()


PARTS = tuple(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
TEXT = "text_encoder/model.safetensors"
LOADERS = {
    "clip": Loader(shipped("clip"), lambda model: ClipScorer(model, "cpu", torch.float32), ("model.safetensors",), (".",)),
    "blip": Loader(shipped("blip"), lambda model: BlipScorer(model, "cpu", torch.float32), ("model.safetensors",), (".",)),
    "start": Loader(shipped("blip"), lambda model: init_reward_model(model, "auto", 0), ("model.safetensors",), (".",)),
    "reward model": Loader(reward_model, lambda model: load_reward_model(model.folder), ("model.safetensors",), (".",)),
    "CLIP as a reward model": Loader(
        shipped("clip"), lambda model: ClipReward.from_pretrained(model.folder), ("model.safetensors",), (".",)
    ),
    "preference classifier": Loader(clip_reward, lambda model: load_reward_model(model.folder), ("model.safetensors",), (".",)),
    "generator": Loader(shipped("generator"), lambda model: load(model, SAMPLING, "cpu"), (*PARTS, TEXT), ("tokenizer",)),
    "trainee": Loader(shipped("generator"), lambda model: load_denoiser(model, "cpu", "float32"), (*PARTS, TEXT), ("tokenizer",)),
    "with a safety checker": Loader(
        lambda folder: stable_diffusion(folder, blackens=True),
        lambda model: load(model, SAMPLING, "cpu"),
        ("safety_checker/model.safetensors",),
    ),
    "draws anew": Loader(
        stable_diffusion_inpainting,
        lambda model: load_painter(model, "cpu", "float32", num_steps=2, strength=0.5, guidance=1.0),
        (*PARTS, TEXT),
        ("tokenizer",),
    ),
    "SDXL": Loader(
        stable_diffusion_xl,
        lambda model: load(model, SAMPLING, "cpu"),
        (*PARTS, TEXT, "text_encoder_2/model.safetensors"),
        ("tokenizer", "tokenizer_2"),
    ),
    "sentences": Loader(
        shipped("sentences"),
        lambda model: sentence_encoder(
            EmbedPromptsConfig(embedder="sentence-transformers", dtype="float32", device="cpu"), model
        ),
        ("model.safetensors",),
        (".",),
    ),
    "adapters": Loader(adapters, tuned, (f"{LORA}/pytorch_lora_weights.safetensors",)),
    "answers questions": Loader(
        question_blip, lambda model: VisualQuestions(model, "cpu", torch.float32), ("model.safetensors",), (".",)
    ),
    "aesthetic head": Loader(shipped("clip"), aesthetic_head, ("aesthetic.safetensors",)),
}
Weights = dict[str, torch.Tensor]


def dropped(weights: Weights, name: str) -> str:
    del weights[name]
    return name


def renamed(weights: Weights, name: str) -> str:
    weights[f"{name}_of_old"] = weights.pop(name)
    return name


def reshaped(weights: Weights, name: str) -> str:
    value = weights[name]
    weights[name] = torch.cat([value, value])
    return name


def wrapped(weights: Weights, name: str) -> str:  # of all
    for one in list(weights):
        weights[f"module.{one}"] = weights.pop(one)
    return "module."


def added(weights: Weights, name: str) -> str:
    weights["of_another.network"] = weights[name].clone()
    return "of_another.network"


DAMAGES = {one.__name__: one for one in (dropped, renamed, reshaped, wrapped, added)}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """Saves what a loader takes, once."""
    folders: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("models") / "model"
            LOADERS[name].save(folders[name])
        return folders[name]

    return save


@pytest.fixture
def copy(saved, tmp_path) -> Callable[[str], Model]:
    """A copy of what a loader takes, to be damaged."""
    return lambda name: Model("the-model", "r", Path(shutil.copytree(saved(name), tmp_path / "model")))


@pytest.mark.parametrize("name", LOADERS)
def test_a_whole_model_comes_in(name, copy):
    assert LOADERS[name].load(copy(name)) is not None


CASES = [
    (name, file, damage)
    for name, loader in LOADERS.items()
    for file in loader.weights
    for damage in DAMAGES
    if (name, damage) != ("aesthetic head", "wrapped")  # its layers are told by their shapes, whatever their names
]


@pytest.mark.parametrize(("name", "file", "damage"), CASES)
def test_no_weight_is_made_up(name, file, damage, copy):
    model = copy(name)
    weights = load_file(model.folder / file)
    # A weight from the middle: libraries treat first and last ones, embeddings and heads, in ways of their own.
    chosen = sorted(weights)[len(weights) // 2]
    told = DAMAGES[damage](weights, chosen)
    save_file(weights, model.folder / file, metadata={"format": "pt"})
    with pytest.raises(ModelError) as raised:
        LOADERS[name].load(model)
    error = str(raised.value)
    assert "device" not in error
    names = (told, told.removesuffix(".weight"), told.removeprefix("unet.").partition(".lora.")[0])
    assert any(part in error for part in names) or "Invalid LoRA checkpoint" in error, error


def test_every_single_weight_of_a_clip_is_missed(copy):
    model = copy("clip")
    whole = load_file(model.folder / "model.safetensors")
    for name in whole:
        save_file({other: value for other, value in whole.items() if other != name}, model.folder / "model.safetensors")
        with pytest.raises(ModelError, match=r"lacks "):
            LOADERS["clip"].load(model)


def test_a_sentence_model_without_what_it_does_not_use(copy):
    """A pooler, and the heads of pre-training; but no weight of a layer."""
    model = copy("sentences")
    weights = load_file(model.folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    kept |= {"cls.predictions.bias": torch.zeros(3), "lm_head.bias": torch.zeros(3)}
    save_file(kept, model.folder / "model.safetensors", metadata={"format": "pt"})
    assert LOADERS["sentences"].load(model) is not None


def without_tokenizer(folder: Path) -> None:
    for file in (*TOKENIZER_FILES, "tokenizer_config.json"):
        (folder / file).unlink(missing_ok=True)


def without_vocabulary(folder: Path) -> None:
    without_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{}")


def of_another_model(folder: Path) -> None:
    """Its words have numbers that the embedding table does not reach."""
    told = json.loads((folder / "tokenizer.json").read_text())
    words = told["model"]["vocab"]
    words.update({f"word{number}": number for number in range(len(words) + 50, len(words) + 60)})
    (folder / "tokenizer.json").write_text(json.dumps(told))


def of_a_few_words(folder: Path) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    words = told["model"]["vocab"]
    kept = dict(sorted(words.items(), key=lambda item: item[1])[: len(words) // 4])
    kept |= {token["content"]: words[token["content"]] for token in told.get("added_tokens", ()) if token["content"] in words}
    told["model"]["vocab"] = {word: number for number, word in enumerate(kept)}
    if "merges" in told["model"]:
        told["model"]["merges"] = []
    for token in told.get("added_tokens", ()):
        token["id"] = told["model"]["vocab"].get(token["content"], token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(told))


TOKENIZERS = [
    (name, where, damage)
    for name, loader in LOADERS.items()
    for where in loader.tokenizers
    for damage in (without_tokenizer, without_vocabulary, of_another_model, of_a_few_words)
]


@pytest.mark.parametrize(("name", "where", "damage"), TOKENIZERS)
def test_no_tokenizer_is_made_up(name, where, damage, copy):
    model = copy(name)
    damage(model.folder / where)
    with pytest.raises(ModelError, match=r"tokenizer|vocab"):
        LOADERS[name].load(model)


OUTSIDE = {"load_tokenizer", "_of_hugging_face", "from_pretrained"}  # called within such a block; and the check itself


def test_every_loader_of_a_library_stands_where_models_are_checked():
    """A new `from_pretrained` outside of `load_errors` would fill gaps by itself."""
    loose, seen = set(), 0
    for path in [*ROOT.glob("models/**/*.py"), *ROOT.glob("stages/**/*.py")]:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef) or function.name in OUTSIDE:
                continue
            blocks = [node for node in ast.walk(function) if isinstance(node, ast.With) and checks(node)]
            guarded = {id(inner) for block in blocks for inner in ast.walk(block)}
            loads = [node for node in ast.walk(function) if isinstance(node, ast.Call) and loads_a_model(node)]
            seen += len(loads)
            loose |= {f"{path.relative_to(ROOT)}:{load.lineno}" for load in loads if id(load) not in guarded}
    assert seen >= 6 and not loose, loose


def checks(block: ast.With) -> bool:
    return any("load_errors(" in ast.unparse(item) or "_at_hand(" in ast.unparse(item) for item in block.items)


def loads_a_model(call: ast.Call) -> bool:
    told = ast.unparse(call.func)
    ours = told in ("ClipReward.from_pretrained", "ImageReward.from_pretrained", "known[name].load().from_pretrained")
    return told.endswith((".from_pretrained", "SentenceTransformer", ".load_lora_weights")) and not ours


class TestPreprocessing:
    PLAIN: ClassVar = {"image_mean": [0.5] * 3, "image_std": [0.27] * 3, "size": {"shortest_edge": 32}, "resample": 3}

    def read(self, folder: Path, **told: Any) -> Any:
        (folder / "preprocessor_config.json").write_text(json.dumps({**self.PLAIN, **told}))
        return read_preprocessing(folder, 32)

    def test_transformers_5_writes_another_file(self, tmp_path):
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": self.PLAIN}))
        assert read_preprocessing(tmp_path, 32).mean == (0.5, 0.5, 0.5)

    @pytest.mark.parametrize(
        "told",
        [
            {},
            {"do_normalize": False},
            {"rescale_factor": 1 / 127.5},
            {"do_rescale": False},
            {"do_rescale": False, "do_normalize": False},
            {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True},
            {"size": 32},
            {"do_pad": True, "size_divisor": 32, "do_flip_channel_order": False},
        ],
    )
    def test_what_it_says_is_what_transformers_does(self, tmp_path, told):
        from PIL import Image
        from transformers import CLIPImageProcessor

        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        ours = self.read(tmp_path, **told)
        theirs = CLIPImageProcessor.from_pretrained(tmp_path, crop_size=32, size={"shortest_edge": 32})
        pixels = theirs(images=picture, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(ours(picture), pixels.float(), rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize(
        ("told", "named"),
        [
            ({"do_center_crop": False}, "do_center_crop"),
            ({"do_resize": False}, "do_resize"),
            ({"resample": 2}, "resample"),
            ({"size": {"shortest_edge": 64}}, "size"),
            ({"size": {"height": 32, "width": 64}}, "size"),
            ({"crop_size": 28}, "crop_size"),
            ({"do_pad": True, "size_divisor": 7}, "do_pad"),
            ({"do_flip_channel_order": True}, "do_flip_channel_order"),
            ({"image_mean": None}, "image_mean"),
            ({"image_mean": [0.5]}, "image_mean"),
            ({"image_std": [0.5, 0, 0.5]}, "image_std"),
            ({"image_std": ["a", "b", "c"]}, "image_std"),
            ({"rescale_factor": "a"}, "rescale_factor"),
        ],
    )
    def test_what_cannot_be_done_is_refused(self, tmp_path, told, named):
        with pytest.raises(ModelError, match=named):
            self.read(tmp_path, **told)

    @pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"image_processor": 3}'])
    def test_a_file_of_another_kind(self, copy, text):
        model = copy("clip")
        (model.folder / "preprocessor_config.json").write_text(text)
        with pytest.raises(ModelError):
            LOADERS["clip"].load(model)


def test_a_head_of_another_width_is_refused_before_pictures(copy):
    head = torch.nn.Sequential(torch.nn.Linear(768, 1))
    with pytest.raises(ModelError, match=r"768 wide, and those of the-model are \d+ wide"):
        ClipScorer(copy("clip"), "cpu", torch.float32, head)


@pytest.mark.parametrize("name", ["clip", "generator"])
@pytest.mark.parametrize("part", ["../outside.safetensors", "/tmp/outside.safetensors", "deep/part.safetensors"])
def test_parts_outside_of_the_folder_are_refused(name, part, copy):
    """They would be loaded, and not count towards the key."""
    model = copy(name)
    weights = model.folder / ("model.safetensors" if name == "clip" else PARTS[0])
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), part)}
    outside = (weights.parent / part).resolve()
    if part != "/tmp/outside.safetensors":
        outside.parent.mkdir(exist_ok=True)
        shutil.move(weights, outside)
    (weights.parent / f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names a part outside of its folder"):
        LOADERS[name].load(model)
