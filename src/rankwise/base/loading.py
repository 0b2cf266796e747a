"""Loading of models with their tokenizers, from folders that were inspected first.

Tokens that were added to a tokenizer take rows of the embedding and of the output head that no token has; otherwise
both tables grow. The row of a new token is the mean of the rows of the tokens that it was written with before, so that
the same base has the same rows wherever it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rankwise.base.quiet as quiet
from rankwise.base.config_check import hub_config
from rankwise.base.gguf.header import read_gguf_header
from rankwise.base.gguf.mapped import gguf_tensors, quantization_of
from rankwise.base.inspection import refuse_vision, stored_format
from rankwise.base.kind import CAUSAL_LM, ModelKind, kind_for
from rankwise.base.loaded import LoadedModel, TextReader
from rankwise.base.precision import choose_precision
from rankwise.base.quantized_folder import QuantizedFolder, bitsandbytes_folder, mapped_folder, quantized_folder
from rankwise.base.rotary_names import alike_up_to, turn_by_row
from rankwise.base.sharding import load_sharded
from rankwise.base.skeleton import built
from rankwise.base.sources import Source, find
from rankwise.base.timm_models import head_modules, is_timm, need_timm
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError, RankwiseError, first_line, is_out_of_memory
from rankwise.kernels.quantized.given_back import give_back_after_use
from rankwise.kernels.quantized.nf4 import is_unpacked_by_library
from rankwise.kernels.quantized.tensor import is_quantized
from rankwise.rows.images.processor import need_vision
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer, NewTokens
from rankwise.runs.integrity import check_folder
from rankwise.runs.records import Callback, StatusMessage, WarningMessage, silent
from rankwise.system.extras import installs
from rankwise.system.foreign_json import read_json


def load(model: ModelConfig | str, callback: Callback = silent, kind: ModelKind = CAUSAL_LM) -> LoadedModel:
    """Load a base model by starter name, Hugging Face id, folder or GGUF file. A run's model must be unchanged since
    training."""
    spec = model if isinstance(model, ModelConfig) else ModelConfig(name=model)
    check_folder(Path(spec.name).expanduser(), callback)
    return load_unchecked(spec, callback, kind, doubts=callback)


def load_unchecked(
    config: ModelConfig, callback: Callback = silent, kind: ModelKind = CAUSAL_LM, doubts: Callback = silent
) -> LoadedModel:
    """A model that need not be what training wrote. `doubts` hears how well it suits its objective, which is said where
    it is trained."""
    if kind.processing is not None:
        need_vision("the objective image-classification")
    precision = choose_precision(config)
    source = find(config, callback)
    if kind.processing is None:
        refuse_vision(source.config, str(source.folder))
        kind = kind_for(kind, source.config)
    trusted = config.trust_code is not None and config.trust_code == source.commit
    if config.memory is not None and precision.device.type != "cpu":
        callback(WarningMessage(f"model.memory limits memory on the CPU alone, and the model is on {precision.device}"))
    on_cpu = config if precision.device.type == "cpu" else config.model_copy(update={"memory": None})
    module, new_modules, own_head = _module(source, precision.dtype, trusted, callback, kind, on_cpu)
    reader = None
    if kind.processing is None:
        tokenizer = _tokenizer(source, trusted).with_tokens(config.new_tokens)
        reader = TextReader(tokenizer, ChatTemplate.of_model(tokenizer))
        give_rows(module, tokenizer.new, str(source.folder))
    if (alike := alike_up_to(module)) < inf:
        turn_by_row(module, alike)
    module.to(precision.device).eval()
    if on_cpu.memory is not None:
        give_back_after_use(module)
    if getattr(module, "generation_config", None) is not None:  # else it would fill in unset settings
        module.generation_config = type(module.generation_config)()
    loaded = LoadedModel(
        module=module,
        config=config,
        source=source,
        precision=precision,
        width=width_of(module),
        context_length=_context_length(module.config) if kind.processing is None else None,
        text=reader,
        processing=kind.processing,
        new_modules=new_modules,
        own_head=own_head,
        quantization=_quantization(config, source),
    )
    return loaded if kind.finish is None else kind.finish(loaded, doubts)


def _quantization(config: ModelConfig, source: Source) -> str | None:
    """How the weights are stored, for what is recorded of a base."""
    if source.mapped_file is not None:
        return quantization_of(read_gguf_header(source.mapped_file))
    if config.quantize == "none":
        return None
    return config.quantize if config.quantize != "auto" else stored_format(source.config)


def width_of(module: Any) -> int:
    """The hidden size; of a model with several, such as ConvNeXt, the last one."""
    if is_timm(module):
        return module.timm_model.num_features
    config = module.config
    config = getattr(config, "vision_config", None) or config.get_text_config()
    sizes = getattr(config, "hidden_sizes", None)
    return sizes[-1] if sizes else config.hidden_size


def _module(
    source: Source, dtype: Any, trusted: bool, callback: Callback, kind: ModelKind, config: ModelConfig
) -> tuple[Any, tuple[str, ...], bool]:
    """The model, the modules inside its body whose weights were drawn because the folder lacks them, and whether a
    classifier's head was not drawn."""
    quiet.hush()
    need_timm(source.config, str(source.folder))
    new_head = kind.head_seed is not None
    try:
        with nullcontext() if kind.head_seed is None else _drawing(kind.head_seed):
            module, report = _read(source, dtype, trusted, callback, kind, config)
    except RankwiseError:
        raise
    except Exception as error:  # errors of many kinds: damaged weights, unknown architectures, missing parts
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{source.folder} cannot be loaded as {kind.described}: {first_line(error)}") from None
    heads = tuple(f"{path}." for path in head_modules(module, images=kind.processing is not None)) if new_head else ()
    lacking = sorted(report["missing_keys"])
    drawn = [*lacking, *(key for key, *_ in report["mismatched_keys"])]
    if missing := [key for key in drawn if not (new_head and _may_be_new(key, heads))]:
        raise ModelError(f"{source.folder} lacks {len(missing)} of the model's weights, such as {missing[0]}.")
    if unused := sorted(report["unexpected_keys"]):  # of a model that gets a new head, the old head is among them
        callback((StatusMessage if new_head else WarningMessage)(
            f"{len(unused)} weights of {source.folder} have no place in this model and are not used, such as "
            f"{unused[0]}"
        ))  # fmt: skip
    own_head = new_head and not any(key.startswith(heads) for key in drawn)
    inside = [key.rpartition(".")[0] for key in lacking if not key.startswith(heads)]
    return module, tuple(dict.fromkeys(inside)) if new_head else (), own_head


def _read(
    source: Source, dtype: Any, trusted: bool, callback: Callback, kind: ModelKind, config: ModelConfig
) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' report of what its folder lacks and does not need."""
    import transformers

    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": kind.head_seed is not None}
    if config.sharded:
        _refuse_quantized(source)
        return load_sharded(source.folder, kind, dtype, choose_precision(config).device)
    if (lying := _stored(source, dtype, kind, config, callback)) is not None:
        if "nf4" in lying.formats and not is_unpacked_by_library():
            callback(WarningMessage(
                "bitsandbytes is not installed, so torch unpacks nf4 weights, which takes several times as long; "
                f"{installs('quantized')}"
            ))  # fmt: skip
        return type(lying.module).from_pretrained(None, config=lying.module.config, state_dict=lying.state, **options)
    return getattr(transformers, kind.auto_class).from_pretrained(
        source.folder, local_files_only=True, use_safetensors=True, trust_remote_code=trusted, **options,
        **kind.settings,
    )  # fmt: skip


def _refuse_quantized(source: Source) -> None:
    stored = "GGUF" if source.mapped_file is not None else stored_format(source.config)
    if stored is not None:
        raise ModelError(
            f"{source.folder} has weights in {stored}, which cannot be split over processes. Leave out --shard, or "
            "name the model in full precision."
        )


def _stored(
    source: Source, dtype: Any, kind: ModelKind, config: ModelConfig, callback: Callback
) -> QuantizedFolder | None:
    """The weights that are not in full precision, or are not to be, or stay in their files under a limit of memory;
    None where all become the number format of the run."""
    folder = source.folder
    if source.mapped_file is not None:
        return QuantizedFolder(built(folder, kind), gguf_tensors(source.mapped_file, folder, dtype), folder)
    stored = stored_format(source.config)
    if stored is not None:
        if config.packed_format not in (None, stored):
            raise ModelError(
                f"{folder} contains weights in {stored}, which are not quantised again as {config.quantize}. Leave out "
                "--quantize, or name the full-precision model."
            )
        lying = bitsandbytes_folder(folder, kind)
        return lying if config.quantize != "none" else lying.unpacked()
    if (packed := config.packed_format) is not None:
        return quantized_folder(folder, kind, packed, callback)
    return mapped_folder(folder, kind) if config.memory is not None and config.trust_code is None else None


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Draw by a seed, without a trace in the random numbers of the process."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _may_be_new(key: str, heads: tuple[str, ...]) -> bool:
    """A classifier's head is new, and so are the pooler of an encoder that was pretrained without one and the token
    that stands for hidden patches in pretraining."""
    return key.startswith(heads) or "pooler." in key or key.endswith(".mask_token")


def load_tokenizer(config: ModelConfig, callback: Callback = silent) -> tuple[HubTokenizer, str, int | None]:
    """Load the tokenizer without the weights; return it with the model's name and context length."""
    source = find(config, callback)
    refuse_vision(source.config, str(source.folder))
    trusted = config.trust_code is not None and config.trust_code == source.commit
    return (
        _tokenizer(source, trusted).with_tokens(config.new_tokens),
        source.name,
        _context_length(hub_config(source.folder, trusted=trusted)),
    )


def _context_length(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _tokenizer(source: Source, trusted: bool) -> HubTokenizer:
    from transformers import AutoTokenizer

    try:
        hub = AutoTokenizer.from_pretrained(source.folder, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # as many kinds as above
        raise ModelError(f"{source.folder} has no tokenizer that can be loaded: {first_line(error)}") from None
    if not hub.is_fast:
        raise ModelError(
            f"{source.folder} has no fast tokenizer (tokenizer.json), so its loss mask could not be checked."
        )
    settings = source.folder / "generation_config.json"
    named = settings if settings.is_file() else source.folder / "config.json"
    ends = _ids(read_json(named).get("eos_token_id"), str(named))
    return HubTokenizer(hub, [*_ids(hub.eos_token_id, "the tokenizer"), *ends])


def _ids(value: Any, named_by: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise ModelError(f"{named_by} has eos_token_id {value!r}; it must be a token id or a list of token ids.")
    return ids


@torch.no_grad()
def give_rows(module: Any, new: NewTokens, where: str) -> None:
    """Give every new token its rows. `where` names the model, for messages."""
    if not new.ids:
        return
    table = module.get_input_embeddings().weight
    if any(map(is_quantized, _tables(module))):
        raise ModelError(
            f"{where} stores its embedding or its output head in fewer bits, so no rows for new tokens can be added "
            "(model.new_tokens). Name the model in full precision, or leave the tokens out."
        )
    most = max(new.ids.values()) + 1
    if most > len(table):
        with torch.random.fork_rng():  # transformers draws the rows, which are written over below
            module.resize_token_embeddings(most, mean_resizing=False)
    for weight in _tables(module):
        for text, number in new.ids.items():
            pieces = torch.tensor(new.pieces[text], device=weight.device)
            weight[number] = weight[pieces].float().mean(0).to(weight.dtype)


def _tables(module: Any) -> list[Tensor]:
    """The weights that have a row for each token, a shared one once."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    weights = [module.get_input_embeddings().weight, *([] if head is None else [head.weight])]
    return list({id(weight): weight for weight in weights}.values())
