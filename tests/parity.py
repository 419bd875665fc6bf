"""The tiny recorded model, through the converter, and its recorded inputs in this package's form. No maths here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Phi3Config, SamVisionConfig, SiglipVisionConfig

from goldens import Goldens
from modeling_xsam import (
    XSAMConfig,
    XSAMForSegmentation,
    XSAMForUniversalSegmentation,
    XSAMMaskDecoderConfig,
)
from modeling_xsam.convert_xsam_to_hf import convert_state_dict

# Placeholders in the recorded token ids.
ORIGINAL_IMAGE, ORIGINAL_REGION = -200, -300


def recorded_config(goldens: Goldens, **mask_decoder_overrides: Any) -> XSAMConfig:
    """The recorded hyper-parameters, with two rows appended to the vocabulary for the placeholders."""
    recorded = goldens.json("config")
    text = {name: value for name, value in recorded["llm"].items() if name != "vocab_size"}
    vocab_size = recorded["llm_vocab_size_after_resize"]
    decoder = {
        name: recorded["m2f"][name] for name in recorded["m2f"] if name in XSAMMaskDecoderConfig.__dataclass_fields__
    }
    special = recorded["special_token_ids"]
    return XSAMConfig(
        text_config=Phi3Config(vocab_size=vocab_size + 2, **text),
        vision_config=SiglipVisionConfig(**recorded["siglip"]),
        high_res_vision_config=SamVisionConfig(**recorded["sam"]),
        mask_decoder_config=XSAMMaskDecoderConfig(**{**decoder, **mask_decoder_overrides}),
        vision_feature_layer=recorded["xsam"]["visual_select_layer"],
        connector_feature_layers=recorded["resolved"]["seg_select_layers_used"],
        connector_scale_factors=recorded["xsam"]["connector_scale_factor"][1:],
        connector_hidden_size=recorded["xsam"]["connector_hidden_dim"],
        seg_token_id=special["<SEG>"],
        phrase_start_token_id=special["<p>"],
        phrase_end_token_id=special["</p>"],
        image_token_id=vocab_size,
        region_token_id=vocab_size + 1,
        num_labels=recorded["s1_num_labels"],
    )


def recorded_model(goldens: Goldens, **mask_decoder_overrides: Any) -> XSAMForSegmentation:
    config = recorded_config(goldens, **mask_decoder_overrides)
    model = XSAMForSegmentation(config)
    model.load_state_dict(convert_state_dict(goldens.tensors("model"), config))
    return model.eval()


def recorded_stage1_model(goldens: Goldens, **mask_decoder_overrides: Any) -> XSAMForUniversalSegmentation:
    config = recorded_config(goldens, **mask_decoder_overrides)
    config.architectures = ["XSAMForUniversalSegmentation"]
    model = XSAMForUniversalSegmentation(config)
    shared = ("segmentor.encoder.", "segmentor.pixel_decoder.", "segmentor.decoder.", "seg_connector.")
    weights = {name: value for name, value in goldens.tensors("model").items() if name.startswith(shared)}
    model.load_state_dict(convert_state_dict({**weights, **goldens.tensors("model_s1_extra")}, config))
    return model.eval()


def recorded_text(case: dict[str, torch.Tensor], lengths: list[int], config: XSAMConfig) -> dict[str, torch.Tensor]:
    """Recorded ids and labels with the placeholders expanded, padded on the right."""
    rows, labels = [], []
    for ids, targets, length in zip(case["in.input_ids"].tolist(), case["in.labels"].tolist(), lengths, strict=True):
        pairs = list(zip(ids[:length], targets[:length], strict=True))
        expanded = [
            token
            for pair in pairs
            for token in (
                [(config.image_token_id, -100)] * config.num_image_tokens if pair[0] == ORIGINAL_IMAGE else [pair]
            )
        ]
        rows.append([config.region_token_id if token == ORIGINAL_REGION else token for token, _ in expanded])
        labels.append([label for _, label in expanded])
    longest = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (longest - len(row)) for row in labels]),
    }


def recorded_images(case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"pixel_values": case["in.pixel_values"], "high_res_pixel_values": case["in.extra_pixel_values"]}


class Recorder:
    """Keeps inputs and outputs of named submodules while a model runs."""

    def __init__(self, model: torch.nn.Module, *names: str) -> None:
        self.inputs: dict[str, tuple] = {}
        self.outputs: dict[str, Any] = {}
        self._handles = [model.get_submodule(name).register_forward_hook(self._hook(name)) for name in names]

    def _hook(self, name: str):
        def record(module, args, output) -> None:
            self.inputs[name], self.outputs[name] = args, output

        return record

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._handles:
            handle.remove()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str = "") -> None:
    torch.testing.assert_close(
        actual.detach().float(),
        expected.float(),
        atol=tolerance,
        rtol=0,
        msg=lambda text: f"{name}: {text}",
    )
