"""LoRA weights from files: HPS's published ones, against what diffusers 0.14 computed with them (recorded), and damaged ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from irpipe.models.lora import add_adapters, read_adapters, todays_names
from irpipe.pipeline.errors import ModelError
from tests.conftest import SHARED

TINY = SHARED / "golden" / "lora_tiny_unet_a.safetensors"
NAMES = SHARED / "golden" / "lora_keys.json"


@pytest.fixture
def recorded(shared):
    with safe_open(TINY, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["unet_config"])  # noqa: SIM118


def part(tensors, prefix):
    return {name.removeprefix(prefix): value.contiguous() for name, value in tensors.items() if name.startswith(prefix)}


@pytest.fixture
def unet(recorded):
    from diffusers import UNet2DConditionModel

    tensors, config = recorded
    model = UNet2DConditionModel(**config).eval()
    model.load_state_dict(part(tensors, "base."))
    return model


def output(model, tensors):
    with torch.no_grad():
        return model(tensors["x"], tensors["timestep"], tensors["text"]).sample


def test_every_published_name_has_its_name_of_today(shared):
    keys = json.loads(NAMES.read_text())["keys"]
    for name in ("published", "diffusers_file", "peft_in_unet"):
        assert list(todays_names({key[name]: torch.zeros(1) for key in keys})) == [key["peft_in_unet"] for key in keys]


@pytest.mark.parametrize(("kind", "name"), [("published", "x.bin"), ("published", "x.safetensors"), ("peft", "x.safetensors")])
def test_the_output_is_the_published_one(recorded, unet, tmp_path, kind, name):
    tensors, _ = recorded
    weights = part(tensors, f"lora_{kind}.")
    torch.save(weights, tmp_path / name) if name.endswith(".bin") else save_file(weights, tmp_path / name)
    assert (output(unet, tensors) - tensors["output_without"]).abs().max() < 1e-5
    add_adapters(unet, tmp_path / name)
    assert (output(unet, tensors) - tensors["output_with_lora"]).abs().max() < 1e-5


class TestDamaged:
    @pytest.fixture
    def weights(self, recorded):
        return part(recorded[0], "lora_published.")

    def refused(self, unet, weights, folder):
        save_file(weights, folder / "pytorch_lora_weights.safetensors")
        with pytest.raises(ModelError) as error:
            add_adapters(unet, folder)
        return str(error.value)

    def test_half_an_adapter(self, unet, weights, tmp_path):
        for side, message in (("down", "has the unknown"), ("up", "lacks")):
            first = next(name for name in weights if name.endswith(f"{side}.weight"))
            told = self.refused(unet, {name: value for name, value in weights.items() if name != first}, tmp_path)
            assert message in told and first.partition(".processor")[0] in told
            unet.delete_adapters("default")

    def test_an_unknown_name(self, unet, weights, tmp_path):
        assert "has the unknown text_encoder.x" in self.refused(unet, weights | {"text_encoder.x": torch.zeros(2)}, tmp_path)

    def test_another_base(self, unet, weights, tmp_path):
        wider = {name: torch.cat([value] * 2, dim=1 if ".down." in name else 0) for name, value in weights.items()}
        assert "has another shape for" in self.refused(unet, wider, tmp_path)
        elsewhere = {f"elsewhere.{name}": value for name, value in weights.items()}
        assert "holds no LoRA of this UNet: elsewhere." in self.refused(unet, elsewhere, tmp_path)

    def test_another_scale(self, weights, tmp_path):
        told = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2})}
        save_file(weights, tmp_path / "pytorch_lora_weights.safetensors", told)
        with pytest.raises(ModelError, match="rank 4 and alpha 2, whose scale is not 1"):
            read_adapters(tmp_path)

    def test_no_file_and_a_pickle_of_code(self, tmp_path):
        with pytest.raises(ModelError, match="holds no LoRA weights"):
            read_adapters(tmp_path)
        torch.save({"a": print}, tmp_path / "pytorch_lora_weights.bin")
        with pytest.raises(ModelError):
            read_adapters(tmp_path)


def test_images_are_made_with_published_weights(project, tmp_path):
    """HPS's file beside a generator: other images than without, recorded as made with it, and refused where it does not fit."""
    from irpipe.models.generators import Sampling, load
    from irpipe.pipeline.external import shipped_folder
    from irpipe.pipeline.stage import Model

    base = load(
        Model("base", "r", shipped_folder("micro-generator")), Sampling(1, 1, "own", None, None, "", "float32", False), "cpu"
    )
    modules = dict(base.pipeline.unet.named_modules())
    layer = next(name for name in modules if name.endswith(".to_q"))
    width_out, width_in = modules[layer].weight.shape
    name = layer.removesuffix(".to_q") + ".processor.to_q_lora.{}.weight"
    weights = {name.format("down"): torch.ones(2, width_in), name.format("up"): torch.ones(width_out, 2)}
    torch.save(weights, project.root / "hps.bin")
    small = ("select-prompts.count=2", "simulate-prompts.count=40", "prompt-graph.k=5", "generate-images.num_steps=2")
    small += ("generate-images.min_images=1", "generate-images.max_images=1")
    plain, tuned = (
        project.run("generate-images", *small, *more) and project.rows("SELECT image_digest, settings FROM images")
        for more in ((), ("generate-images.lora=hps.bin",))
    )
    assert len(plain) == len(tuned) == 2
    assert not {row["image_digest"] for row in plain} & {row["image_digest"] for row in tuned}
    assert all("lora" in json.loads(row["settings"]) for row in tuned)
    torch.save({f"elsewhere.{key}": value for key, value in weights.items()}, project.root / "hps.bin")
    error = project.run("generate-images", *small, "generate-images.lora=hps.bin", status=2).err
    assert "holds no LoRA of this UNet" in error
