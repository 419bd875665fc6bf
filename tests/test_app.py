"""The page: what its handlers do, and a visit in headless Chromium."""

import importlib.util
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="the page needs gradio")

import app  # noqa: E402
from processing_xsam import AnySegmentationPipeline  # noqa: E402
from random_checkpoint import random_model, random_processor  # noqa: E402
from xsam_training.data.shape_world.expressions import Description, Related  # noqa: E402
from xsam_training.data.shape_world.reader import ShapeWorldReader  # noqa: E402
from xsam_training.data.shape_world.scene import draw_scene  # noqa: E402

PHOTO = Path(__file__).resolve().parents[1] / "examples" / "coffee.png"
CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
VALUES = {
    "text": "the cup",
    "things": "cup, spoon,",
    "stuff": " table ",
    "subtask": "semantic",
    "click_mode": app.POINT_MODE,
    "threshold": 0.1,
    "mask_threshold": 0.4,
    "overlap_mask_area_threshold": 0.1,
    "score_threshold": 0.0,
    "multi_target": False,
    "prefill_answer": True,
    "max_new_tokens": 8,
}
CLICKS = [(300, 200), (470, 240)]


@pytest.fixture(scope="module")
def segment() -> Any:
    """Random weights, which always find something."""
    processor = random_processor()
    return AnySegmentationPipeline(model=random_model(processor), processor=processor)


@pytest.fixture(scope="module")
def photo(segment) -> app.Photo:
    image = Image.open(PHOTO).convert("RGB")
    return app.Photo(image, segment.encode_image(image))


@pytest.mark.parametrize(
    ("task", "shown"),
    [
        ("generic", {"things", "stuff", "subtask", "threshold", "overlap_mask_area_threshold"}),
        ("open-vocabulary", {"things", "stuff", "subtask", "threshold", "overlap_mask_area_threshold"}),
        ("referring", {"text", "score_threshold", "multi_target"}),
        ("reasoning", {"text", "score_threshold", "multi_target", "prefill_answer", "max_new_tokens"}),
        ("grounded-conversation", {"max_new_tokens"}),
        ("interactive", {"click_mode", "clear_clicks", "threshold"}),
        ("visual-grounded", {"click_mode", "clear_clicks", "threshold"}),
        ("chat", {"text", "max_new_tokens", "click_mode", "clear_clicks"}),
    ],
)
def test_a_task_shows_its_inputs(task, shown):
    shown = shown | {"mask_threshold"}
    assert app.fields_of(task) == shown
    names = [*VALUES, "clear_clicks"]
    for suggestions in (app.photo_suggestions(), app.shape_suggestions()):
        help_update, *updates = app._show_task(task, names, suggestions.placeholders)
        assert help_update["info"] == app.TASK_HELP[task]
        assert {name for name, update in zip(names, updates, strict=True) if update["visible"]} == shown
        assert updates[names.index("text")].get("placeholder") == suggestions.placeholders.get(task)


def test_the_page_has_an_input_for_each_name(segment):
    with gr.Blocks():
        fields = app._task_inputs(app.photo_suggestions())
    assert set(fields) == set().union(*map(app.fields_of, app.TASKS))
    assert {name for name, field in fields.items() if field.visible} == app.fields_of("referring")
    assert [fields[name].value for name in ("text", "things", "stuff")] == ["the cup", "cup, spoon, saucer", "table"]


def test_only_the_small_model_is_announced(segment):
    shapes = app.shape_suggestions()
    notices = [
        [block.value for block in app.build_app(segment, suggestions).blocks.values() if block.elem_id == "notice"]
        for suggestions in (shapes, app.photo_suggestions())
    ]
    assert notices == [[shapes.notice], []] and "knows only a generated world" in shapes.notice


def test_suggestions_fit_the_scene():
    """What is named and asked is there; the categories are those of the generated world."""
    shapes = app.shape_suggestions()
    reader = ShapeWorldReader(tasks=["generic"], split="test")
    scene = draw_scene(reader.world, app.SCENE)
    assert shapes.examples == [scene.image, str(PHOTO)]
    (generic,) = reader[app.SCENE].turns
    names = [*app.split_names(shapes.things), *app.split_names(shapes.stuff)]
    assert tuple(names) == generic.labels
    for words, meant in (
        (shapes.text, Description("ring", texture="dotted")),
        (shapes.placeholders["referring"], Related(Description("ring"), "above", Description("square"))),
    ):
        assert meant.text == words and meant.matches(scene.things).target is not None
    assert [thing.kind for thing in scene.things].count("cross") == 1


def test_arguments_are_those_of_the_task():
    assert app.call_arguments("generic", VALUES, CLICKS) == {
        "task": "generic",
        "labels": {"thing": ["cup", "spoon"], "stuff": ["table"]},
        "subtask": "semantic",
        "threshold": 0.1,
        "mask_threshold": 0.4,
        "overlap_mask_area_threshold": 0.1,
    }
    assert app.call_arguments("referring", VALUES, CLICKS) == {
        "task": "referring",
        "text": "the cup",
        "mask_threshold": 0.4,
        "score_threshold": None,
        "multi_target": False,
    }
    assert app.call_arguments("referring", {**VALUES, "score_threshold": 0.3}, [])["score_threshold"] == 0.3
    chat = {"task": "chat", "text": "the cup", "mask_threshold": 0.4, "max_new_tokens": 8}
    assert app.call_arguments("chat", VALUES, []) == chat
    assert app.call_arguments("chat", VALUES, CLICKS) == chat | {"points": [[300, 200], [470, 240]]}


def test_clicks_are_points_or_corners():
    assert app.visual_prompts(CLICKS, app.POINT_MODE) == {"points": [[300, 200], [470, 240]]}
    # In any order of the corners; the third click waits for its opposite corner.
    corners = [(470, 60), (150, 240), (10, 10)]
    assert app.visual_prompts(corners, app.BOX_MODE) == {"boxes": [[150, 60, 470, 240]]}
    assert app.visual_prompts([], app.BOX_MODE) == {"boxes": []}


@pytest.mark.parametrize("mode", [app.POINT_MODE, app.BOX_MODE])
def test_clicks_are_drawn_on_a_copy(photo, mode):
    before = np.asarray(photo.image).copy()
    clicks = [(470, 240), (300, 200)]
    changed = (np.asarray(app.draw_clicks(photo, clicks, mode)) != before).any(-1)
    assert changed[240, 465:476].any() and changed[200, 295:306].any()
    # A box is an outline.
    assert changed[198:203, 380].any() == (mode == app.BOX_MODE)
    assert not changed[220, 380] and not changed[:150].any()
    assert (np.asarray(photo.image) == before).all()


def test_a_click_counts_only_where_the_task_takes_one(photo):
    event = gr.SelectData(None, {"index": [600, 20], "value": None})
    picture, clicks = app._add_click(photo, [(1, 2)], "interactive", app.POINT_MODE, event)
    assert clicks == [(1, 2), (599, 20)] and picture.size == photo.image.size
    for owner, task in ((photo, "referring"), (None, "interactive")):
        assert app._add_click(owner, [(1, 2)], task, app.POINT_MODE, event)[1] == [(1, 2)]
    assert app._clear_clicks(photo) == (photo.image, []) and app._clear_clicks(None) == (None, [])
    assert app._start_photo(photo.image) == (app.Photo(photo.image), [], gr.skip())
    assert app._start_photo(None) == (None, [], gr.skip())


def test_a_small_image_is_shown_enlarged():
    """Three pixels for one; a click is in pixels of the image, and its mark in the middle of what is shown of the pixel."""
    image = Image.new("RGB", (128, 128))
    photo, clicks, shown = app._start_photo(image)
    assert photo.image is image and clicks == [] and shown.size == (384, 384)
    event = gr.SelectData(None, {"index": [287, 383], "value": None})
    marked, clicks = app._add_click(photo, [], "interactive", app.POINT_MODE, event)
    assert clicks == [(95, 127)] and marked.size == (384, 384)
    rows, columns = np.nonzero(np.asarray(marked).any(-1))
    assert columns.mean() == pytest.approx(3 * 95 + 1, abs=0.5) and rows.max() == 383
    assert app._clear_clicks(photo)[0].size == (384, 384)


@pytest.mark.parametrize("task", app.TASKS)
def test_the_table_is_what_the_pipeline_says(segment, photo, task):
    kept, overlay, rows, text, line = app.run_segmentation(segment, photo, CLICKS, task, VALUES)
    result = segment(photo.image, **app.call_arguments(task, VALUES, CLICKS))
    segments, answer = (result["segments"], result["text"]) if isinstance(result, dict) else (result, "")
    assert kept is photo and text == answer
    assert overlay.width >= photo.image.width and overlay.height >= photo.image.height
    assert line.startswith(f"{len(segments)} segment" if segments else "No segment")
    assert len(rows) == len(segments) and (rows or task in ("grounded-conversation", "chat"))
    for row, found in zip(rows, segments, strict=True):
        label, score, box, area = row
        assert label == found["label"]
        assert score == "" if found["score"] is None else float(score) == pytest.approx(found["score"], abs=2e-3)
        assert [int(side) for side in box.split(", ")] == list(found["box"].values())
        assert area == pytest.approx((np.asarray(found["mask"]) > 127).sum(), rel=0.01)


def test_an_image_is_encoded_once(segment, photo, monkeypatch):
    images = []
    encode_image = segment.encode_image
    monkeypatch.setattr(segment, "encode_image", lambda image: images.append(image) or encode_image(image))
    first = app.run_segmentation(segment, app.Photo(photo.image), [], "referring", VALUES)
    second = app.run_segmentation(segment, first[0], [], "referring", VALUES)
    assert images == [photo.image]
    assert first[2] == second[2] and second[0] is first[0]


def test_chat_goes_without_an_image(segment):
    kept, overlay, rows, text, _ = app.run_segmentation(segment, None, [], "chat", VALUES)
    assert kept is None and overlay is None and rows == [] and isinstance(text, str)


@pytest.mark.parametrize(
    ("task", "clicks", "changed", "message"),
    [
        ("referring", [], {"text": "  "}, "`text` is empty"),
        ("generic", [], {"things": "cup, cup"}, "more than once"),
        ("generic", [], {"things": "", "stuff": ","}, "`labels` is empty"),
        ("generic", [], {"things": "&lt;p>, &lt;p>"}, "&amp;lt;p&gt;"),
        ("interactive", [], {}, "`points`, `boxes`"),
        ("visual-grounded", CLICKS[:1], {"click_mode": app.BOX_MODE}, "`points`, `boxes`"),
    ],
)
def test_errors_of_the_pipeline_reach_the_visitor(segment, photo, task, clicks, changed, message):
    with pytest.raises(gr.Error) as caught:
        app.run_segmentation(segment, photo, clicks, task, VALUES | changed)
    assert message in caught.value.message


def test_a_task_without_its_image_is_an_error_too(segment):
    with pytest.raises(gr.Error) as caught:
        app.run_segmentation(segment, None, [], "referring", VALUES)
    assert "needs an image" in caught.value.message


@pytest.fixture
def url(segment, monkeypatch) -> Iterator[str]:
    """The page, served on a free port."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = app.build_app(segment, app.shape_suggestions())
    try:
        yield page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            **app.launch_options(),
        )[1]
    finally:
        page.close(verbose=False)


@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="a visit needs playwright")
@pytest.mark.skipif(CHROMIUM is None, reason="a visit needs chromium")
def test_a_visit(url):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 1100})
            page.set_default_timeout(20_000)
            requests: list[str] = []
            page.on("request", lambda request: requests.append(request.url))
            page.goto(url)
            visit_referring(page)
            visit_interactive(page)
            visit_example(page)
            assert all(request.startswith((url, "data:", "blob:")) for request in requests)
        finally:
            browser.close()


def visit_referring(page) -> None:
    """Upload the photo, type an expression; without the photo an error is shown."""
    assert "coloured shapes" in page.inner_text("#notice")
    page.get_by_label("Text", exact=True).fill("the cup")
    page.click("#submit")
    page.get_by_text("task 'referring' needs an image").wait_for()
    page.set_input_files("#canvas input[type=file]", PHOTO)
    page.wait_for_selector("#canvas img")
    page.wait_for_timeout(1000)  # The server keeps the photo after the browser shows it.
    page.click("#submit")
    page.wait_for_selector("#overlay img")
    page.wait_for_selector("#summary:has-text('1 segment in')")
    cells = page.locator("#table").get_by_role("gridcell")
    cells.first.wait_for()
    label, score, box, area = cells.all_inner_texts()
    assert label.strip() == "the cup" and 0 <= float(score) <= 1 and len(box.split(",")) == 4 and int(area) > 0


def visit_interactive(page) -> None:
    """Change the task, click twice on the photo, which then shows the marks, and clear them."""
    page.click("#task input")
    page.get_by_role("option", name="interactive", exact=True).click()
    page.get_by_label(app.BOX_MODE).wait_for()
    page.get_by_label("Text", exact=True).wait_for(state="hidden")
    page.wait_for_timeout(500)  # The photo is shown anew, without marks.
    for count, (x, y) in enumerate([(200, 150), (300, 180)], start=1):
        shown = page.get_attribute("#canvas img", "src")
        page.locator("#canvas img").click(position={"x": x, "y": y})
        page.wait_for_function("shown => document.querySelector('#canvas img').src !== shown", arg=shown)
        page.click("#submit")
        page.wait_for_selector(f"#summary:has-text('{count} segment')")
        page.locator("#table").get_by_role("gridcell", name=f"region {count - 1}").wait_for()
    page.get_by_role("button", name="Clear marks").click()
    page.wait_for_timeout(500)
    page.click("#submit")
    page.get_by_text("task 'interactive' needs one of these arguments").wait_for()


def visit_example(page) -> None:
    """A click on the scene shows it enlarged, and what is found in it has its pixels."""
    page.locator(".gallery-item").first.click()
    page.wait_for_function("() => document.querySelector('#canvas img').naturalWidth === 384")
    page.wait_for_timeout(500)
    page.locator("#canvas img").click()
    page.wait_for_timeout(500)
    page.click("#submit")
    page.wait_for_function("() => document.querySelector('#overlay img')?.naturalHeight === 384")
    box = page.locator("#table").get_by_role("gridcell").nth(2).inner_text()
    assert all(int(side) <= 128 for side in box.split(","))
