"""Trains, samples and measures a noise contrastive prior: flags in, one run out.

  python main.py --config=configs/digits.py --workdir=runs/digits    in a checkout
  python -m ncp_jax --config=digits --workdir=runs/digits            anywhere

--config=FILE    a file with settings, or the name alone of one of those below;
                 FILE:smoke or NAME:smoke is a version that ends in seconds
--workdir=DIR    folder of the run; the same command again continues what was stopped
--stage=STAGE    what to run; "all", the default, skips what is complete
--config.SECTION.FIELD=VALUE
                 changes a setting, e.g. --config.vae.num_steps=2000 or
                 --config.vae.model.hidden_dims="(300, 300)"; one value for such
                 a list is a list of one

Exit code 0: done. 2: bad input, which the message names. 130 or 143: stopped by
Ctrl-C or SIGTERM, to be continued by the same command.
"""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict

from ncp_jax import parallel
from ncp_jax.data import datasets
from ncp_jax.errors import InputError, explained, local_path
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import config_files, overrides, schema
from ncp_jax.process import compiled, standard_streams
from ncp_jax.training.loop import Preempted, preempted_by

ORIGINS = ("vae.checkpoint", "vae.init_from", "vae.pretrained", "vae.resume")  # files


def run() -> NoReturn:
    """The program: runs on the command line's arguments and ends the process."""
    standard_streams.outlive_readers()
    _quiet_orbax()
    compiled.keep()
    try:
        code = main(sys.argv)
        sys.stdout.flush()
    except OSError as error:  # what it says goes to a full disk
        print(f"error: standard output: {error}", file=sys.stderr)
        code = 2
    sys.stderr.flush()
    if code > 128:  # stopped: XLA's threads may still compute, and abort a tidy exit
        os._exit(code)
    sys.exit(code)


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, 2 for bad input, 128 + signal when stopped."""
    if {"--help", "-h", "--helpshort", "--helpfull"} & set(argv):
        print(f"{__doc__}\n{_choices()}")
        return 0
    try:
        with preempted_by(signal.SIGTERM):
            options = _parse(argv)
            parallel.join_processes()
            workdir = Path(local_path("--workdir", options.workdir))
            stages.run(options.config, workdir, options.stage, options.command)
    except (InputError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that went away
        print(f"error: {explained(error)}", file=sys.stderr)
        print("Saved steps are kept: mend this and run the", end=" ", file=sys.stderr)
        print("same command again.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _report(Preempted(signal.SIGINT))
    except Preempted as stop:
        return _report(stop)
    return 0


class Options(NamedTuple):
    """What the flags say."""

    config: ConfigDict
    workdir: str
    stage: str
    command: str  # again, without what is of one machine


def _parse(argv: list[str]) -> Options:
    """Returns what the flags say, the config with its overrides.

    Raises:
      InputError or flags.Error: bad input; the message names what is allowed.
    """
    try:
        name, variant = _name_of_config(argv)
        config_files.path_of(name)
    except InputError as error:
        raise InputError(f"{error}\n{_choices()}") from error
    config = config_files.load(name, variant)
    others, changes = overrides.split(argv, schema.fields(config))
    values = flags.FlagValues()  # not absl's global ones: `main` may be called twice
    for flag, default in (("config", None), ("workdir", None), ("stage", "all")):
        flags.DEFINE_string(flag, default, "", flag_values=values)
    rest = values(others)[1:]
    if not values.workdir:
        raise InputError("--workdir=DIR is missing: the folder of the run")
    if rest:
        raise InputError(f"unexpected arguments: {' '.join(rest)}")
    config = overrides.apply(config, changes)
    command = _said(name, variant, values.stage, changes)
    return Options(config, values.workdir, values.stage, command)


def _said(
    name: str, variant: str, stage: str, changes: list[overrides.Override]
) -> str:
    """The command that does the same anywhere, but for the folders of this machine."""
    name = Path(name).name if Path(name).is_absolute() else name
    left_out = {*config_lib.WITHOUT_EFFECT, "export.file"} - set(ORIGINS)
    return shlex.join(
        [
            *("python", "-m", "ncp_jax"),
            f"--config={name}:{variant}" if variant else f"--config={name}",
            *("--workdir=RUN", f"--stage={stage}"),
            *(_anywhere(o) for o in changes if o.field not in left_out),
        ]
    )


def _anywhere(change: overrides.Override) -> str:
    """An override as it was given; of a file of this machine, its name alone."""
    flag, _, value = change.argument.partition("=")
    if change.field in ORIGINS and Path(value).is_absolute():
        return f"{flag}={Path(value).name}"
    return change.argument


def _name_of_config(argv: list[str]) -> tuple[str, str]:
    """The name or path that --config gives, of one word or of two, and the variant.

    Raises:
      InputError: there is none, or more than one.
    """
    found = []
    for i, argument in enumerate(argv):
        flag, is_joined, value = argument.partition("=")
        if flag not in ("-config", "--config"):
            continue
        found.append(value if is_joined else "".join(argv[i + 1 : i + 2]))
    if not any(found):
        raise InputError("--config=FILE is missing.")
    if len(found) > 1:
        raise InputError(f"--config is given {len(found)} times: give it once")
    name, _, variant = found[0].partition(":")
    return name, variant


def _choices() -> str:
    return (
        f"configs: {', '.join(config_files.names())}; each also with :smoke\n"
        f"stages: {', '.join(stages.STAGES)}\n"
        f"data sets (--config.data.name): {', '.join(datasets.NAMES)}, tfds:NAME"
    )


def _report(stop: Preempted) -> int:
    print(stop, file=sys.stderr)
    return stop.exit_code


def _quiet_orbax() -> None:
    """Orbax logs tracebacks of what it raises, too, and tensorstore of what follows."""
    logging.set_verbosity(logging.FATAL)
    shown = sys.unraisablehook

    def show(event: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(event.exc_value):
            shown(event)

    sys.unraisablehook = show
