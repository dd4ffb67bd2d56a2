"""The table of commands, and what follows from it: arguments, help, completion. And what `run` does not load."""

import subprocess
import sys
from pathlib import Path

import pytest

from ipvsproxy import cli
from ipvsproxy.commands.command_table import COMMANDS, LETTERS
from ipvsproxy.config.commandline import Grammar, WrongUsage, parse
from ipvsproxy.config.kinds import BOOL, choice
from ipvsproxy.config.table import BY_FLAG

DOCS = Path(__file__).parents[3] / "docs" / "commands.md"
LOOKING = [command for command in COMMANDS if command.run]


def test_the_proxy_loads_no_library_that_only_commands_use():
    """Seen in a process of its own, since tests load everything."""
    modules = "ipvsproxy.__main__, ipvsproxy.process.app, ipvsproxy.kube.manifests, ipvsproxy.kube.source"
    loaded = "[name for name in sys.modules if name.partition('.')[0] in ('dns', 'termcolor')]"
    code = f"import sys, {modules}; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_flags_with_letters_and_words():
    output = BY_FLAG["master"]._replace(flag="output", kind=choice("table", "json"))
    every = BY_FLAG["master"]._replace(flag="all", kind=BOOL)
    grammar = Grammar({"output": output, "all": every}, {"o": "output", "A": "all"}, positional=True)
    for given in (["-o", "json", "-A", "one"], ["one", "-A", "-ojson"], ["-A", "-o=json", "--", "one"]):
        parsed = parse(given, grammar)
        assert (parsed.values, parsed.positional) == ({"--output": "json", "--all": True}, ("one",))
    assert parse(["-"], grammar).positional == ("-",)
    for wrong in (["-o", "yaml"], ["-x"], ["-o"], ["--nope"]):
        with pytest.raises(WrongUsage):
            parse(wrong, grammar)


def test_own_flags_have_no_name_of_a_setting():
    for command in COMMANDS:
        assert not {row.flag for row in command.own} & BY_FLAG.keys(), command.name


@pytest.mark.parametrize("command", LOOKING, ids=lambda command: command.name)
def test_every_command_has_help_and_refuses_what_it_does_not_know(command, capsys):
    assert cli.main([command.name, "--help"]) == 0
    assert f"usage: ipvsproxy {command.name}" in capsys.readouterr().out
    assert cli.main([command.name, "--nonsense"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "Error: unknown flag: --nonsense", f"See 'ipvsproxy {command.name} --help'.",
    ]  # fmt: skip


def test_an_unknown_command_is_answered_with_the_known_ones(capsys):
    assert cli.main(["explian", "10.96.0.1:443"]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "Error: unknown command: explian; did you mean explain?"
    helps = [line.partition(command.help)[0] for command in COMMANDS for line in lines if command.help in line]
    assert len(helps) == len(COMMANDS)
    assert len(set(map(len, helps))) == 1, "one column"
    assert len(lines) < 2 * len(COMMANDS), "no list of all flags"


@pytest.mark.parametrize("command", LOOKING, ids=lambda command: command.name)
def test_every_command_and_flag_is_documented(command):
    section = DOCS.read_text().partition(f"\n## {command.name}\n")[2].partition("\n## ")[0]
    assert section
    for row in command.own:
        spellings = [f"--{row.flag}", *([f"`-{LETTERS[row.flag]}"] if row.flag in LETTERS else [])]
        assert any(spelling in section for spelling in spellings), row.flag


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_completion_is_for_one_known_shell(words, capsys):
    assert cli.main(["completion", *words]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_flag(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        assert command.name in script
        for flag in command.flags:
            assert (f"-l {flag}" if shell == "fish" else f"--{flag}") in script


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("ipvsproxy comp", ["completion"]),
        ("ipvsproxy completion ", ["bash", "zsh", "fish"]),
        ("ipvsproxy run --cluster-c", ["--cluster-cidr"]),
    ],
)
def test_bash_completes(line, wanted, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = line.split(" ")
    asked = f"COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}'); COMP_CWORD={len(words) - 1}; _ipvsproxy"
    done = subprocess.run(
        ["bash", "-c", f'{script}\n{asked}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == wanted


def test_help_is_what_the_flag_prints(capsys):
    assert cli.main(["--help"]) == 0
    every = capsys.readouterr().out
    for words in (["help"], ["help", "help"], ["help", "--help"]):
        assert cli.main(words) == 0
        assert capsys.readouterr().out == every
    assert cli.main(["doctor", "--help"]) == 0
    of_doctor = capsys.readouterr().out
    assert cli.main(["help", "doctor"]) == 0
    assert capsys.readouterr().out == of_doctor
    assert cli.main(["help", "doktor"]) == 2
    assert capsys.readouterr().err.startswith("Error: unknown command: doktor; did you mean doctor?\n")
