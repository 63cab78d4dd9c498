"""The command `starflow`, driven with commands installed for the test the way any command is: as entry points."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from starflow.runtime import command_line
from starflow.runtime.command_line import main
from starflow.runtime.plain.install_hint import install_hint

HELLO = '''"""Greet somebody.

Example:
    starflow hello --name you
        (indented as it stands here)
"""

def configure(parser):
    parser.add_argument("--name", required=True, help="whom to greet")

def run(arguments):
    print(f"hello {arguments.name}")
    return 0
'''

# Stands for a command of the runtime that does something the test names.
TEMPLATE = '''"""A command for tests."""
from starflow.runtime.plain.errors import *

def configure(parser):
    pass

def run(arguments):
{body}
'''

Install = Callable[[str, str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that installs a command from its name and its source, and returns the folder to import it from."""
    metadata = tmp_path / "commands_for_tests-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: commands-for-tests\nVersion: 1.0\n")
    points = metadata / "entry_points.txt"
    points.write_text("[starflow.commands]\n")
    monkeypatch.syspath_prepend(tmp_path)

    def add(name: str, source: str) -> Path:
        module = f"command_for_tests_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        with points.open("a") as file:
            file.write(f"{name} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        return tmp_path

    return add


def body(*lines: str) -> str:
    return TEMPLATE.format(body="\n".join(f"    {line}" for line in lines))


def test_arguments_reach_the_command_and_its_status_comes_back(install: Install, capsys) -> None:
    install("hello", HELLO)
    install("seven", body("return 7"))
    assert main(["hello", "--name", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"
    assert main(["seven"]) == 7


def test_only_the_command_asked_for_is_imported(install: Install) -> None:
    install("hello", HELLO)
    install("other", "raise RuntimeError('imported although nobody asked')")
    assert main(["hello", "--name", "world"]) == 0


def test_help_lists_every_command_and_why_one_is_unavailable(install: Install, capsys) -> None:
    install("hello", HELLO)
    install("broken", "import no_such_package")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  hello +Greet somebody\.$", out, re.MULTILINE)
    assert re.search(r"^  broken +\(unavailable: No module named 'no_such_package'\)$", out, re.MULTILINE)


def test_help_groups_commands_by_what_they_do(install: Install, capsys) -> None:
    install("hello", HELLO)
    assert main(["--help"]) == 0
    parts = [part.splitlines() for part in capsys.readouterr().out.split("\n\n")]
    topics = {lines[0]: [line.split()[0] for line in lines[1:]] for lines in parts if lines[0].endswith(":")}
    assert topics["train a model, or import one:"] == ["import", "init", "train"]
    assert topics["make a bundle faster:"] == ["calibrate", "distill"]
    assert {"bench", "inspect", "sample", "score"} <= set(topics["use a bundle and measure it:"])
    assert topics["other commands:"] == ["hello"]


@pytest.mark.parametrize("command", ["sample", "bench"])
def test_options_are_grouped_by_topic_and_family(capsys, command: str) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    usage, *_ = out.partition("\n")
    assert usage == f"usage: starflow {command} BUNDLE [options]"
    order = [
        "output:",
        "how it runs:",
        "decoding of autoregressive flows:",
        "--plan",
        "integration of continuous flows:",
    ]
    places = [out.index(f"\n{heading}" if heading.endswith(":") else f"\n  {heading}") for heading in order]
    assert places == sorted(places) and places[-1] < out.index("\n  --solver")
    assert "--variant NAME" in out and "--variants" not in out, "the alias is hidden"


def test_usage_names_what_has_to_be_given(install: Install, capsys) -> None:
    source = HELLO.replace(
        "    parser.add", "    parser.add_argument('greeting'); parser.add_argument('names', nargs='+'); parser.add"
    )
    install("hello", source)
    assert main(["hello", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: starflow hello GREETING NAMES ... --name NAME [options]\n")


def test_no_command_is_wrong_use(capsys) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: starflow COMMAND")


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"starflow {version('starflow-compiler')}\n"


def test_help_of_a_command_is_its_docstring_as_written(install: Install, capsys) -> None:
    install("hello", HELLO)
    assert main(["hello", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: starflow hello")
    assert "Example:\n    starflow hello --name you\n        (indented as it stands here)\n" in out
    assert "whom to greet" in out


@pytest.mark.parametrize("arguments", [["hello"], ["hello", "--name", "a", "--nmae", "b"], ["hello", "--na", "a"]])
def test_wrong_arguments_exit_2(install: Install, capsys, arguments: list[str]) -> None:
    install("hello", HELLO)
    assert main(arguments) == 2
    assert "starflow hello: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("helo", "starflow: error: unknown command helo; did you mean hello?\n"),
        ("xyzzy", "starflow: error: unknown command xyzzy; see starflow --help\n"),
        ("--verson", "starflow: error: unknown option --verson; see starflow --help\n"),
    ],
)
def test_unknown_command_suggests_the_nearest(install: Install, capsys, word: str, message: str) -> None:
    install("hello", HELLO)
    assert main([word]) == 2
    assert capsys.readouterr().err == message


def test_an_unknown_option_of_a_command_suggests_the_nearest(install: Install, capsys) -> None:
    install("hello", HELLO)
    assert main(["hello", "--nmae=you"]) == 2
    assert capsys.readouterr().err == "starflow hello: error: unknown option --nmae; did you mean --name?\n"
    assert main(["hello"]) == 2
    assert capsys.readouterr().err == "starflow hello: error: missing: --name; see starflow hello --help\n"


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        ("FileNotFoundError(2, 'No such file or directory', 'a.npy')", 2, "a.npy: No such file or directory"),
        ("PermissionError(13, 'Permission denied', 'a.npy')", 1, "a.npy: Permission denied"),
    ],
)
def test_a_refusal_of_the_system_is_one_line(install: Install, capsys, raised: str, status: int, said: str) -> None:
    install("fails", body(f"raise {raised}"))
    assert main(["fails"]) == status
    assert capsys.readouterr().err == f"starflow fails: error: {said}\n"


@pytest.mark.parametrize(("error", "status"), [("BundleError", 1), ("UsageError", 2)])
def test_known_errors_are_one_line(install: Install, capsys, error: str, status: int) -> None:
    install("fails", body(f"raise {error}('manifest.json: found 3, expected 4')"))
    assert main(["fails"]) == status
    assert capsys.readouterr().err == "starflow fails: error: manifest.json: found 3, expected 4\n"


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("raise ZeroDivisionError", "ZeroDivisionError"),
        ("int('x' * 10)", "ValueError: invalid literal for int() with base 10: 'xxxxxxxxxx'"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
        ("(lambda f: f(f))(lambda f: f(f))", "RecursionError: maximum recursion depth exceeded"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        (
            "raise type('PanicException', (BaseException,), {})('index out of bounds')",
            "PanicException: index out of bounds",
        ),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_anything_else_is_one_line_that_says_how_to_see_more(
    install: Install, capsys, statement: str, found: str, debug: bool, before: bool
) -> None:
    install("fails", body(statement))
    option = ["--debug"] if debug else []
    assert main([*option, "fails"] if before else ["fails", *option]) == 1
    *trace, line = capsys.readouterr().err.splitlines()
    assert line == f"starflow fails: error: internal error: {found}; --debug shows where it happened"
    assert bool(trace) == debug
    if debug:
        assert trace[0] == "Traceback (most recent call last):" and any(
            "command_for_tests_fails.py" in each for each in trace
        )


def test_debug_shows_where_a_known_error_happened(install: Install, capsys) -> None:
    install("fails", body("raise UsageError('found 3, expected 4')"))
    assert main(["fails", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "in run" in error and error.endswith("\nstarflow fails: error: found 3, expected 4\n")


def test_debug_after_two_dashes_is_an_argument(install: Install, capsys) -> None:
    source = HELLO.replace("    parser.add", "    parser.add_argument('greeting'); parser.add")
    install("hello", source)
    assert main(["hello", "--name", "x", "--", "--debug"]) == 0
    assert capsys.readouterr().out == "hello x\n"


def test_too_little_memory_is_one_line(install: Install, capsys) -> None:
    install("fails", body("bytearray(1 << 62)"))
    assert main(["fails"]) == 1
    assert capsys.readouterr().err == (
        "starflow fails: error: there is not enough memory; give less at once, or use a larger machine\n"
    )


@pytest.mark.parametrize(
    ("statement", "package", "extra"),
    [
        ("import torch.nn", "torch", "export"),
        ("import onnx", "onnx", "export"),
        ("from tensorrt import Logger", "tensorrt", "tensorrt"),
        ("import transformers", "transformers", "text"),
    ],
)
def test_missing_package_names_the_extra(
    install: Install, capsys, monkeypatch: pytest.MonkeyPatch, statement: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # how Python marks a package that cannot be imported
    install("needy", body(statement))
    assert main(["needy"]) == 1
    assert capsys.readouterr().err == (
        f"starflow needy: error: needs the package {package}, which is not installed: {install_hint(extra)}\n"
    )


def test_missing_package_of_a_training_command_names_train() -> None:
    (train,) = entry_points(group="starflow.commands", name="train")
    assert command_line._extra_for(train, "torch") == "train"


def test_interrupt_is_one_line(install: Install, capsys) -> None:
    install("stops", body("raise KeyboardInterrupt"))
    assert main(["stops"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing half-written is left\n"


def start(folder: Path, command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "starflow.runtime", command],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_process_leaves_nothing_half_written(install: Install, stop: signal.Signals) -> None:
    folder = install(
        "writes",
        body(
            "import pathlib, time",
            "from starflow.runtime.plain.atomic_write import atomic_folder",
            "from starflow.runtime.plain.own_folder import BUNDLE",
            "with atomic_folder('result', BUNDLE, replace=False) as temporary:",
            "    (temporary / 'half').touch()",
            "    print('ready', flush=True)",
            "    time.sleep(60)",
        ),
    )
    before = {path.name for path in folder.iterdir()} | {"__pycache__"}
    process = start(folder, "writes")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(stop)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted; nothing half-written is left\n"
    assert {path.name for path in folder.iterdir()} <= before


@pytest.mark.parametrize(
    "rest",
    [
        ["for line in range(100_000):", "    print(line)"],  # fails in the midst of the command
        ["print('last words')"],  # fails when the buffer is flushed, after it
    ],
)
def test_reader_that_goes_away_is_no_news(install: Install, rest: list[str]) -> None:
    wait = "import sys; print('ready', flush=True); sys.stdin.read()"
    folder = install("talks", body(wait, *rest, "return 0"))
    process = start(folder, "talks")
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=30) == 1


# What a shell closes, and what the process then says on the other stream.
@pytest.mark.parametrize(
    ("closed", "command", "status", "said"),
    [
        (">&-", "talks", 1, "starflow talks: error: output: not writable\n"),
        ("<&- >&-", "talks", 1, "starflow talks: error: output: not writable\n"),
        (">&-", "talks --help", 1, "starflow talks: error: output: not writable\n"),
        (">&-", "tables", 1, "starflow tables: error: output: not writable\n"),
        (">&-", "whispers", 0, "y\n"),
        (">&-", "fails", 2, "starflow fails: error: found 3, expected 4\n"),
        (">&- 2>&-", "talks", 1, ""),
        ("2>&-", "talks", 0, "words\n"),
        ("2>&-", "whispers", 0, ""),
        (">/dev/full", "talks", 1, "starflow talks: error: output: No space left on device\n"),
        (">/dev/full", "talks --help", 1, "starflow talks: error: output: No space left on device\n"),
        (">/dev/full", "tables", 1, "starflow tables: error: output: No space left on device\n"),
        ("2>&-", "fails", 2, ""),
        (">&- 2>&-", "fails", 2, ""),
    ],
)
def test_closed_streams(install: Install, closed: str, command: str, status: int, said: str) -> None:
    folder = install("talks", body("print('words')", "return 0"))
    install("fails", body("raise UsageError('found 3, expected 4')"))
    install("tables", body("from starflow.runtime.plain.terminal import Terminal", "Terminal().print('x')", "return 0"))
    bar = "from starflow.runtime.plain.progress import progress_bar"
    install("whispers", body("import sys", bar, "with progress_bar('x'): print('y', file=sys.stderr)", "return 0"))
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m starflow.runtime {command} {closed}', sys.executable],
        cwd=folder,
        env={"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (status, said)


def test_a_file_does_not_get_the_number_of_a_closed_stream(install: Install, tmp_path: Path) -> None:
    """What is printed to standard output by its number would end in the file otherwise."""
    folder = install("writes", body("import os", "file = open('result', 'wb')", "assert file.fileno() > 2", "return 0"))
    done = subprocess.run(
        ["sh", "-c", '"$0" -m starflow.runtime writes >&-', sys.executable],
        cwd=folder,
        env={"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


ORDERS = "\x1b[31m", "\x9b2J", "\x1b]0;title\x07", "\r", "\b", "\x7f", "\u202e", "\u2066", "\u2028"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("how", ["print", "sys.stderr.write", "error", "Terminal", "Text", "table"])
def test_no_text_gives_the_terminal_orders(install: Install, capsys, order: str, how: str) -> None:
    text = f"before{order}after"
    code = {
        "print": [f"print({text!r})"],
        "sys.stderr.write": ["import sys", f"sys.stderr.write({text!r})"],
        "error": [f"raise UsageError({text!r})"],
        "Terminal": ["from starflow.runtime.plain.terminal import Terminal", f"Terminal().print({text!r})"],
        "Text": [
            "from rich.text import Text",
            "from starflow.runtime.plain.terminal import Terminal",
            f"Terminal().print(Text({text!r}))",
        ],
        "table": [
            "from starflow.runtime.plain.terminal import Terminal",
            "from starflow.runtime.reports.tables import plain_table",
            "table = plain_table('a')",
            f"table.add_row({text!r})",
            "Terminal(soft_wrap=True).print(table)",
        ],
    }
    install("talks", body(*code[how], "return 0"))
    main(["talks"])
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "before" in said and "after" in said
    # Rich's own texts drop some of them.
    assert order.encode("unicode_escape").decode() in said or (how == "Text" and order[0] in "\r\b\x1b")
    assert not set(said) & set("\x1b\x9b\x07\r\b\x7f\u202e\u2066\u2028")


def test_markup_in_a_text_is_text(install: Install, capsys) -> None:
    code = "from starflow.runtime.plain.terminal import Terminal"
    install("talks", body(code, "Terminal().print('[/x] [red]a[/red] :smile:')", "return 0"))
    assert main(["talks"]) == 0
    assert capsys.readouterr().out == "[/x] [red]a[/red] :smile:\n"


def test_no_table_is_printed_on_another_console(repository: Path) -> None:
    """Rich's own Console obeys what it prints."""
    for folder in ("runtime", "training", "export", "calibration"):
        for file in (repository / folder).rglob("*.py"):
            assert "rich.console" not in file.read_text() or file.name == "terminal.py", file


def test_a_name_that_is_not_utf8_is_printed(install: Install, capsys) -> None:
    install("talks", body("print('\\udc80')", "raise UsageError('\\udc80')"))
    assert main(["talks"]) == 2
    assert capsys.readouterr() == ("\\udc80\n", "starflow talks: error: \\udc80\n")


def test_a_message_is_one_line_of_bounded_length(install: Install, capsys) -> None:
    install("fails", body("raise UsageError('a\\nb' + 'x' * 10_000)"))
    assert main(["fails"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("starflow fails: error: a\\nbxx") and error.count("\n") == 1 and len(error) < 2100


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["--count", "9" * 5000], f"found '{'9' * 80}...', expected a whole number of at most 19 digits;"),
        (
            ["--count", "10" + "0" * 19],
            "error: --count: found '100000000000000000000', expected a whole number of at most 19 digits;",
        ),
        (["--count=-" + "1_0" * 10], "expected a whole number of at most 19 digits;"),
        (["--count", "9" * 5000 + "x"], "expected a whole number;"),
        (["--count", "\u00b2"], "found '\u00b2', expected a whole number;"),
        (["--count", "\u0663"], "found '\u0663', expected a whole number;"),
        (["--weight", "nan"], "found 'nan', expected a finite number;"),
        (["--weight", "1e999"], "found '1e999', expected a finite number;"),
        (["--weight", "strong"], "found 'strong', expected a number;"),
    ],
)
def test_numbers_beyond_reason(install: Install, capsys, given: list[str], found: str) -> None:
    source = HELLO.replace(
        "    parser.add",
        "    parser.add_argument('--count', type=int); parser.add_argument('--weight', type=float); parser.add",
    )
    install("hello", source)
    assert main(["hello", "--name", "x", *given]) == 2
    error = capsys.readouterr().err
    assert found in error and error.count("\n") == 1 and len(error) < 2100


def test_every_command_of_ours_is_there_and_cheap_to_list() -> None:
    """`starflow --help` imports all commands, so none of them may import torch or onnx at its top."""
    code = (
        "import sys; from starflow.runtime.command_line import main; main(['--help']); "
        "print('heavy:', *sorted({'torch', 'onnx', 'sklearn', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "(unavailable" not in out
    assert out.splitlines()[-1] == "heavy:"


@pytest.mark.parametrize(
    "command", sorted(entry.name for entry in entry_points(group="starflow.commands") if "starflow." in entry.module)
)
def test_help_of_every_command_of_ours_has_an_example(capsys, command: str) -> None:
    assert main([command, "--help"]) == 0
    _, _, example = capsys.readouterr().out.partition("Example")
    assert f"starflow {command} " in example
