"""`run_log.py`: metrics.jsonl, TensorBoard files and progress."""

import contextlib
import json
import os
import struct
import termios

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ncp_jax.training import run_log
from ncp_jax.training.run_log import RunLog, read_metrics


def write_steps(path, steps, stage="vae", first_step=0, num_steps=100):
    with contextlib.closing(RunLog(path, stage, first_step, num_steps)) as log:
        for step in steps:
            log.write(step, "train", {"loss": np.float32(step), "kl": np.arange(2.0)})


def steps_in(path, stage="vae"):
    records = read_metrics(path / "metrics.jsonl")
    return [record["step"] for record in records if record["stage"] == stage]


def events_of(folder):
    """All events of a folder's TensorBoard files, in the order of writing."""
    events = []
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for file in files:
        content = file.read_bytes()
        while content:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


def visible(events):
    """(tag, step, value) as TensorBoard shows them: a START hides what it redoes."""
    shown = []
    for event in events:
        if event.session_log.status == SessionLog.START:
            shown = [point for point in shown if point[1] < event.step]
        for value in event.summary.value:
            shown.append((value.tag, event.step, value.simple_value))
    return shown


def test_records_hold_scalars_and_one_value_per_group(tmp_path):
    write_steps(tmp_path, [10])
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "stage": "vae",
        "split": "train",
        "step": 10,
        "loss": 10.0,
        "kl": [0.0, 1.0],
    }


def test_resuming_drops_the_later_records_of_its_own_stage_only(tmp_path):
    write_steps(tmp_path, [10, 20, 30])
    write_steps(tmp_path, [10, 20], stage="ncp")
    write_steps(tmp_path, [30, 40], first_step=20)
    assert steps_in(tmp_path, "vae") == [10, 20, 30, 40]
    assert steps_in(tmp_path, "ncp") == [10, 20]


@pytest.mark.parametrize("torn", ['{"stage": "vae", "st', "\x00\x00", '{"stage"\n'])
def test_a_torn_last_line_is_left_out_and_mended(tmp_path, torn):
    write_steps(tmp_path, [10, 20])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert steps_in(tmp_path) == [10, 20]
    write_steps(tmp_path, [30], first_step=20)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]


def test_bytes_that_are_no_text_are_left_out(tmp_path):
    write_steps(tmp_path, [10])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe{")
    assert steps_in(tmp_path) == [10]


def test_there_may_be_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_each_record_is_on_disk_when_write_returns(tmp_path):
    with contextlib.closing(RunLog(tmp_path, "vae", 0, 100)) as log:
        log.write(10, "train", {"loss": 1.0})
        assert steps_in(tmp_path) == [10]
        assert visible(events_of(tmp_path / "events" / "vae")) == [
            ("train/loss", 10, 1.0)
        ]


def test_tensorboard_shows_every_step_once_after_resuming(tmp_path):
    write_steps(tmp_path, [10, 20, 30])
    write_steps(tmp_path, [30, 40], first_step=20)
    points = visible(events_of(tmp_path / "events" / "vae"))
    assert [(s, v) for tag, s, v in points if tag == "train/loss"] == [
        (10, 10.0),
        (20, 20.0),
        (30, 30.0),
        (40, 40.0),
    ]
    assert [v for tag, _, v in points if tag == "train/kl/1"] == [1.0] * 4


# --- progress


def show(path, clock, monkeypatch, num_steps=40):
    """Progress of `num_steps` steps, 10 at a time, each ten taking `clock` seconds."""
    now = [1000.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    with contextlib.closing(RunLog(path, "vae", 0, num_steps)) as log:
        for step in range(10, num_steps + 1, 10):
            now[0] += clock
            log.progress(step, 1.5, 2.5 if step >= 20 else None)


def test_without_a_terminal_lines_come_now_and_then(tmp_path, capsys, monkeypatch):
    show(tmp_path, 5.0, monkeypatch)  # a line every 10 s
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vae step 10/40 loss 1.5000 2.0 steps/s 00:15 left"
    assert lines[1] == "vae step 30/40 loss 1.5000 valid 2.5000 2.0 steps/s 00:05 left"
    assert [line.split()[2] for line in lines] == ["10/40", "30/40", "40/40"]


def test_a_log_that_is_not_shown_shows_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(run_log.sys.modules, "ipykernel", None)  # there is a bar
    with contextlib.closing(RunLog(tmp_path, "vae", 0, 20, is_shown=False)) as log:
        log.progress(20, 1.5, None)
    shown = capsys.readouterr()
    assert not shown.out + shown.err


def test_the_last_step_is_told_however_fast(tmp_path, capsys, monkeypatch):
    show(tmp_path, 0.001, monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1].startswith("vae step 40/40 ")


def test_a_terminal_gets_a_bar(tmp_path, capsys, monkeypatch):
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        show(tmp_path, 5.0, monkeypatch)
        shown = os.read(master, 100_000).decode()
    os.close(master)
    assert "100%" in shown and "40/40" in shown and "vae" in shown
    assert "loss 1.5000 valid 2.5000" in shown
    assert capsys.readouterr().out == ""
