"""`config_files.py`: experiments by name."""

import pytest

from configs import mnist_mlp
from ncp_jax.errors import InputError
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import config_files


def test_names_are_those_of_the_files():
    assert config_files.names() == sorted(config_files.names())
    files = {path.name for path in config_files.FOLDER.glob("[!_]*.py")}
    assert {config_files.path_of(name).name for name in config_files.names()} == files
    assert "digits.py" in files


@pytest.mark.parametrize("variant", ["", "smoke", "deep"])
def test_a_name_loads_what_its_file_returns(variant):
    loaded, expected = (
        config_lib.as_json(get("mnist_mlp", variant))
        for get in (config_files.load, lambda _, v: mnist_mlp.get_config(v))
    )
    assert loaded == expected
    assert (variant == "smoke") == (loaded["vae"]["num_steps"] == 60)


@pytest.mark.parametrize("name", ["fashion_mlp", "static_mlp"])
def test_other_data_change_the_data_alone(name):
    ours, mnist = (config_files.load(n).to_dict() for n in (name, "mnist_mlp"))
    (line,) = config_lib.differences(mnist, ours, tuple(mnist))
    assert line.startswith("config.data.name: mnist -> ")


@pytest.mark.parametrize("name", ["mnits_mlp", "configs/mnits_mlp.py"])
def test_an_unknown_name_is_refused_with_the_nearest(name):
    with pytest.raises(InputError, match=f"'{name}'.* Did you mean 'mnist_mlp'"):
        config_files.load(name)


def test_a_file_that_is_no_program_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"notes\.txt is no Python file"):
        config_files.load(str(tmp_path / "notes.txt"))
