"""The reference NVAE's names for its tensors, and where `NVAE` keeps each of them.

PyTorch numbers all cells and combiners of a tower in one list; `NVAE` keeps those of
equal structure in one stack, so an index turns into a path and a slot.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ncp_jax.models.nvae.model import NVAE

Path = tuple[str, ...]


class Target(NamedTuple):
    """Where one PyTorch tensor goes."""

    collection: str
    path: Path
    slot: int | None  # along the leading group axis, where groups are stacked
    convert: Callable[[np.ndarray], np.ndarray]


Entry = tuple[str, Target]


def entries(module: NVAE) -> Iterator[Entry]:
    """Yields every PyTorch name of the model with its `Target`, each once."""
    to_hwc = Target(
        "params", ("top_down", "top_feature"), None, lambda v: v.transpose(1, 2, 0)
    )
    yield "prior_ftr0", to_hwc
    yield from _conv("stem", ("encoder", "stem"))
    for i in range(module.num_preprocess_blocks * module.num_preprocess_cells):
        is_down = (i + 1) % module.num_preprocess_cells == 0
        yield from _encoder_cell(
            module, f"pre_process.{i}", ("encoder", f"preprocess_{i}"), None, is_down
        )
    yield from _encoder_tower(module)
    yield from _heads(module)
    yield from _decoder_tower(module)
    for i in range(module.num_preprocess_blocks * module.num_postprocess_cells):
        is_up = i % module.num_postprocess_cells == 0
        path = ("pixels", f"postprocess_{i}")
        yield from _decoder_cell(module, f"post_process.{i}", path, None, is_up)
    yield from _conv("image_conditional.1", ("pixels", "head"))


def _group_slots(module: NVAE) -> list[tuple[Path, int]]:
    """Path of the stack and slot in it of every latent group, in decoding order."""
    return [
        (("top_down", f"groups_{block}"), slot)
        for block, (num_groups, *_) in enumerate(module.blocks)
        for slot in range(num_groups)
    ]


def _encoder_tower(module: NVAE) -> Iterator[Entry]:
    """Names count from the finest scale up; every group but the last has a combiner."""
    slots = _group_slots(module)
    index, group = 0, len(slots) - 1  # in the tower; in decoding order
    for scale in reversed(range(len(module.groups_per_scale))):
        for slot in range(module.groups_per_scale[scale]):
            for cell in range(module.num_encoder_cells):
                cell_path = ("encoder", f"groups_{scale}", f"EncoderCell_{cell}")
                yield from _encoder_cell(module, f"enc_tower.{index}", cell_path, slot)
                index += 1
            if group > 0:
                stack, place = slots[group]
                combiner = (*stack, "encoder_combiner")
                yield from _conv(f"enc_tower.{index}.conv", combiner, place)
                index += 1
            group -= 1
        if scale > 0:
            down = ("encoder", f"downs_{scale - 1}")
            yield from _encoder_cell(module, f"enc_tower.{index}", down, None, True)
            index += 1


def _heads(module: NVAE) -> Iterator[Entry]:
    yield from _conv("enc0.1", ("top_down", "groups_0", "encoder_combiner"), 0)
    for k, (stack, slot) in enumerate(_group_slots(module)):
        yield from _conv(f"enc_sampler.{k}", (*stack, "posterior_head"), slot)
        if k > 0:
            yield from _conv(f"dec_sampler.{k - 1}.1", (*stack, "prior_head"), slot)
        for flow in range(module.num_flows):
            path = (*stack, f"flows_{flow}")
            yield from _flow(f"nf_cells.{k * module.num_flows + flow}", path, slot)


def _decoder_tower(module: NVAE) -> Iterator[Entry]:
    slots = _group_slots(module)
    index = k = 0
    for scale, num_groups in enumerate(module.groups_per_scale):
        if scale > 0:
            up = ("top_down", f"ups_{scale - 1}")
            yield from _decoder_cell(module, f"dec_tower.{index}", up, None, True)
            index += 1
        for _ in range(num_groups):
            stack, slot = slots[k]
            for cell in range(module.num_decoder_cells if k > 0 else 0):
                cell_path = (*stack, f"cells_{cell}")
                yield from _decoder_cell(module, f"dec_tower.{index}", cell_path, slot)
                index += 1
            combiner = (*stack, "decoder_combiner")
            yield from _conv(f"dec_tower.{index}.conv", combiner, slot)
            index, k = index + 1, k + 1


def _encoder_cell(
    module: NVAE, name: str, path: Path, slot: int | None, is_down: bool = False
) -> Iterator[Entry]:
    for i in range(2):
        yield from _batch_norm(
            f"{name}._ops.{i}.bn_act", (*path, f"BatchNorm_{i}"), slot
        )
        yield from _conv(f"{name}._ops.{i}.conv_0", (*path, f"Conv_{i}"), slot)
    if module.use_se:
        yield from _squeeze_excite(name, path, slot)
    for i in range(4 if is_down else 0):
        skip = (*path, "DownSkip_0", f"Conv_{i}")
        yield from _conv(f"{name}.skip.conv_{i + 1}", skip, slot)


def _decoder_cell(
    module: NVAE, name: str, path: Path, slot: int | None, is_up: bool = False
) -> Iterator[Entry]:
    first = 1 if is_up else 0  # place 0 of an up cell is its upsampling
    ops = [f"{name}._ops.0.conv.{first + i}" for i in range(5)]
    norms = (f"{ops[0]}.bn", f"{ops[1]}.conv.1", f"{ops[2]}.conv.1", f"{ops[4]}.bn")
    for i, norm in enumerate(norms):
        yield from _batch_norm(norm, (*path, f"BatchNorm_{i}"), slot)
    for i, conv in enumerate((f"{ops[1]}.conv.0", f"{ops[2]}.conv.0", ops[3])):
        yield from _conv(conv, (*path, f"Conv_{i}"), slot, bias=False, norm=False)
    if module.use_se:
        yield from _squeeze_excite(name, path, slot)
    if is_up:
        yield from _conv(f"{name}.skip.1", (*path, "skip"), slot, bias=False)


def _flow(name: str, path: Path, slot: int) -> Iterator[Entry]:
    for i in range(2):
        cell, place = f"{name}.cell{i + 1}", (*path, f"ShiftCell_{i}")
        yield from _conv(f"{cell}.conv.convz.0", (*place, "Conv_0"), slot, bias=False)
        yield from _conv(f"{cell}.conv.convz.2", (*place, "Conv_1"), slot, bias=False)
        yield from _conv(f"{cell}.mu.conv_0", (*place, "Conv_2"), slot)


def _conv(
    name: str, path: Path, slot: int | None = None, bias: bool = True, norm: bool = True
) -> Iterator[Entry]:
    to_hwio = Target(
        "params", (*path, "kernel"), slot, lambda v: v.transpose(2, 3, 1, 0)
    )
    yield f"{name}.weight", to_hwio
    if bias:
        yield f"{name}.bias", Target("params", (*path, "bias"), slot, _same)
    if norm:
        norms = Target("params", (*path, "log_norm"), slot, np.ravel)
        yield f"{name}.log_weight_norm", norms


def _batch_norm(name: str, path: Path, slot: int | None) -> Iterator[Entry]:
    yield f"{name}.weight", Target("params", (*path, "scale"), slot, _same)
    yield f"{name}.bias", Target("params", (*path, "bias"), slot, _same)
    yield f"{name}.running_mean", Target("batch_stats", (*path, "mean"), slot, _same)
    yield f"{name}.running_var", Target("batch_stats", (*path, "var"), slot, _same)


def _squeeze_excite(name: str, path: Path, slot: int | None) -> Iterator[Entry]:
    for i, layer in ((0, "reduce"), (2, "expand")):
        place = (*path, "SqueezeExcite_0", layer)
        kernel = Target("params", (*place, "kernel"), slot, np.transpose)
        yield f"{name}.se.se.{i}.weight", kernel
        yield f"{name}.se.se.{i}.bias", Target("params", (*place, "bias"), slot, _same)


def _same(value: np.ndarray) -> np.ndarray:
    return value
