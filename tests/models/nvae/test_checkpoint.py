"""NVAE against the reference implementation's own outputs, and the names it imports.

The outputs lie outside the project, in the folder that NCP_JAX_FIXTURES names.
"""

import argparse
import json
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models import base
from ncp_jax.models.nvae import checkpoint, checkpoint_names, regularizers

FIXTURES = sorted(
    pathlib.Path(os.environ.get("NCP_JAX_FIXTURES", ".")).glob("nvae_*.npz")
)
needs_fixtures = pytest.mark.skipif(
    not FIXTURES, reason="NCP_JAX_FIXTURES names no folder with nvae_*.npz"
)
REL = 1e-4  # of the project's promise; measured: below 5e-6

ARGS = {
    "dataset": "cifar10",
    "use_se": True,
    "res_dist": True,
    "num_x_bits": 8,
    "num_latent_scales": 3,
    "num_groups_per_scale": 4,
    "num_latent_per_group": 2,
    "ada_groups": True,
    "min_groups_per_scale": 1,
    "num_channels_enc": 4,
    "num_channels_dec": 8,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_cell_per_cond_enc": 2,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_dec": 2,
    "num_mixture_dec": 1,
    "num_nf": 2,
}
TOP_SIDE = 2


def conv(name, c_out, c_in, size, bias=True, norm=True):
    yield f"{name}.weight", (c_out, c_in, size, size)
    if bias:
        yield f"{name}.bias", (c_out,)
    if norm:
        yield f"{name}.log_weight_norm", (c_out, 1, 1, 1)
    else:
        yield f"{name}.weight_normalized", (c_out, c_in, size, size)


def norm(name, c):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (c,)
    yield f"{name}.num_batches_tracked", ()


def excite(name, c, args):
    if args["use_se"]:
        hidden = max(c // 16, 4)
        yield f"{name}.se.se.0.weight", (hidden, c)
        yield f"{name}.se.se.0.bias", (hidden,)
        yield f"{name}.se.se.2.weight", (c, hidden)
        yield f"{name}.se.se.2.bias", (c,)


def encoder_cell(name, c, down, args):
    out = 2 * c if down else c
    if down:
        for i in range(1, 5):
            yield from conv(f"{name}.skip.conv_{i}", out // 4, c, 1)
    yield from norm(f"{name}._ops.0.bn_act", c)
    yield from conv(f"{name}._ops.0.conv_0", out, c, 3)
    yield from norm(f"{name}._ops.1.bn_act", out)
    yield from conv(f"{name}._ops.1.conv_0", out, out, 3)
    yield from excite(name, out, args)


def decoder_cell(name, c, expansion, up, args):
    out, wide, first = (c // 2 if up else c), c * expansion, int(up)
    if up:
        yield from conv(f"{name}.skip.1", out, c, 1, bias=False)
    plain = {"bias": False, "norm": False}
    ops = f"{name}._ops.0.conv"
    yield from norm(f"{ops}.{first}.bn", c)
    yield from conv(f"{ops}.{first + 1}.conv.0", wide, c, 1, **plain)
    yield from norm(f"{ops}.{first + 1}.conv.1", wide)
    yield from conv(f"{ops}.{first + 2}.conv.0", wide, 1, 5, **plain)
    yield from norm(f"{ops}.{first + 2}.conv.1", wide)
    yield from conv(f"{ops}.{first + 3}", out, wide, 1, **plain)
    yield from norm(f"{ops}.{first + 4}.bn", out)
    yield from excite(name, out, args)


def torch_shapes(args, top_side=TOP_SIDE):
    """Every name and shape of a checkpoint, written down independently."""
    args = {**checkpoint.OPTIONAL_ARGS, **args}
    scales, z = args["num_latent_scales"], args["num_latent_per_group"]
    groups = [args["num_groups_per_scale"]]
    for _ in range(scales - 1):
        half = max(args["min_groups_per_scale"], groups[0] // 2)
        groups.insert(0, half if args["ada_groups"] else groups[0])
    factor = 2 ** (args["num_preprocess_blocks"] + scales - 1)
    enc, dec = args["num_channels_enc"], args["num_channels_dec"]
    is_binary = args["dataset"] in ("mnist", "omniglot")
    yield "prior_ftr0", (dec * factor, top_side, top_side)
    yield from conv("stem", enc, 1 if is_binary else 3, 3)
    i, c = 0, enc
    for _ in range(args["num_preprocess_blocks"]):
        for cell in range(args["num_preprocess_cells"]):
            down = cell == args["num_preprocess_cells"] - 1
            yield from encoder_cell(f"pre_process.{i}", c, down, args)
            i, c = i + 1, 2 * c if down else c
    i = 0
    for scale in range(scales)[::-1]:
        for group in range(groups[scale]):
            for _ in range(args["num_cell_per_cond_enc"]):
                yield from encoder_cell(f"enc_tower.{i}", c, False, args)
                i += 1
            if (scale, group) != (0, groups[0] - 1):
                yield from conv(f"enc_tower.{i}.conv", c, c * dec // enc, 1)
                i += 1
        if scale:
            yield from encoder_cell(f"enc_tower.{i}", c, True, args)
            i, c = i + 1, 2 * c
    yield from conv("enc0.1", c, c, 1)
    i = k = 0
    c_dec = dec * factor
    for scale in range(scales):
        if scale:
            yield from decoder_cell(f"dec_tower.{i}", c_dec, 6, True, args)
            i, c, c_dec = i + 1, c // 2, c_dec // 2
        for _ in range(groups[scale]):
            yield from conv(f"enc_sampler.{k}", 2 * z, c, 3)
            if k:
                yield from conv(f"dec_sampler.{k - 1}.1", 2 * z, c_dec, 1)
                for _ in range(args["num_cell_per_cond_dec"]):
                    yield from decoder_cell(f"dec_tower.{i}", c_dec, 6, False, args)
                    i += 1
            for flow in range(args["num_nf"]):
                for cell in ("cell1", "cell2"):
                    name = f"nf_cells.{k * args['num_nf'] + flow}.{cell}"
                    yield from conv(f"{name}.conv.convz.0", 6 * z, z, 3, bias=False)
                    yield from conv(f"{name}.conv.convz.2", 6 * z, 1, 5, bias=False)
                    yield from conv(f"{name}.mu.conv_0", z, 6 * z, 1)
            yield from conv(f"dec_tower.{i}.conv", c_dec, c_dec + z, 1)
            i, k = i + 1, k + 1
    i = 0
    for _ in range(args["num_postprocess_blocks"]):
        for cell in range(args["num_postprocess_cells"]):
            yield from decoder_cell(f"post_process.{i}", c_dec, 3, cell == 0, args)
            i, c_dec = i + 1, c_dec // 2 if cell == 0 else c_dec
    rgb = 6 if args["num_mixture_dec"] == 1 else 10 * args["num_mixture_dec"]
    yield from conv("image_conditional.1", 1 if is_binary else rgb, c_dec, 3)


def random_checkpoint(args, seed=0):
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in torch_shapes(args):
        value = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            value = np.exp(0.1 * value)
        elif len(shape) == 4 and "log_weight_norm" not in name:
            value /= np.sqrt(np.prod(shape[1:]))
        state[name] = value
    for name in state:
        if name.endswith("weight_normalized"):
            state[name] = state[name.replace("weight_normalized", "weight")]
    return {"args": args, "state_dict": state, "epoch": 1, "global_step": 7}


def load(path):
    with np.load(path) as arrays:
        fixture = dict(arrays)
    state = {k.removeprefix("state/"): v for k, v in fixture.items() if "state/" in k}
    return {"args": json.loads(str(fixture["args"])), "state_dict": state}, fixture


@needs_fixtures
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_every_output_of_the_reference_is_met(path):
    loaded, fixture = load(path)
    module, variables = checkpoint.from_checkpoint(loaded)
    x = jnp.asarray(fixture["in/x"].transpose(0, 2, 3, 1))

    @jax.jit
    def run(variables):
        feature, groups = module.apply(variables, x, None, method="infer")
        terms, sown = module.apply(variables, x, None, mutable=["kernels"])
        vae = base.FrozenVAE(module, variables)
        carry = vae.root(x.shape[0])
        for block, (num_groups, *_) in enumerate(vae.blocks):

            def step(carry, k, block=block):
                z = vae.prior(block, k, carry).base.tempered(0.0).mean
                return vae.absorb(block, k, carry, z), None

            carry, _ = jax.lax.scan(step, carry, jnp.arange(num_groups))
        outputs = {
            "logits": module.apply(variables, (feature,), method="logits"),
            "kl": terms.kl,
            "log_q": sum(group.log_q.sum(axis=0) for group in groups),
            "log_p": sum(group.log_p.sum(axis=0) for group in groups),
            "reconstruction_loss": -terms.log_likelihood,
            "prior_mean_logits": module.apply(variables, carry, method="logits"),
        }
        return outputs, sown["kernels"]

    with jax.default_matmul_precision("float32"):
        outputs, kernels = run(variables)
    for name, value in outputs.items():
        expected = fixture[f"out/{name}"]
        if expected.ndim == 4:
            expected = expected.transpose(0, 2, 3, 1)
        atol = REL * np.abs(expected).mean() if expected.ndim == 4 else 0.0
        np.testing.assert_allclose(value, expected, REL, atol, err_msg=name)
    penalty = regularizers.batch_norm_penalty(variables["params"])
    np.testing.assert_allclose(penalty, fixture["out/batchnorm_max_gamma_sum"], REL)
    exact = sum(
        np.linalg.norm(matrix.reshape(-1, matrix.shape[-1]), 2)
        for leaf in jax.tree.leaves(kernels)
        for matrix in np.asarray(leaf, np.float64).reshape(-1, *leaf.shape[-4:])
    )
    approximate = fixture["out/spectral_sum_approx"]
    assert 0.995 * exact < approximate <= exact


@needs_fixtures
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_names_written_down_here_are_those_of_the_fixtures(path):
    loaded, _ = load(path)
    side = loaded["state_dict"]["prior_ftr0"].shape[-1]
    written = list(torch_shapes(loaded["args"], side))
    shapes = {name: value.shape for name, value in loaded["state_dict"].items()}
    assert dict(written) == shapes and len(written) == len(shapes)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"use_se": False, "num_nf": 0, "num_mixture_dec": 5, "ada_groups": False},
        {"dataset": "mnist", "num_latent_scales": 1, "num_groups_per_scale": 1},
        {"num_cell_per_cond_dec": 1, "min_groups_per_scale": 3, "num_x_bits": 5},
    ],
    ids=["three_scales", "no_se", "one_group", "min_groups"],
)
def test_every_tensor_goes_to_one_place(flags):
    loaded = random_checkpoint({**ARGS, **flags})
    module, variables = checkpoint.from_checkpoint(loaded)
    names = [name for name, _ in checkpoint_names.entries(module)]
    assert len(set(names)) == len(names)
    state = loaded["state_dict"]
    redundant = ("weight_normalized", "num_batches_tracked")
    assert set(names) == {name for name in state if not name.endswith(redundant)}
    values = np.concatenate([state[name].ravel() for name in names])
    leaves = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(variables)])
    np.testing.assert_array_equal(np.sort(values), np.sort(leaves))


@pytest.mark.parametrize("flags", [{}, {"res_dist": False, "num_nf": 0}])
def test_imported_model_of_three_scales_runs(flags, key):
    small = {
        "num_groups_per_scale": 2,
        "num_preprocess_cells": 1,
        "num_cell_per_cond_enc": 1,
        "num_cell_per_cond_dec": 1,
        "num_postprocess_cells": 1,
    }
    loaded = random_checkpoint({**ARGS, **small, **flags})
    module, variables = checkpoint.from_checkpoint(loaded)
    assert module.groups_per_scale == (1, 1, 2)
    assert module.data_shape == (16, 16, 3)
    x = jnp.ones((1, 16, 16, 3))
    terms = jax.jit(lambda v: module.apply(v, x, key))(variables)
    assert terms.kl.shape == (1, 4)
    chex.assert_tree_all_finite(terms)


def test_old_checkpoints_without_some_flags_and_duplicates():
    young = {"ada_groups", "min_groups_per_scale", "num_mixture_dec"}
    args = {name: value for name, value in ARGS.items() if name not in young}
    loaded = random_checkpoint(args)
    state = loaded["state_dict"]
    for name in [name for name in state if name.endswith("weight_normalized")]:
        del state[name]
    module, _ = checkpoint.from_checkpoint(
        {"args": argparse.Namespace(**args), "state_dict": state}
    )
    assert module.groups_per_scale == (4, 4, 4)
    assert (module.likelihood, module.num_mixtures) == ("logistic_mixture", 10)


def test_missing_and_unknown_tensors_are_all_listed():
    loaded = random_checkpoint(ARGS)
    state = loaded["state_dict"]
    missing = ("dec_sampler.2.1.bias", "stem.weight")
    unknown = ("nf_cells.99.cell1.mu.conv_0.weight", "stem.weight_normalised")
    for name in missing:
        del state[name]
    for name in unknown:
        state[name] = np.zeros(1)
    with pytest.raises(InputError) as error:
        checkpoint.from_checkpoint(loaded)
    assert all(name in str(error.value) for name in (*missing, *unknown))
    del state["prior_ftr0"]
    with pytest.raises(InputError, match="prior_ftr0"):
        checkpoint.from_checkpoint(loaded)


def test_tensors_of_the_wrong_shape_are_named():
    loaded = random_checkpoint(ARGS)
    loaded["state_dict"]["stem.bias"] = np.zeros(5)
    with pytest.raises(InputError, match=r"stem.*bias.*\(5,\) instead of \(4,\)"):
        checkpoint.from_checkpoint(loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch_instance": "res_elu"}, "res_elu"),
        ({"num_postprocess_blocks": 2}, "differ"),
        ({"dataset": None}, "dataset"),
    ],
)
def test_flags_that_cannot_be_honoured(change, message):
    args = {**ARGS, **change}
    args = {name: value for name, value in args.items() if value is not None}
    state = {"prior_ftr0": np.zeros((1, 2, 2))}
    with pytest.raises(InputError, match=message):
        checkpoint.from_checkpoint({"args": args, "state_dict": state})


def test_not_a_checkpoint():
    with pytest.raises(InputError, match="state_dict"):
        checkpoint.from_checkpoint({"model": {}})
