"""`checkpoints.py`: kept, verified, and honest about a disk that fails."""

import contextlib
import json
import random
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.training.checkpoint_records import (
    DamagedCheckpoint,
    best_weights,
    described,
)
from ncp_jax.training.checkpoints import Checkpoints, digests, fingerprint

# tensorstore reports to an event loop that Orbax has closed after an error.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)
METADATA = {"config": "abc"}


def state_at(step):
    return {"w": jnp.arange(100.0) + step, "n": {"count": jnp.full((), step)}}


LIKE = jax.eval_shape(state_at, 0)


def saved(path, losses):
    """Saves `losses`, {step: validation loss}, and returns the folder."""
    with Checkpoints(path, METADATA) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state_at(step), loss)
    return path


def steps_on_disk(path):
    return sorted(int(p.name) for p in path.iterdir())


@contextlib.contextmanager
def full_disk(num_bytes=100):
    """No file can grow beyond `num_bytes`: a write fails with an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- what is kept, and what comes back


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    saved(tmp_path / "c", {10: 3.0, 20: 2.0})
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        assert checkpoints.latest_step() == 20
        step, state, metadata = checkpoints.restore_latest(LIKE)
    assert step == metadata["step"] == 20
    assert metadata["valid_loss"] == 2.0 and metadata["config"] == "abc"
    assert metadata["sha256"] == digests(state) == digests(state_at(20))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(state))


def test_keys_are_told_apart_by_their_numbers():
    """The state of a dropout holds some."""
    one, two = ({"key": jax.random.key(seed), "w": np.ones(2)} for seed in (1, 2))
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one) == fingerprint(one | {"key": jax.random.key(1)})
    assert digests(one)["['w']"] == digests(two)["['w']"]


def test_arrays_of_other_shapes_are_refused(tmp_path):
    saved(tmp_path / "c", {10: 3.0})
    larger = jax.tree.map(lambda leaf: np.zeros((3, *leaf.shape), leaf.dtype), LIKE)
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        with pytest.raises(InputError, match="arrays of other shapes"):
            checkpoints.restore_latest(larger)
        assert checkpoints.restore_latest(LIKE) is not None


def test_what_tells_settings_apart_holds_every_number_of_their_arrays():
    x = np.zeros(5_000)
    y = x.copy()
    y[2_500] = 1e-12
    for array in (np.asarray, jnp.asarray):
        assert described((1, array(x))) != described((1, array(y)))
    assert described((1, x)) == described((1, x.copy()))
    assert len(described((1, x), is_whole=False)) < 60
    assert " at 0x" not in described([lambda: 1])


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path / "new" / "c", METADATA) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.restore_latest(LIKE) is None
        with pytest.raises(InputError, match="no usable checkpoint"):
            checkpoints.restore_best(LIKE)


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    losses = {10: 5.0, 20: 1.0, 30: 4.0, 40: 3.0, 50: None}
    assert steps_on_disk(saved(tmp_path / "c", losses)) == [20, 40, 50]


def test_the_best_is_remembered_by_the_next_process(tmp_path):
    saved(tmp_path / "c", {10: 1.0, 20: 4.0})
    saved(tmp_path / "c", {30: 3.0, 40: 2.0})
    assert steps_on_disk(tmp_path / "c") == [10, 30, 40]
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        assert checkpoints.restore_best(LIKE).step == 10
    saved(tmp_path / "c", {50: 0.5})
    assert steps_on_disk(tmp_path / "c") == [40, 50]


def test_of_equals_the_later_is_best_and_unscored_ones_never(tmp_path):
    saved(tmp_path / "c", {10: 1.0, 20: 1.0, 30: None})
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        assert checkpoints.restore_best(LIKE).step == 20


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        checkpoints.save(10, state_at(10), 1.0)
        checkpoints.save(10, state_at(99), None)
        checkpoints.wait()
        restored = checkpoints.restore_latest(LIKE)
    assert restored.metadata["valid_loss"] == 1.0
    chex.assert_trees_all_equal(restored.state, state_at(10))


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    state = state_at(10)
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        checkpoints.save(10, state, 1.0)
        jax.block_until_ready(
            jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)(state)
        )
        checkpoints.wait()
        chex.assert_trees_all_equal(
            checkpoints.restore_latest(LIKE).state, state_at(10)
        )


def test_other_metadata_are_refused_by_name(tmp_path):
    saved(tmp_path / "c", {10: 1.0})
    with Checkpoints(tmp_path / "c", {"config": "xyz"}) as checkpoints:
        for restore in (checkpoints.restore_latest, checkpoints.restore_best):
            with pytest.raises(InputError, match=r"another config \(abc, now xyz\)"):
                restore(LIKE)
    assert steps_on_disk(tmp_path / "c") == [10]


def test_arrays_of_other_code_are_no_damage(tmp_path):
    path = saved(tmp_path / "c", {10: 1.0})
    grown = {"old": LIKE, "new": jnp.zeros(3)}
    with Checkpoints(path, METADATA) as checkpoints:
        for restore in (checkpoints.restore_latest, checkpoints.restore_best):
            with pytest.raises(InputError, match="another version"):
                restore(grown)
    assert steps_on_disk(path) == [10]


def test_wall_seconds_add_up_over_processes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        now[0] += 7
        checkpoints.save(10, state_at(10), 1.0)
        now[0] += 1000  # lost: no checkpoint has it
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        assert checkpoints.restore_latest(LIKE).metadata["wall_seconds"] == 7
        now[0] += 5
        assert checkpoints.wall_seconds() == 12


# --- damage


def flip(path, seed=0):
    content = bytearray(path.read_bytes())
    position = random.Random(seed).randrange(len(content))
    content[position] ^= 0x10
    path.write_bytes(content)


def damage_arrays(step_folder, damage=flip):
    """Damages all files with array bytes: some are copies that nobody reads."""
    files = [p for p in (step_folder / "state").rglob("d/*") if p.is_file()]
    assert files
    for file in files:
        damage(file)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path, damage, caplog):
    saved(tmp_path / "c", {10: 2.0, 20: 1.0})
    damage_arrays(tmp_path / "c" / "20", DAMAGES[damage])
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        step, state, _ = checkpoints.restore_latest(LIKE)
        assert step == 10
        chex.assert_trees_all_equal(state, state_at(10))
        assert str(tmp_path / "c" / "20") in caplog.text
        assert checkpoints.restore_best(LIKE).step == 10
        checkpoints.save(20, state_at(20), 1.0)  # trained once more
    assert (tmp_path / "damaged" / "20").is_dir()
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        chex.assert_trees_all_equal(
            checkpoints.restore_latest(LIKE).state, state_at(20)
        )


def test_arrays_that_orbax_believes_are_caught_by_the_hash(tmp_path, caplog):
    """Whole and readable, but of another run: only the sha256 can tell."""
    saved(tmp_path / "c", {10: 2.0, 20: 1.0})
    saved(tmp_path / "other", {30: 1.0})
    shutil.rmtree(tmp_path / "c" / "20" / "state")
    shutil.move(tmp_path / "other" / "30" / "state", tmp_path / "c" / "20" / "state")
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        assert checkpoints.restore_latest(LIKE).step == 10
    assert "other bytes than were written" in caplog.text


def test_flips_in_any_file_are_harmless_or_noticed(tmp_path):
    saved(tmp_path / "c", {10: 2.0, 20: 1.0})
    whole = tmp_path / "c" / "20"
    files = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    assert len(files) > 10
    outcomes = {}
    for file in files:
        if not (whole / file).stat().st_size:
            continue
        copy = tmp_path / "copies" / file.as_posix().replace("/", "_") / "c"
        shutil.copytree(tmp_path / "c", copy)
        flip(copy / "20" / file)
        with Checkpoints(copy, METADATA) as checkpoints:
            step, state, metadata = checkpoints.restore_latest(LIKE)
        chex.assert_trees_all_equal(state, state_at(step))
        assert metadata["step"] == step
        outcomes[file.parts[0], file.name] = step
    assert outcomes["metadata", "metadata"] == 10
    assert set(outcomes.values()) == {10, 20}


def test_a_changed_loss_does_not_change_what_is_best(tmp_path):
    saved(tmp_path / "c", {10: 2.5, 20: 1.5})
    file = tmp_path / "c" / "10" / "metadata" / "metadata"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"valid_loss": 0.5}))
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=r"c/10 has damaged metadata"):
            checkpoints.restore_best(LIKE)
        assert checkpoints.restore_latest(LIKE).step == 20  # training moves 10 aside
        assert checkpoints.restore_best(LIKE).step == 20
    assert steps_on_disk(tmp_path / "damaged") == [10]


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


OF_THE_BEST = {
    "metadata flipped": lambda best: flip(best / "metadata" / "metadata"),
    "metadata deleted": lambda best: shutil.rmtree(best / "metadata"),
    "arrays flipped": damage_arrays,
    "arrays deleted": lambda best: shutil.rmtree(best / "state"),
    "emptied": empty,
}


@pytest.mark.parametrize("kind", OF_THE_BEST)
@pytest.mark.parametrize("best", [10, 20])
def test_a_reader_names_the_damaged_best_and_takes_no_other(tmp_path, kind, best):
    losses = {step: 1.0 if step == best else 2.0 for step in (10, 20)}
    path = saved(tmp_path / "vae" / "checkpoints", losses)
    OF_THE_BEST[kind](path / str(best))
    message = rf"checkpoints/{best} .*run --stage=vae, which moves it to"
    with Checkpoints(path, METADATA) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=message):
            checkpoints.restore_best(LIKE)
        left = checkpoints.restore_latest(LIKE)  # what training does
        assert left.step == checkpoints.restore_best(LIKE).step == 30 - best
    assert steps_on_disk(path) == [30 - best]
    assert steps_on_disk(tmp_path / "vae" / "damaged") == [best]


def test_the_best_weights_are_known_without_their_arrays(tmp_path):
    assert best_weights(tmp_path / "nowhere") is None
    path = saved(tmp_path / "vae" / "checkpoints", {10: 1.0, 20: 1.0, 30: None})
    assert best_weights(path) == (20, fingerprint(state_at(20)))
    with Checkpoints(path, METADATA) as checkpoints:
        restored = checkpoints.restore_best(LIKE)
    assert best_weights(path) == (restored.step, fingerprint(restored.state))
    (path / "30" / "metadata" / "metadata").unlink()
    with pytest.raises(DamagedCheckpoint, match="checkpoints/30 has damaged metadata"):
        best_weights(path)


def test_all_damaged_means_a_fresh_start(tmp_path):
    saved(tmp_path / "c", {10: 2.0, 20: 1.0})
    for step in (10, 20):
        damage_arrays(tmp_path / "c" / str(step))
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        assert checkpoints.restore_latest(LIKE) is None
    assert steps_on_disk(tmp_path / "damaged") == [10, 20]


def test_what_a_kill_left_in_mid_save_is_cleared(tmp_path):
    saved(tmp_path / "c", {10: 2.0, 20: 1.0})
    torn = tmp_path / "c" / "30.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "20", torn)
    with Checkpoints(tmp_path / "c", METADATA) as checkpoints:
        assert checkpoints.restore_latest(LIKE).step == 20
    assert not torn.exists()


# --- a disk that fails


def big_state(step):
    noise = np.random.default_rng(step).standard_normal(50_000)
    return {"w": jnp.asarray(noise, jnp.float32)}


@pytest.mark.parametrize("surfaces", ["wait", "save", "close"])
def test_a_full_disk_is_told_and_the_checkpoint_before_serves(tmp_path, surfaces):
    checkpoints = Checkpoints(tmp_path / "c", METADATA)
    checkpoints.save(10, big_state(10), 2.0)
    checkpoints.wait()
    with (
        full_disk(20_000),
        pytest.raises(InputError, match=r"cannot write .*: File too large"),
    ):
        checkpoints.save(20, big_state(20), 1.0)
        if surfaces == "save":
            checkpoints.save(30, big_state(30), 1.0)  # of 20, or of 30 in close
        if surfaces == "wait":
            checkpoints.wait()
        checkpoints.close()
    with contextlib.suppress(InputError):
        checkpoints.close()  # once more does no harm
    with Checkpoints(tmp_path / "c", METADATA) as again:
        assert again.restore_latest(jax.eval_shape(lambda: big_state(0))).step == 10
        again.save(20, big_state(20), 1.0)
    assert steps_on_disk(tmp_path / "c") == [10, 20]


def test_an_error_while_closing_never_hides_the_first(tmp_path, caplog):
    with (
        full_disk(20_000),
        pytest.raises(ZeroDivisionError),
        Checkpoints(tmp_path / "c", METADATA) as checkpoints,
    ):
        checkpoints.save(10, big_state(10), 1.0)
        raise ZeroDivisionError
    assert "cannot write a checkpoint" in caplog.text


def test_a_folder_below_a_file_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot use"):
        Checkpoints(tmp_path / "file" / "c", METADATA)
