"""
The figures of a checkpoint of the shape world, beside those of baselines, as a table in its model card.

    python -m xsam_training.shape_world_card MODEL --output FOLDER

measures MODEL on `recipes/tiny/benchmarks.yaml` with both protocols, then the baselines, and writes `evaluation.json` and
the table into MODEL. What is measured stays in FOLDER, as `xsam evaluate --output` has it: an interrupted run goes on, and
parts may run at the same time in processes of their own, `--part xsam`, `--part generate`, `--part baselines`, before
`--part card` puts them together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from transformers import AutoConfig, PretrainedConfig

from . import evaluate as evaluation
from .data.formats import build_reader
from .data.shape_world.options import World
from .evaluation.baselines import Oracle, ThingPredictor, largest, random_of_kind
from .evaluation.benchmarks import Benchmark, load_benchmarks
from .evaluation.predictor import PROTOCOLS, Predictor, Protocol
from .evaluation.text_similarity import WORDS
from .shape_world_table import COLUMNS, END, START, insert, table

Part = Literal["xsam", "generate", "baselines", "card"]
BENCHMARKS_FILE = Path(__file__).parent / "recipes" / "tiny" / "benchmarks.yaml"
# No reader of the world reads a file.
DATA = "."
# Captions have up to about 70 tokens.
MAX_NEW_TOKENS = 96
CARD, FIGURES_FILE = "README.md", "evaluation.json"


def measure_model(model: str, protocol: Protocol, folder: Path, limit: int | None = None) -> None:
    """
    Measure a checkpoint with one protocol; goes on from the answers in the folder.

    Raises:
        ValueError: if those are of other weights, settings or benchmarks.
    """
    settings = evaluation.EvaluationSettings(
        model, protocol, limit=limit, max_new_tokens=MAX_NEW_TOKENS, text_encoder=WORDS
    )
    loaded, processor = evaluation.load_model(model)
    settings = replace(settings, weights=evaluation.fingerprint(loaded, processor))
    predictor = evaluation.build_predictor(loaded, processor, settings)
    file, benchmarks = folder / f"{protocol}.json", benchmarks_of(protocol)
    answers = evaluation.predictions_folder(file)
    for result in evaluation.evaluate(benchmarks, DATA, settings, predictor, answers):
        evaluation.save_results(file, settings, [result])


def measure_baselines(model: str, folder: Path, limit: int | None = None) -> None:
    """Measure the baselines; of the checkpoint only the sizes of its input and its masks count."""
    config = AutoConfig.from_pretrained(model)
    oracle = Oracle(config.high_res_vision_config.image_size, mask_side(config))
    builders: dict[str, Callable[[World], Predictor]] = {
        "random-of-kind": lambda world: ThingPredictor(world, random_of_kind),
        "largest": lambda world: ThingPredictor(world, largest),
        "oracle": lambda world: oracle,
    }
    for column, build in builders.items():
        settings = evaluation.EvaluationSettings(column, limit=limit, text_encoder=WORDS)
        for benchmark in benchmarks_of(column):
            predictor = build(build_reader(benchmark.dataset, DATA, "raise").world)
            evaluation.save_results(
                folder / f"{column}.json",
                settings,
                list(evaluation.evaluate([benchmark], DATA, settings, predictor)),
            )


def mask_side(config: PretrainedConfig) -> int:
    """Side of the masks that a model of this configuration gives: that of the connector's first map, its finest."""
    tower = config.high_res_vision_config
    return int(tower.image_size // tower.patch_size * config.connector_scale_factors[0])


def benchmarks_of(column: str) -> list[Benchmark]:
    """The benchmarks that a column has figures of."""
    metrics = COLUMNS[column].metrics
    return [each for each in load_benchmarks(BENCHMARKS_FILE) if metrics is None or each.metric in metrics]


def collect(folder: Path, weights: str) -> dict[str, Any]:
    """
    What is stored of all columns, without what differs from run to run.

    Args:
        folder: of the measured parts.
        weights: fingerprint of the checkpoint whose figures they are to be.

    Raises:
        FileNotFoundError, ValueError: if a part is missing, incomplete, or of other weights, other benchmarks or another
            limit.
    """
    stored = {column: _stored(folder, column) for column in COLUMNS}
    limits = {column: each["settings"]["limit"] for column, each in stored.items()}
    if len(set(limits.values())) > 1:
        raise ValueError(
            f"{folder} has figures with different limits, {limits}; measure all parts with the same --limit"
        )
    for column in PROTOCOLS:
        if stored[column]["settings"]["weights"] != weights:
            raise ValueError(f"{folder / column}.json has figures of other weights; give another --output")
    return stored


def _stored(folder: Path, column: str) -> dict[str, Any]:
    file, part = folder / f"{column}.json", column if column in PROTOCOLS else "baselines"
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; --part {part} makes it")
    content = json.loads(file.read_text(encoding="utf-8"))
    found, benchmarks = content["benchmarks"], benchmarks_of(column)
    if missing := [each.name for each in benchmarks if each.name not in found]:
        raise ValueError(f"{file} lacks {', '.join(missing)}; --part {part} goes on with them")
    if changed := [each.name for each in benchmarks if found[each.name].get("definition") != each.definition]:
        raise ValueError(
            f"{file} was measured before {', '.join(changed)} changed in {BENCHMARKS_FILE.name}; give another --output"
        )
    kept = ("metric", "figures", "by_label", "num_samples", "num_questions")
    return {
        "settings": {**content["settings"], "model": Path(content["settings"]["model"]).name},
        "versions": content["versions"],
        "benchmarks": {
            name: {**{key: found[name][key] for key in kept}, "failures": len(found[name]["failures"])}
            for name in (each.name for each in benchmarks)
        },
    }


def write_card(model: Path, folder: Path) -> str:
    """
    Write `evaluation.json` and the figures in the card of a checkpoint.

    Returns:
        The table.

    Raises:
        FileNotFoundError, ValueError: as `collect` and `insert`; then nothing is written.
    """
    figures = collect(folder, evaluation.fingerprint(*evaluation.load_model(str(model))))
    shown = table(figures)
    card = insert(_read_card(model), shown)
    _write_json(model / FIGURES_FILE, figures)
    (model / CARD).write_text(card, encoding="utf-8", newline="\n")
    return shown


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def _read_card(model: Path) -> str:
    if not (model / CARD).is_file():
        raise FileNotFoundError(f"there is no {model / CARD}; write it with the lines {START} and {END}")
    return (model / CARD).read_text(encoding="utf-8")


app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="folder of the checkpoint and its card")],
    output: Annotated[Path, typer.Option(help="folder for answers and figures; an interrupted run goes on")],
    part: Annotated[Part | None, typer.Option(help="what is done, by default all")] = None,
    limit: Annotated[int | None, typer.Option(help="scenes of each benchmark, from its first")] = None,
) -> None:
    """Measure a checkpoint of the shape world and its baselines, and write the figures into its model card."""
    parts = get_args(Part) if part is None else (part,)
    try:
        if "card" in parts:
            # What is wrong with the card shows before anything is measured.
            insert(_read_card(model), "")
        output.mkdir(parents=True, exist_ok=True)
        for protocol in PROTOCOLS:
            if protocol in parts:
                measure_model(str(model), protocol, output, limit)
        if "baselines" in parts:
            measure_baselines(str(model), output, limit)
        if "card" in parts:
            typer.echo(write_card(model, output))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    app()
