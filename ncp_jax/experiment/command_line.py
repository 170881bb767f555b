"""Trains, samples and measures a noise contrastive prior: flags in, one run out.

  python main.py --config=configs/digits.py --workdir=runs/digits    in a checkout
  python -m ncp_jax --config=digits --workdir=runs/digits            anywhere

--config=FILE    a file with settings, or the name alone of one of those below;
                 FILE:smoke or NAME:smoke is a version that ends in seconds
--workdir=DIR    folder of the run; the same command again continues what was stopped
--stage=STAGE    what to run; "all", the default, skips what is complete
--config.SECTION.FIELD=VALUE
                 changes a setting, e.g. --config.vae.num_steps=2000 or
                 --config.vae.model.hidden_dims="(300, 300)"

Exit code 0: done. 2: bad input, which the message names. 130 or 143: stopped by
Ctrl-C or SIGTERM, to be continued by the same command.
"""

import contextlib
import difflib
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from absl import flags, logging
from ml_collections import config_flags

from ncp_jax import parallel
from ncp_jax.data import datasets
from ncp_jax.errors import InputError, explained, local_path
from ncp_jax.experiment import stages, standard_streams
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import config_files
from ncp_jax.training.loop import Preempted

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


def run() -> NoReturn:
    """The program: runs on the command line's arguments and ends the process."""
    standard_streams.outlive_readers()
    _quiet_orbax()
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
        with _sigterm_raises():
            options = _parse(argv)
            parallel.join_processes()
            workdir = Path(local_path("--workdir", options.workdir))
            stages.run(options.config, workdir, options.stage)
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


def _parse(argv: list[str]) -> flags.FlagValues:
    """Returns the flags config, workdir and stage.

    Raises:
      InputError or flags.Error: bad input; the message names what is allowed.
    """
    try:
        argv = _with_paths(argv)
        plain = [argument for argument in argv if not _OVERRIDE.match(argument)]
        options, _ = _flags(plain)
        if options.config is None:
            raise InputError("--config=FILE is missing.")
        fields = [name for name, _ in config_lib.flatten(options.config.to_dict())]
    except flags.UnrecognizedFlagError:
        raise
    except Exception as error:  # of any kind: the file is a program
        reason = (str(error).strip().splitlines() or [""])[-1].strip()
        if not isinstance(error, InputError):
            reason = f"cannot load --config: {type(error).__name__}: {reason}"
        raise InputError(f"{reason}\n{_choices()}") from error
    if not options.workdir:
        raise InputError("--workdir=DIR is missing: the folder of the run")
    for argument in argv:
        if (override := _OVERRIDE.match(argument)) and override[1] not in fields:
            raise InputError(_unknown_field(override[1], fields))
    options, rest = _flags(argv)
    if rest:
        raise InputError(f"unexpected arguments: {' '.join(rest)}")
    return options


def _with_paths(argv: list[str]) -> list[str]:
    """The same arguments, with the path in the place of a config's name.

    Raises:
      InputError: there is no such config.
    """
    found = list(argv)
    for i, argument in enumerate(argv):
        name, is_joined, value = argument.partition("=")
        if name.lstrip("-") != "config" or not name.startswith("-"):
            continue
        if is_joined:
            found[i] = f"{name}={_with_path(value)}"
        elif i + 1 < len(argv):  # "--config NAME", of two words
            found[i + 1] = _with_path(argv[i + 1])
    return found


def _with_path(config: str) -> str:
    name, colon, variant = config.partition(":")
    return f"{config_files.path_of(name)}{colon}{variant}" if name else config


def _flags(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    values = flags.FlagValues()  # not absl's global ones: `main` may be called twice
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("stage", "all", "what to run", flag_values=values)
    return values, values(argv)[1:]


def _choices() -> str:
    return (
        f"configs: {', '.join(config_files.names())}; each also with :smoke\n"
        f"stages: {', '.join(stages.STAGES)}\n"
        f"data sets (--config.data.name): {', '.join(datasets.NAMES)}, tfds:NAME"
    )


def _unknown_field(name: str, fields: list[str]) -> str:
    nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    message = f"there is no setting --config.{name}."
    hint = f" Did you mean --config.{nearest[0]}?" if nearest else ""
    inside: list[str] = []
    while name and not inside:  # the fields of the innermost section that exists
        inside = [field for field in fields if field.startswith(f"{name}.")]
        name = name.rpartition(".")[0]
    listed = ", ".join(f"config.{field}" for field in inside or fields)
    return f"{message}{hint}\nSettings: {listed}"


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM outside of training, where it would save first, ends the run tidily."""

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        raise Preempted(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
