"""
Time and memory of one segmentation call, by stage, for a random model of medium size:

    python benchmarks/segment_stages.py [--dtype bfloat16] [--repeats 3] [--labels 20]

SAM 768 x 12 layers at 1024 px, SigLIP 768 x 12 at 384 px, a language model of 1024 x 8 layers and the full mask
decoder. The first call is a warm-up. Peak memory is the whole process's, weights included.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict

import torch
from transformers import Phi3Config, SamVisionConfig, SiglipVisionConfig

from modeling_xsam import XSAMConfig, XSAMForSegmentation

STAGES = {
    "global tower": "vision_tower",
    "dense tower": "high_res_vision_tower",
    "connector": "connector",
    "language model": "language_model",
    "pixel decoder": "mask_decoder.pixel_decoder",
    "query decoder": "mask_decoder.query_decoder",
}


def medium_config() -> XSAMConfig:
    return XSAMConfig(
        text_config=Phi3Config(
            vocab_size=32016,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=8,
            num_attention_heads=16,
            sliding_window=2047,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            image_size=384,
            patch_size=14,
        ),
        high_res_vision_config=SamVisionConfig(initializer_range=0.02),
        connector_feature_layers=[6, 9, 12],
    )


class StageTimer:
    """Adds up the seconds that named submodules take."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        for stage, name in STAGES.items():
            module = model.get_submodule(name)
            module.register_forward_pre_hook(lambda *_, stage=stage: self._add(stage, -1))
            module.register_forward_hook(lambda *_, stage=stage: self._add(stage, +1))

    def _add(self, stage: str, sign: int) -> None:
        self.seconds[stage] += sign * time.perf_counter()


def prompt(config: XSAMConfig, num_labels: int) -> dict[str, torch.Tensor]:
    """A category list of two-token names and a prefilled answer, with one random image."""
    torch.manual_seed(0)
    names = torch.randint(3, 30000, (num_labels, 2)).tolist()
    phrases = [token for name in names for token in (config.phrase_start_token_id, *name, config.phrase_end_token_id)]
    ids = [1, *[config.image_token_id] * config.num_image_tokens, *phrases, config.seg_token_id]
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.randn(1, 3, config.vision_config.image_size, config.vision_config.image_size),
        "high_res_pixel_values": torch.randn(1, 3, 1024, 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--labels", type=int, default=20)
    arguments = parser.parse_args()

    config = medium_config()
    torch.manual_seed(0)
    model = XSAMForSegmentation._from_config(config, dtype=getattr(torch, arguments.dtype)).eval()
    inputs = prompt(config, arguments.labels)
    megabytes = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, {megabytes:.0f} MB of weights,")
    print(f"{arguments.dtype}, {inputs['input_ids'].shape[1]} tokens, {torch.get_num_threads()} threads")

    timer, totals = StageTimer(model), []
    for _ in range(arguments.repeats + 1):
        timer.seconds.clear()
        start = time.perf_counter()
        outputs = model.segment(**inputs)
        totals.append((time.perf_counter() - start, dict(timer.seconds)))
    total, stages = sorted(totals[1:], key=lambda run: run[0])[arguments.repeats // 2]
    for stage in STAGES:
        print(f"{stage:16s} {stages[stage]:7.2f} s")
    print(f"{'everything else':16s} {total - sum(stages.values()):7.2f} s")
    print(f"{'total (median)':16s} {total:7.2f} s")

    start = time.perf_counter()
    model.segment(input_ids=inputs["input_ids"], image_features=outputs.image_features)
    print(f"{'same image again':16s} {time.perf_counter() - start:7.2f} s")
    print(f"peak memory      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:7.2f} GB")


if __name__ == "__main__":
    main()
