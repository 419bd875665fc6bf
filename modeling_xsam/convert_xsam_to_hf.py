"""
Convert checkpoints of the original X-SAM code (arXiv 2508.04655; its AAAI-26 branch "archive" and its newer branch
"main") into a folder for `from_pretrained`:

    python -m modeling_xsam.convert_xsam_to_hf --checkpoint pytorch_model.bin --output xsam-phi3 --tokenizer TOKENIZER

Everything is checked on shapes before the first byte is written. Weights are then copied shard by shard from the
memory-mapped checkpoint, so memory does not grow with its size.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.serialization import StateDictSplit
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from .configuration_xsam import XSAMConfig
from .modeling_xsam import XSAMForSegmentation
from .pretrained_xsam import XSAMPreTrainedModel
from .published_xsam import RECIPES, SPECIAL_TOKENS, VARIANTS, build_config, build_generation_config
from .universal_segmentation_xsam import XSAMForUniversalSegmentation

# Names of both branches of the original -> ours; exactly one pattern fits each key. `from_pretrained(key_mapping=...)`
# understands this table and loads stage 1 with it, but cannot replace the conversion: the vocabulary of stage 3 lacks the
# placeholders' rows, and `save_pretrained` would reverse the patterns into names that nothing reads.
KEY_MAPPING = {
    r"^(?:visual|vision)_encoder\.vision_model\.": "vision_tower.",
    r"^segmentor\.encoder\.": "high_res_vision_tower.vision_encoder.",
    r"^segmentor\.pixel_decoder\.": "mask_decoder.pixel_decoder.",
    r"^segmentor\.decoder\.": "mask_decoder.query_decoder.",
    r"^segmentor\.(?:class_predictor\.)?logit_scale$": "phrase_classifier.logit_scale",
    r"^segmentor\.class_predictor\.(?:predictor\.)?(weight|bias)$": r"class_predictor.\1",
    r"^seg_connector\.model\.(\d+)\.model\.0\.": r"connector.branches.\1.conv1.",
    r"^seg_connector\.model\.(\d+)\.model\.1\.": r"connector.branches.\1.norm1.",
    r"^seg_connector\.model\.(\d+)\.model\.2\.": r"connector.branches.\1.conv2.",
    r"^seg_connector\.model\.(\d+)\.model\.3\.": r"connector.branches.\1.norm2.",
    r"^seg_connector\.model\.(\d+)\.model\.4\.": r"connector.branches.\1.conv3.",
    r"^seg_connector\.model\.(\d+)\.model\.5\.": r"connector.branches.\1.norm3.",
    r"^visual_projector\.model\.0\.": "multi_modal_projector.linear_1.",
    r"^visual_projector\.model\.2\.": "multi_modal_projector.linear_2.",
    r"^seg_projector\.model\.0\.": "high_res_projector.linear_1.",
    r"^seg_projector\.model\.2\.": "high_res_projector.linear_2.",
    r"^llm_projector\.model\.0\.": "mask_projector.linear_1.",
    r"^llm_projector\.model\.2\.": "mask_projector.linear_2.",
    r"^llm\.model\.": "language_model.",
    r"^llm\.lm_head\.": "lm_head.",
    r"^bg_embeds\.": "background_embedding.",
}

IGNORED_KEYS = {
    "segmentor.shared_image_embedding.positional_embedding": "a buffer of SAM's prompt encoder, which X-SAM does not use",
}

# Matrices with one row per token. The original's end with <SEG>, <p>, </p>; here <image> and <region> follow.
VOCABULARY_WEIGHTS = ("language_model.embed_tokens.weight", "lm_head.weight")
NUM_PLACEHOLDERS = 2

MAIN_BRANCH_PREFIXES = (
    "vision_encoder.",
    "segmentor.class_predictor.logit_scale",
    "segmentor.class_predictor.predictor.",
)

# Under these names training frameworks keep the weights in a larger dict.
WRAPPER_KEYS = ("state_dict", "module", "model")


# Names


def convert_key(key: str) -> str | None:
    """Our name of a weight of the original, or None if no pattern of `KEY_MAPPING` fits."""
    for pattern, replacement in KEY_MAPPING.items():
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return None


def infer_stage(keys: Iterable[str]) -> int:
    """1 for the segmentor alone, 3 for a model with a language model."""
    return 3 if any(key.startswith("llm.") for key in keys) else 1


def infer_recipe(keys: Iterable[str]) -> str:
    """The original's branch that names its weights so: "archive" or "main"."""
    return "main" if any(key.startswith(MAIN_BRANCH_PREFIXES) for key in keys) else "archive"


def infer_variant(state_dict: Mapping[str, torch.Tensor]) -> str:
    """
    The name in `VARIANTS` of the language model with this hidden size; the first one if there is no language model.

    Raises:
        ValueError: if no variant has this hidden size.
    """
    hidden_sizes = {build_config(name).text_config.hidden_size: name for name in VARIANTS}
    embeddings = state_dict.get("llm.model.embed_tokens.weight")
    if embeddings is None:
        return next(iter(VARIANTS))
    if embeddings.shape[-1] not in hidden_sizes:
        raise ValueError(
            f"llm.model.embed_tokens.weight has hidden size {embeddings.shape[-1]}; known are {hidden_sizes}. For another "
            "language model give an XSAMConfig (--config)."
        )
    return hidden_sizes[embeddings.shape[-1]]


def _infer_config(
    state_dict: Mapping[str, torch.Tensor], variant: str | None, stage: int | None, recipe: str | None
) -> tuple[XSAMConfig, str]:
    """The configuration of a published model and its name in `VARIANTS`; what is None is read off the weights."""
    heads = [tensor for key, tensor in state_dict.items() if convert_key(key) == "class_predictor.bias"]
    variant = variant or infer_variant(state_dict)
    config = build_config(
        variant,
        stage or infer_stage(state_dict),
        recipe or infer_recipe(state_dict),
        num_labels=len(heads[0]) - 1 if heads else None,
    )
    return config, variant


# Plan: which weight comes from where, on shapes alone


@dataclass
class ConversionPlan:
    """
    What becomes of every key of a checkpoint, and where every weight of the model comes from.

    Args:
        model_class: the class that loads the result.
        sources: our name -> original key, in the order of the model.
        tied: our names that are not saved -> the names they share their weight with.
        ignored: original key -> why it is left out.
        problems: what makes the conversion impossible, one sentence each.
        notes: what else a reader of the report should know.
    """

    model_class: type[XSAMPreTrainedModel]
    sources: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def raise_problems(self) -> None:
        """
        Raises:
            ValueError: if the plan has problems, with all of them.
        """
        if self.problems:
            raise ValueError(
                f"The checkpoint does not fit {self.model_class.__name__}, nothing was written:\n- "
                + "\n- ".join(self.problems)
                + "\nCheck variant, stage and config; a checkpoint without frozen parts has to be completed first."
            )

    def report(self) -> str:
        """Keys mapped, ignored and missing, for people."""
        lines = [f"{len(self.sources)} weights converted for {self.model_class.__name__}, 0 missing"]
        lines.append(f"{len(self.ignored)} keys ignored" + (":" if self.ignored else ""))
        lines.extend(f"  {key}: {reason}" for key, reason in self.ignored.items())
        return "\n".join(lines + self.notes)


def plan_conversion(state_dict: Mapping[str, torch.Tensor], config: XSAMConfig) -> ConversionPlan:
    """
    Compare a checkpoint with the model of `config`, built without memory. No values are read, except to compare
    `lm_head` with the input embeddings where the model ties them.

    Args:
        state_dict: tensors of the original, of any device.
        config: if it names no `architectures`, the keys decide between stage 1 and 3.
    """
    architectures = config.architectures or []
    universal = XSAMForUniversalSegmentation.__name__
    is_stage_1 = universal in architectures if architectures else infer_stage(state_dict) == 1
    model_class = XSAMForUniversalSegmentation if is_stage_1 else XSAMForSegmentation
    with torch.device("meta"):
        model = model_class(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    plan = ConversionPlan(model_class, tied=dict(model.all_tied_weights_keys))
    found = _assign_keys(plan, state_dict, expected)
    for name, origin in plan.tied.items():
        del expected[name]
        if name in found:
            _drop_tied(plan, state_dict, found.pop(name), found.get(origin), origin)
    if not is_stage_1:
        _expect_original_vocabulary(plan, config, expected)
    plan.sources = {name: found[name] for name in expected if name in found}
    missing = [name for name in expected if name not in found]
    if missing:
        plan.problems.append(f"{len(missing)} weights have no source: {_some(missing)}.")
    for name, key in plan.sources.items():
        if state_dict[key].shape != expected[name]:
            plan.problems.append(f"{key} is {tuple(state_dict[key].shape)}, expected {tuple(expected[name])}.")
    return plan


def _assign_keys(
    plan: ConversionPlan, state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]
) -> dict[str, str]:
    """Our name -> original key. Keys that are ignored, unknown or the second of their name go into the plan."""
    found: dict[str, str] = {}
    unknown = []
    for key in state_dict:
        name = convert_key(key)
        if key in IGNORED_KEYS:
            plan.ignored[key] = IGNORED_KEYS[key]
        elif name not in expected:
            unknown.append(key)
        elif name in found:
            plan.problems.append(f"{key} and {found[name]} are both {name}; remove one.")
        else:
            found[name] = key
    if unknown:
        plan.problems.append(f"{len(unknown)} keys have no place in the model: {_some(unknown)}.")
    return found


def _drop_tied(
    plan: ConversionPlan, state_dict: Mapping[str, torch.Tensor], key: str, origin_key: str | None, origin: str
) -> None:
    """Ignore a copy of a tied weight, as `save_pretrained` does; refuse to lose values that differ."""
    if origin_key is None:
        return
    tensor, kept = state_dict[key], state_dict[origin_key]
    # Equal pointers: the same storage, or tensors of the meta device.
    if tensor.data_ptr() == kept.data_ptr() or torch.equal(tensor, kept):
        plan.ignored[key] = f"equal to {origin_key}: the model ties it to {origin}"
    else:
        plan.problems.append(f"{key} differs from {origin_key}, but tie_word_embeddings is True; set it to False.")


def _expect_original_vocabulary(plan: ConversionPlan, config: XSAMConfig, expected: dict[str, torch.Size]) -> None:
    """The original has no rows for the placeholders: they are appended, so they have to be the last ones."""
    vocab_size = config.text_config.vocab_size
    placeholders = {config.image_token_id, config.region_token_id}
    if placeholders != {vocab_size - 2, vocab_size - 1}:
        plan.problems.append(
            f"image_token_id ({config.image_token_id}) and region_token_id ({config.region_token_id}) have to be the "
            f"last two of the {vocab_size} tokens (text_config.vocab_size)."
        )
    appended = [name for name in VOCABULARY_WEIGHTS if name in expected]
    for name in appended:
        rows, hidden_size = expected[name]
        expected[name] = torch.Size((rows - NUM_PLACEHOLDERS, hidden_size))
    plan.notes.append(f"rows for <image> and <region> appended to {' and '.join(appended)}")


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


# Tensors


def convert_state_dict(state_dict: Mapping[str, torch.Tensor], config: XSAMConfig) -> dict[str, torch.Tensor]:
    """
    Convert weights in memory. Tensors that only change their name are not copied.

    Args:
        state_dict: tensors under the original's names.
        config: see `plan_conversion`.

    Returns:
        The model's whole state dict; tied names hold the same tensor.

    Raises:
        ValueError: if a key is unknown, a weight missing or a shape wrong.
    """
    plan = plan_conversion(state_dict, config)
    plan.raise_problems()
    converted = {name: _convert_tensor(name, state_dict[key]) for name, key in plan.sources.items()}
    return converted | {name: converted[origin] for name, origin in plan.tied.items()}


def _convert_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    if name in VOCABULARY_WEIGHTS:
        tensor = append_placeholder_rows(tensor)
    return tensor.to(_stored_dtype(name, tensor, dtype)).contiguous()


def _stored_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """`dtype`, except where the model computes in float32 anyway: there a cast would only lose precision."""
    kept = name.split(".")[0] in XSAMPreTrainedModel._keep_in_fp32_modules_strict
    return tensor.dtype if dtype is None or kept or not tensor.is_floating_point() else dtype


def append_placeholder_rows(matrix: torch.Tensor) -> torch.Tensor:
    """
    (V, D) -> (V + 2, D). The new rows are the mean of the others: their values do not matter, since placeholders are
    replaced in the input and never predicted, but a mean keeps them in the range of real ones.
    """
    # In pieces: a sum over all rows in another precision would copy the whole matrix first.
    total = sum(rows.sum(0, dtype=torch.float64) for rows in matrix.split(4096))
    extended = matrix.new_empty(len(matrix) + NUM_PLACEHOLDERS, matrix.shape[1])
    extended[:-NUM_PLACEHOLDERS] = matrix
    extended[-NUM_PLACEHOLDERS:] = (total / len(matrix)).to(matrix.dtype)
    return extended


# Reading


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    Open a checkpoint without reading its values into memory.

    Args:
        path: a file of `torch.save`, a .safetensors file, or the .index.json of a sharded checkpoint.

    Returns:
        The tensors, and what was done to find them (wrapping dicts, prefixes).

    Raises:
        FileNotFoundError: if the file or one of its shards does not exist.
        ValueError: if a file is cut off, holds more than tensors, or is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The checkpoint {path} is not a file. Give a .bin, .safetensors or .index.json file.")
    if path.suffix != ".json":
        return _unwrap(_read_file(path))
    weight_map = json.loads(path.read_text()).get("weight_map")
    if weight_map is None:
        raise ValueError(f"{path} has no weight_map: give the .index.json of a sharded checkpoint.")
    content = {}
    for shard in sorted(set(weight_map.values())):
        if not (path.parent / shard).is_file():
            raise FileNotFoundError(f"{path} names the shard {shard}, which is not beside it. Download it again.")
        content.update(_read_file(path.parent / shard))
    return _unwrap(content)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and loading that could run code. Where it was written, save the weights "
            f"alone, with torch.save(state_dict, file). ({error})"
        ) from error
    except (RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read: it is cut off, damaged, or in the format of torch before 1.6. Download it or save "
            f"it again. ({error})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of a dict of tensors.")
    return content


def _unwrap(content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Descend through the dicts that training frameworks wrap around the weights, and take off their prefix."""
    notes = []
    while wrappers := [key for key in WRAPPER_KEYS if isinstance(content.get(key), dict)]:
        others = [str(key) for key in content if key != wrappers[0]]
        notes.append(f"weights read from {wrappers[0]!r}" + (f", beside {_some(others)}" if others else ""))
        content = content[wrappers[0]]
    strange = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strange or not content:
        raise ValueError(
            f"The checkpoint has to be a dict of tensors, possibly inside {', '.join(map(repr, WRAPPER_KEYS))}, but "
            + (f"these entries are none: {_some(strange)}." if strange else "it is empty.")
        )
    if all(key.startswith("module.") for key in content):
        notes.append("prefix 'module.' removed")
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content, notes


# Writing


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    config: XSAMConfig | None = None,
    variant: str | None = None,
    stage: int | None = None,
    recipe: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    max_shard_size: int | str = "2GB",
) -> ConversionPlan:
    """
    Convert a checkpoint into a folder for `from_pretrained`.

    Args:
        checkpoint: see `read_checkpoint`.
        output: new or empty folder.
        config: for a model that is none of the published ones; otherwise it is built from the next three.
        variant: see `build_config`; by default read off the shapes.
        stage: see `build_config`; by default read off the keys.
        recipe: see `build_config`; by default read off the keys.
        dtype: cast to this, except the modules that the model keeps in float32; by default nothing is cast.
        tokenizer: the language model's tokenizer, saved with X-SAM's special tokens.
        max_shard_size: largest weight file, which bounds the memory needed.

    Returns:
        The plan that was followed; `plan.report()` is its text.

    Raises:
        FileExistsError: if `output` is not empty.
        FileNotFoundError, ValueError: if the checkpoint does not exist, cannot be read or does not fit. Nothing is
            written then.
        OSError: if there is not enough space for the weights.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"The output {output} exists and is not an empty folder. Give a new one.")
    state_dict, notes = read_checkpoint(checkpoint)
    if config is None:
        config, variant = _infer_config(state_dict, variant, stage, recipe)
    plan = plan_conversion(state_dict, config)
    plan.raise_problems()
    plan.notes[:0] = notes
    loaded_tokenizer = None if tokenizer is None else load_tokenizer(tokenizer, config)
    shards = _split_into_shards(plan, state_dict, dtype, max_shard_size)
    _check_space(output, shards.metadata["total_size"])

    output.mkdir(parents=True, exist_ok=True)
    _write_shards(plan, state_dict, shards, dtype, output)
    if loaded_tokenizer is not None:
        loaded_tokenizer.save_pretrained(output)
    if plan.model_class is XSAMForSegmentation:
        build_generation_config(config, variant).save_pretrained(output)
    # Last of all: a folder without config.json is one whose conversion was interrupted.
    config.architectures = [plan.model_class.__name__]
    config.dtype = str(dtype or _main_dtype(state_dict)).removeprefix("torch.")
    config.save_pretrained(output)
    return plan


def _main_dtype(state_dict: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The floating-point type of most values."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in state_dict.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]


def _split_into_shards(
    plan: ConversionPlan,
    state_dict: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
    max_shard_size: int | str,
) -> StateDictSplit:
    """File names and contents as transformers writes them, from tensors without memory."""
    planned = {name: _convert_tensor(name, state_dict[key].to("meta"), dtype) for name, key in plan.sources.items()}
    return split_torch_state_dict_into_shards(
        planned, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )


def _check_space(output: Path, needed: int) -> None:
    existing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f"The weights need {needed / 1e9:.1f} GB, but {existing} has {free / 1e9:.1f} GB free.")


def _write_shards(
    plan: ConversionPlan,
    state_dict: Mapping[str, torch.Tensor],
    shards: StateDictSplit,
    dtype: torch.dtype | None,
    output: Path,
) -> None:
    total = shards.metadata["total_size"]
    with tqdm(total=total, unit="B", unit_scale=True, desc="Converting") as progress:
        for filename, names in shards.filename_to_tensors.items():
            originals = {name: state_dict[plan.sources[name]] for name in names}
            progress.update(_write_shard(originals, dtype, output / filename))
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_shard(originals: dict[str, torch.Tensor], dtype: torch.dtype | None, path: Path) -> int:
    """Convert tensors into a file; returns their bytes. What it converts is freed before the next shard begins."""
    tensors = {name: _convert_tensor(name, tensor, dtype) for name, tensor in originals.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def load_tokenizer(source: str | Path, config: XSAMConfig) -> PreTrainedTokenizerBase:
    """
    The language model's tokenizer with `<SEG>`, `<p>`, `</p>`, `<image>`, `<region>` appended in this order.

    Raises:
        ValueError: if a token then has another id than in `config`.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokens = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_tokens(tokens, special_tokens=True)
    for token, name in SPECIAL_TOKENS.items():
        actual, expected = tokenizer.convert_tokens_to_ids(token), getattr(config, name)
        if actual != expected:
            raise ValueError(
                f"The tokenizer {source} gives {token} the id {actual}, but {name} is {expected}: it is not the "
                "tokenizer of this checkpoint's language model."
            )
    return tokenizer


# Command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_xsam.convert_xsam_to_hf",
        description="Convert a checkpoint of the original X-SAM code into a folder for from_pretrained.",
    )
    parser.add_argument("--checkpoint", required=True, help=".bin, .safetensors or .index.json file of the original")
    parser.add_argument("--output", required=True, help="new or empty folder")
    parser.add_argument("--tokenizer", help="folder or Hub id of the language model's tokenizer, to be saved as well")
    parser.add_argument("--variant", choices=VARIANTS, help="language model; by default read off the shapes")
    parser.add_argument("--stage", type=int, choices=(1, 3), help="training stage; by default read off the keys")
    parser.add_argument("--recipe", choices=RECIPES, help="branch of the original; by default read off the keys")
    parser.add_argument("--config", help="config.json (or its folder) of an XSAMConfig, for models of other sizes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="cast; by default nothing is cast")
    parser.add_argument("--max-shard-size", default="2GB", help="largest weight file (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command line; see `--help`."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.config and (options.variant or options.stage or options.recipe):
        parser.error("--config replaces --variant, --stage and --recipe: give it alone.")
    try:
        plan = convert_checkpoint(
            options.checkpoint,
            options.output,
            config=XSAMConfig.from_pretrained(options.config) if options.config else None,
            variant=options.variant,
            stage=options.stage,
            recipe=options.recipe,
            dtype=getattr(torch, options.dtype) if options.dtype else None,
            tokenizer=options.tokenizer,
            max_shard_size=options.max_shard_size,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(plan.report())
    print(f"saved to {options.output}")


if __name__ == "__main__":
    main()
