"""`sample_measures.py`, `picture_scores.py`, `picture_audit.py` on a small run.

Of digits of 8x8.
"""

import contextlib
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import feature_scores, frechet, latent_mmd
from ncp_jax.evaluation.metrics.extractor import FeatureNet, Outputs
from ncp_jax.evaluation.metrics.moments import Moments
from ncp_jax.experiment import (
    chosen_rows,
    picture_audit,
    picture_scores,
    sample_measures,
    stages,
)
from ncp_jax.experiment.sample_stage import load_samples
from ncp_jax.pages.parts import pictures
from tests import tiny


class Rows(nn.Module):
    """Eight features: the sums of the rows."""

    @nn.compact
    def __call__(self, images):
        return Outputs(jnp.sum(images, (2, 3)), jnp.mean(images, (1, 2, 3))[:, None])


NET = FeatureNet("FD-LeNet", Rows(), {}, "abcdef", (8, 8, 1))
SMALL = {
    "sample.num_images": 12,
    "sample.batch_size": 8,
    "sample.num_proposals": 10,
    "sample.langevin_num_steps": 2,
    "sample.temperatures": (0.5, 1.0),
    "evaluate.fid_num_images": 40,
    "evaluate.fid_num_reference": 100,
    "evaluate.num_mmd_samples": 20,
    "evaluate.num_permutations": 20,
    "evaluate.num_neighbour_queries": 30,
}


def small(**settings):
    config = tiny.config()
    config.update_from_flattened_dict(SMALL)
    config.update_from_flattened_dict(settings)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "run"
    for stage in ("vae", "ncp", "sample"):
        stages.run(small(), path, stage)
    return path


@pytest.fixture
def opened(workdir):
    """Opens the run with other settings of its evaluation."""
    with contextlib.ExitStack() as stack:

        def open_with(**settings):
            run = tiny.experiment(workdir, small(**settings))
            stack.enter_context(contextlib.closing(run.workdir))
            return run

        yield open_with


def test_every_source_is_scored_with_its_count(opened, workdir):
    run = opened()
    estimates, arrays = sample_measures.measure(
        run, run.load_ncp(), load_samples(run), NET
    )
    counts = {name: e.n for name, e in estimates.items()}
    sources = ("base", "sir", "langevin", "floor", "real")
    assert counts.items() >= {f"fd_lenet_{name}": 40 for name in sources}.items()
    # Subsets of a fifth of the fewer: 40 drawn pictures, 50 of the reference.
    assert counts.items() >= {f"kid_lenet_{name}": 40 for name in sources}.items()
    mmd = {f"mmd_{name}" for name in ("base", "sir", "floor")}
    assert {name: n for name, n in counts.items() if n == 20} == {
        **dict.fromkeys(mmd, 20),
        **{name.replace("mmd", "mmd_p"): 20 for name in mmd},
    }
    near = {f"nearer_than_held_out_{name}": 12 for name in sources[:3]}
    assert counts.items() >= {**near, "nearer_than_held_out_floor": 30}.items()
    assert len(counts) == 5 + 5 + 6 + 4
    for source in sources[:4]:
        real = estimates["fd_lenet_real"]
        assert estimates[f"fd_lenet_{source}"].value > 10 * real.value > 0
    with_error = {name for name, e in estimates.items() if e.stderr > 0}
    assert with_error >= {n for n in counts if n.startswith(("fd", "kid", "mmd_sir"))}
    assert "40 pictures of each sampler" in str(arrays["note_scores"])
    assert "20 encodings of the test set" in str(arrays["note_mmd"])
    assert "1,297 training pictures, of 12" in str(arrays["note_neighbours"])
    with Image.open(workdir / "samples" / "neighbours.png") as shown:
        assert shown.size == (8 + 3 + 7 * 9 - 1, 8 * 9 - 1)


def test_a_run_without_a_network_and_mmd_looks_for_copies_alone(opened):
    run = opened(**{"evaluate.num_mmd_samples": 0})
    estimates, arrays = sample_measures.measure(
        run, run.load_ncp(), load_samples(run), None
    )
    assert all(name.startswith("nearer_than_held_out_") for name in estimates)
    assert {n for n in arrays if n.startswith("note_")} == {"note_neighbours"}


def test_the_score_is_that_of_the_pictures_in_8_bits(opened):
    """Computed here from the draws themselves, all at once."""
    run = opened()
    ncp, drawn = run.load_ncp(), load_samples(run)
    collected = sample_measures.collect(run, ncp, drawn, NET)
    parts = [x for x, _ in sample_measures.draws(run, ncp, drawn, "sir", 40)]
    shown = np.round(255 * np.concatenate(parts)).clip(0, 255)
    assert len(shown) == 40
    features = shown.sum((2, 3)) / 255
    np.testing.assert_allclose(collected["sir"].features, features, rtol=1e-5)
    estimates, _ = picture_scores.measure(
        run, ncp.vae, NET, {"sir": collected["sir"].features}
    )
    rows = picture_scores._rows(run, "train")
    real = run.dataset.train[rows].astype(np.float64).sum((2, 3)) / 255
    expected = frechet.distance(Moments.of(features), Moments.of(real))
    assert estimates["fd_lenet_sir"].value == pytest.approx(expected, rel=1e-4)


def test_draws_are_the_stored_ones_and_then_new_ones(opened):
    run = opened()
    ncp, drawn = run.load_ncp(), load_samples(run)
    for num, sizes in ((5, [5]), (12, [12]), (31, [12, 8, 8, 3])):
        parts = list(sample_measures.draws(run, ncp, drawn, "base", num))
        assert [len(images) for images, _ in parts] == sizes
        assert [len(z) for _, (z,) in parts] == sizes
        stored = drawn["base"]
        np.testing.assert_array_equal(parts[0][0], stored["images"][:num])
        np.testing.assert_array_equal(parts[0][1][0], stored["latents_0"][:num])
    everything = np.concatenate([z.reshape(len(z), -1) for _, (z,) in parts])
    assert len(np.unique(everything, axis=0)) == 31  # none is drawn twice


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.5}, {"num_readjust_iterations": 3}]
)
def test_base_draws_to_be_looked_at_are_not_measured(opened, settings):
    run = opened(**{f"sample.{name}": value for name, value in settings.items()})
    ncp, stored = run.load_ncp(), np.full((12, 8, 8, 1), np.nan)
    drawn = {"base": {"images": stored, "latents_0": stored}}
    ((images, _),) = sample_measures.draws(run, ncp, drawn, "base", 8)
    assert np.isfinite(images).all()


def test_samplers_that_are_not_asked_for_draw_nothing(opened, monkeypatch):
    asked = {}

    def draws(run, ncp, drawn, name, num):
        asked[name] = num
        yield from ()

    monkeypatch.setattr(sample_measures, "draws", draws)
    run = opened(**{"evaluate.fid_samplers": ("sir",)})
    ncp = run.load_ncp()
    sample_measures.collect(run, ncp, {}, NET)
    assert asked == {"base": 40, "sir": 40, "langevin": 0}
    sample_measures.collect(run, ncp, {}, None)
    assert asked == {"base": 20, "sir": 20, "langevin": 0}  # of MMD


def test_draws_that_leave_the_finite_numbers_are_named(opened, monkeypatch):
    run = opened()
    ncp, drawn = run.load_ncp(), load_samples(run)
    bad = types.SimpleNamespace(images=np.full((8, 8, 8, 1), np.nan), latents=())
    monkeypatch.setattr(
        sample_measures.generation, "batches", lambda *args: iter([bad])
    )
    with pytest.raises(InputError, match="'sir' left the finite numbers"):
        list(sample_measures.draws(run, ncp, drawn, "sir", 20))


def test_mmd_compares_encodings_of_the_test_set(opened, monkeypatch):
    seen = {}

    def per_group(posterior, priors, **settings):
        seen.update(posterior=posterior, priors=priors, **settings)
        return {}, {}

    monkeypatch.setattr(latent_mmd, "per_group", per_group)
    run = opened()
    ncp, drawn = run.load_ncp(), load_samples(run)
    sample_measures.measure(run, ncp, drawn, None)
    (q,), priors = seen["posterior"], seen["priors"]
    assert q.shape == (20, 3) and {n: g[0].shape for n, g in priors.items()} == {
        "base": (20, 3),
        "sir": (20, 3),
        "floor": (20, 3),
    }
    np.testing.assert_array_equal(
        priors["sir"][0][:12], drawn["sir"]["latents_0"][:, 0]
    )
    assert not np.array_equal(q, priors["floor"][0])

    def encoded(split, **changed):
        dataset = run.dataset._replace(**changed)
        other = types.SimpleNamespace(
            config=run.config, prepare=run.prepare, key=run.key, dataset=dataset
        )
        return sample_measures._posterior(other, ncp.vae, split, 20)[0]

    data = run.dataset
    np.testing.assert_array_equal(encoded("test"), q)
    assert not np.array_equal(encoded("test", test=data.test[::-1]), q)
    np.testing.assert_array_equal(encoded("train"), priors["floor"][0])
    of_others = encoded("train", train=data.train[::-1])
    assert not np.array_equal(of_others, priors["floor"][0])


def test_no_measure_takes_the_first_examples_of_a_file(opened, monkeypatch):
    """The first and the second half of a test set may be of other writers."""
    run, seen = opened(**{"evaluate.num_mmd_samples": 0}), []
    size = len(run.dataset.test)
    for most in (20, 60):
        rows = chosen_rows.rows(run, "test", most)
        assert len(set(rows)) == most
        # Were they the first, or of one half: chance 2^-most at the most.
        assert rows.max() > size // 2 > rows.min()
        stored = run.dataset.test[rows]
        np.testing.assert_array_equal(chosen_rows.held_out(run, most), stored)
    np.testing.assert_array_equal(rows[:20], chosen_rows.rows(run, "test", 20))
    assert sorted(chosen_rows.rows(run, "test")) == list(range(size))
    other = types.SimpleNamespace(dataset=run.dataset, key=lambda _: jax.random.key(7))
    assert not np.array_equal(chosen_rows.rows(other, "test", 60), rows)

    def reconstructions(run, vae, split, rows):
        seen.append(rows)
        yield np.zeros((len(rows), 8, 8, 1), np.uint8)

    monkeypatch.setattr(picture_scores, "reconstructions", reconstructions)
    sample_measures.measure(run, run.load_ncp(), load_samples(run), None)
    np.testing.assert_array_equal(seen, [chosen_rows.rows(run, "test", 30)])


# ---- real pictures


def run_on(stored, **settings):
    config = small(**settings)
    dataset = datasets.Dataset(stored, stored, stored)
    return types.SimpleNamespace(
        config=config, dataset=dataset, key=lambda name: jax.random.key(3)
    )


PICTURES = np.random.default_rng(0).integers(256, size=(50, 4, 4, 1), dtype=np.uint8)


def real(split, rows, **settings):
    return np.concatenate(
        [*picture_scores._real(run_on(PICTURES, **settings), split, rows)]
    )


def test_reference_pictures_are_grey_though_the_model_sees_them_binarised():
    rows = np.array([7, 3, 49, 0, 1, 2, 4, 5, 6])
    for split in ("train", "test"):
        np.testing.assert_array_equal(real(split, rows), PICTURES[rows])


def test_reference_pictures_are_flipped_as_in_training():
    settings, rows = {"data.horizontal_flips": True}, np.arange(50)
    np.testing.assert_array_equal(real("test", rows, **settings), PICTURES)
    shown = real("train", rows, **settings)
    kept = (shown == PICTURES).all((1, 2, 3))
    turned = (shown == PICTURES[:, :, ::-1]).all((1, 2, 3))
    assert (kept ^ turned).all() and 10 < turned.sum() < 40
    np.testing.assert_array_equal(shown, real("train", rows, **settings))


def test_reference_pictures_have_the_bits_of_the_models():
    settings = {"data.binarization": "none", "data.num_bits": 5}
    shown = real("test", np.arange(50), **settings)
    expected = pictures.to_uint8((PICTURES // 8) / np.float32(31))
    np.testing.assert_array_equal(shown, expected)
    assert len(np.unique(shown)) == 32


def test_the_reference_is_drawn_from_all_of_a_split():
    run = run_on(PICTURES, **{"evaluate.fid_num_reference": 30})
    rows = picture_scores._rows(run, "test")
    assert len(set(rows)) == 30 and rows.max() > 30
    run.config.evaluate.fid_num_reference = 99
    assert sorted(picture_scores._rows(run, "test")) == list(range(50))


@pytest.mark.parametrize("num", [10, 30, 50, 200])
def test_reconstructions_are_never_compared_with_their_own_pictures(
    num, monkeypatch, tmp_path
):
    """By KID, which would be biased; pictures are their own row numbers here."""
    seen = {}
    run = run_on(PICTURES, **{"evaluate.fid_num_images": num})
    run.path = tmp_path

    def score(features, against, *, seed, num_for_kid):
        seen[len(seen)] = features[: num_for_kid or None]
        return None, None

    def reference(net, make_batches, folder, *, batch_size, num_for_kid):
        seen["reference"] = picture_scores._rows(run, "train")[:num_for_kid]
        moments = Moments.of(np.zeros((3, 1)))
        return feature_scores.Reference(moments, seen["reference"])

    monkeypatch.setattr(feature_scores, "score", score)
    monkeypatch.setattr(feature_scores, "reference", reference)
    monkeypatch.setattr(feature_scores, "features_of", lambda net, x, size: list(x))
    monkeypatch.setattr(
        picture_scores, "reconstructions", lambda run, vae, split, rows: rows
    )
    picture_scores.measure(run, None, NET, {})
    floor = seen[1]
    assert not set(floor) & set(seen["reference"])
    assert len(seen["reference"]) == 25 and len(floor) == min(num, 25)


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fid_num_images": 8}, r"fid_num_images gives 8 .* 8 features: at least 9"),
        ({"fid_num_reference": 7}, r"fid_num_reference gives 7 pictures"),
    ],
)
def test_too_few_pictures_are_refused_before_any_work(settings, message, monkeypatch):
    monkeypatch.setattr(feature_scores, "load", lambda name, path: NET)
    named = {f"evaluate.{name}": value for name, value in settings.items()}
    run = run_on(np.zeros((50, 8, 8, 1), np.uint8), **named)
    run.config.evaluate.feature_net = "lenet5"
    run.has_pictures = True
    with pytest.raises(InputError, match=message):
        picture_scores.load_net(run)


def test_points_and_other_pictures_have_no_features(monkeypatch):
    monkeypatch.setattr(feature_scores, "load", lambda name, path: NET)
    run = run_on(np.zeros((50, 2), np.float32))
    run.has_pictures = False
    assert picture_scores.load_net(run) is None
    run.config.evaluate.feature_net = "lenet5"
    with pytest.raises(InputError, match="feature_net is for pictures: digits"):
        picture_scores.load_net(run)
    run.has_pictures = True
    run.config.data.shape = (32, 32, 3)
    with pytest.raises(InputError, match=r"FD-LeNet is of pictures \[N, 8, 8, 1\]"):
        picture_scores.load_net(run)


def test_weights_that_are_missing_stop_the_stage_before_it_writes(workdir):
    before = {p: p.read_bytes() for p in (workdir / "samples").iterdir()}
    absent = {"feature_net": "lenet5", "feature_weights": "absent.npz"}
    config = small(**{f"evaluate.{name}": value for name, value in absent.items()})
    with pytest.raises(InputError, match=r"absent.npz: no such file"):
        stages.run(config, workdir, "evaluate")
    assert not (workdir / "evaluation" / "arrays.npz").exists()
    assert {p: p.read_bytes() for p in (workdir / "samples").iterdir()} == before


def test_weights_that_are_missing_stop_a_whole_run_before_it_trains(tmp_path):
    absent = {"feature_net": "lenet5", "feature_weights": "absent.npz"}
    config = small(**{f"evaluate.{name}": value for name, value in absent.items()})
    with pytest.raises(InputError, match=r"absent.npz: no such file"):
        stages.run(config, tmp_path, "all")
    assert not (tmp_path / "vae").exists()


# ---- pictures at several temperatures, which the stage before draws


def test_temperatures_share_their_noise_with_the_base_samples(workdir):
    folder = workdir / "samples"
    assert {p.name for p in folder.glob("base_at_*")} == {
        "base_at_0.5.png",
        "base_at_1.png",
    }
    base, cold, same = (
        np.asarray(Image.open(folder / f"{name}.png"), np.float64)
        for name in ("base", "base_at_0.5", "base_at_1")
    )
    np.testing.assert_array_equal(same, base)
    assert not np.array_equal(cold, base)
    # Twelve pictures of eight columns; colder ones differ less from one another.
    cells = [x[:8, :71].reshape(8, -1) for x in (cold, base)]
    spread = [np.pad(c, ((0, 0), (0, 1))).reshape(8, 8, 9).std(1) for c in cells]
    assert spread[0].mean() < 0.8 * spread[1].mean()


# --- the audit

AUDIT = {
    "evaluate.num_mmd_samples": 0,
    "evaluate.audit_num_images": 60,
    "evaluate.audit_num_steps": 20,
    "evaluate.audit_num_draws": 30,
    "evaluate.audit_samplers": ("sir",),
}


def test_the_audit_is_of_the_base_prior_and_of_what_samplers_leave(opened, capsys):
    run = opened(**AUDIT)
    ncp, drawn = run.load_ncp(), load_samples(run)
    estimates, arrays = sample_measures.measure(run, ncp, drawn, None)
    audited = {name: e for name, e in estimates.items() if name.startswith("audit")}
    assert audited.keys() == {"audit_jsd_base", "audit_jsd_sir"}
    assert [e.n for e in audited.values()] == [12, 6]  # a fifth
    base = audited["audit_jsd_base"]
    np.testing.assert_array_equal(arrays["audit_base"], [[base.value, base.stderr]])
    assert "60 decoded encodings of training examples" in str(arrays["note_audit"])
    assert "30 of sir" in str(arrays["note_audit"]) and "audit_curve" not in arrays
    assert "audits 2 kinds of pictures, 60 of each" in capsys.readouterr().out
    # Those that the stage before has drawn come first, in 8 bits.
    kept = sample_measures.collect(run, ncp, drawn, None)
    assert kept["langevin"].audited is None and kept["sir"].audited.shape[0] == 30
    np.testing.assert_array_equal(
        kept["sir"].audited[:12], pictures.to_uint8(drawn["sir"]["images"])
    )


def test_the_audit_sees_what_is_no_digit_and_is_the_same_again(opened):
    run = opened(**AUDIT)
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    first, again = (
        picture_audit.measure(run, run.load_vae(), {"sir": noise})[0] for _ in range(2)
    )
    assert first == again
    assert first["audit_jsd_sir"].value > 0.2
