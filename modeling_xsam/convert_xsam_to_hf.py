"""
Original X-SAM checkpoints -> this package:

    python -m modeling_xsam.convert_xsam_to_hf --checkpoint pytorch_model.bin --output DIR

Tensors are renamed, nothing is computed: the vocabulary gets two rows for the placeholders `<image>` and `<region>`,
and a buffer that nothing reads is left out. The input is memory-mapped and written shard by shard.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.utils import tqdm
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, Phi3Config, Qwen3Config

from .configuration_xsam import XSAMConfig, XSAMMaskDecoderConfig
from .modeling_xsam import XSAMForSegmentation, XSAMForUniversalSegmentation

# Original name -> ours, of the paper's branch and of the newer one. Also fits `from_pretrained(key_mapping=...)`.
KEY_MAPPING = {
    r"^(?:visual|vision)_encoder\.vision_model\.": "vision_tower.",
    r"^visual_projector\.model\.0\.": "multi_modal_projector.linear_1.",
    r"^visual_projector\.model\.2\.": "multi_modal_projector.linear_2.",
    r"^seg_projector\.model\.0\.": "high_res_projector.linear_1.",
    r"^seg_projector\.model\.2\.": "high_res_projector.linear_2.",
    r"^llm_projector\.model\.0\.": "mask_projector.linear_1.",
    r"^llm_projector\.model\.2\.": "mask_projector.linear_2.",
    r"^llm\.model\.": "language_model.",
    r"^llm\.lm_head\.": "lm_head.",
    r"^bg_embeds\.": "background_embedding.",
    r"^seg_connector\.model\.(\d+)\.model\.0\.": r"connector.branches.\1.conv1.",
    r"^seg_connector\.model\.(\d+)\.model\.1\.": r"connector.branches.\1.norm1.",
    r"^seg_connector\.model\.(\d+)\.model\.2\.": r"connector.branches.\1.conv2.",
    r"^seg_connector\.model\.(\d+)\.model\.3\.": r"connector.branches.\1.norm2.",
    r"^seg_connector\.model\.(\d+)\.model\.4\.": r"connector.branches.\1.conv3.",
    r"^seg_connector\.model\.(\d+)\.model\.5\.": r"connector.branches.\1.norm3.",
    r"^segmentor\.encoder\.": "high_res_vision_tower.vision_encoder.",
    r"^segmentor\.pixel_decoder\.": "mask_decoder.pixel_decoder.",
    r"^segmentor\.decoder\.": "mask_decoder.query_decoder.",
    r"^segmentor\.(?:class_predictor\.)?logit_scale$": "phrase_classifier.logit_scale",
    r"^segmentor\.class_predictor\.(?:predictor\.)?(weight|bias)$": r"class_predictor.\1",
}
IGNORED_KEYS = {
    "segmentor.shared_image_embedding.positional_embedding": "a buffer of SAM's prompt encoder, which X-SAM has not",
}
# Names that only the newer branch of the original code has.
NEWER_BRANCH = r"vision_encoder\.|segmentor\.class_predictor\.(?:predictor\.|logit_scale)"
VOCABULARY_KEYS = ("language_model.embed_tokens.weight", "lm_head.weight")
NUM_PLACEHOLDERS = 2

END_OF_ANSWER = {"phi3": [32007, 32000, 32001], "qwen3-1.7b": [151645, 151643], "qwen3-4b": [151645, 151643]}


@dataclass
class ConversionReport:
    """What became of every weight: original names per our name, and reasons per name that was left out."""

    mapped: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"mapped: {len(self.mapped)} weights", f"ignored: {len(self.ignored)}"]
        lines += [f"  {name}: {reason}" for name, reason in self.ignored.items()]
        lines += [f"missing: {len(self.missing)}", *(f"  {name}" for name in self.missing)]
        return "\n".join(lines)


def convert_key(name: str) -> str | None:
    """Our name of an original weight; None for a name that is not X-SAM's."""
    for pattern, replacement in KEY_MAPPING.items():
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


def plan_conversion(shapes: Mapping[str, torch.Size], config: XSAMConfig) -> ConversionReport:
    """
    Decide the fate of every weight, before any is read.

    Args:
        shapes: shape of each original weight.
        config: of the model to be made; its architecture says which stage.

    Raises:
        ValueError: if a weight is unknown, missing or of another shape.
    """
    model = empty_model(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    report = ConversionReport()
    tied = set(model.all_tied_weights_keys)
    unknown, differing = [], []
    for name, shape in shapes.items():
        target = convert_key(name)
        if name in IGNORED_KEYS:
            report.ignored[name] = IGNORED_KEYS[name]
        elif target not in expected:
            unknown.append(name)
        elif target in tied:
            report.ignored[name] = f"the same matrix as {model.all_tied_weights_keys[target]}"
        else:
            report.mapped[target] = name
            if _converted_shape(target, shape) != tuple(expected[target]):
                differing.append(f"{name} is {tuple(shape)}, {target} is {tuple(expected[target])}")
    report.missing = sorted(set(expected) - set(report.mapped) - tied)
    problems = {"unknown": unknown, "missing": report.missing, "of another shape": differing}
    if any(problems.values()):
        details = "; ".join(
            f"{len(names)} weights are {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(f"The checkpoint is not that of {type(model).__name__} with this configuration. {details}.")
    return report


def convert_state_dict(state_dict: Mapping[str, torch.Tensor], config: XSAMConfig) -> dict[str, torch.Tensor]:
    """
    Convert weights that fit into memory.

    Raises:
        ValueError: see `plan_conversion`.
    """
    report = plan_conversion({name: tensor.shape for name, tensor in state_dict.items()}, config)
    weights = {target: convert_tensor(target, state_dict[name]) for target, name in report.mapped.items()}
    tied = empty_model(config).all_tied_weights_keys
    return weights | {target: weights[source] for target, source in tied.items()}


def convert_tensor(target: str, tensor: torch.Tensor) -> torch.Tensor:
    """Append the placeholders' rows, the mean of all others, to a vocabulary matrix; other weights stay as they are."""
    if target not in VOCABULARY_KEYS:
        return tensor
    mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(NUM_PLACEHOLDERS, -1)])


def _converted_shape(target: str, shape: torch.Size) -> tuple[int, ...]:
    rows = NUM_PLACEHOLDERS if target in VOCABULARY_KEYS else 0
    return (shape[0] + rows, *shape[1:]) if rows else tuple(shape)


def empty_model(config: XSAMConfig) -> XSAMForSegmentation | XSAMForUniversalSegmentation:
    """The model of a configuration's architecture, without memory for its weights."""
    classes = {cls.__name__: cls for cls in (XSAMForSegmentation, XSAMForUniversalSegmentation)}
    name = (config.architectures or [XSAMForSegmentation.__name__])[0]
    with torch.device("meta"):
        return classes[name](config)


def build_config(variant: str, stage: int, newer_branch: bool = False, num_labels: int = 133) -> XSAMConfig:
    """
    Configuration of a released model.

    Args:
        variant: phi3, qwen3-1.7b or qwen3-4b.
        stage: 1 or 3.
        newer_branch: 64 mean-pooled tokens per region and class logits within 50, instead of one max-pooled token and
            500.
        num_labels: classes of the linear head, stage 1 only.
    """
    text_config, first_special = _text_config(variant)
    config = XSAMConfig(
        text_config=text_config,
        mask_decoder_config=XSAMMaskDecoderConfig(class_logit_clamp=50.0 if newer_branch else 500.0),
        num_region_tokens=64 if newer_branch else 1,
        region_pooling="mean" if newer_branch else "max",
        seg_token_id=first_special,
        phrase_start_token_id=first_special + 1,
        phrase_end_token_id=first_special + 2,
        image_token_id=first_special + 3,
        region_token_id=first_special + 4,
    )
    config.architectures = ["XSAMForUniversalSegmentation" if stage == 1 else "XSAMForSegmentation"]
    if stage == 1:
        config.num_labels = num_labels
    return config


def _text_config(variant: str) -> tuple[Phi3Config | Qwen3Config, int]:
    """The language model, and the length of its tokenizer: the id of the first special token that X-SAM appends."""
    if variant == "phi3":
        return Phi3Config(vocab_size=32016, sliding_window=2047), 32011
    sizes = {"qwen3-1.7b": (2048, 6144, 28, 16), "qwen3-4b": (2560, 9728, 36, 32)}
    hidden_size, intermediate_size, num_hidden_layers, num_attention_heads = sizes[variant]
    text_config = Qwen3Config(
        vocab_size=151674,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=151643,
        eos_token_id=151645,
        pad_token_id=151643,
    )
    return text_config, 151669


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """
    Tensors of a `.bin` file, memory-mapped. Training wrappers (`state_dict`, `module`) are unpacked.

    Raises:
        ValueError: if the file is truncated, is no checkpoint, or needs code to be run.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"--checkpoint {path} holds more than tensors and would run code when read. Save its state dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"--checkpoint {path} cannot be read; it may be truncated. ({error})") from error
    for wrapper in ("state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"--checkpoint {path} is no dictionary of tensors.")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def write_shards(
    weights: Mapping[str, torch.Tensor], report: ConversionReport, output: Path, dtype: torch.dtype, max_bytes: int
) -> None:
    """Convert and write weights in files of at most `max_bytes` (a larger tensor has a file of its own), one by one."""
    shards = list(_shards(weights, report, dtype, max_bytes))
    index = {"metadata": {"total_size": 0}, "weight_map": {}}
    progress = tqdm(total=len(report.mapped), desc="weights", unit="")
    for number, targets in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for target in targets:
            tensors[target] = convert_tensor(target, weights[report.mapped[target]]).to(dtype).contiguous()
            index["weight_map"][target] = name
            index["metadata"]["total_size"] += tensors[target].nbytes
            progress.update()
        save_file(tensors, output / name, metadata={"format": "pt"})
    progress.close()
    if len(shards) > 1:
        (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(
    weights: Mapping[str, torch.Tensor], report: ConversionReport, dtype: torch.dtype, max_bytes: int
) -> Iterator[list[str]]:
    shard, size = [], 0
    for target, name in report.mapped.items():
        numel = torch.Size(_converted_shape(target, weights[name].shape)).numel()
        if shard and size + numel * dtype.itemsize > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(target)
        size += numel * dtype.itemsize
    yield shard


def save_tokenizer(source: str, config: XSAMConfig, output: Path) -> None:
    """
    Save a tokenizer with the special tokens of X-SAM appended in the order in which the checkpoint has them.

    Raises:
        ValueError: if the tokens get other ids than the configuration's.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokens = {
        "<SEG>": config.seg_token_id,
        "<p>": config.phrase_start_token_id,
        "</p>": config.phrase_end_token_id,
        "<image>": config.image_token_id,
        "<region>": config.region_token_id,
    }
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    ids = dict(zip(tokens, tokenizer.convert_tokens_to_ids(list(tokens)), strict=True))
    if ids != tokens:
        raise ValueError(f"--tokenizer {source} gives {ids}, but the checkpoint has {tokens}: is it of this variant?")
    tokenizer.save_pretrained(output)


def write_folder(
    weights: Mapping[str, torch.Tensor],
    output: str | Path,
    config: XSAMConfig,
    eos_token_id: list[int] | None = None,
    tokenizer: str | None = None,
    max_bytes: int = 10**9,
) -> ConversionReport:
    """
    Convert weights into a folder that `from_pretrained` loads.

    Args:
        weights: original weights by name.
        output: folder to write; nothing is written if the weights do not fit.
        config: see `build_config`.
        eos_token_id: tokens that end a generated answer.
        tokenizer: name or folder of the language model's tokenizer, to be saved with the tokens of X-SAM.
        max_bytes: size of a file.

    Raises:
        ValueError: see `plan_conversion` and `save_tokenizer`.
    """
    report, output = plan_conversion({name: tensor.shape for name, tensor in weights.items()}, config), Path(output)
    output.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        save_tokenizer(tokenizer, config, output)
    config.dtype = next(iter(weights.values())).dtype
    write_shards(weights, report, output, config.dtype, max_bytes)
    config.save_pretrained(output)
    if eos_token_id is not None:
        GenerationConfig(
            bos_token_id=config.text_config.bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=config.text_config.pad_token_id,
        ).save_pretrained(output)
    return report


def convert_checkpoint(
    checkpoint: str | Path, output: str | Path, variant: str = "phi3", stage: int = 3, tokenizer: str | None = None
) -> ConversionReport:
    """
    Convert a released checkpoint file. Which branch of the original code wrote it, and with it the recipe, shows in
    its names.

    Args:
        checkpoint: `pytorch_model.bin` of the original code.
        output: folder to write.
        variant: phi3, qwen3-1.7b or qwen3-4b.
        stage: 1 or 3.
        tokenizer: name or folder of the language model's tokenizer.

    Raises:
        ValueError: if the file cannot be read or is not of this variant and stage.
    """
    weights = read_checkpoint(checkpoint)
    class_biases = [tensor for name, tensor in weights.items() if convert_key(name) == "class_predictor.bias"]
    config = build_config(
        variant,
        stage,
        newer_branch=any(re.match(NEWER_BRANCH, name) for name in weights),
        num_labels=len(class_biases[0]) - 1 if class_biases else 133,
    )
    return write_folder(
        weights, output, config, eos_token_id=END_OF_ANSWER[variant] if stage == 3 else None, tokenizer=tokenizer
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert an original X-SAM checkpoint for transformers.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="pytorch_model.bin of the original code")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--tokenizer", help="Hub id or folder of the language model's tokenizer")
    parser.add_argument("--variant", choices=list(END_OF_ANSWER), default="phi3")
    parser.add_argument("--stage", type=int, choices=[1, 3], default=3)
    options = parser.parse_args(arguments)
    try:
        print(convert_checkpoint(**vars(options)))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
