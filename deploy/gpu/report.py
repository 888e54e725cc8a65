# SPDX-License-Identifier: Apache-2.0
"""Steps with a verdict and a deadline each, for acceptance.py: programs that are ended when they take too long,
and the report of what became of them. Standard library only; one thread.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time

OUTPUT_BYTES = 1 << 20  # What is read of a program's output: its end.
KILL_S = 5  # A process that the driver holds does not die at once.


class Failed(Exception):
    """Ends a step: what is wrong."""


class Skipped(Exception):
    """Ends a step: why it cannot be done here."""


class NoGpu(Exception):
    """Ends everything: what was found instead."""


class Stopped(Exception):
    """Ends everything: Report.stop was called."""


class Done:
    """A program that has ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def last_line(self):
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def how(self):
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"


def kill(process):
    """And all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def end(process):
    kill(process)
    try:
        process.wait(KILL_S)
    except subprocess.TimeoutExpired:
        pass  # Left to the system: nothing here waits for it again.


def tail(file):
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - OUTPUT_BYTES))
    return file.read().decode("utf-8", "replace")


class Step:
    """Runs programs until its deadline."""

    def __init__(self, seconds, report):
        self.seconds, self.report = seconds, report
        self.ends = time.monotonic() + seconds

    def run(self, argv, text=""):
        """Done, whatever its exit code. Failed when the deadline passes first, or it cannot be started; what a
        hung program said until then goes to `heard`."""
        self.heard = ""
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            stdin.write(text.encode())
            stdin.seek(0)
            try:
                process = subprocess.Popen([str(arg) for arg in argv], stdin=stdin, stdout=out, stderr=err,
                                           cwd=self.report.folder, start_new_session=True)
            except OSError as error:
                raise Failed(f"cannot start {argv[0]}: {error.strerror}") from error
            self.report.process = process
            try:
                self.report.check_stopped()
                code = process.wait(max(0.0, self.ends - time.monotonic()))
                self.report.check_stopped()
            except subprocess.TimeoutExpired:
                end(process)
                self.heard = tail(out)
                raise Failed(f"{os.path.basename(str(argv[0]))} did not end within {self.seconds:g} s "
                             "and was ended") from None
            finally:
                self.report.process = None
                if process.poll() is None:
                    end(process)
            return Done(code, tail(out), tail(err))

    @contextlib.contextmanager
    def beside(self, argv, ready):
        """A program that runs meanwhile, from when it has written the file `ready`, whose bytes this gives, to the
        end of its standard input. Failed when it ends before, or the deadline passes."""
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen([str(arg) for arg in argv], stdin=subprocess.PIPE, stdout=out, stderr=out,
                                       cwd=self.report.folder, start_new_session=True)
            self.report.beside = process
            try:
                while not os.path.exists(ready):
                    self.report.check_stopped()
                    if time.monotonic() > self.ends:
                        raise Failed(f"{os.path.basename(str(argv[0]))} was not ready within {self.seconds:g} s")
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        code = process.wait(0.1)
                        raise Failed(f"{os.path.basename(str(argv[0]))}: {Done(code, tail(out), '').how()}: "
                                     f"{Done(code, tail(out), '').last_line()}")
                with open(ready, "rb") as file:
                    yield file.read()
            finally:
                process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(KILL_S)
                end(process)
                self.report.beside = None

    def need(self, argv, text=""):
        """As run, and Failed unless its exit code is 0."""
        done = self.run(argv, text)
        if done.code != 0:
            raise Failed(f"{os.path.basename(str(argv[0]))}: {done.how()}: {done.last_line()}")
        return done


class Report:
    """What became of each step, printed as it becomes known. A step takes at most `step_seconds`, all together at
    most `minutes`; programs run in `folder`."""

    def __init__(self, minutes, step_seconds, folder):
        self.minutes, self.step_seconds, self.folder = minutes, step_seconds, folder
        self.ends = time.monotonic() + 60 * minutes
        self.about = {}  # Goes to the JSON as it is.
        self.steps, self.tables, self.unprinted = [], {}, []
        self.process, self.beside, self.stopped = None, None, False

    def stop(self, *_):
        """A signal's handler: ends the program that runs, and makes the step raise Stopped."""
        self.stopped = True
        for process in self.process, self.beside:
            if process is not None:
                kill(process)

    def check_stopped(self):
        if self.stopped:
            raise Stopped

    def step(self, name, seconds, body, optional=False):
        """Calls body(step), which returns a note, or raises Failed or Skipped. True when it passed. One for which
        no time is left has failed, or, where it is optional, was skipped."""
        self.check_stopped()
        begin = time.monotonic()
        left = self.ends - begin
        try:
            if left < 1:
                raise (Skipped if optional else Failed)(f"no time is left of {self.minutes:g} minutes")
            verdict, note = "passed", body(Step(min(seconds, self.step_seconds, left), self))
        except Failed as fault:
            verdict, note = "failed", str(fault)
        except Skipped as reason:
            verdict, note = "skipped", str(reason)
        taken = time.monotonic() - begin
        self.steps.append({"name": name, "verdict": verdict, "seconds": round(taken, 3), "note": note})
        print(f"{verdict:8} {name:39} {taken:6.1f} s  {note}".rstrip())
        print("".join(line + "\n" for line in self.unprinted), end="", flush=True)
        self.unprinted = []
        return verdict == "passed"

    def table(self, name, rows, columns):
        """Of the step that runs: keeps `rows`, dicts, and prints them below it. columns: (title, row -> text)."""
        if not rows:
            return
        self.tables.setdefault(name, []).extend(rows)
        cells = [[title for title, _ in columns]] + [[text(row) for _, text in columns] for row in rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        for line in cells:
            self.unprinted.append("       " + "".join("  " + (cell.rjust(w) if i else cell.ljust(w))
                                                      for i, (cell, w) in enumerate(zip(line, widths))))

    def count(self, verdict):
        return sum(step["verdict"] == verdict for step in self.steps)

    def summary(self):
        return ", ".join(f"{self.count(verdict)} {verdict}" for verdict in ("passed", "failed", "skipped"))

    def write(self, path):
        whole = {**self.about, **{v: self.count(v) for v in ("passed", "failed", "skipped")}, "steps": self.steps,
                 **self.tables}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=1)
            file.write("\n")
