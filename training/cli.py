"""The `xsam` console command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xsam_training.probes.commands import app as probe_app

app = typer.Typer(
    help="X-SAM: segment images, train, evaluate, convert checkpoints.", no_args_is_help=True, add_completion=False
)
app.add_typer(probe_app, name="probe")


# Options that evaluating and scoring have in common.
TextEncoder = Annotated[str, typer.Option(help="compares phrases of captions: folder or Hub id, or words")]
Samples = Annotated[bool, typer.Option(help="also write a line for each question")]
Cases = Annotated[int, typer.Option(help="worst and best answers on the page, each")]
OnBrokenRecord = Annotated[Literal["skip", "raise"], typer.Option(help="what an unusable annotation does")]


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="image file")],
    task: Annotated[str, typer.Option(help="task, see the README's table")],
    model: Annotated[
        str | None, typer.Option(help="folder or Hub id; the small model of the package if left out")
    ] = None,
    text: Annotated[str | None, typer.Option(help="expression, question or message")] = None,
    labels: Annotated[str | None, typer.Option(help="thing labels, separated by commas")] = None,
    stuff: Annotated[str | None, typer.Option(help="stuff labels, separated by commas")] = None,
    point: Annotated[list[str] | None, typer.Option(help="a point as X,Y; may be repeated")] = None,
    box: Annotated[list[str] | None, typer.Option(help="a box as X0,Y0,X1,Y1; may be repeated")] = None,
    subtask: Annotated[str | None, typer.Option(help="panoptic, instance or semantic")] = None,
    threshold: Annotated[float | None, typer.Option(help="least score of a segment")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="score below which a target is absent")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="longest generated answer, in tokens")] = None,
    output: Annotated[Path | None, typer.Option(help="overlay to write; small images are enlarged")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON with masks as COCO run-length encoding")] = False,
) -> None:
    """Segment an image, or talk about it."""
    from PIL import Image
    from transformers import pipeline

    import modeling_xsam  # noqa: F401  registers the model
    import processing_xsam  # noqa: F401  registers the processor and the pipeline
    from processing_xsam.enlarge_xsam import enlarge
    from processing_xsam.image_processing_xsam import load_image
    from processing_xsam.visualization_xsam import visualize

    if output is not None and (
        not output.parent.is_dir() or output.suffix.lower() not in Image.registered_extensions()
    ):
        raise typer.BadParameter(f"--output {output}: give a file of an image format in a folder that exists")
    arguments = {
        "text": text,
        "labels": _labels(labels, stuff),
        "points": _coordinates(point, "--point", 2),
        "boxes": _coordinates(box, "--box", 4),
        "subtask": subtask,
        "threshold": threshold,
        "score_threshold": score_threshold,
        "max_new_tokens": max_new_tokens,
    }
    try:
        picture: Image.Image = load_image(image)
        run = pipeline("any-segmentation", model=model)
        result = run(picture, task=task, **{name: value for name, value in arguments.items() if value is not None})
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    segments, answer = (result["segments"], result["text"]) if isinstance(result, dict) else (result, None)
    if output is not None:
        visualize(*enlarge(picture, segments), answer).save(output)
    typer.echo(json.dumps(_to_json(segments, answer)) if as_json else _to_table(segments, answer))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Option(help="pytorch_model.bin of the original code")],
    output: Annotated[Path, typer.Option(help="folder to write")],
    tokenizer: Annotated[str | None, typer.Option(help="Hub id or folder of the language model's tokenizer")] = None,
    variant: Annotated[
        Literal["phi3", "qwen3-1.7b", "qwen3-4b"] | None, typer.Option(help="by default read off the weights")
    ] = None,
    stage: Annotated[Literal["1", "3"] | None, typer.Option(help="by default read off the weights")] = None,
) -> None:
    """Convert an original checkpoint; with a tokenizer, the processor is saved as well."""
    from modeling_xsam.convert_xsam_to_hf import convert_checkpoint

    try:
        plan = convert_checkpoint(checkpoint, output, variant=variant, stage=stage and int(stage), tokenizer=tokenizer)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(plan.report())
    if tokenizer is not None:
        _save_processor(output)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(help="YAML file, see training/recipes; --field=value overrides its fields")
    ],
) -> None:
    """Train a stage as a recipe says. With several processes: accelerate launch -m xsam_training.train RECIPE."""
    from xsam_training.arguments import parse_recipe
    from xsam_training.processes import leave_process_group
    from xsam_training.train import build_trainer, run

    try:
        trainer = build_trainer(parse_recipe(recipe, context.args))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    run(trainer)
    leave_process_group()


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="folder or Hub id of a checkpoint of any stage")],
    benchmark: Annotated[
        str, typer.Option(help="names, separated by commas, see training/evaluation/README.md; or YAML files")
    ],
    data: Annotated[Path, typer.Option(help="folder of the data sets")],
    protocol: Annotated[
        Literal["xsam", "generate"], typer.Option(help="give the fixed answers as published, or generate everything")
    ] = "xsam",
    limit: Annotated[int | None, typer.Option(help="samples of each data set, from its first")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write; an interrupted run goes on")] = None,
    template_seed: Annotated[int | None, typer.Option(help="draw the wording of prompts")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="longest generated answer, in tokens")] = 512,
    questions_at_once: Annotated[int, typer.Option(help="questions about an image that are asked together")] = 8,
    dtype: Annotated[str, typer.Option(help="of the weights, such as bfloat16")] = "auto",
    text_encoder: TextEncoder = "bert-base-uncased",
    samples: Samples = False,
    cases: Cases = 8,
    on_error: OnBrokenRecord = "raise",
) -> None:
    """Measure a checkpoint on benchmarks. With several processes: accelerate launch -m xsam_training.cli evaluate ..."""
    from dataclasses import replace

    from xsam_training import evaluate as evaluation
    from xsam_training.evaluation.benchmarks import select_benchmarks
    from xsam_training.processes import leave_process_group

    try:
        chosen = select_benchmarks(benchmark)
        settings = evaluation.EvaluationSettings(
            model, protocol, template_seed, limit, max_new_tokens, dtype, text_encoder
        )
        folder = _results_folder(output)
        if samples and output is None:
            raise ValueError("--samples needs --output: they are written beside it")
        loaded, processor = evaluation.load_model(model, dtype)
        settings = replace(settings, weights=evaluation.fingerprint(loaded, processor))
        predictor = evaluation.build_predictor(loaded, processor, settings, questions_at_once)
        results = evaluation.evaluate(
            chosen, data, settings, predictor, folder, cases if output is not None else 0, on_error
        )
        _report(output, settings, results, samples)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    leave_process_group()


@app.command()
def score(
    output: Annotated[Path, typer.Argument(help="JSON file that xsam evaluate wrote, or was to write")],
    data: Annotated[Path, typer.Option(help="folder of the data sets")],
    benchmark: Annotated[
        str | None, typer.Option(help="names of some of the stored benchmarks, separated by commas")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="samples of each data set; by default as in the JSON file")] = None,
    text_encoder: TextEncoder = "bert-base-uncased",
    samples: Samples = False,
    cases: Cases = 8,
    on_error: OnBrokenRecord = "raise",
) -> None:
    """Score stored predictions once more, without the model."""
    from dataclasses import replace

    from xsam_training import evaluate as evaluation

    try:
        folder = evaluation.predictions_folder(output)
        settings, stored = evaluation.stored_run(folder)
        settings = replace(settings, limit=limit or evaluation.stored_limit(output), text_encoder=text_encoder)
        chosen = [each for each in stored if benchmark is None or each.name in _split(benchmark)]
        if not chosen:
            raise ValueError(f"--benchmark {benchmark}: stored are {', '.join(each.name for each in stored)}")
        results = evaluation.evaluate(chosen, data, settings, predictions=folder, num_cases=cases, on_error=on_error)
        _report(output, settings, results, samples)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def _results_folder(output: Path | None) -> Path | None:
    from xsam_training.evaluate import predictions_folder

    if output is None:
        return None
    if output.suffix != ".json" or not output.parent.is_dir():
        raise ValueError(f"--output {output}: give a .json file in a folder that exists")
    return predictions_folder(output)


def _report(output: Path | None, settings: Any, results: Iterator[Any], samples: bool) -> None:
    """
    Write the results, each when it is there, and print their table, also if the next one fails; only the main process has
    any.
    """
    from xsam_training.evaluate import predictions_folder, save_page, save_results
    from xsam_training.evaluation.report import table

    done: list[Any] = []
    try:
        for result in results:
            done.append(result)
            if output is not None:
                save_results(output, settings, done)
    except KeyboardInterrupt:
        if output is not None:
            typer.echo(f"stopped; the same command goes on from the answers in {predictions_folder(output)}")
        raise
    finally:
        if done:
            typer.echo(table(done))
            if output is not None:
                typer.echo(f"\nworst and best cases: {save_page(output, settings, done, samples)}")


@app.command("make-vgd")
def make_vgd_command(
    instances: Annotated[Path, typer.Option(help="COCO instances_*.json")],
    output: Annotated[Path, typer.Option(help="JSON file to write")],
    seed: Annotated[int, typer.Option(help="seed of the prompts")] = 0,
    processes: Annotated[int | None, typer.Option(help="by default one per processor")] = None,
    on_error: Annotated[Literal["skip", "raise"], typer.Option(help="what an unusable annotation does")] = "skip",
) -> None:
    """Draw visual prompts for COCO instances; an interrupted run goes on where it stopped."""
    from xsam_training.make_vgd import make_vgd

    try:
        report = make_vgd(instances, output, seed=seed, num_processes=processes, on_error=on_error)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(report)


def _save_processor(folder: Path) -> None:
    """The processor of a converted folder: its tokenizer, and images at the sizes of its configuration."""
    from transformers import AutoTokenizer

    from modeling_xsam import XSAMConfig
    from xsam_training.initialization import processor_of

    processor_of(XSAMConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)).save_pretrained(folder)


def _labels(labels: str | None, stuff: str | None) -> dict[str, list[str]] | list[str] | None:
    if stuff is not None:
        return {"thing": _split(labels or ""), "stuff": _split(stuff)}
    return None if labels is None else _split(labels)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _coordinates(values: list[str] | None, option: str, length: int) -> list[list[float]] | None:
    if not values:
        return None
    coordinates = []
    for value in values:
        try:
            numbers = [float(number) for number in value.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != length:
            raise typer.BadParameter(f"{option} {value}: expected {length} numbers, separated by commas")
        coordinates.append(numbers)
    return coordinates


def _to_json(segments: list[dict[str, Any]], answer: str | None) -> dict[str, Any]:
    import torch
    from torchvision.transforms.functional import pil_to_tensor

    from processing_xsam.post_processing_xsam import to_coco_rle

    encoded = [
        {**segment, "mask": to_coco_rle((pil_to_tensor(segment["mask"])[0] > 127).to(torch.uint8))}
        for segment in segments
    ]
    return {"text": answer, "segments": encoded}


def _to_table(segments: list[dict[str, Any]], answer: str | None) -> str:
    lines = [] if answer is None else [answer]
    for segment in segments:
        score = "" if segment["score"] is None else f"{segment['score']:.3f}"
        box = " ".join(str(side) for side in segment["box"].values())
        lines.append(f"{segment['label']:32s} {score:>6s}  {box}")
    return "\n".join(lines or ["no segment"])


def main() -> None:
    app()


if __name__ == "__main__":
    main()
