"""
All tasks of X-SAM on a scene of the small model's generated world, and on a photo.

    python examples/demo.py [--model PATH_OR_HUB_ID] [--output outputs]

The small model, which comes with the package, knows nothing but coloured shapes: on the photo it fails. With another model
only the photo is shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from transformers import Pipeline, pipeline

import modeling_xsam  # noqa: F401  registers the model
import processing_xsam  # noqa: F401  registers the processor and the pipeline
from processing_xsam.enlarge_xsam import enlarge
from processing_xsam.visualization_xsam import contact_sheet, visualize
from xsam_training.data.shape_world.reader import ShapeWorldReader

# Title, and the arguments of the call.
Calls = Sequence[tuple[str, dict[str, Any]]]

# A scene that training does not have, with what the calls name.
SCENE = 47
KINDS = ["circle", "square", "triangle", "star", "cross", "ring"]
STUFF = ["sky", "clouds", "cliffs", "grass", "sand", "water"]
COMBINATIONS = ["red circle", "yellow star", "white ring", "purple cross", "green triangle", "black square"]
HOW_MANY = "How many rings are there?"
YELLOW_STAR, PURPLE_CROSS = [11, 86], [85, 117]
SQUARE_BOX, RING_BOX = [52, 38, 94, 79], [44, 10, 70, 36]

SCENE_CALLS: Calls = [
    ("generic: six kinds, six materials", {"task": "generic", "labels": {"thing": KINDS, "stuff": STUFF}}),
    (
        "open-vocabulary: six colours of kinds",
        {"task": "open-vocabulary", "labels": COMBINATIONS, "subtask": "instance"},
    ),
    ("referring: the dotted ring", {"task": "referring", "text": "the dotted ring"}),
    (
        "reasoning: Which shape looks like a plus sign?",
        {"task": "reasoning", "text": "Which shape looks like a plus sign?", "prefill_answer": True},
    ),
    ("grounded-conversation", {"task": "grounded-conversation", "max_new_tokens": 96}),
    ("interactive: two points", {"task": "interactive", "points": [YELLOW_STAR, PURPLE_CROSS]}),
    ("interactive: a box", {"task": "interactive", "boxes": [SQUARE_BOX]}),
    ("visual-grounded: a box", {"task": "visual-grounded", "boxes": [RING_BOX]}),
    (f"chat: {HOW_MANY}", {"task": "chat", "text": HOW_MANY, "max_new_tokens": 24}),
]

PHOTO = Path(__file__).parent / "coffee.png"
CUP, SPOON = [300, 200], [470, 240]
CUP_BOX = [150, 60, 450, 340]

PHOTO_CALLS: Calls = [
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


def draw_scene() -> Image.Image:
    """The scene, RGB of 128 x 128."""
    return ShapeWorldReader(tasks=["grounded-conversation"], split="test")[SCENE].image


def draw_result(
    image: Image.Image, arguments: dict[str, Any], segments: Sequence[dict[str, Any]], text: str | None
) -> Image.Image:
    """A result over the image, which shows the visual prompts too."""
    picture, enlarged = enlarge(image, segments)
    scale, unit = picture.width // image.width, picture.width / 60
    draw = ImageDraw.Draw(picture)
    for point in arguments.get("points", []):
        x, y = (scale * (coordinate + 0.5) for coordinate in point)
        draw.ellipse((x - unit, y - unit, x + unit, y + unit), fill="white", outline="black", width=3)
    for box in arguments.get("boxes", []):
        draw.rectangle([scale * side for side in box], outline="white", width=4)
    return visualize(picture, enlarged, text)


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


def show(segment: Pipeline, image: Image.Image, calls: Calls, sheet: Path, remark: str = "") -> None:
    """Make the calls on an image, print what they find and draw it all on a sheet; a remark stands in every title."""
    pictures = []
    features = segment.encode_image(image)
    for title, arguments in calls:
        result = segment(image, image_features=features, **arguments)
        segments, text = (result["segments"], result["text"]) if isinstance(result, dict) else (result, None)
        print_table(title + remark, segments)
        if text is not None:
            print(f"  answer: {text!r}")
        pictures.append((title + remark, draw_result(image, arguments, segments, text)))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures).save(sheet)
    print(f"\n{sheet} shows all of them.")


def main() -> None:
    parser = argparse.ArgumentParser(description="All tasks of X-SAM on a generated scene and on a photo.")
    parser.add_argument("--model", help="folder or Hub id; the small model of the package if left out")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()

    segment = pipeline("any-segmentation", model=options.model)
    photo = Image.open(PHOTO).convert("RGB")
    if options.model is not None:
        show(segment, photo, PHOTO_CALLS, options.output / "demo_photo.png")
        return
    print("A scene of the small model's world, which it has not seen in training:")
    show(segment, draw_scene(), SCENE_CALLS, options.output / "demo_shapes.png")
    print("\nA PHOTO, which the small model knows nothing about: the masks and words below mean nothing.")
    show(segment, photo, PHOTO_CALLS, options.output / "demo_photo.png", " (meaningless)")
    print(f"Look at {options.output / 'demo_shapes.png'}; for photos give --model.")


if __name__ == "__main__":
    main()
