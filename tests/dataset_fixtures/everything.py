"""
All data sets of the published recipes in one folder, and tiny models in the place of the pretrained ones:

    PYTHONPATH=tests:examples python -m dataset_fixtures.everything FOLDER

writes them and prints the commands of dry runs.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import Phi3ForCausalLM, SamVisionModel, SiglipVisionModel

from random_checkpoint import byte_tokenizer
from tiny_models import tiny_config, tiny_mask_decoder_config, tiny_text_config
from tiny_training import tiny_processor, vocabulary
from xsam_training.make_vgd import make_vgd

from .ade20k import write_ade20k
from .class_maps import write_class_maps
from .coco import write_coco_instances, write_coco_panoptic
from .grounded_conversation import write_grounded_conversation
from .llava import write_llava
from .reasoning import write_reasonseg
from .referring import write_grefcoco, write_refcoco
from .visual import write_visual


def write_everything(root: Path) -> None:
    """The layout of `training/README.md`, and `models/` beside it."""
    for write in (
        write_coco_panoptic,
        write_coco_instances,
        write_ade20k,
        write_class_maps,
        write_refcoco,
        write_grefcoco,
        write_reasonseg,
        write_grounded_conversation,
        write_llava,
        write_visual,
    ):
        write(root)
    # As a user makes them, of the same images as the other annotations.
    prompts = root / "vgd_seg" / "annotations" / "coco_vgdseg_train.json"
    prompts.unlink()
    make_vgd(root / "coco2017" / "annotations" / "instances_train2017.json", prompts, num_processes=1)
    # RefCOCO+ and RefCOCOg have the form of RefCOCO.
    refer = root / "refer_seg"
    shutil.copytree(refer / "refcoco", refer / "refcoco+")
    shutil.copytree(refer / "refcoco", refer / "refcocog")
    (refer / "refcocog" / "refs(unc).p").rename(refer / "refcocog" / "refs(umd).p")
    config = tiny_config()
    torch.manual_seed(0)
    Phi3ForCausalLM(tiny_text_config(**vocabulary(tiny_processor()))).save_pretrained(root / "models" / "phi3")
    byte_tokenizer().save_pretrained(root / "models" / "phi3")
    SiglipVisionModel(config.vision_config).save_pretrained(root / "models" / "siglip")
    SamVisionModel(config.high_res_vision_config).save_pretrained(root / "models" / "sam")


def dry_run_overrides(root: Path, stage: int) -> list[str]:
    """What a published recipe needs to run on these data and models, on a CPU."""
    models = root / "models"
    decoder = tiny_mask_decoder_config(use_point_sampling=True).to_diff_dict()
    config = {"mask_decoder_config": decoder, "connector_feature_layers": [1, 2, 3], "connector_hidden_size": 32}
    overrides = {
        "data_root": root,
        "output_dir": root / "outputs" / f"stage{stage}",
        "tokenizer": models / "phi3",
        "use_cpu": "true",
        "bf16": "false",
        "dataloader_num_workers": 0,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "global_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
    }
    if stage == 3:
        outputs = root / "outputs"
        overrides |= {"segmentor": outputs / "stage1", "projectors": outputs / "stage2", "config": "{}"}
    else:
        overrides |= {"high_res_vision_tower": models / "sam", "config": json.dumps(config)}
    if stage > 1:
        overrides |= {"language_model": models / "phi3", "vision_tower": models / "siglip"}
    return [f"--{name}={value}" for name, value in overrides.items()]


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    write_everything(folder)
    for number in (1, 2, 3):
        print(f"xsam train training/recipes/stage{number}.yaml", *map(repr, dry_run_overrides(folder, number)))
