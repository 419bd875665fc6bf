"""
Peak memory of converting a checkpoint of about 3 GB:

    python benchmarks/convert_memory.py [--folder /tmp] [--dtype float32]

A random checkpoint under the original's names is generated (the released model with six language model layers, in
bfloat16), then converted in a process of its own whose anonymous memory is sampled: file pages that are merely mapped
are not counted, as the system can drop them at any time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from modeling_xsam import XSAMConfig, XSAMForSegmentation
from modeling_xsam.convert_xsam_to_hf import NUM_PLACEHOLDERS, VOCABULARY_WEIGHTS, build_config

NUM_LAYERS = 6
ORIGINAL_PREFIXES = {
    "vision_tower.": "visual_encoder.vision_model.",
    "high_res_vision_tower.vision_encoder.": "segmentor.encoder.",
    "multi_modal_projector.linear_1.": "visual_projector.model.0.",
    "multi_modal_projector.linear_2.": "visual_projector.model.2.",
    "high_res_projector.linear_1.": "seg_projector.model.0.",
    "high_res_projector.linear_2.": "seg_projector.model.2.",
    "mask_projector.linear_1.": "llm_projector.model.0.",
    "mask_projector.linear_2.": "llm_projector.model.2.",
    "language_model.": "llm.model.",
    "lm_head.": "llm.lm_head.",
    "background_embedding.": "bg_embeds.",
    "mask_decoder.pixel_decoder.": "segmentor.pixel_decoder.",
    "mask_decoder.query_decoder.": "segmentor.decoder.",
    "phrase_classifier.": "segmentor.",
    **{
        f"connector.branches.{branch}.{layer}.": f"seg_connector.model.{branch}.model.{index}."
        for branch in range(3)
        for index, layer in enumerate(("conv1", "norm1", "conv2", "norm2", "conv3", "norm3"))
    },
}
LIMIT = 3e9


def reduced_config() -> XSAMConfig:
    config = build_config("phi3", 3)
    config.text_config.num_hidden_layers = NUM_LAYERS
    return config


def generate_checkpoint(path: Path, config: XSAMConfig) -> None:
    with torch.device("meta"):
        model = XSAMForSegmentation(config)
    weights = {}
    for name, tensor in model.state_dict().items():
        prefix = next(prefix for prefix in ORIGINAL_PREFIXES if name.startswith(prefix))
        rows, *others = tensor.shape
        rows -= NUM_PLACEHOLDERS if name in VOCABULARY_WEIGHTS else 0
        weights[ORIGINAL_PREFIXES[prefix] + name.removeprefix(prefix)] = torch.randn(
            rows, *others, dtype=torch.bfloat16
        )
    torch.save(weights, path)


def anonymous_kilobytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def convert(checkpoint: Path, output: Path, config: Path, dtype: str | None) -> tuple[float, int]:
    """Run the command line in a process of its own: its seconds, and the peak of its anonymous memory in bytes."""
    command = [sys.executable, "-m", "modeling_xsam.convert_xsam_to_hf", "--checkpoint", checkpoint]
    command += ["--output", output, "--config", config, *(["--dtype", dtype] if dtype else [])]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_kilobytes(process.pid))
            time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, peak * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of converting a checkpoint of about 3 GB.")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the files go; they are removed")
    parser.add_argument("--dtype", help="let the converter cast, which needs more memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoint, output = Path(folder) / "pytorch_model.bin", Path(folder) / "converted"
        config = reduced_config()
        config.save_pretrained(Path(folder) / "config")
        generate_checkpoint(checkpoint, config)
        seconds, peak = convert(checkpoint, output, Path(folder) / "config", arguments.dtype)
        largest = max(file.stat().st_size for file in output.glob("*.safetensors"))
        print(f"checkpoint             {checkpoint.stat().st_size / 1e9:6.2f} GB")
        print(f"largest file written   {largest / 1e9:6.2f} GB")
        print(f"time                   {seconds:6.1f} s")
        print(
            f"peak anonymous memory  {peak / 1e9:6.2f} GB ({'under' if peak < LIMIT else 'OVER'} {LIMIT / 1e9:.0f} GB)"
        )


if __name__ == "__main__":
    main()
