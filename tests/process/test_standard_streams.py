"""Output that nobody reads: the exit code is that of the work, without a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STARTS = """
import os, sys
from ncp_jax.process import standard_streams
standard_streams.outlive_readers()
"""
WORKS = f"""{STARTS}
for _ in range(3):
    print("x" * 100_000)
    print("y", file=sys.stderr, flush=True)
with open(os.devnull) as file:  # no file of the run gets a standard descriptor
    assert file.fileno() > 2
print("done", file=open(sys.argv[1], "w"), flush=True)
sys.stdout.flush()
sys.exit(7)
"""


def shell(code, redirection, *arguments):
    command = f'"$0" -c "$1" {" ".join(map(str, arguments))} {redirection}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "redirection",
    [
        ">&-",
        "2>&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        '| true; exit "${PIPESTATUS[0]}"',
        '2> >(true) | head -c 5; exit "${PIPESTATUS[0]}"',
        "2>/dev/full >/dev/null",
    ],
)
def test_work_goes_on_to_its_own_exit_code(tmp_path, redirection):
    ended = shell(WORKS, redirection, tmp_path / "done")
    assert ended.returncode == 7
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr
    assert (tmp_path / "done").read_text() == "done\n"


def test_a_full_disk_behind_the_output_is_an_error_once():
    code = f"""{STARTS}
try:
    print("x" * 100_000, flush=True)
except OSError as error:
    print(error.errno, file=sys.stderr)
print("y", flush=True)
"""
    ended = shell(code, ">/dev/full")
    assert (ended.returncode, ended.stderr) == (0, "28\n")


def test_names_that_are_no_utf_8_are_printed_by_their_bytes():
    name = os.fsdecode(b"run\xff")
    ended = shell(f"{STARTS}print({name!a})", "")
    assert (ended.returncode, ended.stdout) == (0, "run\\udcff\n")


@pytest.mark.parametrize(
    ("arguments", "redirection", "code"),
    [("--help", ">&-", 0), ("--config=digitz --workdir=x", ">/dev/full 2>&-", 2)],
)
def test_the_program_keeps_its_exit_codes(arguments, redirection, code):
    start = "import sys; from ncp_jax.experiment import command_line as c; c.run()"
    ended = shell(start, redirection, arguments)
    assert ended.returncode == code and "Traceback" not in ended.stderr
