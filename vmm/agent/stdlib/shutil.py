"""which and rmtree. Left out: everything else."""

import os
import stat


def which(command, mode=os.F_OK | os.X_OK, path=None):
    """Return the path of a program, or None."""
    if "/" in command:
        return command if _is_program(command, mode) else None
    for directory in (path or os.defpath).split(":"):
        candidate = f"{directory}/{command}"
        if directory and _is_program(candidate, mode):
            return candidate
    return None


def rmtree(path, ignore_errors=False):
    """Remove a directory and all below it; a symbolic link is not followed."""
    try:
        _remove(path)
    except OSError:
        if not ignore_errors:
            raise


def _is_program(path, mode):
    return os.access(path, mode) and not os.path.isdir(path)


def _remove(path):
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(20, "Not a directory", path)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)
