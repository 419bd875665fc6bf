"""LLaVA-Pretrain and LLaVA-Instruct of a few drawn images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataset_fixtures.scenes import draw_scene


def conversation(*texts: str) -> list[dict[str, str]]:
    """Messages of human and gpt in turns."""
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def write_llava(root: Path) -> None:
    """
    `llava/LLaVA-Pretrain/{blip_laion_cc_sbu_558k.json,images}`: three captions;
    `llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json` and `llava/llava_images/coco/train2017`: two images and a
    conversation without one.
    """
    _write_pretrain(root / "llava/LLaVA-Pretrain")
    _write_instruct(root / "llava")


def _write_pretrain(base: Path) -> None:
    records: list[dict[str, Any]] = []
    questions = ("Describe it.\n<image>", "<image>\nGive a caption.", "What is this?\n<image>")
    for index, question in enumerate(questions):
        scene = draw_scene(seed=index + 40, num_shapes=2)
        image = f"{index:05d}/{index:05d}4539375.jpg"
        (base / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        scene.image.save(base / "images" / image)
        caption = " and ".join(f"a {shape.color} {shape.kind}" for shape in scene.shapes)
        records.append({"id": image[6:-4], "image": image, "conversations": conversation(question, caption)})
    (base / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(records))


def _write_instruct(base: Path) -> None:
    images = [f"coco/train2017/{image_id:012d}.jpg" for image_id in (33471, 52846)]
    for seed, image in enumerate(images):
        path = base / "llava_images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_scene(seed=seed + 50).image.save(path)
    records: list[dict[str, Any]] = [
        {
            "id": "000000033471",
            "image": images[0],
            "conversations": conversation(
                "<image>\nWhat stands on the ground?", "Three shapes.", "Which is the largest?", "The one on the left."
            ),
        },
        {
            "id": "wgByO4Y_0",
            "model": "",
            "conversations": conversation("How is <SEG> wrïtten? 🙂", "As any other text: <SEG>, <p>."),
        },
        {
            "id": "000000052846",
            "image": images[1],
            "conversations": conversation("What is the weather?\n<image>", "The sky is blue, “très bleu”. "),
        },
    ]
    path = base / "LLaVA-Instruct-150K/llava_v1_5_mix665k.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not in ASCII, and with line breaks between records: their places in the file must be counted in bytes.
    path.write_text(json.dumps(records, ensure_ascii=False, indent=2), encoding="utf-8")
