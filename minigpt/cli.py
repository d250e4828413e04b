"""The command line: `minigpt <command> ...`. Each command is a module with add_arguments(parser) and run(args); only
the one asked for is imported. Bad input ends in one line on stderr and exit code 2, never in a traceback."""

import argparse
import importlib
import os
import sys
import warnings

from . import __version__
from .ranks import is_first, is_first_to_fail, is_loss_of_a_rank, number_of_ranks

COMMANDS = {
    "demo": ("minigpt.commands.demo", "train a small GPT on English for two minutes and see what it writes"),
    "train": ("minigpt.commands.train", "train a GPT on a text file"),
    "generate": ("minigpt.commands.generate", "continue a prompt with a trained GPT"),
    "bench": ("minigpt.bench", "measure operations, training and decoding, side by side with torch"),
    "plan": ("minigpt.commands.plan", "what training a model on a cluster takes, and the best way to lay it out"),
    "doctor": ("minigpt.commands.doctor", "what is built, what this machine runs, and what stands in the way"),
    "diff": ("minigpt.commands.diff", "hold two backends against each other, operation by operation"),
    "course": ("minigpt.commands.course", "make assignments, check them, hand them in, grade them"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} ({self.prog} --help tells more)")


def main(argv=None) -> int:
    """Runs one command and returns its exit code: 0, or 2 after a line on stderr, or 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    _prepare_output()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(message)
        try:
            code = _run(argv) or 0
            sys.stdout.flush()
            return code
        except KeyboardInterrupt as stop:
            if is_first():
                _say(stop if stop.args else "interrupted")
            return 130
        except BrokenPipeError:  # the reader of our output has seen enough
            _discard_output()
            return 0
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error)
            _discard_output()
        except (ValueError, ImportError, FloatingPointError, MemoryError) as error:
            _fail(error if error.args else "out of memory")
        except Exception as error:
            if is_loss_of_a_rank(error):
                _fail("another rank is gone; training goes on from the newest checkpoint, by itself under torchrun "
                      "--max-restarts, else with --resume")
            elif is_first_to_fail():
                raise
    return 2


def _run(argv):
    parser = _Parser(prog="minigpt", description="The GPT you can take apart.")
    parser.add_argument("--version", action="version", version=f"minigpt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    modules = {}
    for name, (module, help) in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help)
        if name in argv[:1]:
            modules[name] = importlib.import_module(module)
            modules[name].add_arguments(command)
    args = parser.parse_args(argv)
    return modules[args.command].run(args)


def _prepare_output():
    """Lets every command write: to nowhere where output was closed, and "?" for what the terminal cannot show."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _discard_output():
    """Forgets what cannot be written, so that Python does not try it again, and complain, when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message):
    """Says what went wrong; where there are several ranks, the first that fails does, and which one it is."""
    if is_first_to_fail():
        _say(message if number_of_ranks() == 1 else f"rank {os.environ['RANK']}: {message}")


def _say(message):
    print("minigpt:", " ".join(str(message).split()), file=sys.stderr)
