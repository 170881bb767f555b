"""What the samplers and stage 2 cost beside other versions must not get worse.

On one core, at sizes where the networks are the cost, so that the ratios are those of
other machines, too: they say little about Python, caches or page faults.

The file changes only when somebody means it to:

  python -m tests.benchmark.test_benchmark_ratios --rewrite
"""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import optax
import pytest

from ncp_jax.benchmark import alone, stage_two
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.residual_discriminator import ResidualDiscriminator
from ncp_jax.models.stacks import Stack

FILE = Path(__file__).with_name("benchmark_ratios.json")
WORSE = 1.5  # fails, where every try finds it
NUM_TRIES = 3  # other work on the machine comes and goes
NUM_PROPOSALS = (100, 1_000)
NUM_GROUPS = 10
LONG = {"num_repeats": 1_000, "max_seconds": 1.0}  # of timing, whatever a call takes
CASES = {
    "mlp": {
        "network": MLPDiscriminator((100, 100)),
        "latent_shape": (50,),
        "context_shape": (0,),
        "num_chains": 100,
        "num_steps": 1_000,
        "batch_size": 1_024,
    },
    "residual": {
        "network": ResidualDiscriminator(24, "AAB"),
        "latent_shape": (4, 4, 20),
        "context_shape": (4, 4, 16),
        "num_chains": 10,
        "num_steps": 200,
        "batch_size": 64,
    },
}


def measure():
    """Our seconds over those of another version in the same run."""
    found = {}
    for name, case in CASES.items():
        few, many, langevin = alone.rows(
            case["network"],
            case["latent_shape"],
            jax.random.key(0),
            num_chains=case["num_chains"],
            num_proposals=NUM_PROPOSALS,
            num_steps=(case["num_steps"],),
            chunk_size=lambda num_proposals: 25,
            step_size=1e-2,
            **LONG,
        )
        update = stage_two.Update(
            case["network"],
            optax.adam(1e-3),
            Stack((0,), NUM_GROUPS, case["latent_shape"], case["context_shape"]),
            jax.random.key(1),
            case["batch_size"],
            **LONG,
        )
        (stack,) = stage_two.rows(update, (NUM_GROUPS,))
        found |= {
            f"{name}: SIR / all proposals at once": few["seconds"] / few["at_once"],
            f"{name}: SIR, one proposal of 1,000 / one of 100": (
                (many["seconds"] / many["size"]) / (few["seconds"] / few["size"])
            ),
            f"{name}: Langevin / loop of compiled steps": (
                langevin["seconds"] / langevin["loop_of_compiled_steps"]
            ),
            f"{name}: a group of ten / one alone": stack["cost_of_a_group"],
        }
    return found


def measured_elsewhere():
    """In a process that compiles as users do; the tests' own flags would not."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.benchmark.test_benchmark_ratios"]
    run = subprocess.run(
        command,
        env=environment,
        cwd=FILE.parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.timing
def test_no_ratio_has_become_half_as_large_again():
    kept = json.loads(FILE.read_text())
    found = dict.fromkeys(kept, math.inf)
    for _ in range(NUM_TRIES):
        again = measured_elsewhere()
        assert again.keys() == kept.keys()
        found = {name: min(found[name], again[name]) for name in kept}
        worse = {n: (found[n], kept[n]) for n in kept if found[n] > WORSE * kept[n]}
        if not worse:
            return
    pytest.fail(f"(now, kept): {worse}; main.py --stage=benchmark shows more")


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # several cores wait for one another
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    runs = [measure() for _ in range(5 if sys.argv[1:] == ["--rewrite"] else 1)]
    numbers = {
        name: round(statistics.median(r[name] for r in runs), 3) for name in runs[0]
    }
    if len(runs) > 1:
        FILE.write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers))
