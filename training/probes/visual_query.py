"""
Probe `visual-query`: does a box prompt read its features where the box is, and does the mask follow the box?

X-SAM (arXiv 2508.04655, section 3.2) pools the dense tower's features under a visual prompt into the embedding that stands for it
in the question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedModel

from processing_xsam import AnySegmentationPipeline, XSAMProcessor
from processing_xsam.image_processing_xsam import scaled_size
from processing_xsam.post_processing_xsam import Geometry, Segment, mask_box, referring
from processing_xsam.results_xsam import ResultOptions, SampleOutput, interactive_segments
from processing_xsam.samples_xsam import Sample
from processing_xsam.visualization_xsam import visualize

from ..data.samples import AnnotatedSample, decode_masks
from ..evaluation.metric import mean
from ..pictures import phrase_name
from .checks import check_counts, check_has_language_model
from .matching import picture_title, short_name
from .report import ProbeReport

MEANING = (
    "Whether a box is read where it is and the mask follows it, by the published choice among the masks, which looks at the box, and"
    " unaided: by the network's best mask alone."
)
Box = tuple[int, int, int, int]
# Images that are shown, each in two pictures.
NUM_SHOWN = 4
BOX_COLOR = (255, 0, 0)


@dataclass(frozen=True)
class _Thing:
    """An annotated object: its mask, bool (H, W), and the box (xmin, ymin, xmax, ymax) of it, the maxima exclusive."""

    label: str
    mask: np.ndarray
    box: Box


@dataclass(frozen=True)
class _Found:
    """
    What the box of a thing gave.

    Attributes:
        thing: whose box it was.
        features_in_box, features_near_box: shares of the gradient, see `probe_visual_query`.
        chosen: mask of the published rule, bool (H, W); without a pixel if there is none.
        unaided: mask of the best query, likewise.
    """

    thing: _Thing
    features_in_box: float
    features_near_box: float
    chosen: np.ndarray
    unaided: np.ndarray


@torch.no_grad()
def probe_visual_query(
    model: PreTrainedModel,
    processor: XSAMProcessor,
    samples: Iterable[AnnotatedSample],
    limit: int = 50,
    things_per_image: int = 5,
) -> ProbeReport:
    """
    Prompt with the bounding boxes of annotated things, and look where features are read and masks lie.

    The figures, all from 0 to 1:

    - `features in box`: share of the absolute gradient of the region's embedding with respect to the feature map that lies in cells
      which the box touches; `features near box`: the same with a margin of one cell. The second is 1 for a processor and a
      sampler that read where the box is, whatever the checkpoint. The first is lower for small boxes, since the sampler reads
      between cells. It says where features are read, not what they hold: every cell of the tower has seen the whole image.
    - `mask in box`: mean share of the mask's pixels inside the box, 0 for an empty mask. Near 1 for a good checkpoint.
    - `IoU`: mean overlap of the mask with the annotated thing.
    - `follow rate`: share of pairs of things of one image for which each mask has the larger IoU with its own (filled) box than
      with the other's. An empty mask follows nothing. Masks that ignore the prompt have 0.
    - `mask in box, unaided`, `IoU, unaided`, `follow rate, unaided`: the same for the query that the network finds best. The
      published rule prefers, among the masks of a high score, the one whose box is nearest to the prompt's, so that it
      follows a box to some degree even if the network does not. What the network itself has understood is here.
    - `follow rate of annotations`: what the annotated masks themselves would have, the best that is possible: things with the same
      box cannot be told apart.

    A mask that follows its box need not be good; see `IoU` for that. Means are over things or pairs, not over images; NaN if
    there are none.

    Args:
        model: `XSAMForSegmentation`, in evaluation mode.
        processor: its processor.
        samples: with category lists, whose things are prompted (in semantic annotations a thing is all there is of a class), or
            with visual prompts, whose masks are. Samples without either are passed over.
        limit: images, from the first that has a thing.
        things_per_image: prompted things of an image, from the first.

    Raises:
        ValueError: if the model has no language model, or `limit` or `things_per_image` is below 1.
    """
    check_has_language_model(model)
    check_counts(limit=limit, things_per_image=things_per_image)
    pipeline = AnySegmentationPipeline(model=model, processor=processor)
    cases: list[dict[str, Any]] = []
    pairs: list[dict[str, bool]] = []
    pictures: list[tuple[str, Image.Image]] = []
    num_images = 0
    annotated = ((sample, _things(sample, things_per_image)) for sample in samples)
    for sample, things in islice(((sample, things) for sample, things in annotated if things), limit):
        num_images += 1
        found = _prompt(pipeline, sample.image, things)
        cases += [{"sample": sample.name, **_case(each)} for each in found]
        pairs += [_pair(first, second) for first, second in combinations(found, 2)]
        if len(found) > 1 and len(pictures) < 2 * NUM_SHOWN:
            name = short_name(sample)
            pictures.append((picture_title(name, "a box"), _drawn(sample.image, found[0])))
            pictures.append((picture_title(name, "the box moved"), _drawn(sample.image, found[1])))
    settings = {
        "images": num_images,
        "things": len(cases),
        "pairs": len(pairs),
        "things_per_image": things_per_image,
        "threshold": ResultOptions().threshold,
    }
    return ProbeReport("visual-query", MEANING, _figures(cases, pairs), settings, cases, pictures)


def _figures(cases: Sequence[dict[str, Any]], pairs: Sequence[dict[str, bool]]) -> dict[str, float]:
    figures = {name: mean([case[name] for case in cases]) for name in ("features in box", "features near box")}
    for suffix in ("", ", unaided"):
        figures |= {name + suffix: mean([case[name + suffix] for case in cases]) for name in ("mask in box", "IoU")}
        figures[f"follow rate{suffix}"] = mean([pair[f"follow rate{suffix}"] for pair in pairs])
    figures["follow rate of annotations"] = mean([pair["follow rate of annotations"] for pair in pairs])
    return figures


def _things(sample: AnnotatedSample, count: int) -> list[_Thing]:
    """The first things of a sample: of category lists the masks of things, of visual prompts all masks."""
    named = [
        (phrase_name(turn, phrase), mask)
        for turn in sample.turns
        for mask, phrase in zip(turn.masks, turn.mask_phrases, strict=True)
        if turn.regions or phrase < turn.num_things
    ][:count]
    if not named:
        return []
    masks = decode_masks([mask for _, mask in named], (sample.image.height, sample.image.width))
    return [
        _Thing(label, mask, mask_box(torch.from_numpy(mask))) for (label, _), mask in zip(named, masks, strict=True)
    ]


def _prompt(pipeline: AnySegmentationPipeline, image: Image.Image, things: Sequence[_Thing]) -> list[_Found]:
    """Ask for each thing of an image by its box, with the answer given up to its `<SEG>`."""
    encoded = pipeline.encode_image(image)
    asked = [Sample(task="interactive", image=image, boxes=[thing.box], prefill_answer=True) for thing in things]
    outputs = pipeline.run(asked, image_features=encoded)
    return [
        _found(pipeline.model, encoded.features.region_map, thing, output)
        for thing, output in zip(things, outputs, strict=True)
    ]


def _found(model: PreTrainedModel, region_map: torch.Tensor, thing: _Thing, output: SampleOutput) -> _Found:
    geometry = output.geometry
    mass = _read_features(model, region_map, output.region_masks)
    # The prompt ends in exactly one <SEG>.
    (seg,) = output.segs
    return _Found(
        thing=thing,
        features_in_box=_share(mass, _cells(thing.box, geometry, mass.shape, margin=0)),
        features_near_box=_share(mass, _cells(thing.box, geometry, mass.shape, margin=1)),
        chosen=_mask(interactive_segments(output, ResultOptions()), geometry),
        unaided=_mask([referring(seg.class_logits, seg.mask_logits, geometry)], geometry),
    )


def _read_features(model: PreTrainedModel, region_map: torch.Tensor, region_masks: torch.Tensor) -> torch.Tensor:
    """
    How much the embedding of a region depends on each cell of the feature map.

    Args:
        region_map: (1, C, h, w).
        region_masks: bool (1, S, S), as the network sees it.

    Returns:
        Absolute gradient of the embedding's sum, summed over channels: float32 (h, w).
    """
    with torch.enable_grad():
        features = region_map.detach().float().requires_grad_()
        image = torch.zeros(1, dtype=torch.long, device=features.device)
        embedding = model.region_sampler(features, region_masks, image)
        (gradient,) = torch.autograd.grad(embedding.sum(), features)
    return gradient[0].abs().sum(0)


def _cells(box: Box, geometry: Geometry, shape: Sequence[int], margin: int) -> tuple[slice, slice]:
    """Rows and columns of the feature map (h, w) that a box touches, with so many more at each side."""
    xmin, ymin, xmax, ymax = box
    scaled = scaled_size(geometry.target_size, geometry.input_size)
    spans = []
    for start, stop, side, scaled_side, cells in zip(
        (ymin, xmin), (ymax, xmax), geometry.target_size, scaled, shape, strict=True
    ):
        # Whole numbers: a pixel p of the image lies in cell p * scaled_side / side * cells / input_size.
        pixels = side * geometry.input_size
        first = start * scaled_side * cells // pixels
        last = -(-stop * scaled_side * cells // pixels)
        spans.append(slice(max(first - margin, 0), last + margin))
    return spans[0], spans[1]


def _share(mass: torch.Tensor, cells: tuple[slice, slice]) -> float:
    total = float(mass.double().sum())
    return float(mass[cells].double().sum()) / total if total else float("nan")


def _mask(segments: Sequence[Segment | None], geometry: Geometry) -> np.ndarray:
    """The one segment's mask, without a pixel if there is none."""
    for segment in segments:
        if segment is not None:
            return segment.mask.cpu().numpy()
    return np.zeros(geometry.target_size, dtype=bool)


def _filled(box: Box, image_size: Sequence[int]) -> np.ndarray:
    filled = np.zeros(tuple(image_size), dtype=bool)
    xmin, ymin, xmax, ymax = box
    filled[ymin:ymax, xmin:xmax] = True
    return filled


def _case(found: _Found) -> dict[str, Any]:
    """The figures of one thing."""
    thing = found.thing
    box = _filled(thing.box, thing.mask.shape)
    case: dict[str, Any] = {
        "thing": thing.label,
        "box": list(thing.box),
        "features in box": found.features_in_box,
        "features near box": found.features_near_box,
    }
    for suffix, mask in (("", found.chosen), (", unaided", found.unaided)):
        case[f"mask in box{suffix}"] = float((mask & box).sum() / max(mask.sum(), 1))
        case[f"IoU{suffix}"] = _iou(mask, thing.mask)
    return case


def _pair(first: _Found, second: _Found) -> dict[str, bool]:
    """Which masks of two things of an image each lie nearer to their own box than to the other's."""
    masks = {
        "follow rate": (first.chosen, second.chosen),
        "follow rate, unaided": (first.unaided, second.unaided),
        "follow rate of annotations": (first.thing.mask, second.thing.mask),
    }
    return {name: _follow(of_pair, (first.thing.box, second.thing.box)) for name, of_pair in masks.items()}


def _follow(masks: tuple[np.ndarray, np.ndarray], boxes: tuple[Box, Box]) -> bool:
    filled = [_filled(box, masks[0].shape) for box in boxes]
    return all(_iou(masks[i], filled[i]) > _iou(masks[i], filled[1 - i]) for i in (0, 1))


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    """Of a mask with one that has pixels."""
    return float((first & second).sum() / (first | second).sum())


def _drawn(image: Image.Image, found: _Found) -> Image.Image:
    mask = Image.fromarray(found.chosen).convert("L")
    # One label, so that all masks have the same colour.
    picture = visualize(image, [{"label": "mask", "score": None, "mask": mask}], legend=False)
    xmin, ymin, xmax, ymax = found.thing.box
    width = max(1, round(max(image.size) / 200))
    ImageDraw.Draw(picture).rectangle((xmin, ymin, xmax - 1, ymax - 1), outline=BOX_COLOR, width=width)
    return picture
