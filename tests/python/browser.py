"""Chromium with a profile of its own, and what every check of the page needs of it."""

import contextlib
import shutil
import sys
import time
import traceback

from playwright.sync_api import expect, sync_playwright

from stage import Stage

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESK = {"viewport": {"width": 1200, "height": 850}}
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


# A busy machine is slow, and no failure for that.
expect.set_options(timeout=20_000)


class Browser:
    """A browser, and what went wrong in its pages."""

    def __init__(self, chromium):
        self.chromium = chromium
        self.problems = []

    def profile(self, size=DESK, language="en-US", theme="light", **more):
        """Somebody's browser: what one keeps another does not see."""
        context = self.chromium.new_context(**size, locale=language, color_scheme=theme, **more)
        context.set_default_timeout(20_000)
        return context

    def page(self, context, url):
        page = context.new_page()
        # What the server refuses on purpose is told in the console by the browser itself.
        page.on("console", lambda message: self.problem(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.problem(str(error)))
        page.goto(url)
        expect(page.locator("#model-name")).not_to_have_text("…")
        return page

    def problem(self, text):
        if "Failed to load resource" not in text and "net::ERR" not in text:
            self.problems.append(text)


@contextlib.contextmanager
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        sys.exit("no chromium: `./test --all` installs it")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        made = Browser(chromium)
        yield made
        assert not made.problems, made.problems
        chromium.close()


def run(checks):
    """Runs those that the command line names, or all; each before a stage of its own. All are run, whatever fails."""
    failed = []
    with browser() as person:
        for check in checks:
            if len(sys.argv) > 1 and not any(word in check.__name__ for word in sys.argv[1:]):
                continue
            stage = Stage()
            try:
                check(person, stage)
                print("passed", check.__name__, flush=True)
            except Exception:
                print("FAILED", check.__name__, flush=True)
                traceback.print_exc()
                failed.append(check.__name__)
            for context in person.chromium.contexts:
                context.close()
            stage.close()
    if failed:
        sys.exit(f"failed: {failed}")


def until(what, holds):
    """Waits until something is so that no element of the page shows."""
    patience = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < patience, f"waited in vain: {what}"
        time.sleep(0.02)


def ask(page, text):
    """Asks as a person does."""
    page.locator("#prompt").fill(text)
    expect(page.locator("#send")).to_be_enabled()
    page.locator("#send").click()


def answered(page):
    """Waits until nothing runs any more."""
    expect(page.locator("#stop")).to_be_hidden(timeout=30_000)
    expect(page.locator(".turn.assistant").last).to_have_attribute("data-state", "done")


def last(page):
    return page.locator(".turn.assistant .answer").last
