"""Shuts the ways out of a process: `close()` has the kernel end it at the next start of a program, connection, or
opening of a file for writing, by whatever language it comes.
"""

import ctypes
import platform
import struct

# Numbers of system calls: those that are never allowed, clone, clone3, openat.
_CALLS = {
    # socket, connect, fork, vfork, execve, ptrace, execveat, mkdir, symlink, creat, open
    "x86_64": (0xC000003E, (41, 42, 57, 58, 59, 101, 322, 83, 88, 85, 2), 56, 435, 257),
    # socket, connect, execve, ptrace, execveat, mkdirat, symlinkat
    "aarch64": (0xC00000B7, (198, 203, 221, 117, 281, 34, 36), 220, 435, 56),
}
_ALLOW, _KILL, _NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 38
_WRITES = 0o1 | 0o2 | 0o100  # O_WRONLY, O_RDWR, O_CREAT
_CLONE_THREAD = 0x10000


def available() -> bool:
    return platform.system() == "Linux" and platform.machine() in _CALLS


def close() -> None:
    """For every thread of this process, for good."""
    arch, never, clone, clone3, openat = _CALLS[platform.machine()]
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06  # instructions of the filter: word at, jump if, ..., return
    program = [
        (load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, _KILL), (load, 0, 0, 0),
        *(step for number in never for step in ((equal, 0, 1, number), (answer, 0, 0, _KILL))),
        (equal, 0, 1, clone3), (answer, 0, 0, _NO_SUCH_CALL),  # so that the C library asks clone, whose flags are seen
        (equal, 0, 4, clone), (load, 0, 0, 16), (any_bit, 1, 0, _CLONE_THREAD), (answer, 0, 0, _KILL),
        (answer, 0, 0, _ALLOW),
        (equal, 0, 3, openat), (load, 0, 0, 32), (any_bit, 0, 1, _WRITES), (answer, 0, 0, _KILL),
        (answer, 0, 0, _ALLOW),
    ]  # fmt: skip
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    libc = ctypes.CDLL(None, use_errno=True)
    filter_program = struct.pack("=HxxxxxxQ", len(program), ctypes.cast(code, ctypes.c_void_p).value)
    no_new_privileges, seccomp, set_filter, every_thread = 38, 317 if arch == 0xC000003E else 277, 1, 1
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) != 0 or libc.syscall(
        seccomp, set_filter, every_thread, filter_program
    ):
        raise OSError(ctypes.get_errno(), "this system has no seccomp filters")
