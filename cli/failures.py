"""Every way a command can end badly, as an exit code and one line that says why and what to do."""

from __future__ import annotations

import errno
import os
import sqlite3

import click

from hwnas.errors import HwnasError

from .terminal import Terminal

INTERRUPTED = 130
DISK_FULL = "free some space and run the same command again; what was finished is kept"

ADVICE = {
    errno.ENOSPC: f"the disk is full: {DISK_FULL}",
    errno.EDQUOT: f"the disk quota is used up: {DISK_FULL}",
    errno.EACCES: "permission denied: choose a place that you may write to and read from",
    errno.EPERM: "not permitted: choose a place that you may write to and read from",
    errno.EROFS: "the file system is read-only: choose a place that you may write to",
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "that is a folder, not a file",
    errno.EEXIST: "a file is where a folder must be: choose another place",
    errno.ENOTDIR: "a part of that path is a file, not a folder",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n 4096)",
    errno.ENOMEM: "out of memory: use a smaller batch, or free some memory",
}


def exit_code_and_line(error: BaseException, terminal: Terminal) -> tuple[int, str]:
    """What to exit with and what to print; an empty line prints nothing."""
    if isinstance(error, HwnasError):
        return error.exit_code, str(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt | click.Abort):
        kept = terminal.kept or "nothing was left half done"
        return INTERRUPTED, f"interrupted; {kept}; go on with: {terminal.resume_command()}"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code, ""
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), terminal.stdout.fileno())  # or the flush at exit complains again
        return 1, ""
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return 1, f"no temporary folder can be written (TMPDIR, /tmp, /var/tmp): {DISK_FULL}"
    if isinstance(error, OSError) and error.errno in ADVICE:
        place = f"{error.filename}: " if error.filename else ""
        return 1, place + ADVICE[error.errno]
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else 1), "" if error.code in (0, None) else "stopped"
    return 1, _unexpected(error)


def _usage(error: click.ClickException) -> tuple[int, str]:
    context = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    return error.exit_code, error.format_message().rstrip(".") + hint


def _unexpected(error: BaseException) -> str:
    text = str(error)
    disk_full = "No space left" in text or "StorageFull" in text  # safetensors and torch wrap the system's error
    if disk_full or (isinstance(error, sqlite3.Error) and "disk is full" in text):
        return ADVICE[errno.ENOSPC]
    if isinstance(error, MemoryError):
        return ADVICE[errno.ENOMEM]
    if isinstance(error, sqlite3.Error) and "readonly" in text:
        return "a table cannot be written, it or its folder is read-only: choose another --lut FILE"
    first = text.strip().splitlines()[0][:300] if text.strip() else "no message"
    return f"{type(error).__name__}: {first} - run again with --debug for the traceback"
