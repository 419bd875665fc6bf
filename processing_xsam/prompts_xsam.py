"""Tasks -> conversations: which phrases are asked for, in which words, and what the answer looks like.

A conversation is a list of `{"role", "content"}` messages whose content is a string. Structure is written with the
special tokens below: `<p>car</p>` is a text phrase, `<p><region></p>` a visual one, and a `<SEG>` segments the phrases
since the previous `<SEG>`. Text that comes from a user goes through `plain_text` first, so it can never be read as
structure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

SEG_TOKEN = "<SEG>"
PHRASE_START_TOKEN = "<p>"
PHRASE_END_TOKEN = "</p>"
IMAGE_TOKEN = "<image>"
REGION_TOKEN = "<region>"
# The order in which they are appended to a tokenizer decides their ids.
SPECIAL_TOKENS = (SEG_TOKEN, PHRASE_START_TOKEN, PHRASE_END_TOKEN, IMAGE_TOKEN, REGION_TOKEN)

# Put around every character of a user's text while a prompt is a string, and taken out when it is tokenised. Unicode
# reserves this code point for a program's internal use.
PLAIN_TEXT_MARK = "\ufdd0"

PromptTemplates = Mapping[str, Mapping[str, Sequence[str]]]
Message = dict[str, str]


@dataclass(frozen=True)
class Task:
    """What a task asks for.

    Attributes:
        phrases_from: argument that names the phrases: "labels", "text", "regions" (any of the visual prompts), or
            None.
        has_fixed_answer: nothing in the answer depends on the image, so it can be given up to its `<SEG>`.
        prefill_by_default: whether it is given when the caller does not say.
        turn_per_phrase: each phrase is a question and a `<SEG>` of its own; otherwise all phrases share one.
        may_mark_regions: visual prompts may say what the text is about, which makes no phrases of them.
    """

    phrases_from: str | None
    has_fixed_answer: bool = False
    prefill_by_default: bool = False
    turn_per_phrase: bool = False
    may_mark_regions: bool = False

    @property
    def takes_visual_prompts(self) -> bool:
        return self.phrases_from == "regions" or self.may_mark_regions


TASKS: dict[str, Task] = {
    "generic": Task("labels", has_fixed_answer=True, prefill_by_default=True),
    "open-vocabulary": Task("labels", has_fixed_answer=True, prefill_by_default=True),
    "referring": Task("text", has_fixed_answer=True, prefill_by_default=True, turn_per_phrase=True),
    "reasoning": Task("text", has_fixed_answer=True, turn_per_phrase=True),
    "grounded-conversation": Task(None),
    "interactive": Task("regions", has_fixed_answer=True, prefill_by_default=True, turn_per_phrase=True),
    "visual-grounded": Task("regions", has_fixed_answer=True, prefill_by_default=True),
    "chat": Task(None, may_mark_regions=True),
}

# The first sentence of a list is the one used in inference; the others vary the wording in training.
DEFAULT_PROMPT_TEMPLATES: dict[str, dict[str, list[str]]] = {
    "generic": {
        "questions": [
            "Segment this image into the categories {phrases}. Answer with a mask for each category that is present.",
            "Which of {phrases} are in this picture? Give their segmentation masks.",
            "Look for {phrases} and return a segmentation mask for everything that you find.",
        ],
        "answers": [
            "The segmentation is <SEG>.",
            "These are the masks: <SEG>.",
            "Everything found is segmented here: <SEG>.",
        ],
    },
    "open-vocabulary": {
        "questions": [
            "Segment everything in this image that one of these names fits: {phrases}. Answer with the masks.",
            "The vocabulary is {phrases}. Give a segmentation mask for each thing in the picture that it names.",
            "Find what {phrases} stand for in this picture and return the segmentation masks.",
        ],
        "answers": [
            "The segmentation is <SEG>.",
            "These are the masks: <SEG>.",
            "Everything found is segmented here: <SEG>.",
        ],
    },
    "referring": {
        "questions": [
            "Segment {phrases} in this image. Answer with the mask.",
            "Where is {phrases}? Give its segmentation mask.",
            "Mark {phrases} in the picture with a segmentation mask.",
        ],
        "answers": ["The mask is <SEG>.", "It is here: <SEG>.", "This is its segmentation: <SEG>."],
    },
    "reasoning": {
        "questions": [
            "{phrases} Answer with a segmentation mask.",
            "Think about this question: {phrases} Then segment what answers it.",
            "{phrases} Show the answer as a segmentation mask.",
        ],
        "answers": ["The answer is <SEG>.", "The mask of what is asked for is <SEG>.", "It is segmented here: <SEG>."],
    },
    "grounded-conversation": {
        "questions": [
            "Describe this image in short and give a segmentation mask for each thing that you mention.",
            "What does this picture show? Answer with a caption whose phrases have segmentation masks.",
            "Write a brief caption of the image and segment all that it names.",
        ],
        "answers": [],
    },
    "interactive": {
        "questions": [
            "Segment the object that is marked by {phrases}. Answer with the mask.",
            "A user pointed at {phrases}. Give the segmentation mask of that object.",
            "Which object belongs to the marked region {phrases}? Return its segmentation mask.",
        ],
        "answers": ["The mask is <SEG>.", "It is here: <SEG>.", "This is its segmentation: <SEG>."],
    },
    "visual-grounded": {
        "questions": [
            "Segment every object that looks like one of the marked regions {phrases}. Answer with the masks.",
            "The marked regions are examples: {phrases}. Give segmentation masks of all objects like them.",
            "Find all that is of the same kind as {phrases} and return the segmentation masks.",
        ],
        "answers": [
            "The segmentation is <SEG>.",
            "These are the masks: <SEG>.",
            "All of them are segmented here: <SEG>.",
        ],
    },
}


def first_of(sentences: Sequence[str]) -> str:
    """Choose the default wording."""
    return sentences[0]


def plain_text(text: str) -> str:
    """Mark text so that no part of it, alone or with its surroundings, spells a special token."""
    return PLAIN_TEXT_MARK + PLAIN_TEXT_MARK.join(text.replace(PLAIN_TEXT_MARK, "")) + PLAIN_TEXT_MARK


def text_phrase(text: str) -> str:
    """`<p>text</p>`, with `text` taken literally."""
    return f"{PHRASE_START_TOKEN}{plain_text(text)}{PHRASE_END_TOKEN}"


def region_phrase() -> str:
    """`<p><region></p>`."""
    return f"{PHRASE_START_TOKEN}{REGION_TOKEN}{PHRASE_END_TOKEN}"


def get_task(name: str) -> Task:
    """Look a task up.

    Raises:
        ValueError: there is no such task; the message lists those that there are.
    """
    if name not in TASKS:
        raise ValueError(f"`task`: unknown task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]


def should_prefill(task_name: str, prefill_answer: bool | None) -> bool:
    """Decide whether an answer is given up to its `<SEG>`; None means the task's own habit.

    Raises:
        ValueError: it shall be given, but depends on the image.
    """
    task = get_task(task_name)
    if prefill_answer and not task.has_fixed_answer:
        raise ValueError(f"`prefill_answer`: the answer of task {task_name!r} has to be generated; leave it out")
    return task.prefill_by_default if prefill_answer is None else prefill_answer


def merge_prompt_templates(templates: PromptTemplates | None) -> dict[str, dict[str, list[str]]]:
    """Complete prompt wording with the default one.

    Args:
        templates: `{task: {"questions": [...], "answers": [...]}}` for the tasks whose wording differs, or None. Where
            the task has phrases, each question holds `{phrases}` once; where its answer is fixed, each answer holds
            `<SEG>` once.

    Raises:
        ValueError: a task without wording, a missing list, or a sentence without its placeholder.
    """
    merged = {**DEFAULT_PROMPT_TEMPLATES, **(templates or {})}
    for name, sentences in merged.items():
        if name not in DEFAULT_PROMPT_TEMPLATES:
            raise ValueError(
                f"`prompt_templates`: there is no wording for {name!r}; tasks with wording are {', '.join(DEFAULT_PROMPT_TEMPLATES)}"
            )
        if set(sentences) != {"questions", "answers"} or not sentences["questions"]:
            raise ValueError(
                f"`prompt_templates[{name!r}]`: expected lists 'questions' and 'answers', got {sentences!r}"
            )
        task = get_task(name)
        for question in sentences["questions"]:
            _check_sentence(question, name, "{phrases}", 1 if task.phrases_from else 0)
        if task.has_fixed_answer and not sentences["answers"]:
            raise ValueError(
                f"`prompt_templates[{name!r}]['answers']` is empty: give at least one sentence with <SEG>"
            )
        for answer in sentences["answers"]:
            _check_sentence(answer, name, SEG_TOKEN, 1 if task.has_fixed_answer else 0)
    return {name: {kind: list(texts) for kind, texts in sentences.items()} for name, sentences in merged.items()}


def _check_sentence(sentence: str, task_name: str, placeholder: str, expected: int) -> None:
    others = [token for token in (*SPECIAL_TOKENS, "{phrases}") if token != placeholder and token in sentence]
    if sentence.count(placeholder) != expected or others:
        raise ValueError(
            f"`prompt_templates[{task_name!r}]`: {sentence!r} must contain {placeholder!r} {expected} times and no other placeholder"
        )


def build_conversation(
    task_name: str,
    *,
    templates: PromptTemplates,
    text: str | Sequence[str] | None = None,
    labels: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    num_regions: int = 0,
    history: Sequence[Mapping[str, Any]] | None = None,
    has_image: bool = True,
    prefill: bool = False,
    choose: Callable[[Sequence[str]], str] = first_of,
) -> list[Message]:
    """Write the conversation for one sample.

    Args:
        task_name: one of `TASKS`.
        templates: complete wording, as `merge_prompt_templates` returns it.
        text: expression, question or message; a list for several of them in turns.
        labels: categories, as a list or as `{"thing": [...], "stuff": [...]}`.
        num_regions: number of prompted objects. In a chat they stand in a line before the user's last message.
        history: finished turns that come before, see `history_messages`.
        has_image: puts the image's placeholder and a newline before the first question.
        prefill: appends the fixed answer to the last question too.
        choose: picks a sentence from its variants, `random.choice` for training.

    Returns:
        Messages with string content; the last is the assistant's when `prefill`, else the user's.

    Raises:
        ValueError: an argument is missing, empty, or not one that the task takes.
    """
    task = get_task(task_name)
    _check_arguments(task_name, text=text, labels=labels, regions=num_regions or None)
    messages = history_messages(history or [])
    if task_name == "chat":
        messages = _chat_turns(messages, text, num_regions)
    else:
        _check_turn_follows(messages, "a finished answer")
        messages += _task_turns(
            task_name, _list_phrases(task, text, labels, num_regions), templates[task_name], choose, prefill
        )
    return _with_image(messages) if has_image else messages


def _check_arguments(task_name: str, **arguments: Any) -> None:
    """Compare the arguments that name phrases with what the task takes; a chat may do without text and regions."""
    task = get_task(task_name)
    expected = "text" if task_name == "chat" else task.phrases_from
    for name, value in arguments.items():
        if name == "regions" and task.may_mark_regions:
            continue
        if value is not None and name != expected:
            raise ValueError(f"`{name}`: task {task_name!r} does not take this argument; leave it out")
        if value is None and name == expected and task_name != "chat":
            raise ValueError(f"`{name}`: task {task_name!r} needs this argument")


def _list_phrases(task: Task, text: Any, labels: Any, num_regions: int) -> list[str]:
    if task.phrases_from == "labels":
        return [text_phrase(label) for label in list_labels(labels)]
    if task.phrases_from == "text":
        return [text_phrase(item) for item in _list_texts(text)]
    return [region_phrase()] * num_regions


def _task_turns(
    task_name: str,
    phrases: list[str],
    templates: Mapping[str, Sequence[str]],
    choose: Callable[[Sequence[str]], str],
    prefill: bool,
) -> list[Message]:
    groups = [[phrase] for phrase in phrases] if get_task(task_name).turn_per_phrase else [phrases]
    if len(groups) > 1 and not prefill:
        raise ValueError(
            f"task {task_name!r} with {len(groups)} phrases in one sample needs fixed answers between them: set `prefill_answer=True`"
            " or give each phrase as a sample of its own"
        )
    messages = []
    for group in groups:
        question = choose(templates["questions"]).replace("{phrases}", ", ".join(group))
        messages.append({"role": "user", "content": question})
        if prefill:
            messages.append({"role": "assistant", "content": choose(templates["answers"])})
    return messages


def _chat_turns(history: list[Message], text: Any, num_regions: int) -> list[Message]:
    if text is None:
        if not history or history[-1]["role"] != "user":
            raise ValueError(
                "`text`: task 'chat' needs this argument, or a `conversation` that ends with a user's message"
            )
        *finished, question = history
    else:
        if not isinstance(text, str):
            raise ValueError(
                f"`text`: task 'chat' takes one string, got {text!r}; earlier turns go into `conversation`"
            )
        _check_turn_follows(history, "a finished answer, or leave `text` out")
        finished, question = history, {"role": "user", "content": plain_text(_checked_text(text, "text"))}
    marks = f"{', '.join([REGION_TOKEN] * num_regions)}\n" if num_regions else ""
    return [*finished, {"role": "user", "content": marks + question["content"]}]


def _check_turn_follows(history: list[Message], remedy: str) -> None:
    if history and history[-1]["role"] == "user":
        raise ValueError(f"`conversation` ends with a user's message: end it with {remedy}")


def _with_image(messages: list[Message]) -> list[Message]:
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    with_image = {"role": "user", "content": f"{IMAGE_TOKEN}\n{messages[first]['content']}"}
    return [*messages[:first], with_image, *messages[first + 1 :]]


def list_labels(labels: Mapping[str, Sequence[str]] | Sequence[str]) -> list[str]:
    """Flatten labels to the order of their phrases: things first, then stuff.

    Raises:
        ValueError: no label, an empty label, labels that stand there twice, keys other than "thing" and "stuff".
    """
    if isinstance(labels, Mapping):
        if unknown := set(labels) - {"thing", "stuff"}:
            raise ValueError(f"`labels`: unknown keys {sorted(unknown)}; the keys are 'thing' and 'stuff'")
        names = [name for kind in ("thing", "stuff") for name in _label_list(labels.get(kind), f"labels[{kind!r}]")]
    else:
        names = _label_list(labels, "labels")
    if not names:
        raise ValueError("`labels` is empty: give at least one label")
    names = [_checked_text(name, f"labels[{i}]") for i, name in enumerate(names)]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"`labels`: {duplicates} stand there more than once; give each label once")
    return names


def _label_list(labels: Sequence[str] | None, name: str) -> list[str]:
    if labels is None:
        return []
    if not isinstance(labels, (list, tuple)):
        raise ValueError(f"`{name}`: expected a list of labels, got {labels!r}")
    return list(labels)


def count_segments(conversation: Sequence[Mapping[str, Any]] | None) -> int:
    """How many `<SEG>` tokens the finished turns of a conversation hold."""
    contents = [turn["content"] for turn in conversation or [] if not isinstance(turn["content"], str)]
    return sum(part["type"] == "segment" for parts in contents for part in parts)


def _list_texts(text: str | Sequence[str]) -> list[str]:
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("`text` is empty: give at least one expression")
    return [_checked_text(item, "text" if isinstance(text, str) else f"text[{i}]") for i, item in enumerate(texts)]


def _checked_text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"`{name}`: expected a string, got {text!r}")
    if not text.strip():
        raise ValueError(f"`{name}` is empty: give some text")
    return text.strip()


def history_messages(conversation: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Read a conversation so far, in transformers' messages format.

    Content is a string or a list of parts `{"type": "text" | "phrase", "text": ...}`, `{"type": "segment"}` (a
    `<SEG>`) and `{"type": "image"}` (only in the first question, where the image stands anyway). All text is taken
    literally. A phrase is tagged only if a segment follows in its turn: it would count for a later `<SEG>` otherwise.

    Raises:
        ValueError: unknown roles or parts, roles that do not alternate beginning with the user's, or a segment without
            a phrase.
    """
    if not isinstance(conversation, (list, tuple)) or not all(isinstance(item, Mapping) for item in conversation):
        raise ValueError(
            f"`conversation`: expected a list of messages with 'role' and 'content', got {conversation!r}"
        )
    roles = [message.get("role") for message in conversation]
    num_system = int(roles[:1] == ["system"])
    expected = ["system"] * num_system + [("user", "assistant")[i % 2] for i in range(len(roles) - num_system)]
    if roles != expected:
        raise ValueError(f"`conversation`: the roles {roles} must alternate as {expected}")
    contents = [_content_parts(message.get("content"), f"conversation[{i}]") for i, message in enumerate(conversation)]
    for i, parts in enumerate(contents):
        if i != num_system and any(part["type"] == "image" for part in parts):
            raise ValueError(f"`conversation[{i}]`: the image stands in the first question only")
    turn_starts = [*range(num_system), *range(num_system, len(roles), 2), len(roles)]
    texts = []
    for start, end in pairwise(turn_starts):
        texts += _render_turn(contents[start:end], f"conversation[{end - 1}]")
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def _content_parts(content: Any, name: str) -> list[Mapping[str, str]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ValueError(f"`{name}['content']`: expected a string or a list of parts, got {content!r}")
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "phrase", "segment", "image"):
            raise ValueError(f"`{name}['content']`: the part {part!r} must be of type text, phrase, segment or image")
        if part["type"] in ("text", "phrase") and not isinstance(part.get("text"), str):
            raise ValueError(f"`{name}['content']`: the part {part!r} needs a string 'text'")
    return list(parts)


def _render_turn(contents: Sequence[Sequence[Mapping[str, str]]], name: str) -> list[str]:
    """Write a question and its answer (or one of them), each as a string."""
    segments_to_come = sum(part["type"] == "segment" for parts in contents for part in parts)
    has_phrase = False
    texts = []
    for parts in contents:
        rendered = []
        for part in parts:
            if part["type"] == "segment":
                if not has_phrase:
                    raise ValueError(f"`{name}`: a segment stands there without a phrase before it")
                rendered.append(SEG_TOKEN)
                segments_to_come, has_phrase = segments_to_come - 1, False
            elif part["type"] == "phrase" and segments_to_come > 0:
                rendered.append(text_phrase(part["text"]))
                has_phrase = True
            elif part["type"] != "image":
                rendered.append(plain_text(part["text"]))
        texts.append("".join(rendered))
    return texts
