"""Processes wait for one another before they compute: not for ever, and in words.

JAX ends a process with a stack of C++ when the others do not come. Here the first
process listens on the port that JAX will use, the others knock, and all go on together.
"""

import contextlib
import errno
import socket
import time

from ncp_jax.errors import InputError

SECONDS = 120.0  # that processes wait for the others
_PAUSE = 0.2  # seconds between two knocks
_GREETING = b"ncp_jax %d of %d\n"
_GO = b"go"


def meet(
    address: str, num_processes: int, process_id: int, seconds: float = SECONDS
) -> None:
    """Returns when all processes of a run are there.

    Args:
      address: HOST:PORT of process 0.
      num_processes: N.
      process_id: of this process, from 0.
      seconds: to wait at most.

    Raises:
      InputError: no such address, its port is taken, or the others do not come.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"the address of process 0 is {address!r}; it must be HOST:PORT, with a "
            "port from 1 to 65535"
        )
    end = time.monotonic() + seconds
    if process_id == 0:
        _receive(address, int(port), num_processes, end, seconds)
    else:
        greeting = _GREETING % (process_id, num_processes)
        _knock((host.strip("[]"), int(port)), greeting, address, end, seconds)


def _receive(
    address: str, port: int, num_processes: int, end: float, seconds: float
) -> None:
    try:
        listener = _listener(port)
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        reason = "another program has that port" if is_taken else str(error)
        raise InputError(
            f"process 0 cannot listen at {address}: {reason}; end it, or give another "
            "port to all processes"
        ) from error
    guests: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        while len(guests) < num_processes - 1:
            listener.settimeout(max(end - time.monotonic(), 0.01))
            try:
                guest, _ = listener.accept()
            except TimeoutError:
                here = {0, *guests}
                missing = [i for i in range(num_processes) if i not in here]
                raise InputError(
                    f"process 0 of {num_processes} has waited {seconds:g} s at "
                    f"{address} for the processes {missing}: start them with the same "
                    "address and number of processes, each with its own id"
                ) from None
            stack.enter_context(guest)
            if (number := _number(guest, num_processes)) is not None:
                guests[number] = guest
        for guest in guests.values():
            with contextlib.suppress(OSError):
                guest.sendall(_GO)
        for guest in guests.values():  # who closes first keeps the port busy
            with contextlib.suppress(OSError):
                guest.recv(1)


def _listener(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True
        )
    return socket.create_server(("", port))


def _number(guest: socket.socket, num_processes: int) -> int | None:
    """The id of a process of this run; of other guests None."""
    guest.settimeout(2.0)
    with contextlib.suppress(OSError):
        greeting = guest.recv(len(_GREETING) + 20)
        for number in range(1, num_processes):
            if greeting == _GREETING % (number, num_processes):
                guest.settimeout(None)
                return number
    return None


def _knock(
    place: tuple[str, int], greeting: bytes, address: str, end: float, seconds: float
) -> None:
    reason = "nobody is there"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection(place, timeout=left) as connection:
                connection.sendall(greeting)
                connection.settimeout(max(end - time.monotonic(), 0.01))
                if connection.recv(len(_GO)) == _GO:
                    return
                reason = "what listens there is not process 0 of this run"
        except socket.gaierror as error:
            reason = f"no such host ({error.strerror})"
        except OSError as error:
            reason = error.strerror or "it does not answer"
        time.sleep(_PAUSE)
    raise InputError(
        f"process 0 has not been met at {address} in {seconds:g} s: {reason}. Start it "
        "there, or mend the address"
    )
