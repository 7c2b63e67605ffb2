"""Every feature of the chat page, as a person would use it, before a stage whose answers are written here."""

import json
import pathlib
import re
import tempfile

from browser import DESK, PHONE, answered, ask, expect, last, run, until
from stage import Refuses, Says, Stage


def what_is_said_is_kept_found_renamed_and_deleted(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    stage.answers = [Says("A banyan drops **roots** from its branches.")]
    ask(page, "What is a banyan?")
    answered(page)
    expect(last(page).locator("strong")).to_have_text("roots")
    page.get_by_role("button", name="New conversation").first.click()
    stage.answers = [Says("Rain falls.")]
    ask(page, "A poem on rain")
    answered(page)
    talks = page.locator("#talks a")
    expect(talks).to_have_text(["A poem on rain", "What is a banyan?"])
    expect(page.locator("#talks h2")).to_have_text("Today")
    # Words of an answer are found, by keys alone.
    page.keyboard.press("Control+k")
    page.keyboard.type("branches roots")
    expect(talks).to_have_count(1)
    expect(talks.locator("small")).to_contain_text("drops **roots** from its branches")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.user .prompt")).to_have_text("What is a banyan?")
    page.locator("#search").fill("")
    expect(talks).to_have_count(2)
    # A new name, and a reload that keeps it.
    page.get_by_role("button", name="More about What is a banyan?").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_role("textbox", name="Rename").fill("Trees")
    page.keyboard.press("Enter")
    expect(talks.nth(1)).to_have_text("Trees")
    page.reload()
    expect(page.locator("#title")).to_have_text("Trees")
    expect(last(page)).to_contain_text("drops roots")
    # Deleting asks first.
    page.get_by_role("button", name="More about Trees").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(talks).to_have_text(["A poem on rain"])
    expect(page.locator("#welcome")).to_be_visible()


def questions_are_edited_answers_asked_again_and_all_versions_stay(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    stage.answers = [Says("One."), Says("Two."), Says("Three."), Says("Four.")]
    ask(page, "First")
    answered(page)
    page.get_by_role("button", name="Ask again").click()
    expect(last(page)).to_have_text("Two.")
    answered(page)
    expect(page.get_by_label("Version 2 of 2")).to_be_visible()
    page.get_by_role("button", name="Earlier version").click()
    expect(last(page)).to_have_text("One.")
    ask(page, "Second")
    expect(last(page)).to_have_text("Three.")
    answered(page)
    assert [each["content"] for each in stage.asked[-1]["body"]["messages"]] == ["First", "One.", "Second"]
    # An edit begins a branch; the other one is a step away.
    page.locator(".turn.user").first.hover()
    page.locator(".turn.user").first.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Edit").fill("Zeroth")
    page.keyboard.press("Enter")
    expect(last(page)).to_have_text("Four.")
    answered(page)
    expect(page.locator(".turn.user")).to_have_count(1)
    assert [each["content"] for each in stage.asked[-1]["body"]["messages"]] == ["Zeroth"]
    page.reload()
    page.get_by_role("button", name="Earlier version").click()
    expect(page.locator(".prompt")).to_have_text(["First", "Second"])
    # The arrow up changes what was asked last.
    page.locator("#prompt").press("ArrowUp")
    expect(page.get_by_role("textbox", name="Edit")).to_have_value("Second")
    page.keyboard.press("Escape")
    expect(page.locator(".prompt")).to_have_text(["First", "Second"])


def stop_ends_an_answer_here_and_there(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    stage.answers = [Says("", pieces=[f"{n} " for n in range(3000)], rate=50)]
    ask(page, "Count")
    expect(last(page)).to_contain_text("5 6")
    page.keyboard.press("Escape")
    expect(page.locator(".facts")).to_contain_text("stopped")
    expect(page.locator("#send")).to_be_visible()
    until("the answer is ended", lambda: stage.ended)
    assert stage.ended == ["/v1/chat/completions/chatcmpl-1"], stage.ended


def parameters_and_models_are_a_conversations_own(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    stage.answers = [Says("Yes.")]
    page.get_by_role("button", name="Options of this conversation").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Tokens at most").fill("64")
    page.get_by_label("Stop texts").fill("END")
    page.keyboard.press("Escape")
    ask(page, "Are you there?")
    answered(page)
    body = stage.asked[-1]["body"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}, body
    assert (body["temperature"], body["max_tokens"], body["stop"], body["model"]) == (0.2, 64, ["END"], "chatter"), body
    page.reload()
    page.get_by_role("button", name="Options of this conversation").click()
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
    page.keyboard.press("Escape")
    # The next one begins without them; a base model says what it does, and does it.
    page.keyboard.press("Control+Shift+o")
    page.locator("#model").click()
    teller = page.get_by_role("button", name="teller")
    expect(teller).to_contain_text("completes text · 1,024 tokens of context · one node")
    teller.click()
    expect(page.get_by_role("heading", name="Begin a text")).to_be_visible()
    stage.answers = [Says(" a tree."), Says(" It grew.")]
    ask(page, "There was")
    answered(page)
    expect(last(page)).to_have_text("There was a tree.")
    body = stage.asked[-1]["body"]
    assert (body["prompt"], body["max_tokens"], body["temperature"]) == ("There was", 200, 0.8), body
    page.get_by_role("button", name="Go on").click()
    expect(last(page)).to_have_text("There was a tree. It grew.")
    assert stage.asked[-1]["body"]["prompt"] == "There was a tree."


def drafts_wait_for_who_wrote_them(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    stage.answers = [Says("Hello.")]
    ask(page, "Hi")
    answered(page)
    page.locator("#prompt").fill("half a thought")
    page.get_by_role("button", name="New conversation").first.click()
    expect(page.locator("#prompt")).to_have_value("")
    page.locator("#prompt").fill("another one")
    page.locator("#talks a").click()
    expect(page.locator("#prompt")).to_have_value("half a thought")
    page.reload()
    expect(page.locator("#prompt")).to_have_value("half a thought")


def conversations_leave_and_come_back_as_files(person, stage):
    context = person.profile(accept_downloads=True)
    page = person.page(context, stage.url)
    stage.answers = [Says("# Oak\n\nand `ash`")]
    ask(page, "Name trees")
    answered(page)
    page.get_by_role("button", name="Conversation", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export as Markdown").click()
    assert download.value.suggested_filename == "Name-trees.md"
    text = pathlib.Path(download.value.path()).read_text()
    assert text == "# Name trees\n\n**You**\n\nName trees\n\n**chatter**\n\n# Oak\n\nand `ash`\n", text
    page.get_by_role("button", name="Settings").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    other = person.page(person.profile(), stage.url)
    with tempfile.TemporaryDirectory() as folder:
        for name, content, told in [
            ("notes.json", '{"format": "other"}', "There is no conversation"),
            ("broken.json", "{", "There is no conversation"),
            ("good.json", pathlib.Path(download.value.path()).read_text(), "One conversation came in."),
        ]:
            other.get_by_role("button", name="Settings").click()
            (pathlib.Path(folder) / name).write_text(content)
            other.get_by_label("Import", exact=True).last.set_input_files(pathlib.Path(folder) / name)
            expect(other.locator("dialog")).to_have_count(0)
            expect(other.locator(".notice")).to_contain_text(told)
    other.locator("#talks a").click()
    expect(other.locator(".answer h3")).to_have_text("Oak")


def a_line_that_breaks_and_a_page_that_is_loaded_again_lose_nothing(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    whole = " ".join(str(n) for n in range(120))
    stage.answers = [Says("", pieces=[f"{n} " for n in range(120)], rate=60, breaks_after=30)]
    ask(page, "Count")
    expect(last(page)).to_have_text(whole, timeout=20_000)
    answered(page)
    again = stage.asked[-1]["headers"]
    again = {name.lower(): value for name, value in again.items()}
    assert again["last-event-id"] == "chatcmpl-1:30" and again["idempotency-key"], again
    # The page itself goes, in the middle.
    stage.answers = [Says("", pieces=[f"{n} " for n in range(120)], rate=40)]
    ask(page, "Again")
    expect(last(page)).to_contain_text("39 40", timeout=20_000)
    page.reload()
    expect(last(page)).to_have_text(whole, timeout=20_000)
    answered(page)


def an_api_that_goes_and_comes_back_in_the_middle_goes_on_with_the_answer(person, stage):
    page = person.page(person.profile(), stage.url)
    stage.answers = [Says("", pieces=[f"{n} " for n in range(90)], rate=60, breaks_after=30, leaves=True)]
    ask(page, "Count")
    expect(page.locator(".status")).to_contain_text("The line is lost")
    expect(last(page)).to_contain_text("20 21")
    expect(page.locator("#stop")).to_be_visible()
    stage.away = False
    expect(last(page)).to_have_text(" ".join(str(n) for n in range(90)))
    answered(page)
    # What it can't go on with stays, and says so; asking again is one click.
    stage.answers = [Says("", pieces=[f"{n} " for n in range(90)], rate=60, breaks_after=30), Refuses(404, "this answer is no longer kept", "answer_not_found"), Says("Again.")]
    ask(page, "Once more")
    expect(page.locator(".error").last).to_contain_text("This answer is no longer kept.")
    expect(last(page)).to_contain_text("20 21")
    page.locator(".error").last.get_by_role("button", name="Ask again").click()
    expect(last(page)).to_have_text("Again.")
    answered(page)


def a_refusal_says_when_and_asks_again_by_itself(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    stage.answers = [Refuses(429, "the tree is full: try again later", "rate_limit_exceeded", after=2), Says("Now.")]
    ask(page, "Quick")
    expect(page.locator(".error")).to_contain_text("The tree is full: try again later.")
    expect(page.locator(".error .left")).to_contain_text(re.compile("Asks again in"))
    expect(last(page)).to_have_text("Now.")
    answered(page)
    assert stage.asked[-1]["body"] == stage.asked[-2]["body"]
    # What is itself at fault is to be changed, not repeated.
    stage.answers = [Refuses(400, "this model's maximum context length is 8 tokens", "context_length_exceeded")]
    ask(page, "Too long")
    page.get_by_role("button", name="Change it").click()
    expect(page.get_by_role("textbox", name="Edit")).to_have_value("Too long")


def who_waits_sees_its_place_in_the_queue(person, stage):
    page = person.page(person.profile(), stage.url)
    waits = Says("Here.", places=(12, 2, 1))
    stage.answers = [waits]
    ask(page, "Is it my turn?")
    for place in (12, 2, 1):
        expect(page.locator(".status")).to_have_text(f"number {place} in the queue…")
        waits.moved.release()
    expect(last(page)).to_have_text("Here.")
    answered(page)
    assert stage.asked[-1]["body"]["places"] is True
    expect(page.locator(".status")).to_have_text("")


def two_tabs_show_one_conversation(person, stage):
    context = person.profile()
    one, two = person.page(context, stage.url), person.page(context, stage.url)
    stage.answers = [Says("", pieces=[f"{n} " for n in range(200)], rate=60)]
    ask(one, "Count")
    expect(two.locator("#talks a")).to_have_text("Count")
    two.locator("#talks a").click()
    expect(last(two)).to_contain_text("40", timeout=10_000)
    # The tab that asked is closed; the other one goes on.
    one.close()
    expect(last(two)).to_contain_text("198 199", timeout=20_000)
    answered(two)


def without_a_line_history_is_read_and_drafts_stay(person, stage):
    context = person.profile(PHONE)
    page = person.page(context, stage.url)
    stage.answers = [Says("Kept words.")]
    ask(page, "Keep this")
    answered(page)
    page.evaluate("navigator.serviceWorker.ready.then((worker) => worker.active.state)")
    page.wait_for_function("navigator.serviceWorker.controller !== null")
    stage.away = True
    page.goto(stage.url)
    expect(page.locator("#offline")).to_contain_text("can’t be reached")
    expect(page.locator("#send")).to_be_disabled()
    page.locator("#prompt").fill("later")
    page.locator("#menu").tap()
    page.locator("#talks a").tap()
    expect(last(page)).to_have_text("Kept words.")
    stage.away = False
    expect(page.locator("#offline")).to_be_hidden()
    expect(page.locator("#send")).to_be_enabled()


def servers_are_remembered_and_gone_to(person, stage):
    other = Stage()
    context = person.profile(PHONE)
    page = person.page(context, stage.url)
    page.locator("#menu").tap()
    page.get_by_role("button", name="Settings").tap()
    page.get_by_role("button", name="Servers").tap()
    page.get_by_label("Address of a server").fill("javascript:alert(1)")
    page.get_by_role("button", name="Add").tap()
    expect(page.locator(".wrong")).to_contain_text("This is no address")
    page.get_by_label("Address of a server").fill(other.url.removeprefix("http://"))
    page.get_by_role("button", name="Add").tap()
    page.get_by_role("button", name=other.url, exact=False).first.tap()
    page.wait_for_url(f"{other.url}/**")
    expect(page.locator(".notice")).to_contain_text(f"You came from {stage.url}")
    page.get_by_role("button", name="Remember it").tap()
    assert page.evaluate("JSON.parse(localStorage.getItem('banyan.servers'))") == [other.url, stage.url]
    other.close()


def keys_alone_do_everything(person, stage):
    context = person.profile(DESK)
    page = person.page(context, stage.url)
    page.keyboard.press("Control+b")
    expect(page.locator("#side")).to_be_hidden()
    page.keyboard.press("Control+b")
    expect(page.locator("#side")).to_be_visible()
    stage.answers = [Says("Done.\n\n```js\nlet a = 1;\n```\n")]
    page.locator("#prompt").focus()
    page.keyboard.type("two lines")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("here")
    page.keyboard.press("Enter")
    answered(page)
    assert stage.asked[-1]["body"]["messages"][-1]["content"] == "two lines\nhere"
    # A screen reader hears whole sentences.
    expect(page.locator("#spoken")).to_contain_text("Done.")
    page.locator(".facts").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Why this answer")).to_contain_text("busy: passed on to a child with room")
    page.keyboard.press("Escape")
    expect(page.locator(".facts")).to_be_focused()
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=stage.url)
    page.locator(".copy").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "let a = 1;"


if __name__ == "__main__":
    run([
        what_is_said_is_kept_found_renamed_and_deleted,
        questions_are_edited_answers_asked_again_and_all_versions_stay,
        stop_ends_an_answer_here_and_there,
        parameters_and_models_are_a_conversations_own,
        drafts_wait_for_who_wrote_them,
        conversations_leave_and_come_back_as_files,
        a_line_that_breaks_and_a_page_that_is_loaded_again_lose_nothing,
        an_api_that_goes_and_comes_back_in_the_middle_goes_on_with_the_answer,
        a_refusal_says_when_and_asks_again_by_itself,
        who_waits_sees_its_place_in_the_queue,
        two_tabs_show_one_conversation,
        without_a_line_history_is_read_and_drafts_stay,
        servers_are_remembered_and_gone_to,
        keys_alone_do_everything,
    ])
