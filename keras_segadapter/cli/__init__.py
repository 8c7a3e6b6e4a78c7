"""The command `segadapter`, thin over the public names of the package."""

import shlex
import sys
import traceback

from keras_segadapter.cli.parser import parse

__all__ = ["main"]


def main(argv=None):
    """Run the command.

    Args:
        argv: List of strings. Defaults to `None`: the arguments of the process.

    Returns:
        The exit code: 0; 1 after an error or for data with faults; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else [*map(str, argv)]
    args = parse(argv)
    try:
        return args.run(args) or 0
    except (KeyboardInterrupt, Exception) as error:
        if args.traceback:
            traceback.print_exc()
        code, reason = 1, f"error: {_one_line(error)}"
        # TensorFlow makes an error of its own of a Ctrl-C while data is read.
        if "KeyboardInterrupt" in f"{type(error).__name__} {error}":
            code, reason = 130, "stopped by Ctrl-C"
    reason = reason.rstrip(".") + "."
    print(f"segadapter: {reason}{_how_to_resume(args, argv)}", file=sys.stderr)
    return code


def _one_line(error):
    """Return what an error says, in one line."""
    text = " ".join(str(error).split())
    # TensorFlow quotes the traceback of a function that reads data.
    _, quoted, after = text.rpartition("ValueError: ")
    if quoted and "Traceback" in text:
        text = after.partition(" Traceback")[0].partition(" [[{{")[0]
    return text or type(error).__name__


def _how_to_resume(args, argv):
    """Return what to do after a training that was stopped, where that is possible."""
    state = getattr(args, "resumable", None)
    if state is None:
        return ""
    if not state.exists():
        return " No epoch was completed, so there is nothing to resume."
    words = [word for word in argv if word not in ("--resume", "--overwrite")]
    return (
        f" To go on after the last epoch: {shlex.join(['segadapter', *words])} --resume"
    )
