"""`export_stage.py`: pictures for other programs, whatever stops it on the way."""

import contextlib
import json
import os
import shutil
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ncp_jax import parallel, rng
from ncp_jax.errors import InputError
from ncp_jax.experiment import export_stage
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import validation
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.pages.parts import pictures
from ncp_jax.priors import generation, ncp_prior
from ncp_jax.training.checkpoint_records import Weights
from ncp_jax.training.ncp import ncp_state

NUM, BATCH = 11, 4  # the last batch is not full


@pytest.fixture(scope="module")
def prior():
    """A small VAE without training, under ratios that are not 1."""
    module = MLPVAE((8, 8, 1), latent_dim=3, hidden_dims=(8,))
    x, key = jnp.zeros((1, 8, 8, 1)), rng.root(0)
    variables = jax.jit(module.init)(key, x, key)
    variables["statistics"] = {"data_mean": jnp.full((8, 8, 1), 0.4)}
    vae = FrozenVAE(module, variables)
    network = MLPDiscriminator((4,))
    params = jax.tree.map(
        lambda leaf: leaf + 0.5, ncp_state.init_params(network, vae, key)
    )
    return ncp_prior.NCPPrior(vae, network, params)


class Run:
    """What `export` reads of an experiment."""

    def __init__(self, path, prior, **changes):
        self.config = config_lib.default()
        self.config.sample.update(batch_size=BATCH, num_proposals=5, chunk_size=5)
        self.config.export.update(num_images=NUM)
        self.config.update_from_flattened_dict(changes)
        self.path, self.prior, self.has_pictures = path, prior, True
        weights = {"vae": {"step": 10, "fingerprint": "abc"}}
        self.workdir = types.SimpleNamespace(weights=lambda stage: weights)
        self.mesh = parallel.mesh_of(jax.devices()[:1])

    def key(self, section):
        return rng.stream(rng.root(self.config.seed), section)

    def load_ncp(self):
        return self.prior


def files(folder):
    """{name: bytes} of all that an export has left, but its record."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "export.json"
    }


SETTINGS = {
    "png": {},
    "png and latents": {"export.latents": True},
    "npz": {"export.format": "npz", "export.latents": True},
    "base": {"export.sampler": "base", "export.format": "npz"},
}


@pytest.fixture(scope="module", params=SETTINGS)
def whole(request, prior, tmp_path_factory):
    """(settings, the folder of a whole export)."""
    changes = SETTINGS[request.param]
    run = Run(tmp_path_factory.mktemp("whole"), prior, **changes)
    return changes, export_stage.export(run)


def drawn(prior, changes):
    """The same pictures at once."""
    run = Run(None, prior, **changes)
    sampler, draw = export_stage._sampler(run, None)
    key = rng.stream(run.key("sample"), run.config.export.sampler)
    return generation.generate(sampler, key, NUM, BATCH, draw)


def test_the_files_hold_what_the_sampler_draws(whole, prior):
    changes, folder = whole
    out = drawn(prior, changes)
    expected = pictures.to_uint8(out.images)
    assert len(np.unique(expected)) > 10
    latents = np.swapaxes(out.latents[0], 0, 1)
    if changes.get("export.format") == "npz":
        assert files(folder).keys() == {"images.npz"}
        with np.load(folder / "images.npz") as arrays:
            np.testing.assert_array_equal(arrays["arr_0"], expected)
            assert arrays["arr_0"].dtype == np.uint8
            assert ("latents_0" in arrays) == changes.get("export.latents", False)
            if "latents_0" in arrays:
                np.testing.assert_array_equal(arrays["latents_0"], latents)
        return
    names = [f"images/{i:06}.png" for i in range(NUM)]
    more = ["latents_0.npy"] if changes else []
    assert list(files(folder)) == names + more
    for name, picture in zip(names, expected, strict=True):
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(np.asarray(image)[..., None], picture)
    if more:
        np.testing.assert_array_equal(np.load(folder / "latents_0.npy"), latents)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", ["draw", "write", "save", "finish", "pack", "unlink"])
def test_a_killed_export_goes_on_to_the_same_bytes(
    whole, prior, tmp_path, monkeypatch, when
):
    """In the second batch: before it, amid it, before it counts; and at the end."""
    changes, folder = whole
    run, calls = Run(tmp_path, prior, **changes), []
    amid = (export_stage.pictures, "save_png", BATCH + 2)
    if changes.get("export.format") == "npz":  # latents are written after pictures
        num = BATCH * (2 if "export.latents" in changes else 1)
        amid = (export_stage.PartialArray, "write", num + 2)
    with monkeypatch.context() as patch:
        at = {
            "draw": (generation, "draw_batch", 2),
            "write": amid,
            "save": (export_stage.ExportRecord, "add", 2),
            "finish": (export_stage._Writer, "finish", 1),
            "pack": (export_stage.shutil, "copyfileobj", 1),
            "unlink": (export_stage.ExportRecord, "finish", 1),
        }
        target, name, number = at[when]
        inner = getattr(target, name)

        def dying(*args, **keywords):
            calls.append(name)
            if len(calls) == number:
                raise Killed
            return inner(*args, **keywords)

        patch.setattr(target, name, dying)
        with contextlib.suppress(Killed):
            export_stage.export(run)
    if when != "pack" or changes.get("export.format") == "npz":
        assert len(calls) == number
    seen = []
    with monkeypatch.context() as patch:
        draw = generation.draw_batch
        patch.setattr(
            generation, "draw_batch", lambda *args: seen.append(1) or draw(*args)
        )
        again = export_stage.export(run)
    assert files(again) == files(folder)
    assert len(seen) == {"draw": 2, "write": 2, "save": 2}.get(when, 0)


def test_a_second_call_weighs_as_many_proposals_at_a_time(prior, tmp_path, monkeypatch):
    """Whatever memory is free then: their sums are rounded alike."""
    run, fitting = Run(tmp_path, prior, **{"sample.chunk_size": 0}), []
    monkeypatch.setattr(generation, "fitting_chunk", lambda *unused: 4 - len(fitting))
    with monkeypatch.context() as patch:
        patch.setattr(export_stage.ExportRecord, "add", lambda *unused: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_stage.export(run)
    fitting.append("less")
    draws, inner = [], generation.draw_batch
    monkeypatch.setattr(
        generation, "draw_batch", lambda *args: draws.append(args[1]) or inner(*args)
    )
    export_stage.export(run)
    assert {draw.chunk_size for draw in draws} == {4}


def test_an_archive_that_was_half_removed_is_left_alone(prior, tmp_path):
    run = Run(tmp_path, prior, **SETTINGS["npz"])
    folder = export_stage.export(run)
    before = files(folder)
    np.save(folder / "latents_0.npy", np.zeros(3))  # packed, and not yet removed
    record = json.loads((folder / "export.json").read_text())
    del record["done"]
    (folder / "export.json").write_text(json.dumps(record))
    export_stage.export(run)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample.num_proposals": 6}, r"\n  config\.sample\.num_proposals: 5 -> 6\n"),
        ({"export.num_images": 12}, r"config\.export\.num_images: 11 -> 12"),
        ({"export.latents": True}, r"config\.export\.latents: False -> True"),
        ({"seed": 1}, r"config\.seed: 0 -> 1"),
    ],
)
def test_other_settings_are_refused_by_name(prior, tmp_path, changes, message):
    export_stage.export(Run(tmp_path, prior))
    with pytest.raises(InputError, match=message):
        export_stage.export(Run(tmp_path, prior, **changes))
    idle = {"sample.langevin_num_steps": 3, "sample.num_images": 3}
    export_stage.export(Run(tmp_path, prior, **idle))  # of others: complete


def test_other_weights_are_refused(prior, tmp_path, capsys):
    export_stage.export(Run(tmp_path, prior))
    run = Run(tmp_path, prior)
    run.workdir.weights("sample")["vae"]["step"] = 20
    with pytest.raises(InputError, match=r"weights\.vae\.step: 10 -> 20"):
        export_stage.export(run)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "images" / "000003.png").unlink(), "has lost 000003.png: del"),
        (lambda f: os.truncate(f / "images" / "000003.png", 50), "has lost 000003.png"),
        (lambda f: (f / "export.json").unlink(), "holds files and no export.json"),
        (lambda f: (f / "export.json").write_text("{"), "export.json is damaged"),
    ],
)
def test_what_is_lost_is_named(prior, tmp_path, damage, message):
    damage(export_stage.export(Run(tmp_path, prior)))
    with pytest.raises(InputError, match=message):
        export_stage.export(Run(tmp_path, prior))


def test_a_lost_half_is_not_filled_with_zeros(prior, tmp_path, monkeypatch):
    run = Run(tmp_path, prior, **SETTINGS["npz"])
    with monkeypatch.context() as patch:
        patch.setattr(export_stage._Writer, "finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_stage.export(run)
    folder = tmp_path / "export" / "sir"
    record = json.loads((folder / "export.json").read_text()) | {"num_done": 8}
    (folder / "export.json").write_text(json.dumps(record))
    (folder / "arr_0.partial").unlink()
    with pytest.raises(InputError, match=r"has lost arr_0\.partial"):
        export_stage.export(run)


def test_points_are_exported_as_numbers_or_not_at_all(prior, tmp_path):
    run = Run(tmp_path, prior)
    run.has_pictures = False
    with pytest.raises(InputError, match=r"format = 'png' is for pictures.*'npz'"):
        export_stage.export(run)
    assert not (tmp_path / "export").exists()


def test_every_setting_of_a_sampler_is_known():
    """So that a new one cannot change pictures unnoticed."""
    idle = {"num_images", "samplers", "temperatures", "chunk_size", "memory_mib"}
    known = {*export_stage.OF_ALL, *sum(export_stage.OF_SAMPLER.values(), ())}
    assert known | idle == set(config_lib.default().sample)
    assert not known & idle
    for name in export_stage.OF_SAMPLER:
        config = config_lib.default()
        config.export.sampler = name
        validation.validate(config)
    config.export.sampler = "bogus"
    with pytest.raises(InputError, match=r"config\.export\.sampler must be one of"):
        validation.validate(config)


def test_an_archive_is_read_by_other_programs(prior, tmp_path):
    """Stored, not packed, under the names of `np.savez`; the bytes know no time."""
    folder = export_stage.export(Run(tmp_path, prior, **SETTINGS["npz"]))
    with zipfile.ZipFile(folder / "images.npz") as archive:
        assert archive.namelist() == ["arr_0.npy", "latents_0.npy"]
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
    shutil.rmtree(folder)


def test_pictures_of_an_energy_are_known_by_its_weights(tmp_path, monkeypatch):
    """Also where `sample.samplers` does not name it: others were "complete"."""
    run, asked = Run(tmp_path, None, **{"export.sampler": "vaebm"}), []
    found = []
    for version in ("a", "b"):

        def best(folder, version=version):
            asked.append(folder)
            return Weights(9, version)

        monkeypatch.setattr(export_stage, "best_weights", best)
        found.append(export_stage._identity(run))
    assert asked == [tmp_path / "vaebm" / "checkpoints"] * 2
    changed = {name for name in found[0] if found[0][name] != found[1][name]}
    assert changed == {"weights.vaebm.fingerprint"}
