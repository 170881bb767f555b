"""Runs of both stages that cost a second: a toy task in the place of the networks."""

import contextlib
import types
from unittest import mock

import jax

from ncp_jax.experiment import train_stage
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import Workdir
from tests import tiny

LENGTH = {"num_steps": 40, "steps_per_dispatch": 5, "steps_per_eval": 10}


class ToyExperiment(Experiment):
    """An experiment with its true folder, checkpoints and settings."""

    def load_vae(self):
        best = self._best("vae", self.state_shapes())
        return types.SimpleNamespace(variables={"w": best.params})

    def load_ncp(self):
        return self._best("ncp", self.state_shapes(), self.load_vae())

    def in_signal_space(self, vae):
        return vae

    def state_shapes(self, vae=None):
        return jax.eval_shape(tiny.toy_state)

    def vae_task(self):
        return tiny.toy_task(), tiny.toy_state()

    def ncp_task(self, vae):
        return tiny.toy_task(), tiny.toy_state()


def config(**changes):
    """Of stages of LENGTH at a constant rate; as {"vae.num_steps": 50} changes it."""
    made = config_lib.default()
    made.vae.update(LENGTH)
    made.ncp.update(LENGTH, schedule="constant")
    made.update_from_flattened_dict(changes)
    return made


def train(path, stages=("vae", "ncp"), may_extend=None, **changes):
    """Trains stages in a folder, and returns its metrics.jsonl."""
    settings = config(**changes)
    folder = Workdir(
        path, config_lib.as_json(settings), {}, may_extend=may_extend or stages
    )
    shown = mock.patch.object(train_stage, "_trained", lambda s: {"w": s.params})
    with contextlib.closing(folder), shown:
        for stage in stages:
            train_stage.train(ToyExperiment(settings, folder, None), stage)
    return (path / "metrics.jsonl").read_text()
