"""What transformers says of a model folder: its class, its modules without their weights, its decoder layers."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from merging.inputs import read_config


def without_weights(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model a folder's configuration describes: parameters without memory, buffers that no checkpoint holds made.

    This is how `from_pretrained` begins, in transformers 5.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # it would draw one for every layer
    config = transformers.AutoConfig.from_pretrained(folder)
    for part in [config, *(getattr(config, name, None) for name in config.sub_configs)]:
        if part is not None:
            part.dtype = dtype
    cls = model_class(folder)
    if cls is transformers.AutoModelForCausalLM:
        cls = cls._model_mapping[type(config)]
    with transformers.modeling_utils.ContextManagers(cls.get_init_context(dtype, False, False, None)):
        model = cls(config)
    model._move_missing_keys_from_meta_to_device(set(), {"": device}, None, None)
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    model._initialize_missing_keys(False)
    if (folder / "generation_config.json").exists():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model.requires_grad_(False).eval()


def model_class(folder: Path):
    """The model's own class, for its imports cost less than the auto class's search; else the auto class."""
    import transformers

    config = read_config(folder / "config.json")
    kind, names = config["model_type"], config.get("architectures") or [""]
    try:
        module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
        return getattr(module, names[0])
    except (ImportError, AttributeError):
        return transformers.AutoModelForCausalLM


def decoder_layers(model: nn.Module) -> list[str]:
    """The names of the decoder layers: the decoder's list of as many modules as the configuration counts layers."""
    count, decoder = model.config.get_text_config().num_hidden_layers, model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    for name, module in decoder.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{prefix}.{name}.{index}".lstrip(".") for index in range(count)]
    return []
