"""Run by test_interruptions.py: does runs of `hf-lpwd train` in forked processes, and ends them as told.

Reads a JSON object a line: `argv`; `end`, the signal, if any; and when: `after` seconds from the start, or
`delay` seconds into the writing of the checkpoint number `write` (from 1); or `finishing`, by itself, when
all files of that checkpoint are written and it has yet to get its name. `group`: to its process group.
Answers with a line: exit code, and whether a checkpoint was being written.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from hf_lpwd.checkpoints import folders as checkpoints
from hf_lpwd.cli import main
from hf_lpwd.vision import finetune  # noqa: F401


def end_at_finish(number, end):
    """Sends `end` to this process instead of finishing its checkpoint of that number."""
    finish, calls = checkpoints.finish, iter(range(1, number + 1))

    def ending(*args):
        if next(calls) == number:
            os.kill(os.getpid(), end)
        finish(*args)

    checkpoints.finish = ending


def child(argv, log):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    code = 70
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for_write(pid, folder, number):
    """Until the writing of that checkpoint begins, or the process ends."""
    seen, before = 0, False
    while seen < number and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        now = folder.is_dir()
        seen += now and not before
        before = now


def do(order):
    argv = order["argv"]
    output_dir = Path(argv[argv.index("--output_dir") + 1])
    with open(order["log"], "w") as log:
        pid = os.fork()
        if pid == 0:
            if "finishing" in order:
                end_at_finish(order["finishing"], order["end"])
            child(argv, log)
    if order.get("end") and "finishing" not in order:
        if "write" in order:
            wait_for_write(pid, output_dir / checkpoints.UNFINISHED, order["write"])
        time.sleep(order.get("after", order.get("delay", 0)))
        os.killpg(pid, order["end"]) if order.get("group") else os.kill(pid, order["end"])
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, (output_dir / checkpoints.UNFINISHED).is_dir()


print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(do(json.loads(line))), flush=True)
