"""`xsam probe`: the probes on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ..data.samples import AnnotatedSample
    from .report import ProbeReport

app = typer.Typer(help="Ask a checkpoint what benchmarks do not.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="folder or Hub id of a checkpoint")]
BenchmarkName = Annotated[
    str, typer.Option(help="whose images and annotations are used: a benchmark's name or a YAML file")
]
Data = Annotated[Path, typer.Option(help="folder of the data sets")]
Limit = Annotated[int, typer.Option(help="images, from the first of the data set")]
Output = Annotated[Path | None, typer.Option(help="folder for the figures as JSON and for the pictures")]
Dtype = Annotated[str, typer.Option(help="of the weights, such as bfloat16")]
Threshold = Annotated[float, typer.Option(help="score from which a mask counts")]

# Of the probes that train a recipe twice.
TRAINS = {"allow_extra_args": True, "ignore_unknown_options": True}
Recipe = Annotated[
    Path, typer.Argument(help="YAML file; --field=value overrides its fields, --model=FOLDER the start")
]
Benchmarks = Annotated[str, typer.Option(help="benchmarks that both runs are measured on, see xsam evaluate")]
Steps = Annotated[int, typer.Option(help="steps of each run")]
RunsOutput = Annotated[Path, typer.Option(help="folder for both runs, figures and pictures")]
SampleLimit = Annotated[int | None, typer.Option(help="samples of each data set, from its first")]
ProtocolName = Annotated[Literal["xsam", "generate"], typer.Option(help="see xsam evaluate")]
NewTokens = Annotated[int, typer.Option(help="longest generated answer, in tokens")]
TextEncoder = Annotated[str, typer.Option(help="see xsam evaluate")]


@app.command("prompt-injection")
def prompt_injection(
    model: Model,
    benchmark: BenchmarkName,
    data: Data,
    phrase: Annotated[str, typer.Option(help="what the tagged prompts ask for")] = "person",
    wordings: Annotated[int, typer.Option(help="wordings of the prompt")] = 1,
    limit: Limit = 20,
    max_new_tokens: Annotated[int, typer.Option(help="longest generated answer, in tokens")] = 64,
    output: Output = None,
    dtype: Dtype = "auto",
) -> None:
    """Does a tagged phrase give a <SEG>, text typed by a user none, and does its embedding reach the decoder?"""
    from .prompt_injection import probe_prompt_injection

    with _errors():
        images = (sample.image for sample in _samples(benchmark, data) if sample.image is not None)
        report = probe_prompt_injection(
            *_load(model, dtype), images, phrase=phrase, limit=limit, wordings=wordings, max_new_tokens=max_new_tokens
        )
        _show(report, output)


@app.command()
def connector(
    model: Model,
    benchmark: BenchmarkName,
    data: Data,
    scale: Annotated[int, typer.Option(help="map that is left: 0, 1 or 2, the coarsest")] = 2,
    limit: Limit = 50,
    output: Output = None,
    dtype: Dtype = "auto",
) -> None:
    """What are the connector's finer scales worth? Panoptic quality and mean IoU with and without them."""
    from .connector import probe_connector

    with _errors():
        _show(probe_connector(*_load(model, dtype), _samples(benchmark, data), limit=limit, scale=scale), output)


@app.command("visual-query")
def visual_query(
    model: Model,
    benchmark: BenchmarkName,
    data: Data,
    things_per_image: Annotated[int, typer.Option(help="most things of an image that are asked for")] = 5,
    limit: Limit = 50,
    output: Output = None,
    dtype: Dtype = "auto",
) -> None:
    """Are a box prompt's features read where the box is, and does the mask follow the box?"""
    from .visual_query import probe_visual_query

    with _errors():
        samples = _samples(benchmark, data)
        report = probe_visual_query(*_load(model, dtype), samples, limit=limit, things_per_image=things_per_image)
        _show(report, output)


@app.command()
def saturation(
    model: Model,
    count: Annotated[list[int] | None, typer.Option(help="objects of a scene; may be repeated")] = None,
    tiles: Annotated[str | None, typer.Option(help="also with tiles, as ROWS,COLUMNS")] = None,
    image_size: Annotated[int, typer.Option(help="side of the drawn scenes, in pixels")] = 512,
    label: Annotated[str, typer.Option(help="what the objects are asked for as")] = "ball",
    threshold: Threshold = 0.5,
    seed: Annotated[int, typer.Option(help="of the scenes")] = 0,
    output: Output = None,
    dtype: Dtype = "auto",
) -> None:
    """How many objects can one answer hold? Drawn scenes of 10 to 250: recall and duplicates."""
    from .saturation import probe_saturation

    with _errors():
        chosen = {"counts": tuple(count)} if count else {}
        report = probe_saturation(
            *_load(model, dtype),
            tiles=_pair(tiles),
            image_size=image_size,
            label=label,
            threshold=threshold,
            seed=seed,
            **chosen,
        )
        _show(report, output)


@app.command("single-mask")
def single_mask(
    model: Model,
    benchmark: BenchmarkName,
    data: Data,
    threshold: Threshold = 0.5,
    limit: Limit = 50,
    output: Output = None,
    dtype: Dtype = "auto",
) -> None:
    """Are all instances of one phrase found?"""
    from .single_mask import probe_single_mask

    with _errors():
        samples = _samples(benchmark, data)
        _show(probe_single_mask(*_load(model, dtype), samples, limit=limit, threshold=threshold), output)


@app.command()
def hallucination(
    model: Model,
    benchmark: BenchmarkName,
    data: Data,
    questions_per_image: Annotated[
        int, typer.Option(help="absent categories that are asked for, and present ones")
    ] = 3,
    threshold: Threshold = 0.5,
    with_stuff: Annotated[bool, typer.Option(help="ask for stuff as well")] = False,
    limit: Limit = 50,
    max_new_tokens: Annotated[int, typer.Option(help="longest generated answer, in tokens")] = 64,
    seed: Annotated[int, typer.Option(help="draws the categories")] = 0,
    output: Output = None,
    dtype: Dtype = "auto",
) -> None:
    """How often is something absent answered with a mask?"""
    from .hallucination import probe_hallucination

    with _errors():
        report = probe_hallucination(
            *_load(model, dtype),
            _samples(benchmark, data),
            limit=limit,
            questions_per_image=questions_per_image,
            threshold=threshold,
            with_stuff=with_stuff,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        _show(report, output)


@app.command(context_settings=TRAINS)
def mixture(
    context: typer.Context,
    recipe: Recipe,
    benchmark: Benchmarks,
    data: Data,
    steps: Steps,
    output: RunsOutput,
    limit: SampleLimit = None,
    protocol: ProtocolName = "xsam",
    max_new_tokens: NewTokens = 512,
    text_encoder: TextEncoder = "bert-base-uncased",
) -> None:
    """What does resampling of the data sets change for each task? Trains a recipe with and without it."""
    from ..evaluation.benchmarks import select_benchmarks
    from ..processes import leave_process_group
    from .mixture import probe_mixture
    from .paired_runs import RunPlan

    with _errors():
        plan = RunPlan(
            recipe,
            context.args,
            select_benchmarks(benchmark),
            data,
            steps,
            output,
            limit,
            protocol,
            max_new_tokens,
            text_encoder,
        )
        _show(probe_mixture(plan), output)
    leave_process_group()


@app.command(context_settings=TRAINS)
def ablation(
    context: typer.Context,
    recipe: Recipe,
    benchmark: Benchmarks,
    data: Data,
    steps: Steps,
    output: RunsOutput,
    forget: Annotated[str, typer.Option(help="modules that get new random weights, as PART,PART")] = "",
    silence: Annotated[str, typer.Option(help="projectors whose outputs are held at zero, as PART,PART")] = "",
    variant: Annotated[
        list[str] | None, typer.Option(help="FIELD=VALUE of the recipe that differs; may be repeated")
    ] = None,
    limit: SampleLimit = None,
    protocol: ProtocolName = "xsam",
    max_new_tokens: NewTokens = 512,
    text_encoder: TextEncoder = "bert-base-uncased",
) -> None:
    """What is a part of the model, or a choice of a recipe, worth? Trains a recipe with and without it."""
    from ..evaluation.benchmarks import select_benchmarks
    from ..processes import leave_process_group
    from .ablation import probe_ablation
    from .paired_runs import RunPlan

    with _errors():
        plan = RunPlan(
            recipe,
            context.args,
            select_benchmarks(benchmark),
            data,
            steps,
            output,
            limit,
            protocol,
            max_new_tokens,
            text_encoder,
        )
        report = probe_ablation(plan, forget=_names(forget), silence=_names(silence), variants=variant or ())
        _show(report, output)
    leave_process_group()


@contextmanager
def _errors() -> Iterator[None]:
    """What is wrong with arguments or data is said without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def _load(model: str, dtype: str) -> tuple[Any, Any]:
    from ..evaluate import load_model

    return load_model(model, dtype)


def _samples(benchmark: str, data: Path) -> Iterator[AnnotatedSample]:
    from ..data.formats import build_reader
    from ..evaluation.benchmarks import select_benchmarks

    chosen = select_benchmarks(benchmark)
    if len(chosen) != 1:
        raise ValueError(f"--benchmark {benchmark}: a probe uses one benchmark, these are {len(chosen)}")
    reader = build_reader(chosen[0].dataset, data, "raise")
    return (chosen[0].asked(reader[index]) for index in range(len(reader)))


def _pair(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        rows, columns = (int(number) for number in value.split(","))
    except ValueError as error:
        raise ValueError(f"--tiles {value}: expected two numbers, such as 2,3") from error
    return rows, columns


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _show(report: ProbeReport | None, output: Path | None) -> None:
    """Print the figures and save all; of several processes the main one has them."""
    if report is None:
        return
    typer.echo(str(report))
    if output is not None:
        report.save(output)
