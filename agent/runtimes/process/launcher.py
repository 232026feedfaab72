"""The program that becomes a cell's reaper and its keeper. It is run as a script and never imported.

The reaper forks the keeper, the keeper forks the cell's main process, and both become ``sleep infinity`` by exec.

A keeper never waits for its child. So a cell that has ended stays in the kernel's process table, with its true exit
status, until an agent has read it: an agent that was away misses nothing, and the kernel does not reuse the cell's pid.

The kernel gives the reaper every process of the cell whose parent has ended (a "child subreaper"). So all of them
stay below it, whatever session, control group or environment they have, and the agent finds them. It ignores the
deaths of its children; then the kernel itself forgets those that end.

It uses only the core of the standard library (``python -I -S``). Its protocol with the agent:

- standard input: the orders by ``marshal`` (a tuple, see ``main``), then one byte, the go signal;
- descriptor ``argv[1]``: the pid of the main process and a line end; after the go signal "ok" if the exec succeeded,
  else the error. The keeper's exec closes it.

If the agent ends before it sends the go signal, nothing is left behind.
"""

import ctypes
import marshal
import os
import signal
import sys
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    replies = int(sys.argv[1])
    _close_on_exec()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ready_read, ready_write = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(ready_read)
        _keep(replies, ready_write)
    os.close(ready_write)
    os.close(replies)
    sleep = os.fsdecode(_all_of(ready_read))
    if not sleep:
        _, status = os.waitpid(keeper, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    _close_the_log()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Those that ended before are not forgotten by themselves.
    while _has_collected():
        pass
    os.execv(sleep, [sleep, "infinity"])  # noqa: S606


def _keep(replies: int, ready: int) -> NoReturn:
    """``ready``: takes the path of the program that sleeps, once the cell runs."""
    with os.fdopen(os.dup(0), "rb") as orders:
        # Written by the agent that started this program, with the same interpreter.
        directory, executable, command, environment, keeper = marshal.load(orders)  # noqa: S302
        os.chdir(directory)
        go_read, go_write = os.pipe()
        outcome_read, outcome_write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go_write)
            _become_the_cell(go_read, outcome_write, executable, command, environment)
        os.close(outcome_write)
        os.write(replies, b"%d\n" % child)
        if orders.read(1) != b"!":
            os.kill(child, signal.SIGKILL)
            sys.exit(1)
    os.write(go_write, b"!")
    failure = _all_of(outcome_read)
    if failure:
        os.waitpid(child, 0)
        _reply(replies, failure)
        sys.exit(1)
    os.write(ready, os.fsencode(keeper[0]))
    _reply(replies, b"ok")
    _close_the_log()
    os.execv(keeper[0], keeper)  # noqa: S606


def _become_the_cell(
    go: int, outcome: int, executable: str, command: list[str], environment: dict[str, str]
) -> NoReturn:
    """Set up a new session, default signals and empty input; wait for the go signal; then exec."""
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
    except BaseException as error:  # noqa: BLE001 -- the child must never continue as a second launcher
        os.write(outcome, str(error).encode())
    os._exit(127)


def _close_on_exec() -> None:
    """The cell and its keeper must not inherit descriptors that the agent's libraries left open."""
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


def _has_collected() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _reply(replies: int, text: bytes) -> None:
    try:
        os.write(replies, text)
    except BrokenPipeError:  # the agent has ended; the next agent finds the cell
        return


def _close_the_log() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


if __name__ == "__main__":
    main()
