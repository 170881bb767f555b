"""`rendezvous.py`: processes meet, or say in time who is missing."""

import socket
import threading
import time

import pytest

from ncp_jax.errors import InputError
from ncp_jax.process import rendezvous

SOON = 0.4  # seconds


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def meeting(address, num_processes, ids, seconds=20.0):
    """What each process ends with: "met" or an error's words."""
    found = {}

    def run(process_id):
        try:
            rendezvous.meet(address, num_processes, process_id, seconds)
            found[process_id] = "met"
        except InputError as error:
            found[process_id] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("ids", [[0], [0, 1, 2], [2, 1, 0]])
def test_processes_meet_in_any_order_and_leave_the_port_free(address, ids):
    assert meeting(address, len(ids), ids) == dict.fromkeys(ids, "met")
    rendezvous._listener(int(address.rpartition(":")[2])).close()


def test_a_process_that_does_not_come_is_named_in_time(address):
    began = time.monotonic()
    found = meeting(address, 4, [0, 2], SOON)
    assert time.monotonic() - began < SOON + 5
    assert f"0.4 s at {address} for the processes [1, 3]" in found[0]
    assert f"process 0 has not been met at {address} in 0.4 s" in found[2]


def test_a_coordinator_that_is_not_there_is_named_in_time(address):
    with pytest.raises(InputError, match=rf"not been met at {address} in 0\.4 s: Conn"):
        rendezvous.meet(address, 2, 1, SOON)


def test_a_host_that_does_not_exist_is_named():
    with pytest.raises(InputError, match=r"at nowhere\.invalid:7 in .*: no such host"):
        rendezvous.meet("nowhere.invalid:7", 2, 1, SOON)


def test_a_port_that_is_taken_is_named(address):
    with (
        rendezvous._listener(int(address.rpartition(":")[2])),
        pytest.raises(InputError, match=f"at {address}: another program has that port"),
    ):
        rendezvous.meet(address, 2, 0, SOON)


def test_other_programs_are_not_taken_for_processes(address):
    """One that asks and one that listens; one of another run, with as many members."""

    def ask():
        time.sleep(0.1)
        place = "127.0.0.1", int(address.rpartition(":")[2])
        with socket.create_connection(place) as connection:
            connection.sendall(b"GET / HTTP/1.1\n\n")
            connection.recv(1)

    stranger = threading.Thread(target=ask)
    stranger.start()
    assert "for the processes [1]" in meeting(address, 2, [0], 1.0)[0]
    stranger.join()
    assert set(meeting(address, 2, [0, 1])) == {0, 1}


@pytest.mark.parametrize("wrong", ["host", "host:", "host:x", ":7", "h:0", "h:70000"])
def test_an_address_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match=f"is '{wrong}'; it must be HOST:PORT"):
        rendezvous.meet(wrong, 2, 1, SOON)
