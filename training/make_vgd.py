"""
Makes the annotations of visual-grounded segmentation (COCO-VGD) from those of instance segmentation.

The result has the form of the published `coco_vgdseg_train.json` (X-SAM, `xsam/dataset/vgd_seg_dataset.py`): a list
with an entry per image, whose annotations are COCO's with four drawn `visual_prompts` each, see
`data/visual_prompts.py`. Each entry is a line of its own.

Images are worked on in parts. A finished part is a file in a folder beside the output, so that an interrupted run goes
on where it stopped, with the same result as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .data.reader import BrokenRecord, OnError
from .data.samples import RLE, decode_masks, encode_masks, rle_from_annotation
from .data.visual_prompts import POINT_RADIUS, PROMPT_KEYS, SCRIBBLE_RADIUS, draw_visual_prompts, prompt_rng

MANIFEST = "manifest.json"
# detectron2's BoxMode.XYWH_ABS: `bbox` is left, top, width, height in pixels.
BBOX_MODE = 1


@dataclass(frozen=True)
class Unusable:
    annotation_id: Any
    problem: str


@dataclass(frozen=True)
class VgdReport:
    """
    Attributes:
        images: entries written.
        images_left_out: images without a usable annotation.
        annotations: annotations with prompts.
        crowds: annotations left out because they are crowds.
        unusable: annotations left out because they are broken or have no pixel.
    """

    images: int
    images_left_out: int
    annotations: int
    crowds: int
    unusable: tuple[Unusable, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.images} images with {self.annotations} annotations",
            f"left out: {self.images_left_out} images, {self.crowds} crowds,"
            f" {len(self.unusable)} unusable annotations",
        ]
        return "\n".join(lines + [f"  annotation {each.annotation_id}: {each.problem}" for each in self.unusable])


@dataclass(frozen=True)
class Settings:
    """All that the content of a part depends on. A part made with other settings is of no use."""

    seed: int
    point_radius: float
    scribble_radius: float
    images_per_part: int
    instances_bytes: int
    instances_sha256: str


@dataclass(frozen=True)
class Part:
    """Some images, each with its annotations as they are in the file, and the file that they end up in."""

    path: Path
    images: tuple[tuple[dict[str, Any], tuple[dict[str, Any], ...]], ...]


@dataclass(frozen=True)
class PartSummary:
    """The first line of a part's file; `entries` lines follow."""

    images: int
    entries: int
    annotations: int
    crowds: int
    unusable: tuple[Unusable, ...]


def make_vgd(
    instances: Path,
    output: Path,
    seed: int = 0,
    num_processes: int | None = None,
    point_radius: float = POINT_RADIUS,
    scribble_radius: float = SCRIBBLE_RADIUS,
    on_error: OnError = "skip",
    images_per_part: int = 128,
) -> VgdReport:
    """
    Draw visual prompts for all objects of COCO's `instances_*.json`.

    The result depends on the input, the seed, the radii and nothing else. Images come in the order of their ids.

    Args:
        instances: COCO instance annotations.
        output: JSON file to write. Until it is finished, its parts are kept in a folder of its name with the suffix
            ".parts".
        num_processes: processes to work in; None for one per processor.
        point_radius: of the discs that are points, in pixels.
        scribble_radius: half the thickness of scribbles, in pixels.
        on_error: what an unusable annotation does: "skip" leaves it out and names it in the report, "raise" stops.
            A run that was stopped goes on with "skip".
        images_per_part: how many images an interruption may lose, per process.

    Raises:
        FileExistsError: if the output exists already.
        FileNotFoundError: if there are no instances.
        BrokenRecord: with `on_error="raise"`, at the first unusable annotation.
        ChildProcessError: if a process was killed.
        ValueError: if an argument or the form of the input is wrong, or if the folder of parts holds something else.
    """
    instances, output = Path(instances), Path(output)
    num_processes = (os.cpu_count() or 1) if num_processes is None else num_processes
    _check_arguments(seed, num_processes, images_per_part, on_error)
    if min(point_radius, scribble_radius) <= 0:
        raise ValueError(f"point_radius {point_radius} and scribble_radius {scribble_radius} must be positive")
    if output.exists():
        raise FileExistsError(f"output {output} exists already; delete it or give another name")
    content = instances.read_bytes()
    settings = Settings(
        seed, point_radius, scribble_radius, images_per_part, len(content), hashlib.sha256(content).hexdigest()
    )
    folder = output.with_suffix(".parts")
    parts, unusable = _plan(_parse(content, instances), folder, images_per_part)
    del content
    _open_folder(folder, settings)
    _check_unusable(unusable, instances, on_error)
    summaries = _finish(parts, settings, num_processes, instances, on_error)
    _join(parts, summaries, output)
    shutil.rmtree(folder)
    return VgdReport(
        images=sum(summary.entries for summary in summaries),
        images_left_out=sum(summary.images - summary.entries for summary in summaries),
        annotations=sum(summary.annotations for summary in summaries),
        crowds=sum(summary.crowds for summary in summaries),
        unusable=(*unusable, *(each for summary in summaries for each in summary.unusable)),
    )


def _check_arguments(seed: int, num_processes: int, images_per_part: int, on_error: str) -> None:
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    if num_processes < 1 or images_per_part < 1:
        raise ValueError(f"num_processes {num_processes} and images_per_part {images_per_part} must be at least 1")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; possible are 'raise' and 'skip'")


def _parse(content: bytes, instances: Path) -> dict[str, Any]:
    """The annotations, checked as far as all images need it."""
    try:
        data = json.loads(content)
        data["annotations"], data["categories"]
        for image in data["images"]:
            image["id"], image["file_name"], image["height"], image["width"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{instances} is not COCO instance annotations: {error!r}") from error
    return data


def _plan(data: dict[str, Any], folder: Path, images_per_part: int) -> tuple[list[Part], list[Unusable]]:
    """Divide the images into parts; annotations that belong to none of them, or to no category, are unusable."""
    images = sorted(data["images"], key=lambda image: image["id"])
    categories = {category["id"] for category in data["categories"]}
    of_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    unusable = []
    for annotation in data["annotations"]:
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if image_id not in of_image:
            unusable.append(Unusable(annotation.get("id"), f"image {image_id} is not among the images"))
        elif category_id not in categories:
            unusable.append(Unusable(annotation.get("id"), f"category {category_id} is not among the categories"))
        else:
            of_image[image_id].append(annotation)
    # Images without annotations are left out from the start, as in the published file.
    pairs = [(image, tuple(of_image[image["id"]])) for image in images if of_image[image["id"]]]
    return [
        Part(folder / f"{start // images_per_part:06d}.jsonl", tuple(pairs[start : start + images_per_part]))
        for start in range(0, len(pairs), images_per_part)
    ], unusable


def _open_folder(folder: Path, settings: Settings) -> None:
    """Make the folder of parts, or see that the parts in it are of the same run."""
    manifest = folder / MANIFEST
    if folder.exists() and not manifest.is_file():
        raise ValueError(
            f"{folder} holds no {MANIFEST}: it is not a folder of parts; delete it or name another output"
        )
    if not folder.exists():
        # The folder never exists without its manifest, so that an interruption here does not matter.
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
        fresh.mkdir(parents=True)
        (fresh / MANIFEST).write_text(json.dumps(asdict(settings), indent=2), encoding="utf-8")
        fresh.rename(folder)
    found = json.loads(manifest.read_text(encoding="utf-8"))
    wanted = asdict(settings)
    differences = [
        f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}"
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} holds the parts of another run, with {', '.join(differences)}; run with the same settings to"
            " finish that one, or delete the folder to start again"
        )


def _finish(
    parts: Sequence[Part], settings: Settings, num_processes: int, instances: Path, on_error: OnError
) -> list[PartSummary]:
    """Make the parts that are missing; the summaries of all, in order."""
    finished = [part for part in parts if part.path.exists()]
    missing = [part for part in parts if not part.path.exists()]
    for part in finished:
        _check_unusable(_read_summary(part.path).unusable, instances, on_error)
    done, todo = (sum(len(part.images) for part in some) for some in (finished, missing))
    with tqdm(total=done + todo, initial=done, unit="image") as bar:
        for summary in _work(missing, settings, num_processes):
            bar.update(summary.images)
            _check_unusable(summary.unusable, instances, on_error)
    return [_read_summary(part.path) for part in parts]


def _work(parts: Sequence[Part], settings: Settings, num_processes: int) -> Iterator[PartSummary]:
    """Make parts, as they get finished."""
    if num_processes == 1 or len(parts) < 2:
        for part in parts:
            yield _write_part(part, settings)
        return
    pool = ProcessPoolExecutor(min(num_processes, len(parts)), mp_context=_clean_processes())
    try:
        for future in as_completed([pool.submit(_write_part, part, settings) for part in parts]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process was killed, perhaps for want of memory; run again with fewer processes to go on from the"
            f" {sum(part.path.exists() for part in parts)} of {len(parts)} parts that it could finish"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _clean_processes() -> BaseContext:
    """
    Processes that are no forks of this one, whose threads they could not have. A server that has imported this module
    forks them at once; where there is no such thing, as on Windows, each imports it itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _write_part(part: Part, settings: Settings) -> PartSummary:
    entries, crowds, unusable = [], 0, []
    for image, of_image in part.images:
        objects = [annotation for annotation in of_image if not annotation.get("iscrowd", 0)]
        crowds += len(of_image) - len(objects)
        prompted = []
        for annotation in objects:
            try:
                prompted.append(_with_prompts(annotation, (image["height"], image["width"]), settings))
            except ValueError as error:
                unusable.append(Unusable(annotation.get("id"), str(error)))
        if prompted:
            entries.append(_entry(image, prompted))
    summary = PartSummary(
        images=len(part.images),
        entries=len(entries),
        annotations=sum(len(entry["annotations"]) for entry in entries),
        crowds=crowds,
        unusable=tuple(unusable),
    )
    _write_atomically(part.path, (json.dumps(line) + "\n" for line in (asdict(summary), *entries)))
    return summary


def _with_prompts(annotation: dict[str, Any], image_size: tuple[int, int], settings: Settings) -> dict[str, Any]:
    """
    The annotation with its prompts.

    Raises:
        ValueError: if it is unusable.
    """
    annotation_id = annotation.get("id")
    if type(annotation_id) is not int or annotation_id < 0:
        raise ValueError(f"id is {annotation_id!r}, not an integer from 0 on")
    mask = decode_masks([rle_from_annotation(annotation.get("segmentation"), image_size)], image_size)[0]
    prompts = draw_visual_prompts(
        mask, prompt_rng(settings.seed, annotation_id), settings.point_radius, settings.scribble_radius
    ).by_kind()
    encoded = encode_masks(np.stack(list(prompts.values())))
    return {
        **annotation,
        "segmentation": _published_segmentation(annotation["segmentation"], image_size),
        "bbox_mode": BBOX_MODE,
        "visual_prompts": {PROMPT_KEYS[kind]: _as_text(rle) for kind, rle in zip(prompts, encoded, strict=True)},
    }


def _published_segmentation(segmentation: Any, image_size: tuple[int, int]) -> Any:
    """Polygons that have an area, or a compressed run-length encoding."""
    if "counts" in segmentation:
        return _as_text(rle_from_annotation(segmentation, image_size))
    return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _as_text(rle: RLE) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _entry(image: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    size = {"height": image["height"], "width": image["width"]}
    return {
        "image_file": image["file_name"],
        "image_id": image["id"],
        "image_size": list(size.values()),
        "annotations": annotations,
        "image_info": {"file_name": image["file_name"], "image_id": image["id"], **size},
    }


def _check_unusable(unusable: Sequence[Unusable], instances: Path, on_error: OnError) -> None:
    # Here and not where they are found, so that parts are the same for both ways.
    if unusable and on_error == "raise":
        raise BrokenRecord(instances, f"annotation {unusable[0].annotation_id}", unusable[0].problem)


def _read_summary(path: Path) -> PartSummary:
    with path.open(encoding="utf-8") as file:
        summary = json.loads(file.readline())
    return PartSummary(**{**summary, "unusable": tuple(Unusable(**each) for each in summary["unusable"])})


def _join(parts: Sequence[Part], summaries: Sequence[PartSummary], output: Path) -> None:
    """One file of all parts."""
    if not any(summary.entries for summary in summaries):
        raise ValueError("no annotation can be used: there is nothing to write")
    _write_atomically(output, _joined_lines(parts, summaries))


def _joined_lines(parts: Sequence[Part], summaries: Sequence[PartSummary]) -> Iterator[str]:
    separator = "[\n"
    for part, summary in zip(parts, summaries, strict=True):
        with part.path.open(encoding="utf-8") as file:
            entries = file.read().splitlines()[1:]
        if len(entries) != summary.entries:
            raise ValueError(f"{part.path} has {len(entries)} entries, not {summary.entries}; delete it and run again")
        for entry in entries:
            yield separator + entry
            separator = ",\n"
    yield "\n]\n"


def _write_atomically(path: Path, pieces: Iterable[str]) -> None:
    """A file that is there as a whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(pieces)
    unfinished.replace(path)
