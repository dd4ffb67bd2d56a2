"""What takes long says that it goes on (tools/progress.sh)."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

from tests.support.programs import Script


def first_line(process: subprocess.Popen[str], words: str) -> str:
    """The first line with these words; before it, the step may not have come to anything yet."""
    return next(line for line in process.stdout if words in line)


def test_a_long_step_reports_what_it_does_and_what_it_has_come_to(script: Script, tmp_path: pathlib.Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    step = f'with_progress "fetching" {tmp_path}/log sh -c "echo first part; read line <{gate}"; echo after'
    process = script(step)
    assert process.stdout.readline() == "fetching\n"
    assert re.fullmatch(r"fetching: \d+ s, first part\n", first_line(process, "part"))
    gate.write_text("go on\n")
    rest = process.stdout.read().splitlines()
    assert rest[-1] == "after"
    assert all(line.startswith("fetching: ") for line in rest[:-1])
    assert process.wait() == 0


def test_a_step_can_count_what_it_has_done(script: Script, tmp_path: pathlib.Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    count = 'count() { echo "$(grep -c part "$1") parts"; }'
    step = (
        f'PROGRESS=count with_progress "fetching" {tmp_path}/log sh -c "echo part; echo part; read line <{gate}"'
    )
    process = script(f"{count}; {step}")
    assert process.stdout.readline() == "fetching\n"
    assert re.fullmatch(r"fetching: \d+ s, 2 parts\n", first_line(process, "2 parts"))
    gate.write_text("go on\n")
    process.stdout.read()
    assert process.wait() == 0


def test_a_step_that_fails_shows_the_end_of_its_log_and_ends_the_tool(
    script: Script, tmp_path: pathlib.Path
) -> None:
    step = f'with_progress "fetching" {tmp_path}/log sh -c "echo no such thing >&2; exit 3"; echo after'
    process = script(step, PROGRESS_SECONDS="3600")
    assert process.stdout.read() == "fetching\nno such thing\n"
    assert process.wait() == 3


def test_lines_end_with_a_tool_that_was_killed(script: Script, tmp_path: pathlib.Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    process = script(f'with_progress "fetching" {tmp_path}/log sh -c "read line <{gate}"')
    assert process.stdout.readline() == "fetching\n"
    process.stdout.readline()  # by now the command runs
    process.kill()
    process.wait()
    process.stdout.read()  # comes to its end only when nobody has it open
    gate.write_text("go on\n")


def test_a_second_run_waits_for_the_first(script: Script, tmp_path: pathlib.Path) -> None:
    lock, gate = tmp_path / "lock", tmp_path / "gate"
    os.mkfifo(gate)
    first = script(f"one_at_a_time {lock}; echo first; read line <{gate}")
    assert first.stdout.readline() == "first\n"
    second = script(f"one_at_a_time {lock}; echo second")
    assert second.stdout.readline().startswith("waiting for another run of ")
    gate.write_text("go on\n")
    assert second.stdout.read().splitlines()[-1] == "second"
