"""2n steps are n steps, a save, a restore and n steps: bit for bit, kills included."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ncp_jax.training import loop
from ncp_jax.training.checkpoints import digests
from ncp_jax.training.run_log import RunLog, read_metrics
from tests import tiny

ROOT = Path(__file__).parents[2]


def train(path, stage, stops, forget=False):
    """Trains in pieces that end at `stops`; returns the digests of the last state.

    Args:
      path: folder of the run.
      stage: "vae" or "ncp".
      stops: steps; each piece restores what the one before has saved.
      forget: whether each piece starts with a fresh optimiser, which is wrong.
    """
    experiment = tiny.experiment(path, tiny.config())
    settings = experiment.config[stage]
    with contextlib.closing(experiment.workdir):
        for stop in stops:
            vae = experiment.load_vae() if stage == "ncp" else None
            with experiment.checkpoints(stage, vae) as checkpoints:
                task, state = experiment.ncp_task(vae) if vae else experiment.vae_task()
                fresh = state
                if restored := checkpoints.restore_latest(state):
                    state = restored.state
                if forget:
                    state = state.replace(opt_state=fresh.opt_state)
                log = RunLog(path, stage, int(state.step), settings.num_steps)
                with contextlib.closing(log):
                    state = loop.fit(
                        task,
                        state,
                        checkpoints,
                        log,
                        num_steps=stop,
                        steps_per_dispatch=settings.steps_per_dispatch,
                        steps_per_eval=settings.steps_per_eval,
                    )
    return digests(task.collect(state))


def test_both_stages_resume_bit_for_bit(tmp_path):
    unbroken = {s: train(tmp_path / "a", s, [20]) for s in ("vae", "ncp")}
    assert {s: train(tmp_path / "b", s, [10, 20]) for s in ("vae", "ncp")} == unbroken
    forgetful = train(tmp_path / "c", "vae", [10, 20], forget=True)
    differing = {n for n, value in forgetful.items() if value != unbroken["vae"][n]}
    assert any("params" in name for name in differing)  # so this test can fail


# --- processes that are killed

STEPS = {"num_steps": 120, "steps_per_dispatch": 10, "steps_per_eval": 20}
COMMAND = [
    sys.executable,
    "main.py",
    "--config=configs/digits.py:smoke",
    *(f"--config.{s}.{n}={v}" for s in ("vae", "ncp") for n, v in STEPS.items()),
]


def start(workdir, stage):
    command = [*COMMAND, f"--workdir={workdir}", f"--stage={stage}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finish(process, expected):
    _, message = process.communicate(timeout=300)
    assert process.returncode in expected, message
    return message


def kill_after(workdir, stage, num_records, delay, signum):
    """Starts, waits for records and `delay` more seconds, kills; False: too late.

    Resuming rewrites the records: those before do not count.
    """
    metrics = workdir / "metrics.jsonl"

    def look():
        if not metrics.exists():
            return None, 0
        records = [r for r in read_metrics(metrics) if r["stage"] == stage]
        return metrics.stat().st_ino, len(records)

    inode, target = look()[0], None
    process = start(workdir, stage)
    while process.poll() is None:
        now, count = look()
        if now != inode and target is None:
            target = count + num_records
        if target is not None and count >= target:
            break
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signum)
    codes = {signal.SIGKILL: {-9, 0}, signal.SIGTERM: {143, 0}}[signum]
    message = finish(process, codes)
    if process.returncode == 143:
        assert "Run the same command again" in message
    return process.returncode != 0


def hashes(workdir, stage):
    """{step: sha256 by array} of the stage's checkpoints."""
    folder = workdir / stage / "checkpoints"
    return {
        path.parents[1].name: json.loads(path.read_text())["sha256"]
        for path in folder.glob("*/metadata/metadata")
    }


@pytest.mark.slow
def test_runs_killed_at_any_moment_end_with_the_same_bits(tmp_path):
    seed = int(os.environ.get("NCP_JAX_KILL_SEED", "0"))
    moments = random.Random(seed)
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    for stage in ("vae", "ncp"):
        finish(start(unbroken, stage), {0})
        num_kills = 0
        for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            num_records = moments.randint(1, 5)
            delay = moments.uniform(0.0, 0.1)
            num_kills += kill_after(killed, stage, num_records, delay, signum)
        finish(start(killed, stage), {0})
        assert num_kills >= 2
        expected, found = hashes(unbroken, stage), hashes(killed, stage)
        assert str(STEPS["num_steps"]) in found
        common = expected.keys() & found.keys()  # which are kept depends on the kills
        assert {s: found[s] for s in common} == {s: expected[s] for s in common}
    a, b = ((w / "metrics.jsonl").read_text() for w in (unbroken, killed))
    assert a == b
