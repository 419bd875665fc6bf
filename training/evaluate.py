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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
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
from .data.reader import BrokenRecord, OnError, SampleReader
from .data.samples import AnnotatedSample
from .evaluation.benchmarks import Benchmark
from .evaluation.cases import Case, describe, draw_case, extremes
from .evaluation.metric import Metric
from .evaluation.predictor import Predictor, Protocol, UniversalPredictor, XSAMPredictor
from .evaluation.report import write_page, write_samples
from .evaluation.results import BenchmarkResult, QuestionRecord
from .evaluation.store import PredictionStore

# Name of the model that made the predictions in a folder, for reports.
MODEL_FILE = "model.txt"
SAMPLES_FILE = "samples.jsonl"
ADAPTER_CONFIG = "adapter_config.json"
# Those that are not installed were not used.
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
        """
        Those that predictions depend on: more samples and another comparison of phrases can use what is stored. Of the model
        its weights count, wherever they lie.
        """
        return {name: value for name, value in asdict(self).items() if name not in ("model", "limit", "text_encoder")}


def process_state() -> PartialState:
    """
    Which of how many processes this is; without an accelerator they talk to each other on CPUs. They wait for the slowest,
    and for the main one while it makes the figures, as long as it takes.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))


def load_model(model: str, dtype: str = "auto", device: str | None = None) -> tuple[PreTrainedModel, XSAMProcessor]:
    """
    A checkpoint of any stage, in evaluation mode, and its processor.

    Args:
        model: folder or Hub id; a folder of adapters is merged into its base.
        dtype: name of a torch dtype, or "auto".
        device: by default that of this process.
    """
    if (Path(model) / ADAPTER_CONFIG).is_file():
        base = json.loads((Path(model) / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        from peft import PeftModel  # of the extra "train", which evaluation of whole checkpoints does without

        loaded = PeftModel.from_pretrained(_load_whole(base, dtype), model).merge_and_unload()
    else:
        loaded = _load_whole(model, dtype)
    return loaded.eval().to(device or process_state().device), AutoProcessor.from_pretrained(model)


def _load_whole(model: str, dtype: str) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(model)
    except OSError as error:
        raise OSError(f"model {model!r} is no folder here, and not to be had from the Hub: {error}") from error
    universal = "XSAMForUniversalSegmentation" in (config.architectures or [])
    model_class = XSAMForUniversalSegmentation if universal else XSAMForSegmentation
    return model_class.from_pretrained(model, dtype=dtype)


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
def fingerprint(model: PreTrainedModel, processor: XSAMProcessor) -> str:
    """
    Hexadecimal digits that change with what answers depend on: about 64 values of each parameter, the configuration, and the
    processor with its tokenizer and prompts.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        values = flat[:: max(1, flat.numel() // 64)].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.tobytes())
    settings = {**model.config.to_dict(), "processor": processor.to_dict(), "prompts": processor.prompt_templates}
    settings.pop("_name_or_path", None)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(str(processor.chat_template).encode() + processor.tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:16]


def evaluate(
    benchmarks: Sequence[Benchmark],
    data: str | Path,
    settings: EvaluationSettings,
    predictor: Predictor | None = None,
    predictions: Path | None = None,
    num_cases: int = 0,
    on_error: OnError = "raise",
) -> Iterator[BenchmarkResult]:
    """
    Args:
        benchmarks: what is asked.
        data: folder of the data sets.
        settings: what figures depend on.
        predictor: asks the model; None scores stored predictions only.
        predictions: folder where predictions are kept; those that it has are not made again. None: a temporary one.
        num_cases: how many of the worst and of the best answers are drawn.
        on_error: what a broken record does, see `SampleReader`; also one that shows only when it is read.

    Yields:
        The result of each benchmark when it is done, in the main process; nothing in the others.

    Raises:
        ValueError: if the folder holds predictions made with other settings, or lacks some and there is no predictor.
    """
    state = process_state()
    # What can be wrong with the data or the environment shows before the first hour of predictions.
    readers: dict[str, SampleReader] = {}
    prepared = [_prepare(benchmark, data, settings, on_error, readers) for benchmark in benchmarks]
    with _folder(predictions, state) as folder:
        if predictor is not None:
            _check_settings(folder, settings, benchmarks, state)
        for each in prepared:
            result = _evaluate_one(each, settings, predictor, folder / each.benchmark.name, num_cases, state)
            if result is not None:
                yield result


@dataclass(frozen=True)
class _Prepared:
    benchmark: Benchmark
    reader: SampleReader
    metric: Metric


def _prepare(
    benchmark: Benchmark,
    data: str | Path,
    settings: EvaluationSettings,
    on_error: OnError,
    readers: dict[str, SampleReader],
) -> _Prepared:
    """A benchmark's reader, shared with those of the same data set, and its metric."""
    try:
        key = json.dumps(dict(benchmark.dataset), sort_keys=True)
        if key not in readers:
            readers[key] = build_reader(benchmark.dataset, data, on_error)
        return _Prepared(benchmark, readers[key], benchmark.build_metric(readers[key], settings.text_encoder))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"benchmark {benchmark.name}: {error}") from error


def _evaluate_one(
    prepared: _Prepared,
    settings: EvaluationSettings,
    predictor: Predictor | None,
    folder: Path,
    num_cases: int,
    state: PartialState,
) -> BenchmarkResult | None:
    start = time.perf_counter()
    benchmark, reader, metric = prepared.benchmark, prepared.reader, prepared.metric
    count = min(len(reader), settings.limit or len(reader))
    store = PredictionStore(folder, state.process_index)
    # Nobody appends while others still read what an interrupted run left.
    state.wait_for_everyone()
    records: list[QuestionRecord] = []
    unreadable: Counter[str] = Counter()
    not_asked = 0
    share = range(state.process_index, count, state.num_processes)
    for index in tqdm(share, desc=benchmark.name, unit="image", disable=not state.is_main_process):
        try:
            whole = reader[index]
        except BrokenRecord as error:
            if reader.on_error == "raise":
                raise
            unreadable[f"{error}"] += 1
            continue
        sample = benchmark.asked(whole)
        not_asked += len(whole.turns) - len(sample.turns)
        records += _measure(sample, index, benchmark, metric, predictor, store)
    gathered = gather_object(records)
    not_asked = sum(gather_object([not_asked]))
    skipped = sum(gather_object([unreadable]), Counter(reader.skipped))
    seconds = max(gather_object([time.perf_counter() - start]))
    if not state.is_main_process:
        return None
    gathered.sort(key=lambda record: (record.sample, record.turn))
    summary = metric.summary([record.measurement for record in gathered])
    worst, best = extremes(gathered, num_cases)
    drawn = _draw(prepared, folder, [gathered[place] for place in (*worst, *best)])
    return BenchmarkResult(
        name=benchmark.name,
        metric=benchmark.metric,
        definition=benchmark.definition,
        figures=summary.figures,
        by_label=summary.by_label,
        num_samples=count - (skipped - reader.skipped).total(),
        num_questions=len(gathered),
        not_asked=not_asked,
        skipped=dict(skipped),
        seconds=seconds,
        records=gathered,
        worst=drawn[: len(worst)],
        best=drawn[len(worst) :],
    )


def _draw(prepared: _Prepared, folder: Path, records: Sequence[QuestionRecord]) -> list[Case]:
    if not records:
        return []
    # What the other processes have stored is not known to a store that was opened before.
    store, cases = PredictionStore(folder), []
    for record in records:
        sample = prepared.benchmark.asked(prepared.reader[record.sample])
        answer = store.get(record.sample, sample)[record.turn]
        cases.append(draw_case(sample.turns[record.turn], answer, sample, record.quality))
    return cases


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
        answers = store.get(index, sample)
    elif predictor is None:
        raise ValueError(
            f"{store.folder} has no prediction for {sample.name}; make it with xsam evaluate, or score the first ones with"
            " --limit"
        )
    else:
        answers = predictor(sample, index, benchmark.result_options)
        store.add(index, sample, answers)
    image_size = (0, 0) if sample.image is None else (sample.image.height, sample.image.width)
    for number, (turn, answer) in enumerate(zip(sample.turns, answers, strict=True)):
        measurement = metric.measure(turn, answer, image_size)
        yield QuestionRecord(
            sample=index,
            turn=number,
            name=sample.name,
            question=describe(turn),
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
        (folder / MODEL_FILE).write_text(settings.model, encoding="utf-8")
        for benchmark in benchmarks:
            _compare(folder / f"{benchmark.name}.json", benchmark.definition)
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


def stored_run(predictions: Path) -> tuple[EvaluationSettings, list[Benchmark]]:
    """
    With what settings, and of which benchmarks, predictions were made.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    if not (predictions / "settings.json").is_file():
        raise FileNotFoundError(f"{predictions} holds no predictions; xsam evaluate with --output makes them")
    of_predictions = json.loads((predictions / "settings.json").read_text(encoding="utf-8"))
    settings = EvaluationSettings((predictions / MODEL_FILE).read_text(encoding="utf-8"), **of_predictions)
    files = sorted(file for file in predictions.glob("*.json") if file.name != "settings.json")
    return settings, [Benchmark(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def predictions_folder(output: Path) -> Path:
    """Where the predictions of the results in `output`, a JSON file, are kept."""
    return output.with_suffix("") / "predictions"


def save_results(output: Path, settings: EvaluationSettings, results: Sequence[BenchmarkResult]) -> None:
    """
    Write the results with settings and versions to a JSON file, beside those of other benchmarks that it already has for
    the same settings.
    """
    content = {
        "settings": asdict(settings),
        "versions": {"python": python_version(), **_installed()},
        "processes": process_state().num_processes,
        "device": str(process_state().device),
        "benchmarks": {
            **_earlier(output, asdict(settings)),
            **{result.name: result.to_json() for result in results},
        },
    }
    output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_page(
    output: Path, settings: EvaluationSettings, results: Sequence[BenchmarkResult], samples: bool = False
) -> Path:
    """
    Write the page with the worst and best cases and, if wanted, a line for each question to the folder beside a JSON file.

    Returns:
        The page.
    """
    folder = output.with_suffix("")
    # Lines of an earlier run would stand beside figures that they do not belong to.
    (folder / SAMPLES_FILE).unlink(missing_ok=True)
    if samples:
        write_samples(results, folder / SAMPLES_FILE)
    return write_page(results, asdict(settings), folder)


def _installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def stored_limit(output: Path) -> int | None:
    """The limit of the results in a JSON file, if there are any."""
    return json.loads(output.read_text(encoding="utf-8"))["settings"]["limit"] if output.is_file() else None


def _earlier(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Results that a file has for the same settings."""
    if not output.is_file():
        return {}
    content = json.loads(output.read_text(encoding="utf-8"))
    return content["benchmarks"] if content["settings"] == settings else {}
