"""Runs on digits that cost seconds, and files of them that are damaged."""

import json

from ncp_jax.experiment import command_line
from ncp_jax.experiment.setup import config_files
from ncp_jax.records import weights_file
from tests import tiny

SMOKE = "--config=digits:smoke"


def config(**vae):
    """What `main` makes of its flags, with other settings of stage 1."""
    settings = config_files.load("digits", "smoke")
    settings.update_from_flattened_dict(tiny.SETTINGS)
    settings.vae.update(vae)
    return settings


def main(*arguments):
    """The exit code of `main.py`; arguments go before the small settings."""
    flags = {n: v for n, v in tiny.SETTINGS.items() if n not in " ".join(arguments)}
    return command_line.main(["main.py", SMOKE, *tiny.flags(flags), *arguments])


def changed_byte(path):
    content = bytearray(path.read_bytes())
    content[1_000] ^= 1
    path.write_bytes(content)


def edit(path, change):
    """Changes the JSON values of a file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewritten(change):
    """Changes the arrays, and has the record say so."""

    def damage(path):
        record, arrays = weights_file.read(path)
        change(arrays)
        known = {name: getattr(record, name) for name in record.__struct_fields__}
        for name in ("sha256", "num_bytes", "num_parameters"):
            del known[name]
        weights_file.write(path, arrays, known)

    return damage
