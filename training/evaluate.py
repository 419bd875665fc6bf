"""
`xsam evaluate MODEL --benchmark NAME --data DIR`, or for several processes
`accelerate launch -m xsam_training.cli evaluate MODEL ...`.

Every process asks the model about its share of the samples and measures the answers; the measurements of all are put in
the order of the data set before figures are made of them, so that the number of processes changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from modeling_xsam import XSAMForSegmentation, XSAMForUniversalSegmentation
from processing_xsam import XSAMProcessor

from .data.formats import build_reader
from .data.reader import OnError, SampleReader
from .data.samples import AnnotatedSample
from .evaluation.benchmarks import Benchmark
from .evaluation.metric import Metric
from .evaluation.predictor import Predictor, Protocol, UniversalPredictor, XSAMPredictor
from .evaluation.store import PredictionStore

PACKAGES = ("xsam", "transformers", "torch", "accelerate", "pycocotools", "pycocoevalcap", "numpy", "pillow")


@dataclass(frozen=True)
class EvaluationSettings:
    """
    What figures depend on, beside the data.

    Attributes:
        model: folder or Hub id.
        protocol: "xsam" or "generate", see `evaluation/predictor.py`.
        template_seed: draws the wording of prompts; None for the first wording of each task.
        limit: how many samples of each data set are asked, from its first; None for all.
        max_new_tokens: longest generated answer.
        dtype: of the weights, "auto" as they are saved.
        text_encoder: compares phrases of captions: folder or Hub id, or "words".
        weights: fingerprint of the weights.
    """

    model: str
    protocol: Protocol = "xsam"
    template_seed: int | None = None
    limit: int | None = None
    max_new_tokens: int = 512
    dtype: str = "auto"
    text_encoder: str = "bert-base-uncased"
    weights: str = ""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit}: give a number from 1 on, or leave it out for all samples")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens {self.max_new_tokens}: give a number from 1 on")

    @property
    def of_predictions(self) -> dict[str, Any]:
        """Those that predictions depend on: more samples and another comparison of phrases can use what is stored."""
        return {name: value for name, value in asdict(self).items() if name not in ("limit", "text_encoder")}


@dataclass(frozen=True)
class QuestionRecord:
    """
    Attributes:
        sample: index of the sample in its data set.
        turn: index of the question among those asked about it.
        name: of the sample.
        question: its words, or its task.
        quality: 0 to 1, see `Metric.quality`.
        failure: see `Answer`.
        measurement: see `Metric`.
    """

    sample: int
    turn: int
    name: str
    question: str
    quality: float
    failure: str
    measurement: Any


@dataclass(frozen=True)
class BenchmarkResult:
    """
    Attributes:
        name: of the benchmark.
        metric: name of its metric.
        figures: the main one first.
        num_samples: samples that were asked.
        num_questions: questions that figures are made of.
        not_asked: how many questions the benchmark's kind of visual prompt cannot ask.
        failures: of every question that got no mask although one was asked for, the sample, its question and why.
        skipped: records of the data set that are unusable, by reason; none are skipped unless that was asked for.
        seconds: for all of it, on the slowest process.
        records: of all questions.
    """

    name: str
    metric: str
    figures: dict[str, float]
    num_samples: int
    num_questions: int
    not_asked: int
    failures: list[dict[str, Any]]
    skipped: dict[str, int]
    seconds: float
    records: list[QuestionRecord] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the records; figures that the data cannot give are null."""
        content = {name: value for name, value in vars(self).items() if name != "records"}
        return {**content, "figures": {k: None if v != v else v for k, v in self.figures.items()}}


def load_model(model: str, dtype: str = "auto", device: str | None = None) -> tuple[PreTrainedModel, XSAMProcessor]:
    """
    A checkpoint of any stage, in evaluation mode, and its processor.

    Args:
        model: folder or Hub id.
        dtype: name of a torch dtype, or "auto".
        device: by default that of this process.
    """
    config = AutoConfig.from_pretrained(model)
    universal = "XSAMForUniversalSegmentation" in (config.architectures or [])
    model_class = XSAMForUniversalSegmentation if universal else XSAMForSegmentation
    loaded = model_class.from_pretrained(model, dtype=dtype).eval()
    return loaded.to(device or PartialState().device), AutoProcessor.from_pretrained(model)


def build_predictor(
    model: PreTrainedModel, processor: XSAMProcessor, settings: EvaluationSettings, questions_at_once: int = 8
) -> Predictor:
    """
    Raises:
        ValueError: if a model of stage 1, which has no language model, is to generate or to get other wordings.
    """
    if hasattr(model, "segment"):
        return XSAMPredictor(
            model,
            processor,
            settings.protocol,
            settings.template_seed,
            settings.max_new_tokens,
            questions_at_once,
        )
    if settings.protocol != "xsam" or settings.template_seed is not None:
        raise ValueError("a model of stage 1 has no prompts: --protocol generate and --template-seed do not apply")
    return UniversalPredictor(model, processor)


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Hexadecimal digits that change with the weights: a hash of about 64 values of each parameter."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        values = flat[:: max(1, flat.numel() // 64)].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


def evaluate(
    benchmarks: Sequence[Benchmark],
    data: str | Path,
    settings: EvaluationSettings,
    predictor: Predictor | None = None,
    predictions: Path | None = None,
    on_error: OnError = "raise",
) -> list[BenchmarkResult]:
    """
    Args:
        benchmarks: what is asked.
        data: folder of the data sets.
        settings: what figures depend on.
        predictor: asks the model; None scores stored predictions only.
        predictions: folder where predictions are kept; those that it has are not made again. None: a temporary one.
        on_error: what a broken record does, see `SampleReader`.

    Returns:
        A result for each benchmark, in the main process; an empty list in the others.

    Raises:
        ValueError: if the folder holds predictions made with other settings, or lacks some and there is no predictor.
    """
    state = PartialState()
    # What can be wrong with the data or the environment shows before the first hour of predictions.
    prepared = [_prepare(benchmark, data, settings, on_error) for benchmark in benchmarks]
    with _folder(predictions, state) as folder:
        if predictor is not None:
            _check_settings(folder, settings, benchmarks, state)
        results = [_evaluate_one(each, settings, predictor, folder / each.benchmark.name, state) for each in prepared]
    return [result for result in results if result is not None]


@dataclass(frozen=True)
class _Prepared:
    benchmark: Benchmark
    reader: SampleReader
    metric: Metric


def _prepare(benchmark: Benchmark, data: str | Path, settings: EvaluationSettings, on_error: OnError) -> _Prepared:
    reader = build_reader(benchmark.dataset, data, on_error, field=f"benchmark {benchmark.name}")
    return _Prepared(benchmark, reader, benchmark.build_metric(reader, settings.text_encoder))


def _evaluate_one(
    prepared: _Prepared,
    settings: EvaluationSettings,
    predictor: Predictor | None,
    folder: Path,
    state: PartialState,
) -> BenchmarkResult | None:
    start = time.perf_counter()
    benchmark, reader, metric = prepared.benchmark, prepared.reader, prepared.metric
    count = min(len(reader), settings.limit or len(reader))
    store = PredictionStore(folder, state.process_index)
    # Nobody appends while others still read what an interrupted run left.
    state.wait_for_everyone()
    records: list[QuestionRecord] = []
    not_asked = 0
    share = range(state.process_index, count, state.num_processes)
    for index in tqdm(share, desc=benchmark.name, unit="image", disable=not state.is_main_process):
        whole = reader[index]
        sample = benchmark.asked(whole)
        not_asked += len(whole.turns) - len(sample.turns)
        records += _measure(sample, index, benchmark, metric, predictor, store)
    gathered = gather_object(records)
    not_asked = sum(gather_object([not_asked]))
    seconds = max(gather_object([time.perf_counter() - start]))
    if not state.is_main_process:
        return None
    gathered.sort(key=lambda record: (record.sample, record.turn))
    return BenchmarkResult(
        name=benchmark.name,
        metric=benchmark.metric,
        figures=metric.figures([record.measurement for record in gathered]),
        num_samples=count,
        num_questions=len(gathered),
        not_asked=not_asked,
        failures=[
            {"sample": record.name, "question": record.question, "why": record.failure}
            for record in gathered
            if record.failure
        ],
        skipped=dict(reader.skipped),
        seconds=seconds,
        records=gathered,
    )


def _measure(
    sample: AnnotatedSample,
    index: int,
    benchmark: Benchmark,
    metric: Metric,
    predictor: Predictor | None,
    store: PredictionStore,
) -> Iterator[QuestionRecord]:
    """The answers to a sample, asked for unless they are stored, and what they contribute."""
    if index in store:
        answers = store.get(index, sample.name)
    elif predictor is None:
        raise ValueError(f"{store.folder} has no prediction for {sample.name}; run xsam evaluate to make it")
    else:
        answers = predictor(sample, index, benchmark.result_options)
        store.add(index, sample.name, answers)
    image_size = (sample.image.height, sample.image.width)
    for number, (turn, answer) in enumerate(zip(sample.turns, answers, strict=True)):
        measurement = metric.measure(turn, answer, image_size)
        yield QuestionRecord(
            sample=index,
            turn=number,
            name=sample.name,
            question=turn.text or turn.task,
            quality=metric.quality(measurement),
            failure=answer.failure,
            measurement=measurement,
        )


@contextmanager
def _folder(predictions: Path | None, state: PartialState) -> Iterator[Path]:
    """Where predictions are kept: the same folder in all processes."""
    if predictions is not None:
        predictions.mkdir(parents=True, exist_ok=True)
        yield predictions
        return
    with TemporaryDirectory(prefix="xsam-predictions-") as own:
        names = [own]
        if state.num_processes > 1:
            broadcast_object_list(names)
        yield Path(names[0])
        state.wait_for_everyone()


def _check_settings(
    folder: Path, settings: EvaluationSettings, benchmarks: Sequence[Benchmark], state: PartialState
) -> None:
    """
    Predictions in a folder are all made with the same settings.

    Raises:
        ValueError: if those there are not made with these.
    """
    if state.is_main_process:
        _compare(folder / "settings.json", settings.of_predictions)
        for benchmark in benchmarks:
            options = asdict(benchmark.result_options)
            asked = {"dataset": dict(benchmark.dataset), "prompt": benchmark.prompt, "options": options}
            _compare(folder / f"{benchmark.name}.json", asked)
    state.wait_for_everyone()


def _compare(file: Path, current: dict[str, Any]) -> None:
    current = json.loads(json.dumps(current))
    if not file.exists():
        file.write_text(json.dumps(current, indent=2) + "\n", encoding="utf-8")
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(name for name in {*earlier, *current} if earlier.get(name) != current.get(name))
    if changed:
        name = changed[0]
        raise ValueError(
            f"{file.parent} holds predictions with {name} {earlier.get(name)!r}, now it is {current.get(name)!r}; give another"
            " --output, or delete the folder"
        )


def summary(settings: EvaluationSettings, results: Sequence[BenchmarkResult]) -> dict[str, Any]:
    """The content of `results.json`: settings, versions and figures."""
    return {
        "settings": asdict(settings),
        "versions": {"python": python_version(), **{name: version(name) for name in PACKAGES}},
        "processes": PartialState().num_processes,
        "device": str(PartialState().device),
        "benchmarks": {result.name: result.to_json() for result in results},
    }


def failure_counts(result: BenchmarkResult) -> Counter[str]:
    """How often each reason is given, positions in an answer left out of it."""
    return Counter("".join("#" if c.isdigit() else c for c in failure["why"]) for failure in result.failures)
