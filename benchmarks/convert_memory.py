"""
Peak memory of converting a checkpoint of about 3 GB:

    python benchmarks/convert_memory.py [--folder /tmp]

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

from modeling_xsam.convert_xsam_to_hf import NUM_PLACEHOLDERS, VOCABULARY_KEYS, build_config, empty_model

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
CONVERT = f"""
import sys
from modeling_xsam import convert_xsam_to_hf as convert
config = convert.build_config("phi3", 3)
config.text_config.num_hidden_layers = {NUM_LAYERS}
print(convert.write_folder(convert.read_checkpoint(sys.argv[1]), sys.argv[2], config))
"""


def generate_checkpoint(path: Path) -> None:
    config = build_config("phi3", 3)
    config.text_config.num_hidden_layers = NUM_LAYERS
    weights = {}
    for name, tensor in empty_model(config).state_dict().items():
        prefix = next(prefix for prefix in ORIGINAL_PREFIXES if name.startswith(prefix))
        original = ORIGINAL_PREFIXES[prefix] + name.removeprefix(prefix)
        rows = NUM_PLACEHOLDERS if name in VOCABULARY_KEYS else 0
        weights[original] = torch.randn(tensor.shape, dtype=torch.bfloat16)[: len(tensor) - rows if rows else None]
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, path)


def anonymous_kilobytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of converting a checkpoint of about 3 GB.")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the files go; they are removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoint, output = Path(folder) / "pytorch_model.bin", Path(folder) / "converted"
        generate_checkpoint(checkpoint)
        start, peak = time.perf_counter(), 0
        with subprocess.Popen([sys.executable, "-c", CONVERT, checkpoint, output]) as process:
            while process.poll() is None:
                peak = max(peak, anonymous_kilobytes(process.pid))
                time.sleep(0.02)
        print(f"checkpoint             {checkpoint.stat().st_size / 1e9:6.2f} GB")
        print(f"largest file written   {max(f.stat().st_size for f in output.glob('*.safetensors')) / 1e9:6.2f} GB")
        print(f"time                   {time.perf_counter() - start:6.1f} s")
        print(f"peak anonymous memory  {peak / 2**20:6.2f} GiB")


if __name__ == "__main__":
    main()
