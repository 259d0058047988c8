import json
import subprocess
import sys
import time

import pytest

from hf_lpwd import __version__
from hf_lpwd.cli import main
from hf_lpwd.messages import BadInputError, refuse

HEAVY = ("torch", "transformers", "datasets", "accelerate", "timm", "evaluate", "sklearn", "numpy")


def test_help_imports_nothing_heavy_and_answers_in_under_a_second():
    code = (
        "import sys; from hf_lpwd.cli import main; main(['--help']);"
        f"assert not [m for m in {HEAVY!r} if m in sys.modules]"
    )
    start = time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 1.0
    assert "train" in answer.stdout
    assert "explain" in answer.stdout


@pytest.mark.parametrize("command", ["push", "space", "card"])
def test_commands_that_need_no_model_import_nothing_heavy_first(command):
    code = (
        "import sys; from hf_lpwd.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not [m for m in ('torch', 'transformers', 'accelerate', 'scipy') if m in sys.modules]"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith(f"usage: hf-lpwd {command}")


def test_bad_flags_are_refused_before_the_trainer_is_imported():
    code = (
        "import sys; from hf_lpwd.cli import main\n"
        "try: main(['train', '--weight_decay', '-1'])\n"
        "except SystemExit as end: assert end.code == 2\n"
        "assert not [m for m in ('transformers.trainer', 'datasets', 'timm', 'evaluate') if m in sys.modules]"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stderr.splitlines() == [
        "hf-lpwd train: error: weight_decay is -1.0, but must be finite and >= 0"
    ]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "hf-lpwd: error: unknown command 'trian': did you mean 'train'?\n"),
        (["explain", "vitt"], "hf-lpwd explain: error: unknown model 'vitt': did you mean 'vit'?\n"),
        (
            ["explain", "vit", "--layer_schedule", "0,1"],
            "hf-lpwd explain: error: layer_schedule lists 2 rates, but the model has 14 layer indices "
            "(0, the stem, to 13, the head)\n",
        ),
        (
            ["explain", "vit", "--config_overrides", "num_hidden_layer=2"],
            "hf-lpwd explain: error: config_overrides: unknown vit setting 'num_hidden_layer': "
            "did you mean 'num_hidden_layers'?\n",
        ),
        (
            ["explain", "vit", "--no_decay_pattern", "nothing"],
            "hf-lpwd explain: error: no_decay_pattern 'nothing' matches no parameter; names are like "
            "'vit.embeddings.cls_token'\n",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_without_a_command_it_shows_the_usage_and_fails(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: hf-lpwd COMMAND")


def test_of_several_processes_the_first_says_what_is_wrong_and_tells_the_launcher(
    tmp_path, monkeypatch, capsys
):
    """torchrun gives each process a file for its error, in folders of one for the launch."""
    files = [tmp_path / "attempt_0" / rank / "error.json" for rank in "01"]
    for file in files:
        file.parent.mkdir(parents=True)
    line = "hf-lpwd: error: unknown command 'trian': did you mean 'train'?"
    for file, printed in ((files[1], f"{line}\n"), (files[0], "")):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        assert main(["trian"]) == 2
        assert capsys.readouterr().err == printed
    told = json.loads(files[1].read_text())["message"]
    assert (told["message"], told["extraInfo"]["py_callstack"]) == (line, line)
    assert abs(int(told["extraInfo"]["timestamp"]) - time.time()) < 60
    assert not files[0].exists()
    assert main(["tran"]) == 2
    assert capsys.readouterr().err == line.replace("trian", "tran") + "\n"


def test_that_another_process_has_ended_is_not_said_after_its_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "0" / "error.json"))
    (tmp_path / "attempt_0" / "0").mkdir(parents=True)
    closed = "RuntimeError: Connection closed by peer [127.0.0.1]:19363"
    # What gloo says is all that is known of a process that was killed.
    assert refuse("hf-lpwd", closed) == 2
    assert capsys.readouterr().err == f"hf-lpwd: error: {closed}\n"
    assert refuse("hf-lpwd", closed.replace("19363", "19364")) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("file", ["error.json", "/no/such/folder/error.json"])
def test_what_is_wrong_is_said_even_where_the_launcher_cannot_be_told(file, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "hf-lpwd: error: unknown command 'trian': did you mean 'train'?\n"


def test_what_nobody_foresaw_is_one_line_with_the_errors_own_words(monkeypatch, capsys):
    from hf_lpwd.commands import train

    def fail(argv):
        raise error

    monkeypatch.setattr(train, "main", fail)
    for error, line in (
        (KeyError("width"), "KeyError: 'width' (--traceback shows where)"),
        (ZeroDivisionError(), "ZeroDivisionError: ZeroDivisionError (--traceback shows where)"),
        (ImportError("no wandb\nhere"), "no wandb here (--traceback shows where)"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied (PermissionError)"),
        (BadInputError("no such folder: x"), "no such folder: x"),
        (RuntimeError("a" * 999), f"RuntimeError: {'a' * 223}... (--traceback shows where)"),
    ):
        assert main(["train", "--seed", "1"]) == 2
        assert capsys.readouterr().err == f"hf-lpwd train: error: {line}\n"
        with pytest.raises(type(error)):
            main(["train", "--traceback", "--seed", "1"])


@pytest.mark.parametrize("argv", [["--help"], ["explain", "vit"]])
def test_a_reader_that_goes_ends_it_without_a_word(argv):
    command = [sys.executable, "-m", "hf_lpwd", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (141, "")
