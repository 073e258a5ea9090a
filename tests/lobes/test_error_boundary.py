"""What the machine and its files are to blame for becomes one line everywhere."""

import errno
import os
import subprocess
import sys

import pytest

from lobes import errors
from lobes.errors import explanation, user_errors_exit

#: A command that does what its argument says, and then prints.
PROGRAM = """
import json, os, pathlib, resource, signal, sys, zipfile
import ruamel.yaml
from lobes.errors import user_errors_exit
from lobes.system.files import write_atomically

@user_errors_exit
def main():
    exec(sys.argv[1])
    print("ü \\udcff")
    pathlib.Path("done").write_text("done")

main()
"""

FULL = (
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
)


def run(act, folder, stdout=None, **environment):
    """Status, standard error and standard output of the command."""
    output = subprocess.PIPE if stdout is None else stdout
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, act],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=output,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr, done.stdout


CASES = {
    "a disk that takes no more": (
        FULL + "write_atomically('out.json', 'x' * 99)",
        "out.json: File too large; no file may be so large there",
    ),
    "a full disk behind an open file": (
        FULL + "with open('out.txt', 'w', buffering=1) as file: file.write('x' * 99)",
        "out.txt: File too large; no file may be so large there",
    ),
    "an open file of other bytes than text": (
        "pathlib.Path('f').write_bytes(b'\\xff')\npathlib.Path('f').read_text()",
        "f cannot be read (UnicodeDecodeError: ",
    ),
    "an output below a file": (
        "pathlib.Path('f').write_text('')\nwrite_atomically('f/out.json', 'x')",
        "f: ",
    ),
    "an output where a folder stands": (
        "os.mkdir('f')\nwrite_atomically('f', 'x')",
        "f: Is a directory; a folder stands where a file belongs",
    ),
    "an output where nothing can be written": (
        "write_atomically('/proc/out/x.json', 'x')",
        "/proc/out: No such file or directory",
    ),
    "too little memory": ("bytearray(1 << 62)", "there is too little memory"),
    "broken JSON": ("json.loads('{')", "cannot be read (JSONDecodeError: "),
    "bytes that are no text": ("b'\\xff'.decode()", "(UnicodeDecodeError: "),
    "broken YAML": ("ruamel.yaml.YAML().load('[')", " cannot be read ("),
    "a zip that is none": (
        "pathlib.Path('f').write_text('f')\nzipfile.ZipFile('f')",
        "f cannot be read (BadZipFile: ",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.fault("C3", name, f"one line: {told}"))
        for name, (_, told) in CASES.items()
    ],
)
def test_one_line_and_status_2(name, tmp_path):
    act, told = CASES[name]
    status, said, output = run(act, tmp_path)
    assert status == 2 and not output
    assert said.startswith("error: ") and said.count("\n") == 1 and told in said


@pytest.mark.fault(
    "C3", "a defect of the program", "its traceback, and at the end where to report it"
)
def test_a_defect_says_where_to_report_it(tmp_path):
    status, said, _ = run("{}['a']", tmp_path)
    assert status == 1 and "KeyError: 'a'\n" in said
    assert said.splitlines()[-1].startswith("This is a defect of the program. Please")


def test_ctrl_c_is_no_traceback(tmp_path):
    assert run("raise KeyboardInterrupt", tmp_path)[:2] == (130, "stopped\n")


def test_ctrl_c_in_what_can_be_resumed_says_so(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        errors.resumable(main)()
    assert stop.value.code == errors.INTERRUPTED
    assert capsys.readouterr().err == "stopped; the same command goes on\n"


@pytest.mark.fault(
    "C7", "nobody reads the output any more (`| head -1`)", "the command goes on"
)
def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        status, said, _ = run("print('x' * 100000, flush=True)", tmp_path, writing)
    finally:
        os.close(writing)
    assert (status, said) == (0, "") and (tmp_path / "done").exists()


@pytest.mark.fault("C7", "a closed standard output (`>&-`)", "the command goes on")
def test_a_closed_output_ends_nothing(tmp_path):
    command = [sys.executable, "-c", PROGRAM, "pass"]
    script = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.fault("C7", "names with Unicode on an ASCII terminal", "written as \\xfc")
def test_an_ascii_terminal(tmp_path):
    status, said, output = run("pass", tmp_path, PYTHONIOENCODING="ascii")
    assert (status, said, output) == (0, "", "\\xfc \\udcff\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_output_on_a_full_disk_is_told(tmp_path):
    with open("/dev/full", "w") as full:
        status, said, _ = run("pass", tmp_path, full)
    assert status == 2 and said.startswith("error: standard output: No space left")
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", sorted(errors._REMEDIES))
def test_an_error_of_the_operating_system_has_a_remedy(number):
    error = OSError(number, os.strerror(number), "out/x.json")
    line = explanation(error)
    assert line.startswith(f"out/x.json: {os.strerror(number)}; ") and "\n" not in line


@pytest.mark.fault(
    "C3", "too little /dev/shm, in torch's words", "--shm-size=1g or --num_workers=0"
)
def test_torch_s_words_for_the_machine():
    for words, told in (
        ("unable to write to file </torch_12_3>: No space left (28)", "--shm-size=1g"),
        ("unable to allocate shared memory(shm) for file", "--num_workers=0"),
        ("Too many open files. Communication with", "ulimit -n"),
        ("DefaultCPUAllocator: can't allocate memory: you", "too little memory"),
        (
            "Caught OSError in DataLoader worker process 0.\nOriginal Traceback\n"
            "OSError: [Errno 24] Too many open files",
            "too many files are open (OSError: [Errno 24] Too many open files); raise",
        ),
        ("[enforce fail] . PytorchStreamWriter failed writing", "make room"),
    ):
        assert told in explanation(RuntimeError(words))
    wrapped = OSError("Caught OSError in DataLoader worker\nToo many open files")
    assert "ulimit -n" in explanation(wrapped)


def test_what_is_no_fault_of_the_machine_is_a_defect():
    for error in (
        ValueError("x"),
        KeyError("No space left on device"),
        RuntimeError("shape '[2]' is invalid"),
        OSError("of no number"),
        AssertionError(),
    ):
        assert explanation(error) is None


def test_a_remedy_of_torch_s_is_not_repeated():
    import pickle

    line = explanation(pickle.UnpicklingError("set weights_only to False"))
    assert "weights_only" not in line and "maybe code" in line


def test_an_error_that_names_two_files():
    error = OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b")
    assert explanation(error).startswith("a and b: Invalid cross-device link; ")


def test_the_exit_status_is_main_s_own():
    @user_errors_exit
    def main():
        raise SystemExit(75)

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 75
