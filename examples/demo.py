"""
All tasks on the sample photo, with a tiny random model: shows the calls and the pictures, not the quality.

    python examples/demo.py [--model PATH_OR_HUB_ID] [--output outputs]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from transformers import pipeline

import modeling_xsam  # noqa: F401  registers the model
import processing_xsam  # noqa: F401  registers the processor and the pipeline
from processing_xsam.visualization_xsam import contact_sheet, visualize
from random_checkpoint import save_random_checkpoint

PHOTO = Path(__file__).parent / "coffee.png"
CUP, SPOON = [300, 200], [470, 240]
CUP_BOX = [150, 60, 450, 340]

# Title, and the arguments of the call.
CALLS: list[tuple[str, dict[str, Any]]] = [
    (
        "generic: cup, spoon, saucer, table",
        {
            "task": "generic",
            "labels": {"thing": ["cup", "spoon", "saucer"], "stuff": ["table"]},
            "threshold": 0.1,
            "mask_threshold": 0.1,
            "overlap_mask_area_threshold": 0.1,
        },
    ),
    (
        "open-vocabulary: espresso, wood",
        {"task": "open-vocabulary", "labels": ["espresso", "wood"], "subtask": "semantic"},
    ),
    ("referring: the cup", {"task": "referring", "text": "the cup"}),
    (
        "reasoning: What can one drink from?",
        {"task": "reasoning", "text": "What can one drink from?", "prefill_answer": True},
    ),
    ("grounded-conversation", {"task": "grounded-conversation", "max_new_tokens": 24}),
    ("interactive: two points", {"task": "interactive", "points": [CUP, SPOON]}),
    ("visual-grounded: a box", {"task": "visual-grounded", "boxes": [CUP_BOX], "threshold": 0.3}),
    ("chat: What is this?", {"task": "chat", "text": "What is this?", "max_new_tokens": 24}),
]


def with_prompts(image: Image.Image, arguments: dict[str, Any]) -> Image.Image:
    """The photo with its visual prompts drawn on it."""
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    for x, y in arguments.get("points", []):
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill="white", outline="black", width=3)
    for box in arguments.get("boxes", []):
        draw.rectangle(box, outline="white", width=4)
    return marked


def print_table(title: str, segments: Sequence[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for segment in segments[:6]:
        score = "" if segment["score"] is None else f"{segment['score']:.3f}"
        share = sum(segment["mask"].histogram()[128:]) / (segment["mask"].width * segment["mask"].height)
        box = ", ".join(f"{side:4d}" for side in segment["box"].values())
        print(f"  {segment['label'][:36]:36s} {score:>6s}  box ({box})  {share:6.1%} of the image")
    if len(segments) > 6:
        print(f"  and {len(segments) - 6} more")
    if not segments:
        print("  no segment")


def main() -> None:
    parser = argparse.ArgumentParser(description="All tasks of X-SAM on the sample photo.")
    parser.add_argument("--model", help="folder or Hub id; a tiny random model if left out")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            save_random_checkpoint(folder)
        segment = pipeline("any-segmentation", model=options.model or folder)
    note = "" if options.model else "RANDOM WEIGHTS: the masks and words below mean nothing."
    print(note)

    image, pictures = Image.open(PHOTO).convert("RGB"), []
    features = segment.encode_image(image)
    for title, arguments in CALLS:
        result = segment(image, image_features=features, **arguments)
        segments, text = (result["segments"], result["text"]) if isinstance(result, dict) else (result, None)
        print_table(title, segments)
        if text is not None:
            print(f"  answer: {text!r}")
        pictures.append((title, visualize(with_prompts(image, arguments), segments, text)))
    options.output.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures).save(options.output / "demo.png")
    print(f"\n{options.output / 'demo.png'} shows all of them. {note}")


if __name__ == "__main__":
    main()
