"""NVAE checkpoints written by PyTorch, as an `NVAE` and its variables.

A checkpoint is a dict with "args" (the flags it was trained with) and "state_dict".
The flags alone say which tensors there must be and where each one goes.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.models.nvae.checkpoint_names import Path, Target, entries
from ncp_jax.models.nvae.layout import groups_per_scale
from ncp_jax.models.nvae.model import NVAE

Arrays = Mapping[str, np.ndarray]

BINARY_DATASETS = ("mnist", "omniglot")
BINARY_PADDING = 2  # 28x28 pictures enter the network as 32x32
REQUIRED_ARGS = (
    "dataset",
    "use_se",
    "res_dist",
    "num_x_bits",
    "num_latent_scales",
    "num_groups_per_scale",
    "num_latent_per_group",
    "num_channels_enc",
    "num_channels_dec",
    "num_preprocess_blocks",
    "num_preprocess_cells",
    "num_cell_per_cond_enc",
    "num_postprocess_blocks",
    "num_postprocess_cells",
    "num_cell_per_cond_dec",
    "num_nf",
)
REFERENCE_WHITE = 0.99  # see `DiscretisedLogisticMixture.white`
OPTIONAL_ARGS = {  # flags younger than some checkpoints
    "ada_groups": False,
    "min_groups_per_scale": 1,
    "num_mixture_dec": 10,
    "arch_instance": "res_mbconv",
}
# Entries that repeat or count something: the tensor beside them that must exist.
REDUNDANT = {"weight_normalized": "weight", "num_batches_tracked": "running_mean"}


def from_checkpoint(checkpoint: Mapping[str, Any]) -> tuple[NVAE, dict[str, Any]]:
    """Returns the model of a checkpoint and its variables.

    Args:
      checkpoint: has "args" (a mapping or a namespace of flags) and "state_dict" (names
        to arrays).

    Raises:
      InputError: with the list of flags or tensors that are missing, unknown or of an
        unexpected shape.
    """
    absent = {"args", "state_dict"} - set(checkpoint)
    if absent:
        raise InputError(
            f"not an NVAE checkpoint: it lacks {sorted(absent)}; found "
            f"{sorted(checkpoint)}"
        )
    args, state = checkpoint["args"], checkpoint["state_dict"]
    module = module_from_args(args if isinstance(args, Mapping) else vars(args), state)
    return module, variables_from_state_dict(module, state)


def module_from_args(args: Mapping[str, Any], state: Arrays) -> NVAE:
    """Returns the model that the flags describe.

    Args:
      args: the reference implementation's flags.
      state: of it only the size of "prior_ftr0" is used, which the picture's follows
        from.
    """
    args = {**OPTIONAL_ARGS, **args}
    _check_args(args, state)
    is_binary = args["dataset"] in BINARY_DATASETS
    padding = BINARY_PADDING if is_binary else 0
    shrinkage = 2 ** (args["num_preprocess_blocks"] + args["num_latent_scales"] - 1)
    side = state["prior_ftr0"].shape[-1] * shrinkage - 2 * padding
    of_rgb = "normal" if args["num_mixture_dec"] == 1 else "logistic_mixture"
    return NVAE(
        data_shape=(side, side, 1 if is_binary else 3),
        padding=padding,
        groups_per_scale=groups_per_scale(
            args["num_latent_scales"],
            args["num_groups_per_scale"],
            args["ada_groups"],
            args["min_groups_per_scale"],
        ),
        latent_channels=args["num_latent_per_group"],
        encoder_channels=args["num_channels_enc"],
        decoder_channels=args["num_channels_dec"],
        num_preprocess_blocks=args["num_preprocess_blocks"],
        num_preprocess_cells=args["num_preprocess_cells"],
        num_postprocess_cells=args["num_postprocess_cells"],
        num_encoder_cells=args["num_cell_per_cond_enc"],
        num_decoder_cells=args["num_cell_per_cond_dec"],
        num_flows=args["num_nf"],
        use_se=args["use_se"],
        is_residual_posterior=args["res_dist"],
        likelihood="bernoulli" if is_binary else of_rgb,
        num_mixtures=args["num_mixture_dec"],
        num_bits=args["num_x_bits"],
        white=REFERENCE_WHITE,
    )


def _check_args(args: Mapping[str, Any], state: Arrays) -> None:
    absent = [name for name in REQUIRED_ARGS if name not in args]
    if absent:
        raise InputError(f"the checkpoint's args lack {absent}")
    if args["arch_instance"] != "res_mbconv":
        raise InputError(
            f"arch_instance is {args['arch_instance']!r}; only 'res_mbconv', the one "
            "of all published models, is supported"
        )
    if args["num_preprocess_blocks"] != args["num_postprocess_blocks"]:
        raise InputError("num_preprocess_blocks and num_postprocess_blocks differ")
    if "prior_ftr0" not in state:
        raise InputError("the checkpoint's state_dict lacks ['prior_ftr0']")


def variables_from_state_dict(module: NVAE, state: Arrays) -> dict[str, Any]:
    """Returns Flax variables (float32 NumPy) from PyTorch's names and layouts.

    Raises:
      InputError: listing every missing or unknown name, or every unexpected shape.
    """
    targets = dict(entries(module))
    missing = sorted(set(targets) - set(state))
    unknown = sorted(
        name
        for name in state
        if name not in targets and not _is_redundant(name, targets)
    )
    if missing or unknown:
        raise InputError(
            f"state_dict does not fit the flags; missing: {missing}; unknown: {unknown}"
        )
    slots: dict[tuple[str, Path], dict[int | None, np.ndarray]] = defaultdict(dict)
    for name, (collection, path, slot, convert) in targets.items():
        value = convert(np.asarray(state[name], np.float32))
        slots[collection, path][slot] = value
    variables: dict[str, Any] = {}
    for (collection, path), values in slots.items():
        stack = [values[slot] for slot in sorted(values, key=lambda slot: slot or 0)]
        tree = variables.setdefault(collection, {})
        for part in path[:-1]:
            tree = tree.setdefault(part, {})
        tree[path[-1]] = stack[0] if None in values else np.stack(stack)
    _check_shapes(module, variables)
    return variables


def _is_redundant(name: str, targets: Mapping[str, Target]) -> bool:
    parent, _, last = name.rpartition(".")
    return last in REDUNDANT and f"{parent}.{REDUNDANT[last]}" in targets


def _check_shapes(module: NVAE, variables: dict[str, Any]) -> None:
    key = jax.random.key(0)
    x = jax.ShapeDtypeStruct((1, *module.data_shape), np.float32)
    expected = jax.eval_shape(module.init, key, x, key)
    shapes = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in flat}
        for flat in map(jax.tree_util.tree_leaves_with_path, (expected, variables))
    ]
    wrong = [
        f"{path}: {shapes[1].get(path)} instead of {shapes[0].get(path)}"
        for path in sorted(shapes[0].keys() | shapes[1].keys())
        if shapes[0].get(path) != shapes[1].get(path)
    ]
    if wrong:
        raise InputError("state_dict does not fit the flags: " + "; ".join(wrong))
