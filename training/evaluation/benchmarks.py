"""
The benchmarks of the paper, and how others are described.

The data lie as in the layout of training/README.md. A benchmark is a data set, a family of figures, and what makes
segments of a model's output; a YAML file holds a list of others in the same terms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml

from processing_xsam.results_xsam import ResultOptions

from ..data.reader import CategoryReader, SampleReader
from ..data.samples import AnnotatedSample, RegionKind, Turn
from .average_precision import AveragePrecision
from .chat_accuracy import ChatAccuracy
from .grounded_conversation import GroundedConversation
from .mean_iou import MeanIoU
from .metric import Metric
from .panoptic_quality import PanopticQuality
from .referring_iou import ReferringIoU
from .text_similarity import text_similarity

ADE20K = "ade20k/ADEChallengeData2016"
REGION_KINDS: tuple[RegionKind, ...] = get_args(RegionKind)


@dataclass(frozen=True)
class MetricKind:
    """
    Attributes:
        build: makes the metric from the reader and the `--text-encoder`.
        options: how segments are made of a model's output, unless a benchmark says otherwise: in the tasks of the paper's
            evaluation without a threshold on scores.
    """

    build: Callable[[SampleReader, str], Metric]
    options: Mapping[str, Any] = field(default_factory=dict)


def _categories(metric: Callable[[Sequence[str], int], Metric]) -> Callable[[SampleReader, str], Metric]:
    def build(reader: SampleReader, text_encoder: str) -> Metric:
        if not isinstance(reader, CategoryReader):
            raise ValueError(
                f"{metric.__name__} needs a data set with a list of categories, {type(reader).__name__} has none"
            )
        return metric(reader.labels, reader.num_things)

    return build


METRICS: dict[str, MetricKind] = {
    "panoptic-quality": MetricKind(_categories(PanopticQuality), {"subtask": "panoptic", "threshold": 0.0}),
    "mean-iou": MetricKind(_categories(MeanIoU), {"subtask": "semantic"}),
    "average-precision": MetricKind(
        lambda reader, text_encoder: AveragePrecision(), {"subtask": "instance", "threshold": 0.0}
    ),
    "referring-iou": MetricKind(lambda reader, text_encoder: ReferringIoU()),
    "grounded-conversation": MetricKind(
        lambda reader, text_encoder: GroundedConversation(text_similarity(text_encoder))
    ),
    "chat-accuracy": MetricKind(lambda reader, text_encoder: ChatAccuracy()),
}


@dataclass(frozen=True)
class Benchmark:
    """
    Attributes:
        name: as `--benchmark` takes it.
        metric: a name of `METRICS`.
        dataset: format and arguments of its reader, as in a recipe.
        options: fields of `ResultOptions` that differ from the metric's.
        prompt: the kind of visual prompt that is shown, where a data set has several.

    Raises:
        ValueError: if a field has a value that it cannot have.
    """

    name: str
    metric: str
    dataset: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt: RegionKind | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w+.-]+", str(self.name)) or self.name == "settings":
            raise ValueError(f"benchmark {self.name!r}: its name is one of files; use letters, digits, +, ., - and _")
        if self.metric not in METRICS:
            raise ValueError(
                f"benchmark {self.name!r}: metric {self.metric!r} is unknown; known are {', '.join(METRICS)}"
            )
        if self.prompt not in (None, *REGION_KINDS):
            raise ValueError(f"benchmark {self.name!r}: prompt {self.prompt!r} is none of {', '.join(REGION_KINDS)}")
        if unknown := sorted(set(self.options) - {each.name for each in fields(ResultOptions)}):
            raise ValueError(f"benchmark {self.name!r}: options {unknown} are none of ResultOptions")

    @property
    def result_options(self) -> ResultOptions:
        return ResultOptions(**{**METRICS[self.metric].options, **self.options})

    @property
    def definition(self) -> dict[str, Any]:
        """All that its figures depend on, also what it leaves to its metric, as it is read from JSON."""
        return json.loads(json.dumps({**asdict(self), "options": asdict(self.result_options)}))

    def build_metric(self, reader: SampleReader, text_encoder: str) -> Metric:
        return METRICS[self.metric].build(reader, text_encoder)

    def asked(self, sample: AnnotatedSample) -> AnnotatedSample:
        """The sample with the turns that are asked, which is all of them unless one cannot be shown with `prompt`."""
        if self.prompt is None:
            return sample
        turns = (with_prompt(turn, self.prompt) for turn in sample.turns)
        return replace(sample, turns=tuple(turn for turn in turns if turn is not None))


def with_prompt(turn: Turn, kind: RegionKind) -> Turn | None:
    """
    A turn whose phrases are shown with one kind of prompt, the first of that kind. A phrase that has none cannot be asked,
    and its objects are no targets; None if no phrase can.
    """
    regions = [[region for region in of_phrase if region.kind == kind][:1] for of_phrase in turn.regions]
    kept = [phrase for phrase, found in enumerate(regions) if found]
    if not kept:
        return None
    targets = [(mask, phrase) for mask, phrase in zip(turn.masks, turn.mask_phrases, strict=True) if phrase in kept]
    return replace(
        turn,
        regions=tuple(tuple(regions[phrase]) for phrase in kept),
        labels=tuple(turn.labels[phrase] for phrase in kept) if turn.labels else (),
        masks=tuple(mask for mask, _ in targets),
        mask_phrases=tuple(kept.index(phrase) for _, phrase in targets),
        ignored_phrases=tuple(kept.index(phrase) if phrase in kept else None for phrase in turn.ignored_phrases),
    )


def _coco() -> list[Benchmark]:
    panoptic = {
        "format": "coco-panoptic",
        "annotations": "coco2017/annotations/panoptic_val2017.json",
        "segments": "coco2017/panoptic_val2017",
        "images": "coco2017/val2017",
        "keep_empty": True,
    }
    instances = {
        "format": "coco-instances",
        "annotations": "coco2017/annotations/instances_val2017.json",
        "images": "coco2017/val2017",
        "keep_empty": True,
    }
    return [
        Benchmark("coco-panoptic", "panoptic-quality", panoptic),
        Benchmark("coco-instance", "average-precision", instances),
        Benchmark("coco-semantic", "mean-iou", panoptic),
    ]


def _ade20k() -> list[Benchmark]:
    names = f"{ADE20K}/ade20k_panoptic_val.json"
    shared = {"images": f"{ADE20K}/images/validation", "task": "open-vocabulary", "keep_empty": True}
    panoptic = {"format": "coco-panoptic", "annotations": names, "segments": f"{ADE20K}/ade20k_panoptic_val", **shared}
    instances = {"format": "coco-instances", "annotations": f"{ADE20K}/ade20k_instance_val.json", **shared}
    return [
        Benchmark("ade20k-panoptic", "panoptic-quality", panoptic),
        Benchmark("ade20k-instance", "average-precision", instances),
        Benchmark("ade20k-semantic", "mean-iou", {"format": "ade20k-semantic", "classes": names}),
    ]


def _referring() -> list[Benchmark]:
    three = ("val", "testA", "testB")
    sets = [
        ("refcoco", "refs(unc).p", three),
        ("refcoco+", "refs(unc).p", three),
        ("refcocog", "refs(umd).p", ("val", "test")),
        ("grefcoco", "grefs(unc).json", three),
    ]
    absent = {"multi_target": True, "score_threshold": 0.5}
    return [
        Benchmark(
            f"{folder}-{split}",
            "referring-iou",
            {
                "format": "refcoco",
                "refs": f"refer_seg/{folder}/{refs}",
                "instances": f"refer_seg/{folder}/instances.json",
                "split": split,
                "keep_repeated": True,
            },
            absent if folder == "grefcoco" else {},
        )
        for folder, refs, splits in sets
        for split in splits
    ]


def _reasoning() -> list[Benchmark]:
    lengths = {"": None, "-short": False, "-long": True}
    return [
        Benchmark(
            f"reasonseg-{split}{suffix}",
            "referring-iou",
            {
                "format": "reason-seg",
                "folder": f"reason_seg/ReasonSeg/{split}",
                "explanations": None,
                "sentences": sentences,
            },
        )
        for split in ("val", "test")
        for suffix, sentences in lengths.items()
    ]


def _grounded_conversation() -> list[Benchmark]:
    folder = "gcg_seg/annotations/val_test"
    return [
        Benchmark(
            f"gcg-{split}",
            "grounded-conversation",
            {
                "format": "grand-f-val",
                "annotations": f"{folder}/{split}_gcg_coco_caption_gt.json",
                "masks": f"{folder}/{split}_gcg_coco_mask_gt.json",
            },
        )
        for split in ("val", "test")
    ]


def _visual() -> list[Benchmark]:
    vgd = {
        "format": "coco-vgd",
        "annotations": "vgd_seg/annotations/coco_vgdseg_val.json",
        "images": "coco2017/val2017",
        "instances": "coco2017/annotations/instances_val2017.json",
    }
    interactive = {
        "format": "coco-interactive",
        "annotations": "interactive_seg/annotations/coco_interactive_val_psalm.json",
        "images": "coco2017/val2017",
    }
    return [
        *(Benchmark(f"vgd-{kind}", "average-precision", vgd, prompt=kind) for kind in REGION_KINDS),
        *(Benchmark(f"interactive-{kind}", "referring-iou", interactive, prompt=kind) for kind in REGION_KINDS),
    ]


def _class_maps() -> list[Benchmark]:
    dataset = {"format": "class-maps", "images": "images", "annotations": "annotations", "classes": "classes.txt"}
    return [Benchmark("class-maps", "mean-iou", dataset)]


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for group in (_coco, _ade20k, _referring, _reasoning, _grounded_conversation, _visual, _class_maps)
    for benchmark in group()
}


def select_benchmarks(names: str) -> list[Benchmark]:
    """
    Args:
        names: separated by commas: names of benchmarks; the first words of several, such as refcoco; "all" for those of
            the paper; or YAML files that describe others.

    Raises:
        ValueError: if a name is unknown, a file is malformed, or two benchmarks have the same name.
    """
    chosen: list[Benchmark] = []
    for name in (part.strip() for part in names.split(",")):
        found = load_benchmarks(Path(name)) if name.endswith((".yaml", ".yml")) else _named(name)
        chosen += [benchmark for benchmark in found if benchmark not in chosen]
    if len({benchmark.name for benchmark in chosen}) < len(chosen):
        raise ValueError(f"--benchmark {names}: two benchmarks have the same name")
    return chosen


def _named(name: str) -> list[Benchmark]:
    if name == "all":
        return [benchmark for benchmark in BENCHMARKS.values() if benchmark.name != "class-maps"]
    if name in BENCHMARKS:
        return [BENCHMARKS[name]]
    found = [benchmark for benchmark in BENCHMARKS.values() if benchmark.name.startswith(f"{name}-")]
    if not found:
        near = get_close_matches(name, BENCHMARKS, n=1)
        raise ValueError(
            f"--benchmark {name!r} is unknown{f', did you mean {near[0]}?' if near else ';'} Known are all,"
            f" {', '.join(BENCHMARKS)}, the first words of these, and YAML files"
        )
    return found


def load_benchmarks(file: Path) -> list[Benchmark]:
    """
    Benchmarks that a YAML file describes: a list of mappings with the fields of `Benchmark`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is malformed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--benchmark {file}: there is no such file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError(f"it is a {type(content).__name__}")
        return [Benchmark(**entry) for entry in content]
    except (TypeError, yaml.YAMLError) as error:
        known = ", ".join(each.name for each in fields(Benchmark))
        raise ValueError(f"{file} is not a list of benchmarks, mappings of {known}: {error}") from error
