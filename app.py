"""
All tasks of X-SAM in the browser.

    python app.py [--model PATH_OR_HUB_ID] [--port N]

Without a model it starts with the small one of the package, which knows only a generated world of coloured shapes.
"""

from __future__ import annotations

import argparse
import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw
from transformers import Pipeline, pipeline

import modeling_xsam  # noqa: F401  registers the model
import processing_xsam  # noqa: F401  registers the processor and the pipeline
from processing_xsam.enlarge_xsam import enlarge, enlargement
from processing_xsam.prompts_xsam import TASKS
from processing_xsam.visualization_xsam import visualize
from xsam_training.data.shape_world.reader import ShapeWorldReader

PHOTO = Path(__file__).resolve().parent / "examples" / "coffee.png"
# A scene of the generated world that training does not have, with what `shape_suggestions` names.
SCENE = 47
TABLE_HEADERS = ["label", "score", "box (x0, y0, x1, y1)", "area (pixels)"]
POINT_MODE, BOX_MODE = "Point", "Box"
INTRODUCTION = """# X-SAM
From segment anything to any segmentation: choose a task, say or click what you look for, press *Segment*."""
TASK_HELP = {
    "generic": "All things and stuff of a list of categories.",
    "open-vocabulary": "Whatever the names you give fit.",
    "referring": "What an expression describes.",
    "reasoning": "What answers a question.",
    "grounded-conversation": "A caption, and a mask for each phrase in it.",
    "interactive": "The object under each point or box: click on the image.",
    "visual-grounded": "Everything that looks like what you mark: click on the image.",
    "chat": "An answer in words, about the image or what is clicked on in it; both may be left out.",
}
# The inputs that a task uses, by where its phrases come from.
FIELDS_OF_SOURCE = {
    "labels": ("things", "stuff", "subtask", "threshold", "overlap_mask_area_threshold"),
    "text": ("text", "score_threshold", "multi_target"),
    "regions": ("threshold",),
    None: (),
}
OPTION_NAMES = (
    "subtask",
    "threshold",
    "mask_threshold",
    "overlap_mask_area_threshold",
    "score_threshold",
    "multi_target",
    "prefill_answer",
    "max_new_tokens",
)

Click = tuple[int, int]


@dataclass(frozen=True)
class Suggestions:
    """
    What the page offers to ask a model, and says of it.

    Args:
        text: that stands there at the start, for referring.
        placeholders: of the text, by task.
        things, stuff: categories, comma-separated.
        examples: images to click on, files or RGB.
        notice: Markdown to be shown at the top.
    """

    text: str
    placeholders: Mapping[str, str]
    things: str
    stuff: str
    examples: Sequence[str | Image.Image]
    notice: str = ""


def photo_suggestions() -> Suggestions:
    """For a model that knows the world."""
    return Suggestions(
        text="the cup",
        placeholders={
            "referring": "the cup on the saucer",
            "reasoning": "What can one drink from?",
            "chat": "What is this?",
        },
        things="cup, spoon, saucer",
        stuff="table",
        examples=[str(PHOTO)],
    )


def shape_suggestions() -> Suggestions:
    """For the small model of the package."""
    scene = ShapeWorldReader(tasks=["grounded-conversation"], split="test")[SCENE].image
    return Suggestions(
        text="the dotted ring",
        placeholders={
            "referring": "the ring above the square",
            "reasoning": "Which shape looks like a plus sign?",
            "chat": "How many rings are there?",
        },
        things="circle, square, triangle, star, cross, ring",
        stuff="sky, clouds, cliffs, grass, sand, water",
        examples=[scene, str(PHOTO)],
        notice="**This small model knows only a generated world of coloured shapes, such as the first example. What it "
        "says of photographs means nothing.** Start `python app.py --model PATH_OR_HUB_ID` for another model.",
    )


@dataclass(frozen=True)
class Photo:
    """
    What a visitor uploaded.

    Args:
        image: without any marks.
        features: of the image; None until it is segmented for the first time.
    """

    image: Image.Image
    features: Any = None

    @property
    def shown(self) -> Image.Image:
        """As the page shows it: small ones enlarged, so that one can click on what is in them."""
        return enlarge(self.image)[0]

    @property
    def scale(self) -> int:
        """Pixels that are shown for one of the image."""
        return enlargement(self.image)


def fields_of(task_name: str) -> set[str]:
    """The names of the inputs that a task uses."""
    task = TASKS[task_name]
    fields = {"mask_threshold", *FIELDS_OF_SOURCE[task.phrases_from]}
    if task_name == "chat":
        fields.add("text")
    if task.takes_visual_prompts:
        fields |= {"click_mode", "clear_clicks"}
    if not task.prefill_by_default:
        fields.add("max_new_tokens")
        if task.has_fixed_answer:
            fields.add("prefill_answer")
    return fields


def split_names(names: str) -> list[str]:
    """A comma-separated list, without empty entries."""
    return [name.strip() for name in names.split(",") if name.strip()]


def visual_prompts(clicks: Sequence[Click], click_mode: str) -> dict[str, list[list[int]]]:
    """The pipeline's arguments for clicks: each is a point, or each two are opposite corners of a box."""
    if click_mode == POINT_MODE:
        return {"points": [list(click) for click in clicks]}
    corners = zip(clicks[::2], clicks[1::2], strict=False)
    return {"boxes": [[min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)] for (x0, y0), (x1, y1) in corners]}


def call_arguments(task_name: str, values: Mapping[str, Any], clicks: Sequence[Click]) -> dict[str, Any]:
    """
    The pipeline's arguments for what the page says.

    Args:
        task_name: one of `TASKS`.
        values: of the inputs, by name; those that the task does not use are ignored.
        clicks: in pixels of the image.
    """
    fields = fields_of(task_name)
    arguments = {"task": task_name, **{name: values[name] for name in OPTION_NAMES if name in fields}}
    if "text" in fields:
        arguments["text"] = values["text"]
    if "score_threshold" in fields:
        # At 0, as its slider says, there always is a segment.
        arguments["score_threshold"] = values["score_threshold"] or None
    if "things" in fields:
        arguments["labels"] = {"thing": split_names(values["things"]), "stuff": split_names(values["stuff"])}
    if "click_mode" in fields:
        prompts = visual_prompts(clicks, values["click_mode"])
        arguments.update({kind: marked for kind, marked in prompts.items() if marked})
    return arguments


def table_rows(segments: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Label, score, box and area of each segment."""
    return [
        [
            segment["label"],
            "" if segment["score"] is None else f"{segment['score']:.3f}",
            ", ".join(str(side) for side in segment["box"].values()),
            sum(segment["mask"].histogram()[128:]),
        ]
        for segment in segments
    ]


def draw_clicks(photo: Photo, clicks: Sequence[Click], click_mode: str) -> Image.Image:
    """The shown image with its points, or its boxes and the corner that waits for its opposite."""
    marked, scale = photo.shown, photo.scale
    draw = ImageDraw.Draw(marked)
    unit = max(marked.size) / 300
    clicks = [(x * scale + scale // 2, y * scale + scale // 2) for x, y in clicks]
    for x0, y0, x1, y1 in visual_prompts(clicks, BOX_MODE)["boxes"] if click_mode == BOX_MODE else []:
        draw.rectangle((x0, y0, x1, y1), outline="black", width=round(2 * unit) + 2)
        draw.rectangle((x0 + 1, y0 + 1, max(x0 + 1, x1 - 1), max(y0 + 1, y1 - 1)), outline="white", width=round(unit))
    points = clicks if click_mode == POINT_MODE else clicks[len(clicks) // 2 * 2 :]
    for x, y in points:
        for radius, color in ((4 * unit, "black"), (3.2 * unit, "white"), (2 * unit, "#ea580c")):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return marked


def run_segmentation(
    segment: Pipeline, photo: Photo | None, clicks: Sequence[Click], task_name: str, values: Mapping[str, Any]
) -> tuple[Photo | None, Image.Image | None, list[list[Any]], str, str]:
    """
    Ask the pipeline. The image is encoded at the first call and its features are kept for the next ones.

    Returns:
        The photo with its features, the overlay, the rows of the table, the answer in words, and a line that sums up.

    Raises:
        gr.Error: with the pipeline's message, if the arguments do not fit the task.
    """
    start = time.perf_counter()
    arguments = call_arguments(task_name, values, clicks)
    try:
        if photo is not None and photo.features is None:
            photo = Photo(photo.image, segment.encode_image(photo.image))
        image, features = (None, None) if photo is None else (photo.image, photo.features)
        result = segment(image, image_features=features, **arguments)
    except ValueError as error:
        # The page reads messages as HTML.
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
    segments, text = (result["segments"], result["text"]) if isinstance(result, dict) else (result, "")
    overlay = None if image is None else visualize(*enlarge(image, segments), text if segments and text else None)
    count = "No segment" if not segments else f"{len(segments)} segment{'s' * (len(segments) > 1)}"
    return photo, overlay, table_rows(segments), text, f"{count} in {time.perf_counter() - start:.1f} s"


def _task_inputs(suggestions: Suggestions) -> dict[str, gr.components.Component]:
    """The inputs that only some tasks use, by name."""
    shown = fields_of("referring")
    placeholder = suggestions.placeholders["referring"]
    fields = {
        "text": gr.Textbox(suggestions.text, label="Text", placeholder=placeholder, lines=2),
        "things": gr.Textbox(suggestions.things, label="Things, comma-separated"),
        "stuff": gr.Textbox(suggestions.stuff, label="Stuff, comma-separated"),
        "subtask": gr.Radio(["panoptic", "instance", "semantic"], value="panoptic", label="Subtask"),
    }
    fields["click_mode"] = gr.Radio(
        [POINT_MODE, BOX_MODE],
        value=POINT_MODE,
        label="A click on the image marks",
        info="A box takes two clicks: opposite corners.",
    )
    fields["clear_clicks"] = gr.Button("Clear marks", size="sm")
    with gr.Accordion("Thresholds and length of the answer", open=False):
        fields |= {
            "threshold": _share(0.5, "Least score of a segment"),
            "mask_threshold": _share(0.5, "Least probability of a pixel"),
            "overlap_mask_area_threshold": _share(0.8, "Panoptic: least share of its pixels a segment has to win"),
            "score_threshold": _share(0.0, "Least score of what is described (0: always a segment)"),
            "multi_target": gr.Checkbox(False, label="All that fits the description, not only the best"),
            "prefill_answer": gr.Checkbox(False, label="Segment at once, without thinking in words first"),
            "max_new_tokens": gr.Slider(8, 512, 128, step=8, label="Most tokens of an answer"),
        }
    for name, field in fields.items():
        field.visible = name in shown
    return fields


def _share(value: float, label: str) -> gr.Slider:
    return gr.Slider(0, 1, value, step=0.05, label=label)


def _show_task(task_name: str, names: Sequence[str], placeholders: Mapping[str, str]) -> list[Any]:
    """Updates of the inputs `names`: those of a task are visible, and its help stands below the choice of tasks."""
    shown = fields_of(task_name)
    updates = [gr.update(visible=name in shown) for name in names]
    if "text" in shown:
        updates[names.index("text")] = gr.update(visible=True, placeholder=placeholders[task_name])
    return [gr.update(info=TASK_HELP[task_name]), *updates]


def _start_photo(image: Image.Image | None) -> tuple[Photo | None, list[Click], Any]:
    """The photo, no clicks, and what is shown, if that is not what is there already."""
    photo = None if image is None else Photo(image)
    return photo, [], gr.skip() if photo is None or photo.scale == 1 else photo.shown


def _add_click(
    photo: Photo | None, clicks: list[Click], task_name: str, click_mode: str, event: gr.SelectData
) -> tuple[Any, list[Click]]:
    """A click on the image, for tasks that use one."""
    if photo is None or "click_mode" not in fields_of(task_name):
        return gr.skip(), clicks
    x, y = (int(coordinate) // photo.scale for coordinate in event.index)
    clicks = [*clicks, (min(x, photo.image.width - 1), min(y, photo.image.height - 1))]
    return draw_clicks(photo, clicks, click_mode), clicks


def _clear_clicks(photo: Photo | None) -> tuple[Image.Image | None, list[Click]]:
    return (None if photo is None else photo.shown), []


def build_app(segment: Pipeline, suggestions: Suggestions) -> gr.Blocks:
    """
    The page.

    Args:
        segment: an any-segmentation pipeline.
        suggestions: what fits its model.
    """
    with gr.Blocks(title="X-SAM", analytics_enabled=False) as app:
        gr.Markdown(INTRODUCTION)
        if suggestions.notice:
            gr.Markdown(suggestions.notice, elem_id="notice", container=True)
        photo, clicks = gr.State(None), gr.State([])
        with gr.Row():
            with gr.Column():
                canvas = gr.Image(
                    label="Image",
                    type="pil",
                    format="png",
                    sources=["upload", "clipboard"],
                    height=380,
                    elem_id="canvas",
                )
                gr.Examples(
                    [[example] for example in suggestions.examples],
                    inputs=canvas,
                    outputs=[photo, clicks, canvas],
                    fn=_start_photo,
                    run_on_click=True,
                    cache_examples=False,
                    label="Examples",
                )
                task = gr.Dropdown(
                    list(TASKS), value="referring", label="Task", info=TASK_HELP["referring"], elem_id="task"
                )
                fields = _task_inputs(suggestions)
                submit = gr.Button("Segment", variant="primary", elem_id="submit")
            with gr.Column():
                overlay = gr.Image(
                    label="Segments",
                    interactive=False,
                    format="png",
                    height=380,
                    buttons=["download", "fullscreen"],
                    elem_id="overlay",
                )
                summary = gr.Markdown(elem_id="summary")
                answer = gr.Textbox(label="Answer", interactive=False, visible=False, lines=3, elem_id="answer")
                table = gr.Dataframe(
                    headers=TABLE_HEADERS,
                    datatype=["str", "str", "str", "number"],
                    interactive=False,
                    label="Segments",
                    elem_id="table",
                )

        def run(values: dict[gr.components.Component, Any]) -> tuple[Any, ...]:
            named = {name: values[field] for name, field in fields.items()}
            *rest, text, line = run_segmentation(segment, values[photo], values[clicks], values[task], named)
            return *rest, gr.update(value=text, visible=bool(text)), line

        inputs = {photo, clicks, task, *fields.values()}
        gr.on([submit.click, fields["text"].submit], run, inputs, [photo, overlay, table, answer, summary])
        _connect_inputs(photo, clicks, canvas, task, fields, suggestions.placeholders)
    return app


def _connect_inputs(
    photo: gr.State,
    clicks: gr.State,
    canvas: gr.Image,
    task: gr.Dropdown,
    fields: Mapping[str, Any],
    placeholders: Mapping[str, str],
) -> None:
    """Events that only change what is asked."""
    names = list(fields)
    marks = [canvas, clicks]
    canvas.upload(_start_photo, canvas, [photo, clicks, canvas])
    canvas.clear(lambda: (None, []), None, [photo, clicks])
    # Clicks may come faster than they are drawn.
    sources = [photo, clicks, task, fields["click_mode"]]
    canvas.select(_add_click, sources, marks, trigger_mode="multiple", show_progress="hidden")
    fields["click_mode"].input(_clear_clicks, photo, marks)
    fields["clear_clicks"].click(_clear_clicks, photo, marks)
    task.input(lambda name: _show_task(name, names, placeholders), task, [task, *fields.values()])
    task.input(_clear_clicks, photo, marks)


def launch_options() -> dict[str, Any]:
    """Looks of the page. Its fonts are the system's: nothing is fetched from other sites."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    return {
        "theme": gr.themes.Soft(primary_hue="orange", neutral_hue="slate", font=fonts, font_mono=["monospace"]),
        "css": "#notice {border-left: 4px solid #f59e0b; padding: 12px 16px}",
        "footer_links": ["gradio"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="All tasks of X-SAM in the browser.")
    parser.add_argument("--model", help="folder or Hub id; the small model of the package if left out")
    parser.add_argument("--port", type=int, help="the first free one from 7860 if left out")
    options = parser.parse_args()
    suggestions = shape_suggestions() if options.model is None else photo_suggestions()
    app = build_app(pipeline("any-segmentation", model=options.model), suggestions)
    app.launch(server_port=options.port, share=False, **launch_options())


if __name__ == "__main__":
    main()
