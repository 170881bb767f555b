"""What the paper prints for the experiments that `configs/` repeats.

Aneja, Schwing, Kautz and Vahdat, "A Contrastive Learning Approach for Training
Variational Autoencoder Priors", NeurIPS 2021.  Imports no JAX.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    """One measure of one experiment: under the base prior and under the NCP prior."""

    measure: str  # "nll" or "fid"
    base: float
    ncp: float
    protocol: str


SIR_50K = "50,000 draws, SIR with 5,000 proposals"
# By the name of the data, the model, its number of groups and the height of a picture.
EXPERIMENTS = {
    ("mnist", "mlp", 1, 28): Published("nll", 84.82, 82.82, "10⁷ steps of stage 1"),
    ("mnist", "nvae", 10, 28): Published("nll", 78.67, 78.10, "fully trained"),
    ("cifar10", "nvae", 30, 32): Published("fid", 51.71, 24.08, SIR_50K),
    ("celeba", "nvae", 30, 64): Published("fid", 13.48, 5.25, SIR_50K),
    ("celebahq", "nvae", 20, 256): Published("fid", 40.26, 24.79, SIR_50K),
}


def of(config: Mapping[str, Any]) -> Published | None:
    """Returns the paper's numbers where a config is one of its experiments.

    Args:
      config: the content of `config.json`; whatever it lacks makes it another one.
    """
    try:
        data, model = config["data"], config["vae"]["model"]
        groups = math.fsum(model.get("groups_per_scale", [1]))
        key = (data["name"], model["name"], int(groups), data["shape"][0])
        is_small = model.get("latent_dim", 50) == 50 and data["binarization"] != "fixed"
        return EXPERIMENTS.get(key) if is_small else None
    except (KeyError, TypeError, IndexError):
        return None
