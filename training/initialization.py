"""
Where the weights of a stage come from. Sources are read in this order, later ones replace what earlier ones gave:

| argument | what is read of it | into |
| --- | --- | --- |
| `language_model` | a causal language model | `language_model`, `lm_head` |
| `vision_tower` | a SigLIP model | `vision_tower` |
| `high_res_vision_tower` | a SAM model | `high_res_vision_tower` |
| `segmentor` | what stage 1 saved | `high_res_vision_tower`, `connector`, `mask_decoder` |
| `projectors` | what stage 2 saved | `multi_modal_projector`, `high_res_projector` |
| `model` | any checkpoint of this package | everything |

The rest is new. The report names, for each source, what was loaded and what of it has no place in this stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from modeling_xsam import XSAMConfig
from modeling_xsam.published_xsam import SPECIAL_TOKENS
from processing_xsam import XSAMProcessor
from processing_xsam.chat_templates_xsam import PHI3_CHAT_TEMPLATE, QWEN_CHAT_TEMPLATE
from processing_xsam.image_processing_xsam import default_high_res_image_processor, default_image_processor
from processing_xsam.processing_xsam import add_structure_tokens

from .arguments import ModelArguments

SEGMENTOR_PARTS = ("high_res_vision_tower.", "connector.", "mask_decoder.")
PROJECTOR_PARTS = ("multi_modal_projector.", "high_res_projector.")
# Marks tensors of a source that are only named in the report.
NOT_READ = "(not read) "
VOCABULARY_WEIGHTS = ("lm_head.weight", "embed_tokens.weight")


@dataclass
class SourceReport:
    """Tensors of one source: those that were loaded, and those that have no place."""

    name: str
    loaded: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


@dataclass
class InitializationReport:
    """Where the weights of a model came from; `new` are those that no source gave."""

    sources: list[SourceReport] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = ["weights of the model:"]
        for source in self.sources:
            lines.append(f"  loaded from {source.name}: {_summary(source.loaded)}")
            lines.append(f"    unused: {_summary(source.unused)}")
        lines.append(f"  new: {_summary(self.new)}")
        return "\n".join(lines)


def build_processor(arguments: ModelArguments) -> XSAMProcessor:
    """
    The processor of a run: that of `model` (or, in stage 3, `projectors`) if it is a checkpoint of this package, or a
    new one from the language model's tokenizer and the image towers' sizes.

    Raises:
        ValueError: if there is nothing to take a tokenizer from.
    """
    overrides = arguments.processor or {}
    for checkpoint in (arguments.model, arguments.projectors, arguments.segmentor):
        if checkpoint is not None and arguments.tokenizer is None:
            return XSAMProcessor.from_pretrained(checkpoint, **overrides)
    source = arguments.tokenizer or arguments.language_model
    if source is None:
        raise ValueError("tokenizer: give tokenizer, language_model or model; the prompts need a tokenizer.")
    tokenizer = AutoTokenizer.from_pretrained(source)
    add_structure_tokens(tokenizer)
    config = build_config(arguments, tokenizer)
    return processor_of(config, tokenizer, **overrides)


def processor_of(config: XSAMConfig, tokenizer: PreTrainedTokenizerBase, **overrides: Any) -> XSAMProcessor:
    """
    The processor that fits a configuration: its image sizes and numbers of tokens, its language model's conversations.

    Args:
        overrides: arguments of `XSAMProcessor` that differ.
    """
    qwen = config.text_config.model_type.startswith("qwen")
    fitting = {
        "image_processor": default_image_processor(config.vision_config.image_size),
        "high_res_image_processor": default_high_res_image_processor(config.high_res_vision_config.image_size),
        "tokenizer": tokenizer,
        "chat_template": QWEN_CHAT_TEMPLATE if qwen else PHI3_CHAT_TEMPLATE,
        "num_image_tokens": config.num_image_tokens,
        "num_region_tokens": config.num_region_tokens,
    }
    return XSAMProcessor(**{**fitting, **overrides})


def build_config(arguments: ModelArguments, tokenizer: Any, labels: tuple[str, ...] = ()) -> XSAMConfig:
    """
    The configuration of a run: the towers' and language model's own ones, the ids of the tokenizer's special tokens,
    and what the recipe changes.

    Args:
        tokenizer: with the five structure tokens.
        labels: category names of stage 1's linear head.
    """
    base = _tower_configs(arguments) if arguments.model is None else _saved_config(arguments.model)
    overrides = _merge(base, arguments.config or {})
    ids = {name: tokenizer.convert_tokens_to_ids(token) for token, name in SPECIAL_TOKENS.items()}
    from_tokenizer = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = overrides.get("text_config")
    # A language model of its own knows its tokens; that of the default is only a shape.
    text = XSAMConfig().text_config.to_dict() | from_tokenizer if text is None else from_tokenizer | text
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return XSAMConfig(
        **{
            **overrides,
            "text_config": {**text, "vocab_size": len(tokenizer)},
            **ids,
            **(names if labels else {}),
            "architectures": [arguments.model_class.__name__],
        }
    )


def random_model(
    model_class: type[PreTrainedModel], config: XSAMConfig, attn_implementation: str | None = None
) -> PreTrainedModel:
    """
    A model without any source. The dense tower's position embedding starts with sines and cosines, as in MAE
    (arXiv 2111.06377), which SAM's encoder began from. transformers starts it at zero, where it stays for long: nothing
    then says which of two like patches is on the left.
    """
    model = model_class._from_config(config, attn_implementation=attn_implementation)
    positions = model.high_res_vision_tower.vision_encoder.pos_embed
    if positions is not None:
        _, height, width, channels = positions.shape
        with torch.no_grad():
            positions.copy_(build_2d_sinusoidal_position_embedding(height, width, channels).view_as(positions))
    return model


def build_model(arguments: ModelArguments, config: XSAMConfig) -> tuple[PreTrainedModel, InitializationReport]:
    """
    The model of a stage with the weights of its sources.

    Raises:
        ValueError: if a source has a tensor of another shape than the model, or gives nothing at all.
    """
    model = random_model(arguments.model_class, config, attn_implementation=arguments.attn_implementation)
    report = InitializationReport()
    targets = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    for name, tensors in _sources(arguments):
        report.sources.append(_load(name, tensors, targets))
    # By identity: tied weights have several names, and one of them is enough.
    loaded = {id(targets[key]) for source in report.sources for key in source.loaded}
    report.new = sorted(key for key, value in model.named_parameters() if id(value) not in loaded)
    return model, report


def build_generation_config(processor: XSAMProcessor) -> GenerationConfig:
    """Greedy generation that ends where the chat template ends an answer, or at the tokenizer's own end token."""
    tokenizer = processor.tokenizer
    answer = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    prompt = processor.encode_conversation(answer)
    end = max(place for place, answered in enumerate(prompt.answer_mask) if answered)
    ends = dict.fromkeys([prompt.input_ids[end], tokenizer.eos_token_id])
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[token for token in ends if token is not None],
        pad_token_id=tokenizer.pad_token_id,
    )


def _sources(arguments: ModelArguments) -> Iterator[tuple[str, Iterator[tuple[str, torch.Tensor]]]]:
    """Each source that the arguments name, with its tensors under the names that this package has for them."""
    if arguments.language_model is not None:
        yield arguments.language_model, _language_model_tensors(arguments.language_model)
    for part in ("vision_tower", "high_res_vision_tower"):
        source = getattr(arguments, part)
        if source is not None:
            yield source, _tower_tensors(source, part)
    for source, parts in ((arguments.segmentor, SEGMENTOR_PARTS), (arguments.projectors, PROJECTOR_PARTS)):
        if source is not None:
            yield source, _checkpoint_tensors(source, parts)
    if arguments.model is not None:
        yield arguments.model, _checkpoint_tensors(arguments.model, ("",))


def _language_model_tensors(source: str) -> Iterator[tuple[str, torch.Tensor]]:
    model, unexpected = _load_pretrained(AutoModelForCausalLM, source)
    prefix = model.base_model_prefix + "."
    for key, value in model.state_dict().items():
        yield f"language_model.{key[len(prefix) :]}" if key.startswith(prefix) else key, value
    yield from unexpected


def _tower_tensors(source: str, part: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The image tower of a checkpoint, which may be that of a model with more parts."""
    tower, unexpected = _load_pretrained(AutoModel, source, config=_tower_config(source))
    for key, value in tower.state_dict().items():
        yield f"{part}.{key}", value
    yield from unexpected


def _load_pretrained(
    model_class: Any, source: str, **kwargs: Any
) -> tuple[PreTrainedModel, list[tuple[str, torch.Tensor]]]:
    """A pretrained model, and what of its checkpoint it has no place for; said in our report, not in the log."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise ValueError(
            f"{source} lacks {len(info['missing_keys'])} weights, among them {sorted(info['missing_keys'])[0]}."
        )
    return model, [(NOT_READ + key, torch.empty(0)) for key in sorted(info["unexpected_keys"])]


def _tower_config(source: str) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(source)
    return getattr(config, "vision_config", config)


def _checkpoint_tensors(source: str, prefixes: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a checkpoint of this package, file by file; others than those with the prefixes come as they are."""
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json"]))
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        files = sorted(folder.glob("*.safetensors"))
    else:
        files = [folder / SAFE_WEIGHTS_NAME]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{folder} has no {SAFE_WEIGHTS_NAME}: give a folder that a training run has saved.")
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  it is no mapping
                if key.startswith(prefixes):
                    yield key, tensors.get_tensor(key)
                else:
                    yield NOT_READ + key, torch.empty(0)


@torch.no_grad()
def _load(name: str, tensors: Iterator[tuple[str, torch.Tensor]], targets: Mapping[str, torch.Tensor]) -> SourceReport:
    report = SourceReport(name)
    for key, value in tensors:
        target = targets.get(key)
        if target is None:
            report.unused.append(key.removeprefix(NOT_READ))
            continue
        if key.endswith(VOCABULARY_WEIGHTS) and value.shape[1:] == target.shape[1:]:
            _copy_vocabulary(target, value)
        elif value.shape == target.shape:
            target.copy_(value)
        else:
            raise ValueError(
                f"{name}: {key} is {tuple(value.shape)}, but the model has {tuple(target.shape)} there. Make config agree "
                "with the checkpoint."
            )
        report.loaded.append(key)
    if not report.loaded:
        raise ValueError(f"{name}: none of its {len(report.unused)} tensors belongs to this model.")
    return report


def _copy_vocabulary(target: torch.Tensor, value: torch.Tensor) -> None:
    """
    Rows of the tokens that both vocabularies have. Phi-3's table is longer than its tokenizer: the new tokens keep the
    unused rows at their ids, as in the original. Rows beyond the table start at its mean.
    """
    rows = min(len(target), len(value))
    target[:rows] = value[:rows]
    target[rows:] = value.float().mean(0).to(target.dtype)


def _tower_configs(arguments: ModelArguments) -> dict[str, Any]:
    """Configurations of the sources; what has no source keeps this package's default."""
    configs: dict[str, Any] = {}
    if arguments.language_model is not None:
        configs["text_config"] = AutoConfig.from_pretrained(arguments.language_model).to_dict()
    for field_name, source in (
        ("vision_config", arguments.vision_tower),
        ("high_res_vision_config", arguments.high_res_vision_tower),
    ):
        if source is not None:
            configs[field_name] = _tower_config(source).to_dict()
    for source in (arguments.projectors, arguments.segmentor):
        if source is not None:
            # What stands in a checkpoint of an earlier stage holds for what it gives.
            saved = _saved_config(source)
            shared = ("high_res_vision_config", "mask_decoder_config", "connector_feature_layers")
            shared += ("connector_scale_factors", "connector_hidden_size")
            configs.update({name: saved[name] for name in shared})
            if source == arguments.projectors:
                configs.setdefault("text_config", saved["text_config"])
                configs.setdefault("vision_config", saved["vision_config"])
    return configs


def _saved_config(source: str) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(source)
    if config.model_type != XSAMConfig.model_type:
        raise ValueError(
            f"{source} is a checkpoint of {config.model_type!r}: give one that a stage of X-SAM has saved."
        )
    return config.to_dict()


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` on top of `base`, sub-configurations field by field."""
    merged = dict(base)
    for key, value in overrides.items():
        inner = merged.get(key)
        # Another kind of model is no variant of what was there.
        same_kind = (
            isinstance(inner, dict)
            and isinstance(value, dict)
            and value.get("model_type") in (None, inner.get("model_type"))
        )
        merged[key] = {**inner, **value} if same_kind else value
    return merged


def _summary(keys: list[str]) -> str:
    """Names of modules with the number of their tensors."""
    counts = Counter(key.split(".")[0] for key in keys)
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "nothing"
