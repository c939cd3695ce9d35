"""The web page, in a real browser: on models that draw nothing where that is enough, and once on the bundled model."""

import base64
import io
import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

uvicorn = pytest.importorskip("uvicorn", reason='the server is not installed: pip install ".[serve]"')
webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from keras_diffusion.serving.calls import Limits  # noqa: E402
from keras_diffusion.serving.security import Rules  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no browser: apt-get install chromium chromium-driver", allow_module_level=True)

FLAGS = """
    headless=new force-prefers-reduced-motion no-sandbox disable-gpu disable-dev-shm-usage no-first-run
    disable-background-networking
"""
PATIENCE = 60  # seconds
TOKEN = "a-token-of-this-test"
AXE = Path(__file__).with_name("accessibility.js").read_text(encoding="utf-8")


class Page:
    """The page in the browser.

    Attributes:
        driver: Selenium's driver.
        refused: Words of messages in the browser's console that a test provokes: it reports each answer of 4xx.
    """

    def __init__(self, driver):
        self.driver, self.refused = driver, ["/preview.png"]  # which may come too late

    def open(self, url):
        self.url = url
        self.driver.get(url)
        return self

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def script(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, condition, *selector):
        """Waits for a condition of the page, or for one of the visible texts of a selector to contain a text."""
        if selector:
            text, condition = condition, lambda: [e for e in self.all(*selector) if text in e.text and e.is_displayed()]
        wait = WebDriverWait(self.driver, PATIENCE, 0.05, [StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def fill(self, **fields):
        for name, value in fields.items():
            self.one(f"#{name}").clear()
            self.one(f"#{name}").send_keys(str(value))

    def draw(self, **fields):
        self.fill(**fields)
        self.one("#form .primary").click()

    def press(self, *keys):
        self.driver.switch_to.active_element.send_keys(*keys)

    def tab_to(self, selector):
        """Presses Tab until an element has the focus."""
        for _ in range(60):
            if self.script("return document.activeElement.matches(arguments[0])", selector):
                return
            self.press(Keys.TAB)
        raise AssertionError(f"The Tab key does not reach {selector}.")

    def drop(self, content, zone):
        """Drops a PNG file on a place of the page, with the events of a user who drags one over it."""
        self.script(
            """
            const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            const send = (type, target) => target.dispatchEvent(
              new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
            send("dragenter", document.body);
            const target = document.querySelector(arguments[1]);
            send("dragover", target);
            send("drop", target);
            """,
            base64.b64encode(content).decode(),
            zone,
        )

    def images(self):
        """Waits until the images of the gallery are loaded, and returns them."""
        loaded = "return [...document.querySelectorAll('#gallery img')].every((i) => i.complete && i.naturalWidth)"
        self.until(lambda: self.script(loaded))
        return self.all("#gallery img")

    def jobs(self):
        with urllib.request.urlopen(f"{self.url}/v1/jobs") as answer:
            return json.load(answer)["jobs"]

    def file(self, job):
        with urllib.request.urlopen(self.url + job["images"][0]) as answer:
            return answer.read()


def pixels(content):
    return np.array(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 900)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver):
    page = Page(driver)
    yield page
    driver.get("about:blank")
    messages = [row["message"] for row in driver.get_log("browser") if row["level"] == "SEVERE"]
    asked = [json.loads(row["message"])["message"] for row in driver.get_log("performance")]
    assert not [text for text in messages if not any(word in text for word in page.refused)]
    urls = [row["params"]["request"]["url"] for row in asked if row["method"] == "Network.requestWillBeSent"]
    assert {urlsplit(url).hostname for url in urls if not url.startswith(("blob:", "data:"))} == {"127.0.0.1"}


@pytest.fixture
def serve(start):
    """Gives a function that starts a server of models that draw nothing, and returns its URL and its `FakeModels`."""
    servers = []

    def serve(**options):
        client = start(**options)
        return run(client, 0), client.models

    def run(client, port):
        server = uvicorn.Server(uvicorn.Config(client.app, port=port, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        servers.append((client, server, thread, port))
        return f"http://127.0.0.1:{port}"

    def stop():
        """Stops the last server; what is returned starts it again."""
        client, server, thread, port = servers.pop()
        client.models.go.set()
        server.should_exit = server.force_exit = True
        thread.join()
        return lambda: run(client, port)

    serve.stop = stop
    yield serve
    while servers:
        stop()


@pytest.fixture
def bundled(tmp_path):
    """The URL of a server of the bundled model, run as users do."""
    command = [sys.executable, "-m", "keras_diffusion", "serve", "--port", "0", "--jobs", tmp_path / "jobs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield process.stdout.readline().strip()
        process.terminate()


def test_draws_paints_and_draws_again_on_the_bundled_model(bundled, page):
    page.open(bundled).until("Ready", "#server")
    page.draw(prompt="a slice of pizza", num_steps=2, seed=7)
    page.until("Drawn: a slice of pizza", "#announcer")
    (image,) = page.images()
    assert image.accessible_name == "a slice of pizza"
    assert (image.get_property("naturalWidth"), image.get_property("naturalHeight")) == (64, 64)
    first = page.file(page.jobs()[0])

    # A mask: the other pixels stay as they are.
    image.click()
    page.one("#viewer [data-act=start]").click()
    page.until("Paint a mask", "#start-paint")[0].click()
    canvas = page.one("#painter canvas")
    paint = webdriver.ActionChains(page.driver, duration=50)
    paint.move_to_element(canvas).click_and_hold().move_by_offset(60, 40).release().perform()
    page.one("#painter [data-act=done]").click()
    page.draw(prompt="a red apple", seed=8)
    page.until("Drawn: a red apple", "#announcer")
    job = page.jobs()[0]
    assert job["task"] == "inpaint"
    changed = (pixels(page.file(job)) != pixels(first)).any(2)
    assert changed[32:36, 32:36].any()
    assert not changed[:16].any()
    assert not changed[:, :16].any()

    # An image that is dropped on the page is drawn again.
    page.script("location.reload()")
    page.until("Ready", "#server")
    assert [image.accessible_name for image in page.images()] == ["a red apple", "a slice of pizza"]
    page.drop(first, "[data-drop=settings]")
    page.until("The settings of dropped.png are filled in", "#notice")
    names = "prompt", "num_steps", "seed", "img_width", "unconditional_guidance_scale"
    assert [page.one(f"#{name}").get_property("value") for name in names] == ["a slice of pizza", "2", "7", "64", "2"]
    page.one("#form .primary").click()
    page.until("Drawn: a slice of pizza", "#announcer")
    assert (pixels(page.file(page.jobs()[0])) == pixels(first)).all()


def test_draws_with_the_keyboard_alone(serve, page):
    url, models = serve()
    page.open(url).until("Ready", "#server")
    page.press("a cat")
    page.tab_to("#num_steps")
    page.press(Keys.CONTROL, "a")
    page.press("2")
    page.press(Keys.CONTROL, Keys.ENTER)
    page.until("Drawn: a cat", "#announcer")
    page.images()
    assert models.drawn[0][0].arguments["num_steps"] == 2
    page.tab_to(".tile")
    page.press(Keys.ENTER)
    assert page.one("#viewer").is_displayed()
    assert "Seed\n" in page.one("#viewer dl").text
    page.press(Keys.ESCAPE)
    assert not page.one("#viewer").is_displayed()
    assert page.script("return document.activeElement.className") == "tile"
    # A mask: the brush begins in the middle.
    page.press(Keys.ENTER)
    page.tab_to("[data-act=start]")
    page.press(Keys.ENTER)
    page.until("Paint a mask", "#start-paint")
    page.tab_to("#start-paint")
    page.press(Keys.ENTER)
    page.press(Keys.SPACE, *[Keys.ARROW_RIGHT] * 8)
    page.tab_to("#painter [data-act=done]")
    page.press(Keys.ENTER)
    page.press(Keys.CONTROL, Keys.ENTER)
    page.until(lambda: len(models.drawn) == 2)
    job, inputs = models.drawn[1]
    mask = pixels(inputs["mask"][0])[..., 0]
    assert job.task == "inpaint"
    assert (mask[32, 32:44] == 255).all()
    assert mask[32, 20] == mask[20, 32] == mask[44, 32] == 0


def test_erases_undoes_and_clears_a_mask(serve, page):
    url, models = serve()
    page.open(url).until("Ready", "#server")
    content = io.BytesIO()
    Image.new("RGB", (96, 48), "white").save(content, "PNG")
    page.refused += ["/read-settings"]
    page.drop(content.getvalue(), "[data-drop=settings]")
    page.until("The image does not say how it was made", "#notice")
    page.one("#notice [data-act=action]").click()
    page.until("Remove", "#start-remove")[0].click()
    page.drop(content.getvalue(), "[data-drop=start]")
    page.until("Paint a mask", "#start-paint")[0].click()
    assert [page.one(f"#{name}").get_property("value") for name in ("img_width", "img_height")] == ["88", "48"]
    painted = """
        const context = document.querySelector("#painter canvas").getContext("2d");
        return context.getImageData(0, 0, 96, 48).data.filter((x, i) => i % 4 === 3 && x === 255).length;
    """
    canvas = page.one("#painter canvas")

    def stroke():
        paint = webdriver.ActionChains(page.driver, duration=20)
        paint.move_to_element(canvas).click_and_hold().move_by_offset(90, 0).release().perform()
        return page.script(painted)

    once = stroke()
    assert once > 100
    page.one("[value=erase]").click()
    assert stroke() == 0
    page.one("#painter [data-act=undo]").click()
    assert page.script(painted) == once
    page.one("#painter [data-act=clear]").click()
    assert page.script(painted) == 0
    page.one("#painter [data-act=done]").click()
    page.draw(prompt="a cat")
    page.until(lambda: models.drawn)
    assert models.drawn[0][0].task == "image_to_image"  # nothing is painted
    assert models.drawn[0][0].arguments["strength"] == 0.8


class Steps(threading.Semaphore):
    """Lets `FakeModels` do as many steps as are released."""

    def wait(self, seconds):
        self.acquire(timeout=seconds)

    def set(self):
        self.release(1000)


def test_shows_progress_and_the_queue_and_cancels(serve, page):
    url, models = serve()
    models.go = Steps(0)
    page.open(url).until("Ready", "#server")
    for prompt in "first", "second", "third":
        page.draw(prompt=prompt, num_steps=50)
    page.until("Place 2", ".queue li")
    assert [row.text.split("\n")[:2] for row in page.all(".queue li")] == [["Place 1", "second"], ["Place 2", "third"]]
    page.until("Getting ready", ".running .step")
    models.go.release(2)
    page.until("Step 2 of 50", ".running .step")
    assert page.one("progress").get_property("value") == 2
    assert page.driver.title == "2/50 · keras-diffusion"
    page.until(lambda: page.one(".preview img").get_property("naturalWidth"))
    models.go.release()
    page.until("s left", ".running .step")
    page.one(".queue li button").click()
    page.until("Place 1\nthird", ".queue li")
    page.one(".running button").click()
    page.until(lambda: models.go.release() or len(page.all(".tile.cancelled")) == 2)
    models.go.set()
    page.until("Drawn: third", "#announcer")
    assert [job["state"] for job in page.jobs()] == ["done", "cancelled", "cancelled"]


def test_shows_an_error_beside_its_field_until_it_is_mended(serve, page):
    url, models = serve()
    page.refused += ["/v1/jobs"]
    page.open(url).until("Ready", "#server")
    page.draw(prompt="a cat", num_steps=0)
    (error,) = page.until("Steps must be from 1 to 150. Received: 0", "#error-num_steps")
    field = page.driver.switch_to.active_element
    assert field.get_attribute("id") == "num_steps"
    assert field.get_attribute("aria-describedby") == error.get_attribute("id")
    assert field.get_attribute("aria-invalid") == "true"
    assert 0 < error.location["y"] - field.location["y"] < 60
    models.error = ValueError("too odd")
    page.draw(prompt="a cat", num_steps=2)
    page.until("“a cat” failed: too odd", "#notice")
    assert not page.all("#error-num_steps")
    page.draw(prompt="a cat", seed="any")
    page.until("Seed must be an int", "#error-seed")
    assert len(models.drawn) == 1


def test_says_what_the_server_refuses(serve, page):
    url, models = serve(rules=Rules(token=TOKEN), limits=Limits(max_queue=1))
    page.refused += ["401", "429", "ERR_"]
    page.open(url)
    page.until("This server asks for a token", "#token")
    page.press("wrong", Keys.ENTER)
    page.until("refused this token", "#token .error")
    page.press(TOKEN, Keys.ENTER)
    page.until("Ready", "#server")
    models.go.clear()
    for prompt in "first", "second":
        page.draw(prompt=prompt)
        page.until(prompt, "#stage .prompt")
    page.draw(prompt="third")
    page.until("The queue is full", "#form-error")
    restart = serve.stop()
    page.draw(prompt="fourth")
    page.until("The server does not answer", "#notice")
    restart()
    page.until("Ready", "#server")
    assert not page.one("#notice").is_displayed()
    page.draw(prompt="fifth")
    page.until("Drawn: fifth", "#announcer")


def test_deletes_and_takes_settings_from_the_gallery(serve, page, tmp_path):
    (tmp_path / "style.safetensors").touch()
    url, _ = serve(loras=tmp_path)
    page.open(url).until("Ready", "#server")
    page.one("#lora-add").click()
    page.until("style", ".loras li")
    page.one(".loras input").clear()
    page.one(".loras input").send_keys("0.5")
    page.script("document.querySelector('#more').open = true")
    varied = {"variation_seed": 4, "variation_strength": 0.25}
    page.draw(prompt="a cat", seed=5, batch_size=3, negative_prompt="blue", num_steps=3, **varied)
    page.until("Drawn: a cat", "#announcer")
    assert page.jobs()[0]["arguments"].items() >= varied.items()
    page.one("#variation_seed").clear()
    page.one("#variation_strength").clear()
    page.draw(prompt="a dog", seed=9, batch_size=1, negative_prompt="")
    page.until("Drawn: a dog", "#announcer")
    page.images()
    page.one("#seed").clear()
    page.one("#seed-again").click()
    assert page.one("#seed").get_property("value") == "9"
    page.one("#seed-random").click()
    assert page.one("#seed").get_property("value") == ""
    page.all(".tile")[3].click()
    page.until(lambda: page.one("[data-act=download]").get_attribute("download") == "a-cat-5-6.png")
    page.script("document.querySelector('.loras button').click()")
    page.one("[data-act=use]").click()
    names = "prompt", "negative_prompt", "num_steps", "seed", "batch_size", *varied
    shown = [page.one(f"#{name}").get_property("value") for name in names]
    assert shown == ["a cat", "blue", "3", "5", "1", "6", "0.25"]
    assert page.one(".loras input").get_property("value") == "0.5"
    assert page.jobs()[0]["arguments"]["loras"] == [{"name": "style", "scale": 0.5}]
    page.all(".tile")[3].click()
    page.one("[data-act=delete]").click()
    assert len(page.jobs()) == 2
    page.until("Delete all 3 images", "[data-act=delete]")[0].click()
    page.until(lambda: len(page.all(".tile")) == 1)
    assert [job["arguments"]["prompt"] for job in page.jobs()] == ["a dog"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_is_accessible_and_fits_a_phone(serve, page, scheme):
    url, models = serve()
    page.refused += ["/v1/jobs"]
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    page.open(url).until("Ready", "#server")
    assert page.script(AXE) == []  # the empty gallery
    page.draw(prompt="a cat", num_steps=2)
    page.until("Drawn: a cat", "#announcer")
    models.go.clear()
    page.draw(prompt="a long prompt " * 20)
    page.draw(prompt="third", num_steps=0)
    page.until("Steps must be", "#error-num_steps")
    assert page.script("return document.getAnimations().length") == 0  # the browser prefers reduced motion
    page.script("document.querySelector('#more').open = true")
    for width in 1280, 768, 360:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert page.script("return document.documentElement.scrollWidth") <= width
        assert page.script(AXE) == []
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.one(".tile").click()
    assert page.script(AXE) == []
