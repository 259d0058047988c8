import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata

import pytest
from hub_server import Failure
from huggingface_hub import SpaceCard
from PIL import Image
from sklearn.datasets import load_digits

from hf_lpwd.cli import main
from hf_lpwd.vision.hub.space import GRADIO, write_space

# huggingface_hub 2.4 sends LFS files with an argument that its HTTP client calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {
    "README.md",
    "app.py",
    "model/config.json",
    "model/layer_rates.json",
    "model/model.safetensors",
    "model/preprocessor_config.json",
    "requirements.txt",
}


def train(folder, epochs, *flags):
    argv = ["train", "--output_dir", str(folder), "--num_train_epochs", str(epochs), "--report_to", "none"]
    assert main([*argv, "--disable_tqdm", "True", "--model_license", "mit", *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "digits", 1, "--max_train_samples", "40")


def test_it_holds_app_requirements_metadata_and_model(run, tmp_path, capsys):
    out = tmp_path / "my space"
    assert main(["space", str(run), "--out", str(out)]) == 0
    assert (
        capsys.readouterr().out
        == f"run it: pip install -r '{out}'/requirements.txt && python '{out}'/app.py\n"
    )
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == FILES
    data = SpaceCard.load(out / "README.md").data
    assert (data.title, data.sdk, data.app_file, data.license) == ("digits", "gradio", "app.py", "mit")
    assert (data.sdk_version, data.python_version) == (GRADIO, f"3.{sys.version_info.minor}")
    torch = metadata.version("torch").split("+")[0]
    pins = (out / "requirements.txt").read_text().splitlines()
    assert pins[:2] == [f"gradio=={GRADIO}", f"torch=={torch}"]
    assert [pin.split("==")[0] for pin in pins] == ["gradio", "torch", "torchvision", "transformers"]
    assert (out / "model" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert main(["space", str(run), "--out", str(out)]) == 0


def test_a_timm_model_needs_timm(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "timm_wrapper"}))
    write_space(folder, tmp_path / "space")
    assert (
        f"timm=={metadata.version('timm')}"
        in (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    )


def test_a_run_of_an_older_release_is_refused(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    rates = json.loads((folder / "layer_rates.json").read_text())
    (folder / "layer_rates.json").write_text(json.dumps({"layers": rates["layers"]}))
    with pytest.raises(ValueError, match="older release"):
        write_space(folder, tmp_path / "space")


def test_what_is_no_run_or_no_space_is_refused(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    for argv, message in (
        (["nowhere"], "nowhere holds no trained model: name the output_dir of a run of hf-lpwd train"),
        ([str(run), "--out", str(tmp_path / "full")], f"{tmp_path / 'full'} is not empty and holds no app"),
        ([str(run), "--private"], "private and token are for push: give --push REPO_ID too"),
        ([str(run), "--push", "a/b/c"], "Repo id must be in the form"),
    ):
        assert main(["space", *argv]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"hf-lpwd space: error: {message}")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


def test_what_the_file_system_refuses_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out, reason in (
        (tmp_path / "file" / "space", "Not a directory (NotADirectoryError)"),
        (tmp_path / "loop", "File exists (FileExistsError)"),
        (tmp_path / "loop" / "space", "Too many levels of symbolic links (OSError)"),
        (tmp_path / ("long" * 100), "File name too long (OSError)"),
    ):
        assert main(["space", str(run), "--out", str(out)]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"hf-lpwd space: error: {tmp_path}")
        assert error.endswith(f": {reason}")
    assert main(["space", str(tmp_path / ("long" * 100))]) == 2
    assert capsys.readouterr().err.endswith(": File name too long (OSError)\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_it_is_pushed_as_a_space(run, hub, tmp_path, capsys):
    argv = ["space", str(run), "--out", str(tmp_path / "space"), "--push", "user/demo", "--private"]
    hub.failures.append(Failure("/commit/", 403))
    assert main(argv) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "hf-lpwd space: error: not pushed to user/demo: this token has no write permission there "
        "(403: as asked); "
        "the same command tries again"
    )
    hub.failures.clear()
    assert main(argv) == 0
    repo = hub.repos["spaces/user/demo"]
    assert repo.private
    assert repo.files("main") == {name: (tmp_path / "space" / name).read_bytes() for name in FILES}


def test_the_tested_gradio_is_the_one_that_the_space_asks_for():
    assert metadata.version("gradio") == GRADIO


def wait_for(port, process):
    """Waits until the app listens, and fails with its output if it ends first."""
    for _ in range(240):
        if process.poll() is not None:
            pytest.fail(f"the app ended: {process.stderr.read()}")
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail("the app did not listen within two minutes")


@pytest.mark.slow
def test_an_image_is_classified_in_the_browser(tmp_path):
    """Debian's chromium, and the app in a process of its own, as a user runs it."""
    from playwright.sync_api import expect, sync_playwright
    from transformers import pipeline

    chromium = shutil.which("chromium")
    assert chromium, "this test needs Debian's chromium: apt-get install chromium"
    folder = train(tmp_path / "digits", 15)
    assert main(["space", str(folder)]) == 0
    digits = load_digits()
    classify = pipeline("image-classification", model=str(folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    app = subprocess.Popen(
        [sys.executable, str(folder / "space" / "app.py")], env=environment, stderr=subprocess.PIPE, text=True
    )
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    try:
        wait_for(port, app)
        with sync_playwright() as browsers:
            window = browsers.chromium.launch_persistent_context(
                str(tmp_path / "profile"), executable_path=chromium, args=flags, headless=True
            )
            page = window.pages[0]
            page.goto(f"http://127.0.0.1:{port}")
            expect(page.get_by_label("Drop an image file here to upload")).to_be_visible(timeout=60_000)
            for row in (3, 8):
                path = tmp_path / f"{row}.png"
                Image.fromarray((digits.images[row] * 15.9).astype("uint8")).save(path)
                best = classify(str(path))[0]
                if row != 3:
                    page.get_by_label("Remove Image").click()
                page.locator("input[type=file]").first.set_input_files(path)
                expect(page.get_by_test_id("label-output-value")).to_have_text(best["label"], timeout=60_000)
                score = page.get_by_test_id(f"{best['label']}-confidence-set")
                expect(score).to_contain_text(f"{round(100 * best['score'])}%")
            expect(page.get_by_text("block vit.layers.2").first).to_be_visible()
            page.screenshot(path=tmp_path / "space.png", full_page=True)
            window.close()
    finally:
        app.kill()
        app.communicate()
