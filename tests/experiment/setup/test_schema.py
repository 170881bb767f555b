"""`schema.py`, `overrides.py`, `budget.py`: the doors of the settings.

Every case goes the way of the program, `command_line.main`, and must end with exit code
2, a sentence with the field, and no folder.
"""

import re
import signal

import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import command_line, stages
from ncp_jax.experiment.setup import (
    budget,
    config_files,
    overrides,
    schema,
    validation,
)
from ncp_jax.experiment.setup import config as config_lib
from tests import tiny

SMOKE = "--config=digits:smoke"


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs main, expects exit code 2 and nothing made, and returns the message."""

    def run(*arguments, config=SMOKE):
        folder = tmp_path / "run"
        argv = ["main.py", config, *arguments, f"--workdir={folder}"]
        assert command_line.main(argv) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and "Traceback" not in message
        assert not folder.exists()
        return message

    return run


@pytest.fixture
def written(tmp_path):
    """Writes a config file whose get_config has this body, and returns the flag."""

    def write(body):
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / "mine.py").write_text(
            "import numpy as np\n"
            "from ml_collections import ConfigDict, config_dict\n"
            "from ncp_jax.experiment.setup import config as config_lib, presets\n"
            "def get_config(variant=''):\n"
            "    c = presets.variant(config_lib.default(), 'smoke')\n"
            f"{lines}    return c\n"
        )
        return f"--config={tmp_path / 'mine.py'}"

    return write


# --- what a file returns


FILES = [
    ("c = ConfigDict()", "got an empty one"),
    ("c = ConfigDict({'lr': 1})", "no setting config.lr"),
    ("c = None", "a config is a ConfigDict: .* got None"),
    ("c = 3", "a config is a ConfigDict: .* got 3"),
    ("with c.unlocked(): del c.vae.num_steps", "config.vae.num_steps is missing"),
    ("with c.unlocked(): del c.ncp", "the section config.ncp is missing"),
    ("with c.unlocked(): del c.vae.model", "the section config.vae.model is missing"),
    ("with c.unlocked(): del c.vae.model.name", "config.vae.model.name is missing"),
    ("c.unlock(); c.vae.numsteps = 3", r"config.vae.numsteps. Did you .*num_steps\?"),
    ("c.unlock(); c.extra = ConfigDict({'a': 1})", "no setting config.extra"),
    ("c.vae = ConfigDict({'num_steps': 3})", r"config.vae.\w+ is missing"),
    ("c.vae = 3", "config.vae must be a section, .*num_steps.*, got 3"),
    ("c.vae.num_steps = ConfigDict()", "config.vae.num_steps must be an integer"),
    ("c.seed = None", "config.seed must be an integer, got None"),
    ("c.vae.num_steps = None", "config.vae.num_steps must be an integer, got None"),
    ("c.vae.learning_rate = None", "config.vae.learning_rate must be a number, got N"),
    ("c.vae.model.hidden_dims = None", "hidden_dims must be a tuple of integers, got"),
    ("c.data.name = None", "config.data.name must be a string, got None"),
    ("c.report.workdirs = None", "config.report.workdirs must be a string, got None"),
    ("c.vae.num_steps = True", "config.vae.num_steps must be an integer, got True"),
    (
        "c = c.to_dict(); c['vae']['learning_rate'] = True",
        "learning_rate must be a number, got True",
    ),
    ("c.data.download = 1", "config.data.download must be true or false, got 1"),
    ("c.vae.num_steps = '20'", "config.vae.num_steps must be an integer, got '20'"),
    ("c.vae.num_steps = 20.5", "config.vae.num_steps must be an integer, got 20.5"),
    ("c.vae.num_steps = float('inf')", "must be an integer, got inf"),
    ("c.vae.num_steps = len", "must be an integer, got <built-in function len>"),
    ("c.vae.num_steps = np.zeros(3)", "must be an integer, got array.*type ndarray"),
    ("c.vae.learning_rate = lambda step: 1", "must be a number, got <function"),
    ("c.vae.model.hidden_dims = {3, 4}", "must be a tuple of integers, got {3, 4}"),
    ("c.vae.model.hidden_dims = np.ones(2)", "must be a tuple of integers, got array"),
    ("c.vae.model.hidden_dims = (1.5,)", r"must hold integers, got \(1.5,\)"),
    ("c.vae.model.hidden_dims = (3, True)", r"must hold integers, got \(3, True\)"),
    ("c.vae.model.hidden_dims = ((3,),)", "must hold integers"),
    ("c.vae.model.hidden_dims = 'ab'", "must be a tuple of integers, got 'ab'"),
    ("c.sample.samplers = (1,)", r"config.sample.samplers must hold strings, got \(1,"),
    ("c.data.name = 3", "config.data.name must be a string, got 3"),
    ("c.vae.learning_rate = 10**400", "OverflowError: int too large to convert"),
    (
        "c = c.to_dict(); c['vae']['learning_rate'] = 10**400",
        "config.vae.learning_rate must be a number, got 1000",
    ),
    ("c.vae.num_steps = 10**5000", "config.vae.num_steps must be below 2"),
    ("c.vae.model.name = 3", "config.vae.model.name must be a string, got 3"),
    ("c.vae.model.name = 'vae'", r"config.vae.model.name must be one of \('mlp',\)"),
    (
        "class Odd:\n  def __repr__(self): raise ValueError\nc.seed = Odd()",
        "config.seed must be an integer, got a Odd",
    ),
    (
        "c.unlock(); c.vae.num_steps = config_dict.required_placeholder(int)",
        "cannot be read",
    ),
]


@pytest.mark.parametrize(("body", "message"), FILES)
def test_what_is_no_config_is_refused_with_field_given_and_allowed(
    written, refused, body, message
):
    said = refused(config=written(body))
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise SystemExit(3)", "line 6 raises SystemExit: 3"),
        ("raise KeyboardInterrupt", "line 6 raises KeyboardInterrupt: no reason given"),
        ("import sys; sys.exit()", "raises SystemExit: no reason given"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "line 7 raises Odd: x"),
        ("def f(): return f()\nf()", "raises RecursionError"),
        ("c.vae.numsteps = 3", "raises AttributeError: .*numsteps"),
        ("int('x')", "line 6 raises ValueError: invalid literal for int"),
    ],
)
def test_whatever_a_file_raises_is_bad_input(written, refused, body, message):
    said = refused(config=written(body))
    assert re.search(rf"cannot load --config: .*mine.py, {message}", said) or (
        re.search(message, said)
    )


def test_ctrl_c_while_a_file_is_read_ends_the_run(written, capsys):
    body = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    before = signal.getsignal(signal.SIGINT)
    assert command_line.main(["main.py", written(body), "--workdir=x"]) == 130
    assert "SIGINT" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"get_config = 3", "has no function get_config"),
        (b"def get_config(a, b): pass", "TypeError"),
        (b"\x00", "raises (SyntaxError|ValueError)"),
        (b"\xff", "raises SyntaxError"),
        (b"1 / 0", "line 1 raises ZeroDivisionError"),
    ],
)
def test_a_file_without_a_get_config_is_bad_input(tmp_path, refused, content, message):
    (tmp_path / "mine.py").write_bytes(content)
    assert re.search(message, refused(config=f"--config={tmp_path / 'mine.py'}"))


def test_a_config_name_too_long_for_a_file_is_bad_input(refused):
    assert "no file and no config" in refused(config=f"--config={'x' * 5_000}")


ACCEPTED = [
    ("c.vae.model.hidden_dims = [3, 4]", "vae.model.hidden_dims", (3, 4)),
    ("c.vae.model.hidden_dims = (np.int64(3), 4.0)", "vae.model.hidden_dims", (3, 4)),
    ("c.sample.samplers = ['sir']", "sample.samplers", ("sir",)),
    ("c.vae.learning_rate = 1", "vae.learning_rate", 1.0),
    ("c.vae.learning_rate = np.float64(0.5)", "vae.learning_rate", 0.5),
    ("c.vae.learning_rate = np.int32(2)", "vae.learning_rate", 2.0),
    ("c.vae.num_steps = np.int64(7)", "vae.num_steps", 7),
    ("c.vae.num_steps = 1e3", "vae.num_steps", 1_000),
    ("c.vae.num_steps = np.float32(8)", "vae.num_steps", 8),
    ("c.data.download = np.bool_(True)", "data.download", True),
    ("c.data.name = np.str_('digits')", "data.name", "digits"),
    ("import pathlib; c.data.dir = pathlib.Path('x')", "data.dir", "x"),
    ("c.vae.model.hidden_dims = 3", "vae.model.hidden_dims", (3,)),
    ("c.sample.samplers = 'sir'", "sample.samplers", ("sir",)),
    (
        "c.ncp.num_steps = c.vae.get_ref('num_steps'); c.vae.num_steps = 9",
        "ncp.num_steps",
        9,
    ),
    ("c = c.to_dict()", "vae.num_steps", 60),
]


@pytest.mark.parametrize(("body", "name", "expected"), ACCEPTED)
def test_what_means_a_setting_becomes_of_its_type(written, body, name, expected):
    path = written(body).removeprefix("--config=")
    found = schema.fields(config_files.load(path))[name]
    assert found == expected and type(found) is type(expected)
    if isinstance(found, tuple):
        assert [type(part) for part in found] == [type(part) for part in expected]


@pytest.mark.parametrize("value", [3, "3", "(3,)", "[3]", " 3 "])
def test_one_value_is_taken_for_a_tuple_of_one_and_that_is_told(
    monkeypatch, capsys, value
):
    calls = []
    monkeypatch.setattr(stages, "run", lambda *arguments: calls.append(arguments))
    argument = f"--config.vae.model.hidden_dims={value}"
    assert command_line.main(["main.py", SMOKE, argument, "--workdir=x"]) == 0
    assert calls[0][0].vae.model.hidden_dims == (3,)
    told = "config.vae.model.hidden_dims = 3 is taken for (3,)"
    assert (told in capsys.readouterr().out) == (str(value)[0] not in "([")


def test_what_has_passed_passes_again_and_is_the_same():
    for names in (("mlp", "mlp"), ("nvae", "residual"), ("ladder", "mlp")):
        config = config_lib.default(*names)
        once = schema.checked(config)
        assert once.to_dict() == schema.checked(once).to_dict() == config.to_dict()
        assert once.is_locked and once is not config
        assert config_lib.as_json(once) == config_lib.as_json(config)


def test_every_tuple_says_what_it_holds():
    """So that a new setting whose default is empty is not forgotten."""
    for vae in config_lib.VAES:
        for name, value in schema.fields(config_lib.default(vae)).items():
            if isinstance(value, tuple):
                assert schema.element_of(name, value) in (int, float, str)


# --- overrides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.vae.num_steps=+5"], "config.vae.num_steps takes an integer in"),
        (["--config.vae.num_steps=1_0"], "takes an integer in the digits 0 to 9"),
        (["--config.vae.num_steps=\u0665"], "takes an integer in the digits 0 to 9"),
        (["--config.vae.num_steps= 5"], "got ' 5'"),
        (["--config.vae.num_steps=0x10"], "got '0x10'"),
        (["--config.vae.num_steps=20.5"], "got '20.5'"),
        (["--config.vae.num_steps=1e400"], "got '1e400'"),
        (["--config.vae.num_steps=" + "9" * 5_000], "999 ..."),
        (["--config.vae.num_steps=True"], "got 'True'"),
        (["--config.vae.num_steps=None"], "got 'None'"),
        (["--config.vae.num_steps="], "got ''"),
        (["-config.vae.num_steps=x"], "config.vae.num_steps takes an integer"),
        (["--config.vae.learning_rate=+1"], "config.vae.learning_rate takes a number"),
        (["--config.vae.learning_rate=1_0.0"], "takes a number in the digits 0 to 9"),
        (["--config.vae.learning_rate=nan"], "must be finite and positive, got nan"),
        (["--config.vae.learning_rate=1e400"], "must be finite and positive, got inf"),
        (["--config.data.download=yes"], "takes true or false, got 'yes'"),
        (["--noconfig.data.download=true"], "'no' is for settings that are true or"),
        (["--noconfig.seed"], "'no' is for settings that are true or false"),
        (["--config.vae.model.hidden_dims=(1.5,)"], "an integer in the digits .*'1.5'"),
        (["--config.vae.model.hidden_dims=1.5"], "an integer in the digits .*'1.5'"),
        (["--config.vae.model.hidden_dims=(1_0,)"], "got '1_0'"),
        (["--config.vae.model.hidden_dims="], "got ''"),
        (["--config.vae.model.hidden_dims=(3,4"], r"got '\(3'"),
        (["--config.vae.model.hidden_dims=((3,),)"], r"got '\(3'"),
        (["--config.vae.model.hidden_dims={3}"], r"got '\{3\}'"),
        (["--config.vae.model.hidden_dims=()"], "must hold positive integers"),
        (["--config.ncp.discriminator.hidden_dims=()"], "must hold positive integers"),
        (["--config.sample.samplers=(sir, gibbs)"], "must hold some of"),
        (["--config.seed=1", "--config.seed=2"], "given twice, as '1' and as '2'"),
        (["--config.seed=1", "-config.seed", "1"], "--config.seed is given twice"),
        (["--config.=3"], "no setting --config.."),
        (["--config.vae.model=3"], "no setting --config.vae.model."),
        (["---config.seed=1"], "Unknown command line flag"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(refused, arguments, message):
    said = refused(*arguments)
    assert re.search(message, said), said


def test_an_override_needs_a_value():
    with pytest.raises(InputError, match=r"--config\.seed has no value"):
        overrides.split(["--config.seed"], {"seed": 0})


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        (["--config.vae.num_steps=1e6"], "vae.num_steps", 1_000_000),
        (["--config.vae.num_steps=20.0"], "vae.num_steps", 20),
        (["--config.vae.num_steps", "7"], "vae.num_steps", 7),
        (["-config.seed=0007"], "seed", 7),
        (["--config.vae.learning_rate=.5"], "vae.learning_rate", 0.5),
        (["--config.vae.learning_rate=1E-3"], "vae.learning_rate", 1e-3),
        (["--config.data.download"], "data.download", True),
        (["--noconfig.data.on_device"], "data.on_device", False),
        (["--config.data.on_device=False"], "data.on_device", False),
        (["--config.data.name=a=b"], "data.name", "a=b"),
        (["--config.data.dir="], "data.dir", ""),
        (["--config.sample.samplers=sir,mala"], "sample.samplers", ("sir", "mala")),
        (
            ["--config.sample.samplers=('sir', \"mala\")"],
            "sample.samplers",
            ("sir", "mala"),
        ),
        (["--config.sample.groups=()"], "sample.groups", ()),
        (["--config.sample.temperatures=[0.5,1]"], "sample.temperatures", (0.5, 1.0)),
        (["--config.data.shape=(8, 8, 1)"], "data.shape", (8, 8, 1)),
    ],
)
def test_overrides_are_read_by_the_type_of_their_setting(words, field, expected):
    config = config_lib.default()
    others, changes = overrides.split(
        ["main.py", *words, "rest"], schema.fields(config)
    )
    assert others == ["main.py", "rest"]
    found = schema.fields(overrides.apply(config, changes))[field]
    assert found == expected and type(found) is type(expected)
    assert config.to_dict() == config_lib.default().to_dict()


# --- sizes beyond reason


SIZES = [
    ("vae.model.latent_dim", "1000000000", "GB, and there are"),
    ("vae.model.hidden_dims", "(1000000,1000000)", "training the .* parameters of"),
    ("ncp.discriminator.hidden_dims", "(1000000,1000000)", "parameters of config.ncp"),
    ("ncp.num_negatives", "1000000000", "prior draws of one group"),
    ("vae.num_steps", "2147483648", r"below 2\*\*31 = 2,147,483,648, as steps"),
    ("vae.num_steps", "10000000000000", r"below 2\*\*31"),
    ("vae.num_steps", "1e13", r"below 2\*\*31"),
    ("vae.warmup_steps", "1099511627776", r"below 2\*\*31"),
    ("seed", "4294967296", r"below 2\*\*32 = 4,294,967,296, as seeds"),
    ("data.shape", "(100000,100000,3)", "one example would take 120 GB"),
    ("data.shape", "(2000000000,2000000000,2000000000)", "bytes, and there are"),
    ("vae.batch_size", "2000000000", "one batch of config.vae"),
    ("sample.num_images", "2000000000", "samples of config.sample"),
    ("sample.num_proposals", "2000000000", "weights of one batch of proposals"),
    ("sample.langevin_num_steps", "2000000000", "course of one batch"),
    ("vae.model.hidden_dims", str((1,) * 1_001), "network of 1,001 layers; at most 1,"),
]


@pytest.mark.parametrize(("name", "value", "message"), SIZES)
def test_sizes_beyond_reason_are_refused_at_once(
    refused, monkeypatch, name, value, message
):
    monkeypatch.setattr(budget, "memory_bytes", lambda: 10**11)
    said = refused(f"--config.{name}={value}")
    assert re.search(rf"config\.{re.escape(name)}", said) and re.search(message, said)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("groups_per_scale", (10**9,)),
        ("num_decoder_cells", 10**6),
        ("num_flows", 10**9),
        ("num_preprocess_cells", 10**9),
        ("num_preprocess_blocks", 40),
        ("latent_channels", 10**9),
        ("num_mixtures", 2 * 10**9),
    ],
)
def test_sizes_beyond_reason_of_an_nvae_are_refused_at_once(name, value, tmp_path):
    config = config_files.load("mnist_nvae", "smoke")
    if name == "num_mixtures":
        config.data.shape = (32, 32, 3)
        config.vae.model.update(likelihood="logistic_mixture", padding=0)
    config.vae.model[name] = value
    with pytest.raises(InputError, match=f"config.vae.model.{name} = "):
        stages.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", config_files.names())
def test_no_experiment_of_ours_asks_for_more_than_a_gpu_has(name, monkeypatch):
    """And none is near the limits of arithmetic; nothing is built."""
    monkeypatch.setattr(budget, "memory_bytes", lambda: 8 * 10**9)
    config = config_files.load(name)
    validation.validate(config)
    budget.check(config)


@pytest.mark.parametrize("name", ["num_chains", "latent_dims"])
def test_chains_that_only_the_benchmark_draws_are_counted(name, monkeypatch):
    monkeypatch.setattr(budget, "memory_bytes", lambda: 10**10)
    config = tiny.config()
    config.benchmark[name] = (1, 2 * 10**9)
    with pytest.raises(InputError, match=rf"config\.benchmark\.{name} = .* too large"):
        budget.check(config)
    config.benchmark.parts = ("samplers",)
    budget.check(config)


def test_a_need_is_counted_to_the_byte(monkeypatch):
    config = tiny.config()
    config.vae.ema_decay = 0.0
    leaf = budget.abstract(10, 100)
    needed = 4 * 4 * 1_000 * 3  # weights, gradients, two moments; of three groups
    monkeypatch.setattr(budget, "memory_bytes", lambda: needed)
    budget.check_parameters(config, "vae", [leaf], 3)
    monkeypatch.setattr(budget, "memory_bytes", lambda: needed - 1)
    with pytest.raises(
        InputError, match=r"training the 3,000 parameters .* 4\.8e\+04 bytes"
    ):
        budget.check_parameters(config, "vae", [leaf], 3)


def test_there_is_some_memory():
    assert 10**8 < budget.memory_bytes() < 10**15


def test_settings_of_priors_pass_the_door():
    config = config_lib.default()
    changes = {"ncp": {"hidden_dims": (3, 4), "training": {"num_steps": 5}}}
    with config.unlocked():
        config.compare.priors = changes
    checked = schema.checked(schema.checked(config))
    assert checked.compare.priors.to_dict() == changes and checked.is_locked
