"""The studio in a real browser: Debian's chromium and chromium-driver, selenium.

pytest -m slow tests/probe/studio/test_page.py
STAGEVAR_SCREENSHOTS=docs/studio pytest -m slow ... also writes the pictures of docs/studio.md
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagevar_runtime import load, load_profile, write_profile
from stagevar_runtime.profile import (
    Boundary,
    CreatedBy,
    ModelRef,
    PlanEntry,
    PlanStep,
    Profile,
    Stages,
)
from stagevar_runtime.profile.fingerprint import schedule_name

ROOT = Path(__file__).resolve().parents[3]
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # no network at all
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes checkpoint in a folder of its own, with a profile of three stages."""
    folder = tmp_path_factory.mktemp("scenes")
    for file in (ROOT / "checkpoints/scenes").iterdir():
        shutil.copy(file, folder)
    path = folder / "scenes.safetensors"
    given = os.environ.get("STAGEVAR_SCREENSHOTS_PROFILE")
    if given:
        shutil.copy(given, path.with_suffix(".stagevar.yaml"))
        return path
    pipe = load(path, profile=None)
    scales = pipe.model.scales()
    profile = Profile(
        created_by=CreatedBy(tool="test", version="1"),
        model=ModelRef(
            family="infinity",
            architecture=pipe.fingerprint.architecture,
            weights=pipe.fingerprint.weights,
            schedules={schedule_name(scales): tuple((s.height, s.width) for s in scales)},
        ),
        provenance="measured",
        stages=Stages(structure=Boundary(scale=4), refinement=Boundary(scale=8)),
        plans={"balanced": PlanEntry(steps=(PlanStep(scale=6, guidance="cond"),))},
    )
    write_profile(profile, path.with_suffix(".stagevar.yaml"))
    return path


@pytest.fixture(scope="module")
def url(scenes: Path) -> Iterator[str]:
    """The address of a studio in a process of its own."""
    pytest.importorskip("nicegui", reason="needs the extra studio")
    command = [sys.executable, "-m", "stagevar_probe", "studio", str(scenes), "--no-show", "--json"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=clean | {"PYTHONPATH": paths}
    )
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        line = process.stdout.readline()
        assert line, "the studio ended"
        text += line
    address = json.loads(text)["url"]
    deadline = time.monotonic() + 30
    import socket

    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                break
        time.sleep(0.05)
    yield address
    process.terminate()
    process.wait(10)


class Browser:
    """Chromium on the page."""

    def __init__(self, url: str, width: int = 1400) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not (chromium and driver):
            pytest.skip("needs chromium and chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--window-size={width},1000"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(driver)
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.get(url)
        self.until(lambda: self.find("exact").get_attribute("naturalWidth") != "0")

    def find(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return str(self.find(name).text)

    def press(self, name: str, key: str, times: int) -> None:
        thumb = self.driver.find_element("css selector", f'[id="{name}"] [tabindex="0"]')
        for _ in range(times):
            thumb.send_keys(key)

    def until(self, done: Any, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if done():
                    return
            except Exception:  # not there yet, or replaced while it was looked at
                pass
            time.sleep(0.03)
        raise AssertionError("the page did not answer")

    def hosts(self) -> set[str]:
        """Every host that a request went to."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            address = message.get("params", {}).get("request", {}).get("url", "")
            if address.startswith(("http", "ws")):
                found.add(address.split("/")[2])
        return found

    def shot(self, name: str) -> None:
        """Into the folder that the environment names, if it does."""
        folder = os.environ.get("STAGEVAR_SCREENSHOTS")
        if folder:
            height = self.driver.execute_script("return document.body.scrollHeight")
            width = self.driver.get_window_size()["width"]
            self.driver.set_window_size(width, min(height + 160, 2400))
            time.sleep(0.4)
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / name))


@pytest.fixture
def browser(url: str) -> Iterator[Browser]:
    made = Browser(url)
    yield made
    made.driver.quit()


def test_a_slider_gives_another_picture_and_a_plan_is_saved(
    browser: Browser, url: str, scenes: Path
) -> None:
    left, up = "\ue012", "\ue013"
    assert "PSNR" in browser.text("figures")
    strip = browser.find("strip").get_attribute("innerHTML")
    assert strip.count("<image") == 20 and "semantic" in strip and "refinement" in strip
    browser.shot("studio.png")
    picture = browser.find("accelerated").get_attribute("src")
    figures, exact = browser.text("figures"), browser.find("exact").get_attribute("src")
    browser.press("scales-with-guidance", left, 7)
    browser.until(lambda: "scale: 3, guidance: cond" in browser.text("yaml"))
    assert browser.find("accelerated").get_attribute("src") != picture
    assert browser.find("exact").get_attribute("src") == exact
    assert browser.text("figures") != figures and browser.text("trouble") == ""
    browser.press("scales-left-out-at-the-end", up, 1)
    browser.until(lambda: "run: skip" in browser.text("yaml"))
    assert "skipped" in browser.find("strip").get_attribute("innerHTML")
    browser.press("kept-tokens", left, 2)
    browser.until(lambda: "tokens: {keep: 0.9" in browser.text("yaml"))
    name = browser.find("name")
    name.send_keys("\ue009a\ue000looked_at")  # over what stands there
    browser.find("save").click()
    browser.until(lambda: "looked_at, unproven" in browser.text("saved"))
    saved = load_profile(scenes.with_suffix(".stagevar.yaml")).plans["looked_at"]
    assert saved.unproven and saved.steps[0].guidance == "cond" and saved.steps[-1].run == "skip"
    browser.shot("studio-own.png")
    severe = [line for line in browser.driver.get_log("browser") if line["level"] == "SEVERE"]
    assert severe == []
    assert browser.hosts() == {url.removeprefix("http://")}


def test_a_wrong_word_is_said_and_mended(browser: Browser) -> None:
    wish = browser.find("wish")
    before = browser.find("exact").get_attribute("src")
    wish.send_keys(" zzz")
    browser.until(lambda: "knows no word" in browser.text("trouble"))
    for _ in range(4):
        wish.send_keys("\ue003")
    browser.until(lambda: browser.text("trouble") == "")
    assert browser.find("exact").get_attribute("src") == before


def test_a_phone_sees_it_whole(url: str) -> None:
    phone = Browser(url, width=500)  # the least that a window may have
    try:
        fits = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert phone.driver.execute_script(fits)
        phone.shot("studio-phone.png")
    finally:
        phone.driver.quit()
