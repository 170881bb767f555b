"""`compiled.py`: where compiled programs are kept, and where not."""

import os
import time
from unittest import mock

import jax
import pytest

from ncp_jax.process import compiled

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's empty cache; JAX's options are as before afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(home):
    folder = compiled.keep()
    assert folder.is_dir()
    assert folder.is_relative_to(home / "ncp_jax")
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_folder_that_jax_was_given_stays(home):
    jax.config.update("jax_compilation_cache_dir", str(home / "own"))
    assert compiled.keep() is None
    assert jax.config.jax_compilation_cache_dir == str(home / "own")
    assert not list(home.iterdir())


def test_jax_may_be_told_to_keep_nothing(home):
    with mock.patch.object(
        type(jax.config), "jax_enable_compilation_cache", False, create=True
    ):
        assert compiled.keep() is None
    assert not list(home.iterdir())


def test_where_nothing_can_be_written_nothing_is_kept(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    assert compiled.keep() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_without_a_home_nothing_is_kept(home, monkeypatch):
    """As in a container whose user is a number without a name."""

    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compiled.Path, "expanduser", expanduser)
    assert compiled.keep() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_another_processor_has_another_folder(home):
    here = compiled.keep()
    jax.config.update("jax_compilation_cache_dir", None)
    with mock.patch.object(compiled.Path, "read_text", lambda path: "flags : avx9\n"):
        assert compiled.keep() != here


def test_what_is_old_is_dropped(home):
    folder = compiled.keep()
    old, new = folder / "old-cache", folder / "new-cache"
    for path in (old, new):
        path.write_text("")
    month_ago = time.time() - compiled.MAX_AGE - 60
    os.utime(old, (month_ago, month_ago))
    jax.config.update("jax_compilation_cache_dir", None)
    compiled.keep()
    assert (old.exists(), new.exists()) == (False, True)
