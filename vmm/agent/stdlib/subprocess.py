"""Popen that starts a program, and no more: pipes, waiting and reaping are the caller's (`common.process`)."""

import errno
import os
import signal

from _posixsubprocess import fork_exec

DEVNULL = -3


class Popen:
    """A started program; `pid` is known, its end is awaited by somebody else."""

    def __init__(
        self, args, *, executable, stdin, stdout, stderr, close_fds, pass_fds, env, cwd, start_new_session
    ):
        self.args = args
        self.returncode = None
        null = -1
        targets = []
        try:
            for target in (stdin, stdout, stderr):
                if target == DEVNULL:
                    if null < 0:
                        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    target = null
                targets.append(target)
            self._start(args, executable or args[0], targets, pass_fds, env, cwd, start_new_session)
        finally:
            if null >= 0:
                os.close(null)

    def _start(self, args, executable, targets, pass_fds, env, cwd, new_session):
        command = [os.fsencode(arg) for arg in args]
        environment = [os.fsencode(f"{name}={value}") for name, value in env.items()]
        program = os.fsencode(executable)
        if b"/" in program:
            executables = (program,)
        else:
            executables = tuple(os.path.join(d, program) for d in map(os.fsencode, os.get_exec_path(env)))
        report, error_fd = os.pipe2(os.O_CLOEXEC)
        try:
            # The child duplicates these: they must not be among the numbers that it duplicates to.
            if error_fd < 3:
                raise OSError(errno.EBADF, "the standard descriptors must be open")
            stdin, stdout, stderr = targets
            self.pid = fork_exec(
                command,
                executables,
                True,
                tuple(sorted((*pass_fds, error_fd))),
                os.fsencode(cwd),
                environment,
                stdin,
                -1,
                -1,
                stdout,
                -1,
                stderr,
                report,
                error_fd,
                True,
                new_session,
                -1,
                None,
                None,
                None,
                -1,
                None,
                True,
            )
        finally:
            os.close(error_fd)
        with open(report, "rb") as file:
            failure = file.read(50_000)
        if failure:
            os.waitpid(self.pid, 0)
            _, number, reason = failure.split(b":", 2)
            code = int(number, 16)
            filename = cwd if reason.startswith(b"noexec") else executable
            raise OSError(code, os.strerror(code), filename)


__all__ = ["DEVNULL", "Popen", "signal"]
