"""The page of `examples/web` in a real browser: it samples what Python samples."""

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.normal_numbers import normal_numbers

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SKIPPED = 3  # exit status of build.sh where something is missing
CLOSE = 1e-4  # float32, whose sums WebAssembly adds in another order
ROUNDED = 1.0  # mean difference in levels of 255: with 8 bits, other sums round to other codes
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in float32 for one image at a time."""
    bundle = tmp_path_factory.mktemp("tiny") / "bundle"
    export_checkpoint(tiny_checkpoint, bundle, ExportOptions(batch=(1,)))
    return bundle


@pytest.fixture(scope="module")
def page(repository: Path, tiny: Path) -> Iterator[Page]:
    """The page, and the tiny bundle beside its own."""
    folder = repository / "build/web"
    shutil.rmtree(folder / "tiny", ignore_errors=True)
    built = subprocess.run([repository / "examples/web/build.sh", folder], capture_output=True, text=True)
    if built.returncode == SKIPPED:
        pytest.skip(built.stdout.strip())
    assert built.returncode == 0, built.stderr
    shutil.copytree(tiny, folder / "tiny")
    handler = functools.partial(_Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            opened = browser.new_page()
            opened.set_default_timeout(120_000)
            errors: list[str] = []
            opened.on("pageerror", lambda error: errors.append(str(error)))
            opened.goto(f"http://127.0.0.1:{server.server_address[1]}/")
            opened.wait_for_function("!document.getElementById('state').textContent.startsWith('Loading')")
            assert opened.inner_text("#state") == "Ready."
            yield opened
            assert not errors
            browser.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_numbers_are_those_of_the_manual(page: Page) -> None:
    for seed, image in ((0, 0), (7, 3), (2**64 - 1, 2**63)):
        script = f"import('./normal_numbers.js').then(it => Array.from(it.normalNumbers({seed}n, {image}n, 2001)))"
        found = np.array(page.evaluate(script), np.float32)
        np.testing.assert_array_equal(found, normal_numbers(seed, image, 2001))


@pytest.mark.parametrize(("label", "guidance", "seed"), [(3, 2.0, 7), (8, 0.0, 12)])
def test_it_samples_what_python_samples(page: Page, tiny: Path, label: int, guidance: float, seed: int) -> None:
    opened = "import('./sampler.js').then(it => it.Sampler.open('tiny'))"
    sampled = f"{opened}.then(it => it.sample({label}, {guidance}, {seed})).then(data => Array.from(data))"
    found = page.evaluate(sampled)
    with Sampler.open(tiny, variant="cpu-fp32", threads=1) as sampler:
        expected = sampler.generate(sampler.noise(1, seed), [label], guidance=guidance)
    np.testing.assert_allclose(np.array(found).reshape(expected.shape), expected, rtol=0, atol=CLOSE)


def test_the_form_draws_the_picture(page: Page) -> None:
    page.fill("#label", "5")
    page.fill("#seed", "11")
    page.click("button")
    page.wait_for_function("document.getElementById('state').textContent.endsWith('s.')")
    script = (
        "const c = document.getElementById('picture'); Array.from(c.getContext('2d').getImageData(0, 0, 28, 28).data)"
    )
    drawn = np.array(page.evaluate(f"(() => {{ {script.replace('; Array', '; return Array')} }})()")).reshape(28, 28, 4)
    with Sampler.open("digits", batch=1, threads=1) as sampler:
        (expected,) = sampler.sample([5], seed=11, guidance=2.0)
    assert np.abs(drawn[:, :, :1].astype(int) - expected).mean() <= ROUNDED
