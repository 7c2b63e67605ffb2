"""What a person does on a real tree: asks, sees the answer grow, and stops it. Usage: page.py URL"""

import re
import sys
import time

from browser import ask, browser, expect

url = sys.argv[1]

with browser() as person:
    context = person.profile()
    page = person.page(context, url)
    expect(page).to_have_title("Banyan")
    send = page.get_by_role("button", name="Send", exact=True)
    answer = page.locator(".turn .answer").last

    def fresh(text):
        # A conversation of its own, so that a prompt is all that the model sees.
        page.get_by_role("button", name="New conversation").first.click()
        ask(page, text)

    # The answer grows: several lengths of it are seen, each with the former as its beginning.
    fresh("[[count 40]]")
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
    # Which node answered stands with it, and why is one click away.
    facts = page.locator(".facts").last
    expect(facts).to_contain_text("node-")
    expect(facts).to_contain_text(re.compile(r"4[01]\s+tokens"))  # the end may count as one
    facts.click()
    expect(page.get_by_role("dialog", name="Why this answer")).to_contain_text("banyan why ")
    page.keyboard.press("Escape")

    # Stop ends it in the middle, and the page is ready for the next question.
    fresh("[[count 3000]]")
    expect(answer).to_contain_text("5")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(send).to_be_visible()
    stopped = answer.inner_text()
    expect(facts).to_contain_text("stopped")
    assert answer.inner_text() == stopped, "it went on after stop"
    assert "3000" not in stopped

    # What a model or a person writes is text, never markup.
    fresh("<img src=x onerror=alert(1)> [[count 2]]")
    expect(answer).to_have_text("1 2")
    assert page.locator(".turns img").count() == 0
print("ok")
