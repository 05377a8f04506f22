"""`vqgan demo` in a real browser, tab by tab, on a desktop and on a phone; and under a flood of requests."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import untrained
from PIL import Image

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
PATIENCE = 120_000  # milliseconds for a picture: two cores may be busy with other tests


@contextlib.contextmanager
def served(workdir):
    """A running demo of a run: its address and its process. At the end it has written no traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", workdir.with_suffix(".log")
    command = [sys.executable, "-m", "vqgan_jax", "demo", f"--workdir={workdir}", f"--port={port}"]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 600
            while not is_up(url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(1)
            yield url, process.pid
        finally:
            process.terminate()
    assert "Traceback" not in log.read_text(), log.read_text()


def is_up(url):
    try:
        urllib.request.urlopen(url, timeout=30).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a tokenizer that nobody trained."""
    folder = tmp_path_factory.mktemp("demo")
    untrained.save_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def classes(folder):
    """The demo of a prior over classes."""
    with served(untrained.save_prior(folder / "classes", "raster", folder / "tokenizer")) as demo:
        yield demo


@pytest.fixture(scope="module")
def boxes(folder):
    """The demo of a prior over boxes."""
    with served(untrained.save_prior(folder / "boxes", "boxes", folder / "tokenizer")) as demo:
        yield demo


@pytest.fixture(scope="module")
def browser():
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip("no chromium on this machine: `apt-get install chromium`")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 375])
def visit(request, browser):
    """Opens an address; at the end the page had no error, asked no other machine and was no wider than the window."""
    faults = []
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    local = ("http://127.0.0.1:", "data:", "blob:")
    page.on("request", lambda sent: sent.url.startswith(local) or faults.append(sent.url))
    yield lambda url: page.goto(url) and page
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    page.close()
    assert faults == []


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def images(panel, count):
    """Addresses of the pictures of a gallery, when there are so many."""
    shown = panel.locator(".thumbnail-item img, .grid-container img")
    shown.nth(count - 1).wait_for()
    return [shown.nth(i).get_attribute("src") for i in range(count)]


def done(panel):
    panel.locator(".bar i[style*='100%']").wait_for()


def stroke(page, panel):
    """Paints from the middle of an editor's picture to the right."""
    canvas = panel.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)  # the editor fits its picture into the canvas
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 6):
        page.mouse.move(x + 8 * step, y)
    page.mouse.up()
    page.wait_for_timeout(500)


def pixels(page, address):
    return page.request.get(address).body()


def test_codes_are_shown_picked_and_painted(visit, classes, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "noise.png")
    page = visit(classes[0])
    panel = tab(page, "Codes")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "noise.png")
    panel.get_by_text("noise").wait_for()
    panel.get_by_role("button", name="Show its codes").click()
    pictures = panel.locator(".pixels img")
    pictures.nth(2).wait_for()
    grid, before = pictures.nth(1), pictures.nth(2).get_attribute("src")
    first = grid.get_attribute("src")
    grid.click(position={"x": 100, "y": 60})
    page.wait_for_function("([old]) => document.querySelectorAll('.pixels img')[1].src !== old", arg=[first])
    stroke(page, panel)
    panel.get_by_role("button", name="Write under the brush").click()
    page.wait_for_function("([old]) => document.querySelectorAll('.pixels img')[2].src !== old", arg=[before])


def test_samples_are_drawn_and_the_same_again(visit, classes):
    page = visit(classes[0])
    panel = tab(page, "Sample")
    draw = panel.get_by_role("button", name="Draw", exact=True)
    draw.click()
    first = [pixels(page, address) for address in images(panel, 4)]
    done(panel)
    draw.click()
    panel.get_by_text("Working.").wait_for(state="hidden")
    done(panel)
    assert [pixels(page, address) for address in images(panel, 4)] == first
    panel.get_by_label("Class").fill("tiger")
    panel.get_by_label("Class").press("Tab")  # which closes the list over the button
    draw.click()
    page.get_by_text(re.compile("the class must be one of .*; got 'tiger'")).first.wait_for()


def test_what_is_painted_over_is_completed(visit, classes):
    page = visit(classes[0])
    panel = tab(page, "Complete")
    panel.get_by_role("button", name="Take it").click()
    page.wait_for_timeout(3000)
    stroke(page, panel)
    panel.get_by_role("button", name="Complete", exact=True).click()
    images(panel, 4)
    done(panel)


def test_a_wide_image_grows_and_stops(visit, classes):
    page = visit(classes[0])
    panel = tab(page, "Wide")
    draw, seen = panel.get_by_role("button", name="Draw", exact=True), set()
    draw.click()
    while panel.locator(".bar i[style*='100%']").count() == 0:
        seen |= {image.get_attribute("src") for image in panel.locator(".pixels img").all()}
        page.wait_for_timeout(20)
    assert len(seen) > 1
    panel.get_by_label(re.compile("^number input for Width")).fill("16")  # of another size, for which JAX compiles
    draw.click()
    panel.locator(".bar i:not([style*='100%'])").wait_for()  # or Stop comes before there is anything to stop
    panel.get_by_role("button", name="Stop").click()
    panel.get_by_text("Stopped.").wait_for()


def test_a_drawn_condition_makes_images(visit, boxes, tmp_path):
    page = visit(boxes[0])
    panel = tab(page, "Condition")
    stroke(page, panel)
    panel.get_by_role("button", name="Draw", exact=True).click()
    done(panel)
    images(panel, 5)  # the layout, and four samples
    (tmp_path / "layout.json").write_text(json.dumps([{"box": [0, 0, 2, 2], "category": 1}]))
    panel.locator("input[accept*=json]").set_input_files(tmp_path / "layout.json")
    panel.get_by_text("layout").first.wait_for()
    panel.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text(re.compile(r"must be in \[0, 1\] of the image")).first.wait_for()


# Without a browser


def call(url, action, values):
    """What an action answers over HTTP: its last event and the event's data, or the status that refuses it."""
    body = json.dumps({"data": values}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/{action}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{url}/gradio_api/call/{action}/{event}", timeout=300) as stream:
            lines = stream.read().decode().strip().splitlines()
    except urllib.error.HTTPError as error:
        return str(error.code), error.read().decode()
    return lines[-2].removeprefix("event: "), lines[-1].removeprefix("data: ")


def memory(pid):
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def request_for(name, count=4):
    return [name, count, 0, 1.0, 32, 1.0, 1.0, 1.0]


def test_a_label_that_is_not_there_ten_times_at_once(classes):
    url, _ = classes
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda i: call(url, "sample", request_for(f"nobody {i}")), range(10)))
    for i, (event, data) in enumerate(answers):
        assert event == "error", data
        assert f"nobody {i}" in data
        assert "the class must be one of" in data
    assert call(url, "sample", request_for("chelsea"))[0] == "complete"


def test_a_flood_leaves_it_alive_and_small(classes):
    url, pid = classes
    call(url, "sample", request_for("chelsea"))
    before = memory(pid)
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda i: call(url, "sample", request_for("chelsea", 1)), range(100)))
    events = [event for event, _ in answers]
    assert events.count("complete") >= 20, events
    assert {event for event, _ in answers} <= {"complete", "error", "503"}
    assert all("full" in data for event, data in answers if event != "complete"), answers
    assert memory(pid) - before < 300 * 2**20
    assert call(url, "sample", request_for("chelsea"))[0] == "complete"


def test_uploads_are_bounded_in_bytes_and_pixels(classes, tmp_path):
    url, _ = classes

    def upload(content, name):
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        request = urllib.request.Request(f"{url}/gradio_api/upload", head + content + b"\r\n--x--\r\n", kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            (path,) = json.load(answer)
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        upload(bytes(17 * 2**20), "huge.png")
    Image.new("1", (20_000, 2_000)).save(tmp_path / "wide.png")
    file = upload((tmp_path / "wide.png").read_bytes(), "wide.png")
    event, data = call(url, "open_picture", [file, None, 16])
    assert event == "error"
    assert "at most 33,554,432 pixels" in data
    assert "wide.png has more" in data
    file = upload(b"not a picture", "words.png")
    event, data = call(url, "open_picture", [file, None, 16])
    assert event == "error"
    assert "whole, readable file; words.png is not" in data
