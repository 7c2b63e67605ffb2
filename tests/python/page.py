"""What a person does: opens the chat page in Chromium, asks, sees the answer grow, and stops it. Usage: page.py URL"""

import shutil
import sys
import tempfile
import time

from playwright.sync_api import expect, sync_playwright

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

url = sys.argv[1]
chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not chromium:
    sys.exit("no chromium: `./test --all` installs it")

with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
    context = playwright.chromium.launch_persistent_context(
        profile, executable_path=chromium, headless=True, args=FLAGS, viewport={"width": 1000, "height": 800}
    )
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    expect(page).to_have_title("Banyan", timeout=10_000)

    send = page.get_by_role("button", name="Send", exact=True)
    answer = page.locator(".turn .answer").last

    def ask(text):
        # A conversation of its own, so that a prompt is all that the model sees.
        page.get_by_role("button", name="New conversation").click()
        page.get_by_label("Your message").fill(text)
        expect(send).to_be_enabled(timeout=10_000)
        send.click()

    # The answer grows: several lengths of it are seen, each with the former as its beginning.
    ask("[[count 40]]")
    seen, until = [], time.monotonic() + 20
    whole = " ".join(str(n) for n in range(1, 41))
    while (not seen or seen[-1] != whole) and time.monotonic() < until:
        now = answer.inner_text().strip() if answer.count() else ""
        if now and (not seen or seen[-1] != now):
            seen.append(now)
        page.wait_for_timeout(15)
    assert seen and seen[-1] == whole, seen[-3:]
    assert len(seen) >= 8, f"only {len(seen)} states were seen: {seen}"
    assert all(after.startswith(before) for before, after in zip(seen, seen[1:])), seen
    # Which node answered stands with it.
    expect(page.locator(".turn .facts").last).to_contain_text("node-", timeout=5_000)

    # Stop ends it in the middle, and the page is ready for the next question.
    ask("[[count 3000]]")
    expect(answer).to_contain_text("5", timeout=10_000)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(send).to_be_visible(timeout=5_000)
    stopped = answer.inner_text()
    page.wait_for_timeout(500)
    assert answer.inner_text() == stopped, "it went on after stop"
    assert "3000" not in stopped

    # What a model or a person writes is text, never markup.
    ask("<img src=x onerror=alert(1)> [[count 2]]")
    expect(answer).to_have_text("1 2", timeout=10_000)
    assert page.locator(".turns img").count() == 0

    assert not problems, problems
    context.close()
print("ok")
