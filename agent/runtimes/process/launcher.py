"""The program that turns itself into a cell's keeper. Run as a file of its own, never imported.

It forks the cell's main process and then becomes ``sleep infinity`` by exec. A keeper never waits for its
child, so a cell that has ended stays in the kernel's process table with its true exit status until somebody
who knows it has read it there: an agent that was away loses nothing, and the cell's pid is not given away
meanwhile.

It starts with nothing but the standard library's core (``python -I -S``) and speaks with the agent so:

- standard input: the orders by ``marshal`` (a tuple, see ``main``), then one byte, the word to go;
- descriptor ``argv[1]``: the main process' pid and a line end, then, after the word to go, "ok" once the exec
  has worked, or why it did not. Closed with the exec of the keeper.

An agent that ends before it gave the word leaves nothing behind.
"""

import marshal
import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    said = int(sys.argv[1])
    _close_on_exec()
    with os.fdopen(os.dup(0), "rb") as orders:
        # Written by the agent that started this very program, with this very interpreter.
        directory, executable, command, environment, keeper = marshal.load(orders)  # noqa: S302
        os.chdir(directory)
        go_read, go_write = os.pipe()
        outcome_read, outcome_write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go_write)
            _become_the_cell(go_read, outcome_write, executable, command, environment)
        os.close(outcome_write)
        os.write(said, b"%d\n" % child)
        if orders.read(1) != b"!":
            os.kill(child, signal.SIGKILL)
            sys.exit(1)
    os.write(go_write, b"!")
    failure = _all_of(outcome_read)
    if failure:
        os.waitpid(child, 0)
        _say(said, failure)
        sys.exit(1)
    _say(said, b"ok")
    _forget_the_log()
    os.execv(keeper[0], keeper)  # noqa: S606


def _become_the_cell(
    go: int, outcome: int, executable: str, command: list[str], environment: dict[str, str]
) -> NoReturn:
    """A session of its own, default signals, no input; then the word to go, then the exec."""
    try:
        os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if os.read(go, 1) == b"!":
            os.execve(executable, command, environment)  # noqa: S606
    except OSError as error:
        os.write(outcome, (error.strerror or str(error)).encode())
    except BaseException as error:  # noqa: BLE001 -- whatever it is, it must not go on as a second launcher
        os.write(outcome, str(error).encode())
    os._exit(127)


def _close_on_exec() -> None:
    """Nothing that the agent's libraries left open may reach the cell or its keeper."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:  # the listing's own descriptor
                continue


def _all_of(descriptor: int) -> bytes:
    data = b""
    while chunk := os.read(descriptor, 4096):
        data += chunk
    return data


def _say(said: int, text: bytes) -> None:
    try:
        os.write(said, text)
    except BrokenPipeError:  # the agent ended meanwhile; it finds the cell when it comes back
        return


def _forget_the_log() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


if __name__ == "__main__":
    main()
