"""Runs one command with little to lose: limits on time, memory, files and processes, and its own view of the machine.

    python -I -S jail.py '{"isolation": ..., ...}'      # written by student.py; see enter() for what is in it

Three grades of isolation, by what the machine offers:
- "namespaces" (Linux, as root, or where users may make namespaces): the command is alone in a tree of processes, which
  ends as a whole when its first process does; it has no network; of the files it sees the system, Python and the
  folders it is given, all read-only, and one small writable folder in memory that vanishes with it.
- "user" (root in a container that may make none, as on Gradescope): it runs as a user that owns nothing, and who may
  have `processes` processes; they are all killed at the end. It sees what everybody may read.
- "none": the limits only. For students on their own machine.

RLIMIT_NPROC counts the processes of a user and means nothing to root, therefore nobody here runs a student as root.
This process stays outside and watches: it ends the command when its own standard input is closed, which happens however
the grader ends. Standard library only, and no threads: it forks.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/dev/null",
          "/dev/zero", "/dev/urandom")
FAILED = 125                              # the exit code that says: not the command failed, this program did


def libc(name, *arguments):
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def mount(source, target, kind=None, flags=0, options=None):
    libc("mount", *(x and os.fsencode(x) for x in (source, target, kind)), flags, options and options.encode())


def show(path, root, at=None):
    """Makes `path` visible below `root`, read-only, under its own name or as `at`."""
    target = root + (at or path)
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        open(target, "a").close()
    mount(path, target, flags=BIND | REC)
    kept = os.statvfs(target).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)      # these may not be dropped
    mount(None, target, flags=BIND | REMOUNT | RDONLY | kept)


def enter(config):
    """Leaves the machine for a view of it: new namespaces, and a root folder made of what may be seen."""
    uid, gid, root = os.getuid(), os.getgid(), config["root"]
    libc("unshare", NEWNS | NEWPID | NEWNET | NEWIPC | (NEWUSER if uid else 0))
    if uid:                               # only in a namespace of its own may an ordinary user mount and chroot
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount(None, "/", flags=REC | PRIVATE)
    mount("tmpfs", root, "tmpfs", options=f"size={config['disk']},mode=755")
    for path in (*SYSTEM, *config["visible"]):
        if os.path.lexists(path):
            show(path, root)
    for at, path in config["placed"].items():
        show(path, root, at)
    for path in config["hidden"]:                                             # where it lies inside what is visible
        if os.path.isdir(root + path):
            mount("tmpfs", root + path, "tmpfs", RDONLY, "size=4k")
    os.mkdir(f"{root}/proc")              # filled by the first process of the new namespace
    os.mkdir(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)
    os.chroot(root)
    os.chdir("/tmp")


def show_processes():
    """Those of this namespace, in /proc: the sanitizers look there. Some containers allow it to nobody."""
    try:
        mount("proc", "/proc", "proc", RDONLY | NOSUID | NODEV | NOEXEC)
    except OSError:
        pass


def limit(config):
    """Binds this process, and all that it starts. The time limit is of the processor, in seconds, per process."""
    # RLIMIT_AS is not honoured by macOS, which refuses some values
    for name, most in (("CPU", config["seconds"]), ("AS", config["address_space"] or resource.RLIM_INFINITY),
                       ("FSIZE", config["disk"]), ("CORE", 0), ("NOFILE", 256), ("NPROC", config["processes"])):
        if name == "NPROC" and config["isolation"] == "none":
            continue                      # it would count what else the student is running
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
        except (AttributeError, ValueError, OSError):
            if config["isolation"] != "none":
                raise
    if config["isolation"] != "none" and os.getuid() == 0:
        os.setgroups([])
        os.setgid(config["uid"])
        os.setuid(config["uid"])
    if config["isolation"] != "none":
        libc("prctl", 38, 1, 0, 0, 0)     # PR_SET_NO_NEW_PRIVS: no way back through a set-uid program
        libc("prctl", 1, signal.SIGKILL, 0, 0, 0)                             # PR_SET_PDEATHSIG: not without us


def resident(proc, namespace):
    """Bytes of memory that all processes of a namespace use. proc: /proc, opened, which the new root does not have."""
    total = 0
    for pid in filter(str.isdigit, os.listdir(proc)):
        try:
            if os.readlink(f"{pid}/ns/pid", dir_fd=proc) == namespace:
                with open(f"{pid}/statm", opener=lambda name, flags: os.open(name, flags, dir_fd=proc)) as file:
                    total += int(file.read().split()[1]) * resource.getpagesize()
        except OSError:
            pass                          # it has ended, or is not ours to look at
    return total


def kill_user(uid):
    """Ends every process of a user. Who asks is a process of that user, so that no other can be hit."""
    if not (pid := os.fork()):
        os.setuid(uid)
        os.kill(-1, signal.SIGKILL)
        os._exit(0)
    os.waitpid(pid, 0)


def watch(child, until):
    """Waits for the child, or for the end of our standard input, or until() -> its wait status, or None."""
    while not select.select([0], [], [], 0.1)[0] and not until():
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
    return None


def kill_group(child):
    """Ends the child and all in its session; in a namespace, where it is the first process, everything."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass                              # all have ended


def main():
    config = json.loads(sys.argv[1])
    spaces = config["isolation"] == "namespaces"
    if spaces:
        proc = os.open("/proc", os.O_RDONLY)
        enter(config)
    elif config["isolation"] == "user":
        libc("prctl", 36, 1, 0, 0, 0)     # PR_SET_CHILD_SUBREAPER: whose parent has ended stays below us
    started, ready = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.write(ready, b".")
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        if spaces:
            show_processes()
        limit(config)
        os.execve(config["command"][0], config["command"], config["environment"])
    os.read(started, 1)                                                       # it has a process group of its own now
    for fd in config["pass_fds"]:
        os.close(fd)
    namespace = os.readlink(f"{child}/ns/pid", dir_fd=proc) if spaces else None
    status = watch(child, lambda: spaces and resident(proc, namespace) > config["memory"])
    kill_group(child)
    if config["isolation"] == "user":
        kill_user(config["uid"])
    if status is None:
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        os._exit(main())
    except OSError as error:
        print(f"jail: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)
