"""The arguments of one call of the processor -> one `Sample` each for what a user asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .prompts_xsam import IMAGE_TOKEN, get_task

VISUAL_PROMPTS = ("points", "boxes", "scribbles", "masks")
SHARED_BY_A_BATCH = ("task", "image", "prefill_answer")


@dataclass(frozen=True)
class Sample:
    """The arguments of one sample, by the names they have in the processor's call; None where it does not use one."""

    task: str | None = None
    image: Any = None
    text: Any = None
    labels: Any = None
    points: Any = None
    boxes: Any = None
    scribbles: Any = None
    masks: Any = None
    prompt_image: Any = None
    conversation: Any = None
    prefill_answer: bool | None = None

    @property
    def visual_prompts(self) -> dict[str, Any]:
        """The visual prompts that were given, by kind."""
        return {name: getattr(self, name) for name in VISUAL_PROMPTS if getattr(self, name) is not None}


def split_batch(arguments: Mapping[str, Any]) -> list[Sample]:
    """Split the arguments of a call with `task`; a list of images or of tasks makes it a batch.

    Raises:
        ValueError: an empty batch, a list of another length than the batch, or a sample with arguments that don't fit
            together.
    """
    sizes = [len(arguments[name]) for name in ("image", "task") if isinstance(arguments[name], (list, tuple))]
    if sizes and sizes[0] == 0:
        raise ValueError("`images` is an empty list: give at least one sample")
    samples = _zip_arguments(arguments, sizes[0]) if sizes else [Sample(**arguments)]
    for sample in samples:
        _check_task_sample(sample)
    return samples


def split_formatted(arguments: Mapping[str, Any]) -> list[Sample]:
    """Split the arguments of a call without `task`: formatted prompts, images in the order of `<image>` tokens.

    Raises:
        ValueError: no text, arguments that need a task, or another number of images than of `<image>` tokens.
    """
    text = arguments["text"]
    if text is None:
        raise ValueError("`task`: give a task, or a formatted prompt as `text`")
    for name in ("labels", "conversation", "prefill_answer"):
        if arguments[name] is not None:
            raise ValueError(f"`{name}` needs a `task`; without one, `text` is the whole prompt")
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(item, str) for item in texts):
        raise ValueError(f"`text`: expected a formatted prompt or a list of them, got {text!r}")
    arguments = {**arguments, "image": _assign_images(texts, _flatten(arguments["image"])), "text": texts}
    if isinstance(text, str):
        arguments = {name: [value] if name not in ("image", "text") else value for name, value in arguments.items()}
    samples = _zip_arguments(arguments, len(texts))
    for sample in samples:
        _check_visual_prompts(sample)
    return samples


def _zip_arguments(arguments: Mapping[str, Any], size: int) -> list[Sample]:
    columns = {name: _as_column(name, value, size) for name, value in arguments.items()}
    return [Sample(**{name: column[i] for name, column in columns.items()}) for i in range(size)]


def _as_column(name: str, value: Any, size: int) -> Sequence[Any]:
    shown = "images" if name == "image" else name
    if value is None or (name in SHARED_BY_A_BATCH and not isinstance(value, (list, tuple))):
        return [value] * size
    if not isinstance(value, (list, tuple)):
        raise ValueError(
            f"`{shown}`: expected a list with one entry for each of the {size} samples, got {type(value).__name__}"
        )
    if len(value) != size:
        raise ValueError(f"`{shown}`: {len(value)} entries for {size} samples; give one for each (None where unused)")
    return value


def _check_task_sample(sample: Sample) -> None:
    task = get_task(sample.task)
    if sample.image is None and sample.task != "chat":
        raise ValueError(f"`images`: task {sample.task!r} needs an image")
    takes_regions = task.phrases_from == "regions"
    if sample.visual_prompts and not task.takes_visual_prompts:
        raise ValueError(f"`{next(iter(sample.visual_prompts))}`: task {sample.task!r} does not take this argument")
    if sample.prompt_image is not None and sample.task != "visual-grounded":
        raise ValueError(
            f"`prompt_image`: task {sample.task!r} does not take this argument, only 'visual-grounded' does"
        )
    if takes_regions and not sample.visual_prompts:
        raise ValueError(
            f"`points`, `boxes`, `scribbles` or `masks`: task {sample.task!r} needs one of these arguments"
        )
    _check_visual_prompts(sample)


def _check_visual_prompts(sample: Sample) -> None:
    kinds = list(sample.visual_prompts)
    if len(kinds) > 1:
        raise ValueError(f"`{kinds[0]}` and `{kinds[1]}`: give only one kind of visual prompt in a sample")
    if kinds and sample.image is None and sample.prompt_image is None:
        raise ValueError(
            f"`{kinds[0]}` needs the image that its coordinates refer to: give `images` or `prompt_image`"
        )
    if sample.prompt_image is not None and not kinds:
        raise ValueError("`prompt_image` needs `points`, `boxes`, `scribbles` or `masks` that refer to it")


def _flatten(images: Any) -> list[Any]:
    if images is None:
        return []
    if not isinstance(images, (list, tuple)):
        return [images]
    return [leaf for item in images for leaf in _flatten(item)]


def _assign_images(texts: Sequence[str], images: Sequence[Any]) -> list[Any]:
    counts = [text.count(IMAGE_TOKEN) for text in texts]
    if max(counts) > 1:
        raise ValueError(
            f"`text`: prompt {counts.index(max(counts))} has {max(counts)} {IMAGE_TOKEN} tokens, at most 1 is possible"
        )
    if sum(counts) != len(images):
        raise ValueError(
            f"`images`: {len(images)} given for prompts with {sum(counts)} {IMAGE_TOKEN} tokens; make the numbers equal"
        )
    remaining = iter(images)
    return [next(remaining) if count else None for count in counts]
