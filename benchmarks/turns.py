"""Timing of tasks that take turns, each in a process of its own.

A benchmark has a function `plan()` that yields sections, `(title, rounds, tasks)`, and
a function `prepare(task)`, called in the task's process, that yields phases, `(name,
call, facts)`, such as "train" and then "infer". All tasks of a section are ready before
the first is timed, and take turns of one or a few calls, so that other load on the
machine affects all alike. The results are one dict per task: what the task was, its
facts, the seconds of each phase by name, and `memory_mb`, the peak resident size of the
process after the first phase.

Tasks are dicts of what the benchmark needs, and "on": the backend; "threads", if there,
confines a task to as many cores; "calls" is the number of calls in a turn.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# What "tiny" makes of each task.
TINY = {"size": 64, "classes": 8, "batch": 2, "images": 4, "calls": 1}
BACKENDS = ("tensorflow", "jax", "torch")
PACKAGES = (
    *("keras", "tensorflow", "jax", "torch", "keras-hub", "transformers"),
    *("segmentation-models-pytorch", "onnxruntime", "openvino", "numpy"),
)


def run(doc, results, plan, prepare, tables):
    """Run a benchmark as a script: measure what has no results yet, write tables.

    With "tiny" it measures all of it once, in a small form and for a look only.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ("measure", "report", "tiny")
    parser.add_argument("do", nargs="?", choices=choices, help="what to do")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        serve(json.loads(args.task), prepare)
        return
    if args.do == "tiny":
        tiny = [(name, 1, [task | TINY for task in tasks]) for name, _, tasks in plan()]
        results = Path(tempfile.mkdtemp()) / results.name
        measure(results, tiny)
    elif args.do != "report":
        measure(results, plan())
    text = tables(json.loads(results.read_text()))
    results.with_suffix(".md").write_text(text)
    print(text)


# In the process of a task


def serve(task, prepare):
    """Prepare each phase of a task, then time calls for each line that comes in."""
    if "cores" in task:
        # Before any framework is imported, since that starts its threads.
        os.sched_setaffinity(0, task["cores"])
    for name, call, facts in prepare(task):
        call()  # to trace, compile and allocate
        print("ready", json.dumps([name, facts, peak()]), flush=True)
        while sys.stdin.readline() == "go\n":
            seconds = [timed(call) for _ in range(task.get("calls", 1))]
            turn = [*zip(*seconds, strict=True), peak()]
            print("done", json.dumps(turn), flush=True)


def timed(call):
    """Return the seconds that a call takes, and those of all cores together."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def peak():
    """Return the peak resident size of this process in MB."""
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


# Above the processes


def measure(results, plan):
    """Measure the sections that have no results yet, and write after each."""
    found = {
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
        "machine": machine(),
        "versions": versions(),
        "runs": [],
    }
    if results.exists():
        found["runs"] = json.loads(results.read_text())["runs"]
    done = {run["section"] for run in found["runs"]}
    for section, rounds, tasks in plan:
        if section in done:
            continue
        start = time.perf_counter()
        for run in take_turns(tasks, rounds):
            found["runs"].append({"section": section, **run})
        results.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{section}: {time.perf_counter() - start:.0f} s", flush=True)


def take_turns(tasks, rounds):
    """Return the results of tasks, each in a process of its own, in turns."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        workers = [Worker(task) for task in tasks]
        # To compile for JAX takes longest, so that starts first.
        queue = sorted(workers, key=lambda worker: worker.task["on"] != "jax")
        # To its first phase, then from phase to phase, while others do the same.
        while any([*pool.map(Worker.go_on, queue)]):
            for _ in range(rounds):
                for worker in workers:
                    worker.take_turn()
    return [worker.result for worker in workers]


class Worker:
    """A task's process."""

    def __init__(self, task):
        self.result, self.task = dict(task), dict(task)
        self.process = self.phase = None
        if "threads" in task:
            # It gets ready while all others do, so it has another core.
            cores = sorted(os.sched_getaffinity(0), reverse=task["on"] == "jax")
            self.task["cores"] = cores[: task["threads"]]

    def go_on(self):
        """Go on to the next phase, and return whether there is one."""
        if self.process is None:
            self.process = self.started()
        elif self.phase is None or not self.send("next\n"):
            return False
        ready = self.receive("ready ")
        if ready is None:
            self.phase = None
            self.process.communicate()
            return False
        name, facts, memory = ready
        self.phase = self.result[name] = []
        self.busy = self.result[f"cpu_{name}"] = []
        self.first = "memory_mb" not in self.result
        self.result |= {**facts, "memory_mb": memory} if self.first else facts
        return True

    def take_turn(self):
        """Make one turn's calls, if the process is alive."""
        if self.phase is None or not self.send("go\n"):
            return
        done = self.receive("done ")
        if done is not None:
            seconds, busy, memory = done
            self.phase += [round(x, 5) for x in seconds]
            self.busy += [round(x, 5) for x in busy]
            if self.first:
                self.result["memory_mb"] = memory

    def send(self, line):
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError:  # It failed, which its own output explains.
            return False
        return True

    def receive(self, word):
        """Return what the process says after this word, or None if it has ended."""
        for line in self.process.stdout:
            if line.startswith(word):
                return json.loads(line.removeprefix(word))
        return None

    def started(self):
        on = self.task["on"]
        env = {
            **os.environ,
            "KERAS_BACKEND": on if on in BACKENDS else "torch",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        if "threads" in self.task:
            env["OMP_NUM_THREADS"] = str(self.task["threads"])
        return subprocess.Popen(
            [sys.executable, sys.argv[0], "--task", json.dumps(self.task)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def versions():
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(": ")[1] for line in lines if line.startswith("model name")}
    ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpus = subprocess.check_output(ask, text=True) if shutil.which(ask[0]) else ""
    names = [*sorted(names), *gpus.splitlines(), platform.system()]
    return f"{os.cpu_count()} cores of {', '.join(names)}"


# Tables


def head(results):
    """Return the line above the tables: machine and versions."""
    found = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    return f"`{results['command']}`; {results['machine']}; {found}."


def by_section(runs):
    """Return a dict of the runs of each section."""
    sections = {}
    for run in runs:
        sections.setdefault(run["section"], []).append(run)
    return sections


def median(run, phase="seconds"):
    """Return the median seconds of a phase, or None if it failed."""
    return statistics.median(run[phase]) if run.get(phase) else None


def row(*cells):
    return "| " + " | ".join(map(str, cells)) + " |"
