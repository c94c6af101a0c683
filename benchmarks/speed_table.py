"""The speed of attnlab beside its references: one table, measured on one card.

    python benchmarks/speed_table.py [--rows step,decoding] [--tiny] [--out results/speed]

Each line has a value, its reference measured beside it in the same process, their ratio, and the
goal. Times on a GPU are medians by CUDA events after a warm-up, on random tokens (`time_calls`);
ratios are never taken between cards or processes. A reference that is a bound is named so.

| row               | seconds  | what                                                              |
|-------------------|----------|-------------------------------------------------------------------|
| `step`            | 35, 15   | study 1's training step, beside an eager loop of the same model   |
| `sparse`          | 60, 30   | its sparse step beside full attention                             |
| `variants`        | 400      | the step of every variant of study 1, eager and compiled          |
| `compile`         | 120      | seconds of the first steps in a new process, with and without     |
|                   |          | files of the compiler, and from how many steps compiling pays     |
| `transformer`     | 100, 50  | tokens/s of 12 x 768, batch 48 x 1,024, beside a plain model      |
| `deltanet`        | 60, 30   | Gated DeltaNet there, beside flash-linear-attention's own model   |
| `decoding`        | 45, 20   | a token of 12 x 768 at batch 1, beside the memory bound           |
| `decoding_others` | 90, 40   | the same of MLA, Gated DeltaNet and a sliding window              |
| `batch_8`         | 60, 30   | the same of all four at batch 8, with 1K tokens                   |
| `prefill`         | 60, 30   | a prompt, beside the device's matrix rate                         |
| `layers`          | 50, 20   | a layer, forward and backward, at 16K tokens, beside full         |
|                   |          | attention                                                         |
| `study`           | 130 + 70 | `attnlab run mechanisms --seeds 1 --no-tune`, cold and warm       |
| `study_compiled`  | 220 + 90 | the same with all models compiled                                 |
| `quickstart`      |          | `attnlab run quickstart`                                          |
| `report`          |          | CPU seconds of a report of 500 runs                               |
| `driver`          |          | memory of a study's driver after 1,000 runs                       |

Seconds are those expected on one H100, without and with the compiler's files of an earlier call.
The rows run in a process of their own. One that exceeds its time, or whose process dies, gives a
line that says so, and the rest goes on in a new process. `speed.jsonl` and `speed.md` are written
after each line.

`--tiny` takes tiny sizes, for a test on a CPU: the same code, and no measurement.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import speed_rows
import torch
from speed_rows import ROWS, Effort, Goal, Line, card, reason, release

import attnlab

Message = dict[str, Any]


def measured_here(names: Iterable[str], effort: Effort) -> Iterator[Message]:
    """Yield what the table is about, then the beginning, the lines and the end of each row."""
    facts = {"card": card(), "torch": torch.__version__, "attnlab": attnlab.__version__}
    yield {"facts": facts | ({"sizes": "tiny: no measurement"} if effort.tiny else {})}
    for name in names:
        begin = time.perf_counter()
        yield {"begin": name}
        try:
            if ROWS[name].needs_gpu and not (speed_rows.CUDA or effort.tiny):
                raise RuntimeError("it needs a GPU")
            for line in ROWS[name].lines(effort):
                goal = None if effort.tiny else line.goal  # tiny sizes reach nothing
                yield {"row": name, "line": asdict(replace(line, goal=goal))}
        except Exception as error:  # the other rows go on
            yield {"row": name, "skipped": reason(error)}
        release()
        yield {"end": name, "seconds": time.perf_counter() - begin}


def measured_there(names: Sequence[str], command: Sequence[str], log: Path) -> Iterator[Message]:
    """Yield the messages of processes that run `command` with the names of the rows left."""
    left = list(names)
    while left:
        with log.open("a") as errors:
            process = subprocess.Popen(
                [*command, ",".join(left)],
                stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip
        timer = limited(process, ROWS[left[0]].limit)
        with process:
            try:
                for message in filter(None, map(_message, process.stdout or ())):
                    if "begin" in message:
                        timer.cancel()
                        timer = limited(process, ROWS[message["begin"]].limit)
                    if "end" in message:
                        left.remove(message["end"])
                    yield message
            except BaseException:  # nothing that it has started goes on
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                timer.cancel()
        code = process.returncode
        if left:
            limit = ROWS[left[0]].limit
            why = (
                f"given up after {limit:.0f} s" if code == -signal.SIGKILL else f"exit code {code}"
            )
            yield {"row": left[0], "skipped": f"{why}: {log} has its messages"}
            del left[0]


def limited(process: subprocess.Popen[str], seconds: float) -> threading.Timer:
    """Kill the process, and those that it has started, after some seconds, unless cancelled."""
    timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    return timer


def _message(text: str) -> Message | None:
    """Return a line of the output as a message; None for what a library prints."""
    with suppress(ValueError):
        message = json.loads(text)
        return message if isinstance(message, dict) else None
    return None


class Table:
    """The lines so far: printed, and in two files that are written after each."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.markdown, self.lines = out / "speed.md", out / "speed.jsonl"
        self.lines.write_text("", encoding="utf-8")
        self.text = list[str]()

    def add(self, message: Message) -> None:
        """Add what a message says."""
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(message) + "\n")
        for text in self._rows(message):
            self.text.append(text)
            print(text, flush=True)
        self.markdown.write_text("\n".join([*self.text, ""]), encoding="utf-8")

    def _rows(self, message: Message) -> Iterator[str]:
        if "facts" in message and not self.text:
            yield ", ".join(f"{name} {value}" for name, value in message["facts"].items())
            yield ""
            yield "| work | measured | beside | reference | ratio | goal | reached |"
            yield "|--|--:|--|--:|--:|--|--|"
        if "line" in message:
            found = message["line"]
            yield Line(**found | {"goal": found["goal"] and Goal(*found["goal"])}).row()
        if "skipped" in message:
            yield f"| {message['row']} | skipped | {message['skipped']} | | | | |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="by default all")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timed calls, about")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    parser.add_argument("--here", action="store_true", help="in this process, without limits")
    parser.add_argument("--messages", metavar="ROWS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        torch.set_num_threads(1)
    effort = Effort(options.seconds, options.tiny)
    if options.messages is not None:
        for message in measured_here(options.messages.split(","), effort):
            print(json.dumps(message), flush=True)
        return
    names = options.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--rows: no {', '.join(unknown)}; there are {', '.join(ROWS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    table = Table(options.out)
    command = [sys.executable, __file__, "--seconds", str(options.seconds)]
    command += ["--tiny"] * options.tiny + ["--messages"]
    messages = (
        measured_here(names, effort)
        if options.here
        else measured_there(names, command, options.out / "speed.log")
    )
    for message in messages:
        table.add(message)


if __name__ == "__main__":
    main()
