"""Tasks as conversations: phrases, wording, history, and what is refused."""

from __future__ import annotations

import random

import pytest

from processing_xsam.prompts_xsam import (
    DEFAULT_PROMPT_TEMPLATES,
    PLAIN_TEXT_MARK,
    TASKS,
    build_conversation,
    get_task,
    history_messages,
    list_labels,
    merge_prompt_templates,
    plain_text,
    should_prefill,
)

TEMPLATES = {
    name: {"questions": ["Q {phrases}" if TASKS[name].phrases_from else "Q"], "answers": ["A <SEG>."]}
    for name in DEFAULT_PROMPT_TEMPLATES
}


def written(task: str, **kwargs) -> list[tuple[str, str]]:
    """(role, content) of a task's messages, without marks and without image."""
    messages = build_conversation(task, templates=TEMPLATES, **{"has_image": False, **kwargs})
    return readable(messages)


def readable(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].replace(PLAIN_TEXT_MARK, "")) for message in messages]


# --- structure of each task ---


@pytest.mark.parametrize("task", ["generic", "open-vocabulary"])
def test_labels_share_one_question(task):
    expected = [("user", "Q <p>car</p>, <p>sky</p>"), ("assistant", "A <SEG>.")]
    assert written(task, labels=["car", "sky"], prefill=True) == expected


def test_things_come_before_stuff():
    assert list_labels({"stuff": ["sky"], "thing": ["car", "dog"]}) == ["car", "dog", "sky"]
    assert written("generic", labels={"stuff": ["sky"], "thing": ["car"]}) == [("user", "Q <p>car</p>, <p>sky</p>")]


@pytest.mark.parametrize("task", ["referring", "reasoning"])
def test_texts_are_turns(task):
    assert written(task, text="the man") == [("user", "Q <p>the man</p>")]
    assert written(task, text=["the man", "a dog"], prefill=True) == [
        ("user", "Q <p>the man</p>"),
        ("assistant", "A <SEG>."),
        ("user", "Q <p>a dog</p>"),
        ("assistant", "A <SEG>."),
    ]


def test_prompted_objects_are_turns_or_share_a_question():
    assert (
        written("interactive", num_regions=2, prefill=True)
        == [
            ("user", "Q <p><region></p>"),
            ("assistant", "A <SEG>."),
        ]
        * 2
    )
    assert written("visual-grounded", num_regions=2) == [("user", "Q <p><region></p>, <p><region></p>")]


def test_tasks_without_phrases():
    assert written("grounded-conversation") == [("user", "Q")]
    assert written("chat", text="Hello {phrases}") == [("user", "Hello {phrases}")]


def test_image_stands_first():
    (message,) = build_conversation("referring", templates=TEMPLATES, text="x", has_image=True)
    assert message["content"].startswith("<image>\nQ ")


def test_long_label_list():
    labels = [f"label {i}" for i in range(1000)]
    ((_, question),) = written("generic", labels=labels)
    assert question == "Q " + ", ".join(f"<p>{label}</p>" for label in labels)


# --- wording ---


def test_default_wording_is_complete():
    assert merge_prompt_templates(None) == DEFAULT_PROMPT_TEMPLATES
    assert set(DEFAULT_PROMPT_TEMPLATES) == set(TASKS) - {"chat"}
    for name, sentences in DEFAULT_PROMPT_TEMPLATES.items():
        assert len(set(sentences["questions"])) >= 3
        assert len(set(sentences["answers"])) >= 3 or not TASKS[name].has_fixed_answer


def test_wording_is_the_first_unless_chosen():
    questions = {
        build_conversation(
            "referring", templates=DEFAULT_PROMPT_TEMPLATES, text="x", choose=random.Random(seed).choice
        )[0]["content"]
        for seed in range(30)
    }
    assert len(questions) == 3
    (default,) = readable(
        build_conversation("referring", templates=DEFAULT_PROMPT_TEMPLATES, text="x", has_image=False)
    )
    assert default[1] == DEFAULT_PROMPT_TEMPLATES["referring"]["questions"][0].replace("{phrases}", "<p>x</p>")


def test_own_wording_replaces_that_of_its_task():
    own = {"referring": {"questions": ["Find {phrases}"], "answers": ["<SEG>"]}}
    merged = merge_prompt_templates(own)
    assert merged["referring"] == own["referring"]
    assert merged["generic"] == DEFAULT_PROMPT_TEMPLATES["generic"]


@pytest.mark.parametrize(
    "templates, message",
    [
        ({"reffering": {"questions": ["{phrases}"], "answers": ["<SEG>"]}}, "no wording for 'reffering'.*referring"),
        ({"chat": {"questions": ["{phrases}"], "answers": ["<SEG>"]}}, "no wording for 'chat'"),
        ({"referring": {"questions": ["{phrases}"]}}, "expected lists 'questions' and 'answers'"),
        ({"referring": {"questions": [], "answers": ["<SEG>"]}}, "expected lists"),
        ({"referring": {"questions": ["Find it"], "answers": ["<SEG>"]}}, r"'Find it' must contain '\{phrases\}' 1"),
        ({"referring": {"questions": ["{phrases}"], "answers": ["Here"]}}, "'Here' must contain '<SEG>' 1 times"),
        ({"referring": {"questions": ["{phrases}"], "answers": []}}, r"\['answers'\]` is empty"),
        ({"referring": {"questions": ["<p>{phrases}"], "answers": ["<SEG>"]}}, "no other placeholder"),
        ({"grounded-conversation": {"questions": ["{phrases}"], "answers": []}}, "must contain '{phrases}' 0 times"),
    ],
)
def test_bad_wording(templates, message):
    with pytest.raises(ValueError, match=message):
        merge_prompt_templates(templates)


# --- prefilled answers ---


def test_prefill_by_default():
    prefilled = {name for name in TASKS if should_prefill(name, None)}
    assert prefilled == {"generic", "open-vocabulary", "referring", "interactive", "visual-grounded"}
    assert should_prefill("reasoning", True) and not should_prefill("generic", False)


@pytest.mark.parametrize("task", ["chat", "grounded-conversation"])
def test_generated_answers_are_not_prefilled(task):
    with pytest.raises(ValueError, match=f"`prefill_answer`: the answer of task '{task}' has to be generated"):
        should_prefill(task, True)


def test_several_turns_need_their_answers():
    with pytest.raises(ValueError, match=r"'reasoning' with 2 phrases.*prefill_answer=True"):
        written("reasoning", text=["a", "b"])


# --- history ---


def test_history_stands_before_the_question():
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]}]
    messages = build_conversation("chat", templates=TEMPLATES, text="And?", history=history)
    assert readable(messages) == [("user", "<image>\nHi"), ("assistant", "Yes?"), ("user", "And?")]


def test_system_message_stands_before_the_image():
    history = [{"role": "system", "content": "Be brief."}]
    messages = build_conversation("referring", templates=TEMPLATES, text="x", history=history)
    assert readable(messages) == [("system", "Be brief."), ("user", "<image>\nQ <p>x</p>")]


def test_chat_may_end_the_conversation_itself():
    history = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    assert written("chat", history=history) == [("user", "Hi")]


def test_marked_regions_stand_before_the_message_that_is_about_them():
    assert written("chat", text="Why?", num_regions=2) == [("user", "<region>, <region>\nWhy?")]
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    messages = build_conversation("chat", templates=TEMPLATES, text="And this?", num_regions=1, history=history)
    assert readable(messages) == [("user", "<image>\nHi"), ("assistant", "Yes?"), ("user", "<region>\nAnd this?")]
    messages = build_conversation("chat", templates=TEMPLATES, num_regions=1, history=history[:1])
    assert readable(messages) == [("user", "<image>\n<region>\nHi")]


def phrase(text: str) -> dict[str, str]:
    return {"type": "phrase", "text": text}


def test_phrases_of_history_are_tagged_where_a_segment_follows():
    history = [
        {"role": "user", "content": [phrase("a")]},
        {"role": "assistant", "content": [phrase("b"), {"type": "text", "text": " and "}, phrase("c")]},
        {"role": "user", "content": [phrase("d")]},
        {"role": "assistant", "content": [phrase("e"), {"type": "segment"}, phrase("f")]},
    ]
    assert [text for _, text in readable(history_messages(history))] == ["a", "b and c", "<p>d</p>", "<p>e</p><SEG>f"]


def test_history_does_not_change_its_argument():
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    copy = [dict(message) for message in history]
    build_conversation("chat", templates=TEMPLATES, text="x", history=history)
    assert history == copy


USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}


@pytest.mark.parametrize(
    "history, message",
    [
        ("Hi", "expected a list of messages"),
        ({"role": "user"}, "expected a list of messages"),
        ([ASSISTANT], r"the roles \['assistant'\] must alternate as \['user'\]"),
        ([USER, USER], "must alternate"),
        ([{"role": "tool", "content": "x"}], "must alternate"),
        ([USER], "ends with a user's message"),
        ([{"role": "user", "content": None}, ASSISTANT], r"`conversation\[0\]\['content'\]`: expected a string"),
        ([{"role": "user", "content": [{"type": "video"}]}, ASSISTANT], "must be of type text, phrase"),
        ([{"role": "user", "content": [{"type": "text"}]}, ASSISTANT], "needs a string 'text'"),
        ([USER, {"role": "assistant", "content": [{"type": "segment"}]}], "a segment stands there without a phrase"),
        (
            [USER, {"role": "assistant", "content": [{"type": "image"}]}],
            r"`conversation\[1\]`: the image stands in the",
        ),
    ],
)
def test_bad_history(history, message):
    with pytest.raises(ValueError, match=message):
        written("chat", text="x", history=history)


# --- arguments ---


def test_unknown_task_lists_the_tasks():
    with pytest.raises(ValueError, match=r"unknown task 'refering'; the tasks are generic, .*referring.*, chat"):
        get_task("refering")


@pytest.mark.parametrize(
    "task, arguments, message",
    [
        ("generic", {}, "`labels`: task 'generic' needs this argument"),
        ("generic", {"labels": ["a"], "text": "x"}, "`text`: task 'generic' does not take this argument"),
        ("generic", {"labels": []}, "`labels` is empty"),
        ("generic", {"labels": {}}, "`labels` is empty"),
        ("generic", {"labels": {"thing": [], "stuff": []}}, "`labels` is empty"),
        ("generic", {"labels": {"things": ["a"]}}, r"unknown keys \['things'\]; the keys are 'thing' and 'stuff'"),
        ("generic", {"labels": "car"}, "expected a list of labels, got 'car'"),
        ("generic", {"labels": ["a", " "]}, r"`labels\[1\]` is empty"),
        ("generic", {"labels": ["a", 3]}, r"`labels\[1\]`: expected a string, got 3"),
        ("generic", {"labels": ["a", "b", "a ", "b", "c"]}, r"`labels`: \['a', 'b'\] stand there more than once"),
        ("generic", {"labels": {"thing": ["a"], "stuff": ["a"]}}, r"\['a'\] stand there more than once"),
        ("referring", {}, "`text`: task 'referring' needs this argument"),
        ("referring", {"text": ""}, "`text` is empty"),
        ("referring", {"text": []}, "`text` is empty"),
        ("referring", {"text": ["a", " "]}, r"`text\[1\]` is empty"),
        ("referring", {"text": "a", "labels": ["a"]}, "`labels`: task 'referring' does not take"),
        ("chat", {}, "`text`: task 'chat' needs this argument, or a `conversation`"),
        ("chat", {"text": " "}, "`text` is empty"),
        ("chat", {"text": ["a", "b"]}, "task 'chat' takes one string"),
        ("grounded-conversation", {"text": "a"}, "`text`: task 'grounded-conversation' does not take"),
    ],
)
def test_bad_arguments(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        written(task, **arguments)


def test_plain_text_spells_no_special_token_whatever_surrounds_it():
    for user_text in ("<SEG>", "SEG", "<SE", "", f"<S{PLAIN_TEXT_MARK}EG>"):
        prompt = f"<{plain_text(user_text)}>G>"
        assert "<SEG>" not in prompt
