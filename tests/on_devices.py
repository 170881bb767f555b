"""Stage 2 on however many devices there are, in a process of its own.

`python -m tests.on_devices FOLDER STEPS` trains up to STEPS updates, from the newest
checkpoint in FOLDER, and leaves the final state, joined, in FOLDER/STEPS.npz.

`python -m tests.on_devices` prints, as JSON, which collective operations the compiled
programs hold, and how far draws, log Z and groups of which one rests, of all devices
lie from those of one.
"""

import contextlib
import dataclasses
import functools
import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ncp_jax import parallel, rng
from ncp_jax.data import datasets
from ncp_jax.evaluation import likelihood
from ncp_jax.models import stacks
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.direction_discriminator import DirectionDiscriminator
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.priors import (
    directions,
    feature_directions,
    generation,
    group_samplers,
    ncp_prior,
)
from ncp_jax.priors.directed import DirectedVAE
from ncp_jax.priors.latents import ContrastiveDraws
from ncp_jax.training import loop
from ncp_jax.training.checkpoints import Checkpoints
from ncp_jax.training.ncp import nce, ncp_state, ncp_update, ncp_validation
from ncp_jax.training.ncp.stage_two import StageTwo
from ncp_jax.training.run_log import SilentLog
from tests import tiny
from tests.oracles import InterleavedVAE

SEED = 7
BATCH_SIZE = 32


def frozen_vae():
    module = InterleavedVAE()
    x = jnp.zeros((1, *module.data_shape))
    return FrozenVAE(module, jax.jit(module.init)(rng.root(SEED), x, rng.root(SEED)))


def examples():
    return np.random.default_rng(0).normal(size=(96, 3)).astype(np.float32)


def make_task(mesh):
    """The task and its first state."""
    network, optimizer = MLPDiscriminator((8, 8)), optax.adam(1e-2)
    vae = frozen_vae()
    settings = {
        "num_negatives": 2,
        "ranking_weight": 0.5,
        "patience": 100,
        "mesh": mesh,
    }
    stored = {
        "train": examples(),
        "valid": examples()[None, :BATCH_SIZE],
        "valid_mask": np.ones((1, BATCH_SIZE), bool),
        "vae": vae,
    }

    def inputs(first_step, num_steps):
        rows = datasets.batch_indices(
            rng.root(SEED), first_step, num_steps, BATCH_SIZE, 96
        )
        return parallel.replicate(mesh, rows)

    def prepare(key, stored):
        return stored

    task = loop.Task(
        name="ncp",
        data=parallel.replicate(mesh, stored),
        inputs=inputs,
        update=ncp_update.make_update(
            network, optimizer, prepare, rng.root(SEED), ema_decay=0.9, **settings
        ),
        validate=ncp_validation.make_validate(
            network, prepare, rng.root(SEED), **settings
        ),
        place=functools.partial(ncp_state.place, mesh),
        collect=functools.partial(ncp_state.collect, vae.blocks),
    )
    return task, ncp_state.init_state(
        network, optimizer, vae, rng.root(SEED), ema_decay=0.9
    )


def main(folder, num_steps):
    parallel.join_processes()
    task, state = make_task(parallel.mesh_of())
    with contextlib.closing(Checkpoints(Path(folder), {})) as checkpoints:
        if restored := checkpoints.restore_latest(state):
            state = restored.state
        state = loop.fit(
            task,
            state,
            checkpoints,
            SilentLog(),
            num_steps=num_steps,
            steps_per_dispatch=5,
            steps_per_eval=10,
        )
        leaves = jax.tree.leaves(task.collect(state))
        checkpoints.wait()
    if parallel.is_writer():
        np.savez(Path(folder) / f"{num_steps}.npz", *leaves)


def collectives(function, *arguments):
    """The names of the collective operations of a compiled function."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    names = "all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"
    return sorted(set(re.findall(rf"({names})(?:-start)?\(", text)))


def communication():
    """What the learning of the groups alone, and a whole update, send to others."""
    mesh = parallel.mesh_of()
    task, state = make_task(mesh)
    state = task.place(state)
    network, optimizer = MLPDiscriminator((8, 8)), optax.adam(1e-2)
    learn = functools.partial(
        stacks.over_groups, functools.partial(nce.learn, network, optimizer)
    )
    groups = state.stacks[0]
    draws = ContrastiveDraws(*(jnp.zeros((mesh.size, BATCH_SIZE, 2)),) * 3)
    turns = nce.Turn(*(jnp.zeros(mesh.size, jnp.int32),) * 2)
    draws, turns = parallel.split_groups(mesh, (draws, turns))
    return {
        "groups": collectives(
            functools.partial(parallel.over_device_groups, mesh, learn),
            groups,
            draws,
            turns,
        ),
        "update": collectives(task.update, state, task.data, task.inputs(0, 1)[0]),
    }


def reweighted():
    """A prior whose ratios are not those of a new discriminator."""
    vae, network = frozen_vae(), MLPDiscriminator((8, 8))
    params = ncp_state.init_params(network, vae, rng.root(SEED))
    params = jax.tree.map(
        lambda leaf: (
            leaf
            + 0.3 * jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
        ),
        params,
    )
    return ncp_prior.NCPPrior(vae, network, params)


def drawing():
    """How far draws of all devices lie from those of one, and what devices send."""
    ncp, mesh, found = reweighted(), parallel.mesh_of(), {}
    draws = {
        "sir": group_samplers.SIR(num_proposals=30, chunk_size=7),
        "mala": group_samplers.MALA(num_steps=8, num_adapt_steps=4),
    }
    for name, draw in draws.items():
        arguments = (ncp, rng.root(SEED), 20, 12, draw)  # 12 on 8 devices: padded
        ours = generation.generate(*arguments, mesh)
        theirs = generation.generate(*arguments)
        gaps = jax.tree.map(lambda a, b: float(np.abs(a / b - 1).max()), ours, theirs)
        keys = jax.random.split(rng.root(SEED), 16)
        found[name] = {
            "gap": max(jax.tree.leaves(gaps)),
            "sent": collectives(
                functools.partial(generation.draw_batch, mesh, draw), ncp, keys
            ),
        }
    return found


def normalising():
    """The sums behind log Z by all devices and by one, and what devices send."""
    ncp, mesh = reweighted(), parallel.mesh_of()
    arguments = (ncp, rng.root(SEED), 45, 20)  # 20 on 8 devices: padded
    ours, theirs = (likelihood.log_z(*arguments, m)[0] for m in (mesh, None))
    gaps = np.subtract(ours.log_sums, theirs.log_sums)
    draw = functools.partial(likelihood._draw_log_r, mesh, 24, first=0)
    return {
        "log_z": {
            "counts": (ours.count, theirs.count),
            "gap": float(np.abs(gaps).max()),
            "sent": collectives(draw, ncp, rng.root(SEED)),
        }
    }


def directed_vae():
    """Ratios on a direction and a feature of each group; the second group has none."""
    vae = frozen_vae()
    found = directions.random_directions(vae, rng.root(SEED), 1)
    basis, shift = feature_directions.no_features(vae, 2)
    given = dataclasses.replace(
        found,
        widths=(1, 0, 1),
        feature_basis=tuple(leaf + jnp.eye(2)[None] for leaf in basis),
        feature_shift=shift,
    )
    return DirectedVAE(vae, given, 1)


def resting():
    """How far training by all devices lies from that by one, where a group rests."""
    vae, network, key = directed_vae(), DirectionDiscriminator(1, 2, (8,)), rng.root(3)
    stage = StageTwo(network, optax.adam(1e-2), BATCH_SIZE)

    def prepare(key, stored):
        return stored

    def trained(mesh):
        task = stage.task(
            vae,
            examples(),
            examples()[:BATCH_SIZE],
            key,
            prepare=prepare,
            prepare_held_out=prepare,
            mesh=mesh,
        )
        state = task.place(stage.initial(vae, key))
        run = jax.jit(loop.scan_updates(task))
        state, learned = run(state, task.data, task.inputs(0, 3))
        state, measured = jax.jit(task.validate)(state, task.data)
        return jax.device_get((task.collect(state), learned, measured))

    ours = trained(parallel.mesh_of())
    theirs = trained(parallel.mesh_of(jax.local_devices()[:1]))
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ours, theirs)
    return {
        "resting": {
            "gap": max(jax.tree.leaves(gaps)),
            "losses": ours[2]["loss"].tolist(),
        }
    }


def validating():
    """The held-out loss of stage 1 by all devices and by one, and what they send."""

    def found(path, mesh):
        experiment = tiny.experiment(Path(path), tiny.config())
        with contextlib.closing(experiment.workdir):
            vars(experiment)["mesh"] = mesh
            task, state = experiment.vae_task()
            arguments = task.place(state), task.data
            _, metrics = jax.jit(task.validate)(*arguments)
            loss = float(np.sum(metrics["loss"]))
            return loss, collectives(task.validate, *arguments)

    meshes = parallel.mesh_of(), parallel.one_device()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [found(f"{folder}/{i}", mesh) for i, mesh in enumerate(meshes)]
    losses, sent = zip(*pairs, strict=True)
    return {"validating": {"losses": losses, "sent": sent}}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        parts = (communication, drawing, normalising, resting, validating)
        print(json.dumps({k: v for part in parts for k, v in part().items()}))
    else:
        main(sys.argv[1], int(sys.argv[2]))
