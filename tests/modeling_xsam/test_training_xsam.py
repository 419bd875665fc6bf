from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn
from transformers import SiglipVisionConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from modeling_xsam import XSAMForSegmentation, XSAMForUniversalSegmentation
from modeling_xsam.loss_xsam import count_loss_items
from tiny_models import (
    HIGH_RES_SIZE,
    IMAGE,
    LOW_RES_SIZE,
    REGION,
    SEG,
    batch,
    phrase,
    prompt_ids,
    tiny_config,
    tiny_images,
    tiny_mask_decoder_config,
    tiny_model,
)

TOWERS = ("vision_tower", "high_res_vision_tower", "language_model")


@dataclass(frozen=True)
class Sample:
    """A row of tokens, whether it looks at an image, and the classes of the masks of each of its `<SEG>`s."""

    row: list[int]
    classes: list[list[int]] = field(default_factory=list)
    region: bool = False

    @property
    def has_image(self) -> bool:
        return IMAGE in self.row


CATEGORIES = Sample(prompt_ids(1, 5, IMAGE, phrase(8, 9), phrase(11), 12, SEG), [[1, 0, 1]])
NOTHING_FOUND = Sample(prompt_ids(1, IMAGE, 6, phrase(14, 15), SEG), [[]])
TWO_TURNS = Sample(prompt_ids(1, IMAGE, phrase(20), SEG, 21, phrase(22, 23), SEG), [[0], []])
VISUAL_PROMPT = Sample(prompt_ids(1, IMAGE, phrase(REGION), 13, SEG), [[0]], region=True)
IMAGE_CHAT = Sample(prompt_ids(1, IMAGE, 30, 31, 32))
TEXT_CHAT = Sample([1, 33, 34, 35])


def some_masks(number: int, seed: int) -> torch.Tensor:
    """(number, S, S) random rectangles."""
    corners = torch.rand(number, 4, generator=torch.Generator().manual_seed(seed))
    grid = (torch.arange(HIGH_RES_SIZE) + 0.5) / HIGH_RES_SIZE
    y, x, height, width = (corners[:, i, None] for i in range(4))
    rows, columns = (
        (grid - start / 2) * (start / 2 + 0.2 + size / 4 - grid) > 0 for start, size in ((y, height), (x, width))
    )
    return (rows[:, :, None] & columns[:, None]).float()


def training_batch(samples: list[Sample], blank_image: bool = False) -> dict:
    """Inputs and labels. A sample's pixels and masks depend on its tokens alone, not on the batch it is in."""
    inputs = batch(*[sample.row for sample in samples], padding_side="right")
    shown = [tiny_images(1, seed=sum(sample.row)) for sample in samples if sample.has_image]
    has_image = torch.tensor([sample.has_image for sample in samples])
    if blank_image:
        shown = [{name: torch.zeros_like(pixels) for name, pixels in tiny_images(1).items()}]
    if shown:
        inputs |= {name: torch.cat([pixels[name] for pixels in shown]) for name in shown[0]}
        inputs["image_index"] = torch.where(has_image, has_image.cumsum(0) - 1, -1)
    regions = [some_masks(1, seed=7).bool() for sample in samples if sample.region]
    if regions:
        inputs["region_masks"] = torch.cat(regions)
    placeholders = torch.isin(inputs["input_ids"], torch.tensor([IMAGE, REGION]))
    unlabelled = placeholders | (inputs["attention_mask"] == 0)
    segs = [(len(sample.row) + turn, classes) for sample in samples for turn, classes in enumerate(sample.classes)]
    return {
        **inputs,
        "labels": inputs["input_ids"].masked_fill(unlabelled, -100),
        "mask_labels": [some_masks(len(classes), seed) for seed, classes in segs],
        "class_labels": [torch.tensor(classes, dtype=torch.long) for _, classes in segs],
    }


def dense_model(**overrides) -> XSAMForSegmentation:
    """In training mode, with mask losses on all pixels."""
    return tiny_model(mask_decoder_config=tiny_mask_decoder_config(use_point_sampling=False), **overrides).train()


def stage1_model(**overrides) -> XSAMForUniversalSegmentation:
    torch.manual_seed(0)
    config = tiny_config(
        num_labels=3, mask_decoder_config=tiny_mask_decoder_config(use_point_sampling=False), **overrides
    )
    return XSAMForUniversalSegmentation(config).train()


def stage1_batch(*classes: list[int]) -> dict:
    return {
        "high_res_pixel_values": tiny_images(len(classes))["high_res_pixel_values"],
        "mask_labels": [some_masks(len(labels), seed) for seed, labels in enumerate(classes)],
        "class_labels": [torch.tensor(labels, dtype=torch.long) for labels in classes],
    }


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def without_gradient(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


def assert_same_gradients(actual: dict, expected: dict, atol: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


class TestDenominators:
    def assert_parts_add_up(self, model, whole: dict, parts: list[dict], denominators: dict) -> None:
        outputs = model(**whole)
        outputs.loss.backward()
        expected = gradients(model)
        model.zero_grad()
        terms = {name: 0.0 for name in outputs.loss_dict}
        total = 0.0
        for part in parts:
            of_part = model(**part, **denominators)
            of_part.loss.backward()
            total += of_part.loss.item()
            for name, value in of_part.loss_dict.items():
                terms[name] += value.item()
        assert total == pytest.approx(outputs.loss.item(), rel=1e-5)
        assert terms == pytest.approx({n: v.item() for n, v in outputs.loss_dict.items()}, rel=1e-5, abs=1e-6)
        assert_same_gradients(gradients(model), expected, atol=1e-5)

    @pytest.mark.parametrize(
        "parts",
        [
            [[CATEGORIES], [VISUAL_PROMPT, TWO_TURNS]],
            [[CATEGORIES, NOTHING_FOUND], [TEXT_CHAT]],
            [[TWO_TURNS], [NOTHING_FOUND], [IMAGE_CHAT, TEXT_CHAT]],
        ],
    )
    def test_the_parts_of_a_step_add_up_to_the_step(self, parts):
        model = dense_model()
        whole = training_batch([sample for part in parts for sample in part])
        items = count_loss_items(whole["class_labels"], model.config.mask_decoder_config)
        denominators = {
            "num_items_in_batch": (whole["labels"][:, 1:] != -100).sum(),
            "num_masks_in_batch": items.num_masks,
            "class_weight_in_batch": items.class_weight,
        }
        self.assert_parts_add_up(model, whole, [training_batch(part) for part in parts], denominators)

    def test_stage_1(self):
        model = stage1_model()
        whole = stage1_batch([0, 2, 2], [], [1])
        items = count_loss_items(whole["class_labels"], model.config.mask_decoder_config)
        parts = [{name: value[part] for name, value in whole.items()} for part in (slice(0, 1), slice(1, 3))]
        self.assert_parts_add_up(
            model,
            whole,
            parts,
            {"num_masks_in_batch": items.num_masks, "class_weight_in_batch": items.class_weight.item()},
        )

    def test_a_part_without_any_mask_next_to_one_with_masks(self):
        model = dense_model()
        outputs = model(**training_batch([NOTHING_FOUND]), num_masks_in_batch=3, class_weight_in_batch=12.0)
        alone = model(**training_batch([NOTHING_FOUND]))
        assert outputs.loss_dict["loss_mask"] == outputs.loss_dict["loss_dice"] == 0
        torch.testing.assert_close(12 * outputs.loss_dict["loss_cls"], 0.6 * alone.loss_dict["loss_cls"])

    def test_the_language_model_does_not_get_them(self, monkeypatch):
        model = dense_model()
        seen = {}
        original = model.language_model.forward
        monkeypatch.setattr(
            model.language_model, "forward", lambda **kwargs: seen.update(kwargs) or original(**kwargs)
        )
        counts = {"num_items_in_batch": 9, "num_masks_in_batch": 3, "class_weight_in_batch": 4.0}
        model(**training_batch([CATEGORIES]), **counts)
        assert seen["attention_mask"] is not None
        assert not seen.keys() & counts.keys()

    def test_processes_are_not_asked_for_their_masks(self, monkeypatch):
        monkeypatch.setattr(Mask2FormerLoss, "get_num_masks", lambda *args, **kwargs: pytest.fail("communicates"))
        assert torch.isfinite(dense_model()(**training_batch([CATEGORIES])).loss)


class TestNothingToLearnFrom:
    @pytest.mark.parametrize("sampling", [False, True])
    def test_no_mask_in_the_whole_batch(self, sampling):
        model = tiny_model(mask_decoder_config=tiny_mask_decoder_config(use_point_sampling=sampling)).train()
        outputs = model(**training_batch([NOTHING_FOUND, NOTHING_FOUND]))
        outputs.loss.backward()
        assert torch.isfinite(outputs.loss)
        assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())

    def test_no_label_token(self):
        model = dense_model()
        inputs = training_batch([CATEGORIES])
        inputs["labels"] = torch.full_like(inputs["labels"], -100)
        outputs = model(**inputs)
        assert outputs.loss_dict["loss_lm"] == 0
        outputs.loss.backward()
        assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
        assert model(**inputs, num_items_in_batch=torch.tensor(0)).loss_dict["loss_lm"] == 0

    def test_an_image_without_masks_in_stage_1(self):
        model = stage1_model()
        outputs = model(**stage1_batch([]))
        outputs.loss.backward()
        assert outputs.loss_dict["loss_mask"] == 0
        assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


BATCHES = {
    "all tasks": partial(training_batch, [CATEGORIES, TWO_TURNS, VISUAL_PROMPT, IMAGE_CHAT, TEXT_CHAT]),
    "nothing found": partial(training_batch, [NOTHING_FOUND]),
    "image chat": partial(training_batch, [IMAGE_CHAT, TEXT_CHAT]),
    "text with a blank image": partial(training_batch, [TEXT_CHAT], blank_image=True),
    "text": partial(training_batch, [TEXT_CHAT]),
}


def vision_config(depth: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=depth,
        num_attention_heads=4,
        image_size=LOW_RES_SIZE,
        patch_size=14,
    )


class TestEveryParameterTakesPart:
    @pytest.mark.parametrize("kind", BATCHES)
    def test_every_trainable_parameter_gets_a_gradient(self, kind):
        model = dense_model()
        model.freeze_unused_parts()
        model(**BATCHES[kind]()).loss.backward()
        assert not without_gradient(model)
        assert len(gradients(model)) + len(model.parameters_without_gradient()) == len(list(model.parameters()))

    @pytest.mark.parametrize("kind", ["image chat", "text with a blank image", "text"])
    def test_what_was_not_used_gets_zeros_and_the_loss_is_as_it_was(self, kind):
        model, inputs = dense_model(), BATCHES[kind]()
        outputs = model(**inputs)
        outputs.loss.backward()
        assert outputs.loss.item() == outputs.loss_dict["loss_lm"].item() == sum(outputs.loss_dict.values()).item()
        unused = ["connector.", "mask_decoder.", "mask_projector.", "background_embedding.", "phrase_classifier."]
        unused += [] if kind == "image chat" else ["vision_tower.", "high_res_vision_tower.", "multi_modal_projector."]
        for name, gradient in gradients(model).items():
            if name.startswith(tuple(unused)):
                assert not gradient.any(), name
        expected = gradients(model)["language_model.layers.0.mlp.down_proj.weight"].clone()
        model.zero_grad()
        model.eval()(**inputs).loss.backward()
        torch.testing.assert_close(model.language_model.layers[0].mlp.down_proj.weight.grad, expected)
        assert model.phrase_classifier.logit_scale.grad is None

    def test_text_alone_returns_no_image_features(self):
        assert dense_model()(**BATCHES["text"]()).image_features is None

    def test_masks_without_a_language_loss(self):
        model = dense_model()
        model.freeze_unused_parts()
        inputs = training_batch([CATEGORIES])
        del inputs["labels"]
        model(**inputs).loss.backward()
        assert not without_gradient(model)

    def test_padding_on_the_left_does_not_poison_the_gradients(self):
        model = dense_model()
        inputs = batch(TEXT_CHAT.row, TEXT_CHAT.row[:2])
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())

    def test_stage_1(self):
        model = stage1_model()
        model.freeze_unused_parts()
        model(**stage1_batch([0], [])).loss.backward()
        assert not without_gradient(model)

    @pytest.mark.parametrize("layer", [-1, -2, 0, 1, 3])
    def test_unused_blocks_of_the_global_tower_follow_from_the_configuration(self, layer):
        model = dense_model(vision_config=vision_config(3), vision_feature_layer=layer)
        model(**training_batch([CATEGORIES])).loss.backward()
        named = set(model.parameters_without_gradient())
        assert named == without_gradient(model)
        used = len(
            {name.split(".")[3] for name in gradients(model) if name.startswith("vision_tower.encoder.layers.")}
        )
        assert used == range(4)[layer]

    @pytest.mark.parametrize(
        ("layer", "connector_layers"), [(-2, [1, 2, 2]), (0, [0, 1, 0]), (-1, [0, 0, 0]), (0, [0] * 3)]
    )
    def test_unused_blocks_of_the_dense_tower_follow_from_the_configuration(self, layer, connector_layers):
        layers = {"high_res_feature_layer": layer, "connector_feature_layers": connector_layers}
        model = dense_model(**layers)
        model(**training_batch([CATEGORIES])).loss.backward()
        assert set(model.parameters_without_gradient()) == without_gradient(model)
        model = stage1_model(**layers)
        model(**stage1_batch([0])).loss.backward()
        assert set(model.parameters_without_gradient()) == without_gradient(model)

    def test_freezing_leaves_the_rest_as_it_is(self):
        model = tiny_model()
        model.language_model.requires_grad_(False)
        unused = set(model.parameters_without_gradient())
        model.freeze_unused_parts()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (name not in unused and not name.startswith("language_model.")), name


def saved_bytes(model: nn.Module, inputs: dict) -> int:
    """Bytes of activations that a forward pass keeps for the backward pass, without weights and inputs."""
    kept = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    loss.backward()
    return sum(kept.values())


def count_block_calls(model: nn.Module) -> dict[str, int]:
    """How often the attention of the first block of each tower runs, from now on."""
    calls = {}
    for tower in TOWERS:
        block = next(m for m in model.get_submodule(tower).modules() if isinstance(m, GradientCheckpointingLayer))
        norm = next(m for m in block.modules() if "norm" in type(m).__name__.lower())

        def count(*args, tower=tower) -> None:
            calls[tower] = calls.get(tower, 0) + 1

        norm.register_forward_pre_hook(count)
    return calls


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_(en|dis)able. is deprecated")
class TestActivationCheckpointing:
    def test_gradients_are_the_same_and_every_tower_is_recomputed(self):
        inputs = training_batch([CATEGORIES, VISUAL_PROMPT, TEXT_CHAT])
        model = dense_model()
        model(**inputs).loss.backward()
        expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
        model.zero_grad()
        model.gradient_checkpointing_enable()
        calls = count_block_calls(model)
        model(**inputs).loss.backward()
        assert_same_gradients(gradients(model), expected)
        assert calls == dict.fromkeys(TOWERS, 2)

    def test_activations_are_dropped(self):
        inputs = training_batch([CATEGORIES, VISUAL_PROMPT])
        model = dense_model()
        kept = saved_bytes(model, inputs)
        model.gradient_checkpointing_enable()
        assert saved_bytes(model, inputs) < 0.8 * kept

    def test_stage_1(self):
        inputs = stage1_batch([0, 2], [])
        model = stage1_model()
        model(**inputs).loss.backward()
        expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
        model.zero_grad()
        model.gradient_checkpointing_enable()
        model(**inputs).loss.backward()
        assert_same_gradients(gradients(model), expected)

    @pytest.mark.parametrize("kind", ["all tasks", "text"])
    def test_frozen_towers(self, kind):
        """Stage 2: gradients pass through a frozen language model to the projectors, and not into frozen towers."""
        grads = []
        for checkpointing in (False, True):
            model = dense_model()
            for tower in TOWERS:
                model.get_submodule(tower).requires_grad_(False)
            model.train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            calls = count_block_calls(model)
            model(**BATCHES[kind]()).loss.backward()
            assert not without_gradient(model)
            grads.append(gradients(model))
            images_once = {"vision_tower": 1, "high_res_vision_tower": 1}
            assert calls == {**images_once, "language_model": 2 if checkpointing else 1}
        assert_same_gradients(grads[1], grads[0])

    def test_it_can_be_switched_off(self):
        model = dense_model()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={})
        model.gradient_checkpointing_disable()
        calls = count_block_calls(model)
        model(**training_batch([CATEGORIES])).loss.backward()
        assert calls == dict.fromkeys(TOWERS, 1)

    @pytest.mark.parametrize("build", [dense_model, stage1_model])
    def test_the_reentrant_kind_is_refused(self, build):
        with pytest.raises(ValueError, match=r"use_reentrant=True.*Set use_reentrant to False"):
            build().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


class TestHalfPrecision:
    KEPT = ("connector.", "mask_decoder.", "mask_projector.", "background_embedding.", "phrase_classifier.")

    def check(self, model: XSAMForSegmentation, inputs: dict) -> None:
        outputs = model(**inputs)
        outputs.loss.backward()
        for name, loss in {"loss": outputs.loss, **outputs.loss_dict}.items():
            assert loss.dtype == torch.float32, name
            assert torch.isfinite(loss), name
        for name, gradient in gradients(model).items():
            assert torch.isfinite(gradient).all(), name
            if name.startswith(self.KEPT):
                assert gradient.dtype == torch.float32, name

    @pytest.mark.parametrize("kind", BATCHES)
    def test_a_model_loaded_in_bfloat16(self, kind, tmp_path):
        dense_model().save_pretrained(tmp_path)
        model = XSAMForSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
        model.freeze_unused_parts()
        self.check(model, BATCHES[kind]())
        assert not without_gradient(model)
        assert model.lm_head.weight.grad.dtype == torch.bfloat16

    @pytest.mark.parametrize("kind", BATCHES)
    def test_autocast(self, kind):
        model = dense_model()
        model.freeze_unused_parts()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.check(model, BATCHES[kind]())
        assert not without_gradient(model)


class TestFrozenPartsStayInEvalMode:
    def test_dropout_of_a_frozen_tower_stays_off(self):
        config = vision_config(2)
        config.attention_dropout = 0.5
        model = tiny_model(vision_config=config)
        expected = model.get_image_features(**tiny_images()).vision_tokens
        model.train()
        assert not torch.equal(model.get_image_features(**tiny_images()).vision_tokens, expected)
        model.vision_tower.requires_grad_(False)
        model.train()
        assert model.training and model.language_model.training and model.high_res_vision_tower.training
        assert torch.equal(model.get_image_features(**tiny_images()).vision_tokens, expected)

    def test_a_tower_with_a_trainable_parameter_trains(self):
        model = tiny_model()
        model.vision_tower.requires_grad_(False)
        model.vision_tower.encoder.layers[0].layer_norm1.weight.requires_grad_(True)
        assert model.train().vision_tower.training

    def test_dropout_of_a_frozen_layer_stays_off_in_a_tower_that_trains(self):
        model = tiny_model()
        frozen, learning = model.language_model.layers
        frozen.requires_grad_(False)
        model.train()
        assert model.language_model.training and learning.self_attn.training and learning.mlp.training
        assert not frozen.self_attn.training and not frozen.mlp.training

    def test_a_model_that_is_frozen_as_a_whole_has_a_mode_of_its_own(self):
        model = tiny_model().requires_grad_(False).train()
        assert model.training and not any(part.training for part in (model.vision_tower, model.mask_decoder))

    def test_eval_mode_is_for_all(self):
        model = tiny_model()
        model.language_model.requires_grad_(False)
        model.train().eval()
        assert not any(module.training for module in model.modules())
