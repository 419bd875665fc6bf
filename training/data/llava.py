"""
Conversations about images in LLaVA's form: LLaVA-Pretrain (blip_laion_cc_sbu_558k.json) and LLaVA-Instruct
(llava_v1_5_mix665k.json, llava_instruct_150k.json).

A file is a JSON list of records `id`, `image` (path from the image folder; without it the conversation has no image)
and `conversations`, messages `from` "human" or "gpt" with a `value`, in turns. Format: haotian-liu/LLaVA
(llava/train/train.py, docs/Finetune_Custom_Data.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from processing_xsam.prompts_xsam import IMAGE_TOKEN

from .json_list import Place, locate_values, read_value
from .reader import BrokenRecord, OnError, SampleReader, missing
from .samples import AnnotatedSample, Turn

ROLES = ("human", "gpt")


class LlavaReader(SampleReader[Place]):
    """
    One sample per conversation, with a "chat" turn for each question and its answer, in order.

    The image's placeholder at the start or end of the first question is removed: the processor places the image. Other
    special tokens in a text are left as they stand, and mean nothing.

    Of a conversation only its place in the file is kept: the texts of 665k would take gigabytes of memory.

    Args:
        annotations: JSON file.
        images: folder that the records' image paths start from.
    """

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
        images: str = "llava/llava_images",
        on_error: OnError = "raise",
    ) -> None:
        self.annotations, self.images = annotations, images
        super().__init__(root, on_error)

    def records(self) -> Iterable[Place]:
        path = self.root / self.annotations
        if not path.is_file():
            raise missing(path)
        folder = self.root / self.images
        for place, value in locate_values(path):
            try:
                image, _ = _parse(value)
                # os.path, because this is asked for hundreds of thousands of images.
                if image is not None and not os.path.isfile(os.path.join(folder, image)):
                    raise ValueError(f"{Path(self.images) / image} does not exist")
            except ValueError as error:
                self.broken(self.annotations, _name(place, value), str(error))
                continue
            yield place

    def read(self, record: Place) -> AnnotatedSample:
        try:
            value = read_value(self.root / self.annotations, record)
            image, texts = _parse(value)
        except ValueError as error:
            problem = f"{error}; the file must not change while it is in use"
            raise BrokenRecord(self.relative(self.annotations), f"record {record.index}", problem) from error
        pairs = zip(texts[::2], texts[1::2], strict=True)
        turns = tuple(Turn("chat", text=question, answer=answer) for question, answer in pairs)
        name = _name(record, value)
        picture = None if image is None else self.read_image(Path(self.images) / image, name)
        return AnnotatedSample(picture, turns, f"{self.relative(self.annotations)}, {name}", value.get("id"))


def _name(place: Place, value: Any) -> str:
    return f"record {place.index}" + (f" (id {value['id']})" if isinstance(value, dict) and "id" in value else "")


def _parse(value: Any) -> tuple[str | None, list[str]]:
    """
    The image's path and the texts of a record, question and answer in turns.

    Raises:
        ValueError: if the record cannot be used; says why.
    """
    if not isinstance(value, dict) or not isinstance(value.get("conversations"), list):
        raise ValueError("the record has no list 'conversations'")
    image = value.get("image")
    if not isinstance(image, str | None) or image == "":
        raise ValueError(f"field 'image' is {image!r}; give one path, or leave it out")
    texts = _texts(value["conversations"])
    texts[0] = _without_placeholder(texts[0], image)
    if image is not None and any(IMAGE_TOKEN in question for question in texts[::2]):
        raise ValueError(f"{IMAGE_TOKEN} stands elsewhere than once at the start or end of the first question")
    if "" in texts:
        raise ValueError(f"the text of message {texts.index('')} is empty")
    return image, texts


def _texts(messages: list[Mapping[str, Any]]) -> list[str]:
    """The messages' texts, without blanks around them."""
    if not messages or len(messages) % 2:
        raise ValueError(f"{len(messages)} messages are not pairs of question and answer")
    for place, message in enumerate(messages):
        role, text = message.get("from"), message.get("value")
        if role not in ROLES:
            raise ValueError(f"message {place} is from {role!r}; possible are 'human' and 'gpt'")
        if role != ROLES[place % 2]:
            raise ValueError(f"message {place} is from {role!r}: 'human' and 'gpt' must take turns, 'human' first")
        if not isinstance(text, str):
            raise ValueError(f"the value of message {place} is {text!r}, no text")
    return [message["value"].strip() for message in messages]


def _without_placeholder(question: str, image: str | None) -> str:
    text = question.removeprefix(IMAGE_TOKEN)
    text = text if text != question else question.removesuffix(IMAGE_TOKEN)
    if text != question and image is None:
        raise ValueError(f"the first question has an {IMAGE_TOKEN}, but the record has no field 'image'")
    return text.strip()
