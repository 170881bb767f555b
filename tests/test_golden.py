"""Twenty steps of both stages, and what they measure, against golden.json.

The file changes only when somebody means it to:

  python -m tests.test_golden --rewrite
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ncp_jax.experiment import stages
from ncp_jax.training.run_log import read_metrics
from tests import tiny

GOLDEN = Path(__file__).with_name("golden.json")
METRICS = ("elbo_base", "nll_base", "nll_ncp", "nll_snis", "log_z", "nce_loss", "jsd")
# Another CPU adds in another order; a wrong formula is off by far more.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def measure(workdir):
    """Returns the run's numbers by name: losses of each record, then metrics."""
    settings = tiny.config()
    settings.vae.learning_rate = settings.ncp.learning_rate = 0.01
    settings.sample.update(num_proposals=10, langevin_num_steps=2, num_images=4)
    settings.evaluate.max_examples = 50
    for stage in ("vae", "ncp", "sample", "evaluate"):
        stages.run(settings, workdir, stage)
    numbers = {}
    for record in read_metrics(workdir / "metrics.jsonl"):
        prefix = "{stage}/{split}/{step}/".format(**record)
        for name in ("loss", "kl", "gradient_norm"):  # accuracy would jump
            if name in record:
                numbers[prefix + name] = float(np.sum(record[name]))
    metrics = json.loads((workdir / "results.json").read_text())["metrics"]
    return numbers | {name: metrics[name]["value"] for name in METRICS}


def assert_golden(numbers):
    golden = json.loads(GOLDEN.read_text())
    assert numbers.keys() == golden.keys()
    for name, value in golden.items():
        np.testing.assert_allclose(numbers[name], value, err_msg=name, **TOLERANCE)


def test_both_stages_repeat_their_golden_numbers(tmp_path):
    numbers = measure(tmp_path)
    assert_golden(numbers)
    for name in ("vae/train/20/loss", "ncp/valid/20/loss", "nll_ncp"):
        with pytest.raises(AssertionError, match=name):  # it would see 0.1 %
            assert_golden(numbers | {name: 1.001 * numbers[name]})


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(measure(Path(folder)), indent=2) + "\n")
