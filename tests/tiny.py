"""Runs that cost seconds: a small model on digits, and a toy task for `fit`."""

import collections
import contextlib

import jax
import jax.numpy as jnp
import optax
from jax import monitoring

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets, wiring
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import Workdir
from ncp_jax.training import loop
from ncp_jax.training.loop import Task

SETTINGS = {
    "vae.model.latent_dim": 3,
    "vae.model.hidden_dims": (32,),
    "vae.ema_decay": 0.9,
    "vae.warmup_steps": 5,
    "ncp.discriminator.hidden_dims": (16,),
    **{f"{stage}.batch_size": 32 for stage in ("vae", "ncp")},
    **{f"{stage}.num_steps": 20 for stage in ("vae", "ncp")},
    **{f"{stage}.steps_per_dispatch": 5 for stage in ("vae", "ncp")},
    **{f"{stage}.steps_per_eval": 10 for stage in ("vae", "ncp")},
}


def config(**settings):
    """The digits config, shrunk; e.g. config(vae={"num_steps": 3})."""
    small = presets.variant(config_lib.default(), "smoke")
    small.update_from_flattened_dict(SETTINGS)
    small.update(settings)
    return small


def flags(settings=SETTINGS):
    """The same as arguments of `main.py`."""
    return [f"--config.{name}={value}" for name, value in settings.items()]


def experiment(path, settings):
    """An open experiment in `path`; close its `workdir`."""
    folder = Workdir(path, config_lib.as_json(settings), {})
    return Experiment(settings, folder, wiring.load_data(settings))


class Counted:
    """A compiled function, and how often it was traced.

    jit's own `_cache_size` is 0 where a long process has dropped the entry.
    """

    def __init__(self, function):
        def counting(*args):
            self.num_traces += 1
            return function(*args)

        self.num_traces = 0
        self._call = jax.jit(counting)

    def __call__(self, *args):
        return self._call(*args)


@contextlib.contextmanager
def compilations():
    """Counts by the name of its function what JAX compiles meanwhile.

    For functions of the library, which `Counted` does not have; jit's own caches are
    shared by all of a process, and a long one drops their entries.
    """
    counts = collections.Counter()

    def listen(event, seconds, fun_name="", **kwargs):
        if event.endswith("backend_compile_duration"):
            counts[fun_name.removeprefix("jit(").removesuffix(")")] += 1

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        monitoring.unregister_event_duration_listener(listen)


# --- a task without a model: two "groups" learn the mean of the rows they are given

OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def toy_task(inputs=None, nan_at=None):
    """A `Task` whose loss [2] is non-finite in group 1 at update `nan_at`."""

    def update(state, data, rows):
        def loss_fn(w):
            loss = jnp.mean((w[:, None] - data[rows][None]) ** 2, axis=1)
            if nan_at is not None:
                bad = jnp.array([1.0, jnp.nan])
                loss = jnp.where(state.step == nan_at, bad, loss)
            return jnp.sum(loss), {"loss": loss, "first_row": rows[0]}

        gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
        return loop.apply_gradients(state, gradients, OPTIMIZER, 0.9), metrics

    def validate(state, data):
        loss = jnp.abs(state.eval_variables["params"] - data[50])
        return state, {"loss": loss}

    def default_inputs(first_step, num_steps):
        steps = jnp.arange(first_step, first_step + num_steps)
        return steps[:, None] + jnp.arange(3)[None]

    return Task(
        name="toy",
        data=jnp.arange(100.0) ** 0.5,
        inputs=inputs or default_inputs,
        update=update,
        validate=validate,
    )


def toy_state():
    return loop.init_state(jnp.zeros(2), {}, OPTIMIZER, ema_decay=0.9)
