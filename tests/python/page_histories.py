"""Conversations that the API keeps: two browsers show the same ones, without a line they are read, links show them, and no other page
gets at them. Usage: page_histories.py URL (of a tree whose API has a store, and is open)"""

import json
import sys
import urllib.error
import urllib.request

from browser import PHONE, answered, ask, expect, last, run, until

url = sys.argv.pop(1).rstrip("/")
# What a page did before there was a server to keep things.
ALONE = """async () => {
  const opened = await new Promise((resolve) => {
    const opening = indexedDB.open('banyan', 1);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore('talks', { keyPath: 'id' });
      opening.result.createObjectStore('said', { keyPath: ['talk', 'id'] });
    };
    opening.onsuccess = () => resolve(opening.result);
  });
  const transaction = opened.transaction(['talks', 'said'], 'readwrite');
  const talk = 'a1b2c3';
  transaction.objectStore('talks').put({ id: talk, title: 'From before', created: 5, updated: 6, model: 'fake', mode: null, system: '', parameters: {}, leaf: 'b', said: undefined });
  const said = { talk, mode: 'chat', model: 'fake', state: 'done' };
  transaction.objectStore('said').put({ ...said, id: 'a', parent: null, role: 'user', text: 'An old question', at: 5 });
  transaction.objectStore('said').put({ ...said, id: 'b', parent: 'a', role: 'assistant', text: 'An old answer', at: 6 });
  await new Promise((resolve) => { transaction.oncomplete = resolve; });
  opened.close();
}"""


def look(page):
    """Somebody comes back to the window."""
    page.evaluate("dispatchEvent(new Event('focus'))")


def titles(page, wanted):
    """Waits until the list has these; what changed elsewhere comes with the next look."""
    talks = page.locator("#talks a > span")

    def holds():
        look(page)
        page.wait_for_timeout(100)
        return talks.all_text_contents() == wanted

    until(f"the list is {wanted}", holds)


def empty(page):
    """Every check begins with no history."""
    page.evaluate("""async () => {
      const { data } = await (await fetch('/v1/conversations?limit=1000')).json();
      for (const { id } of data) await fetch(`/v1/conversations/${id}`, { method: 'DELETE' });
    }""")
    titles(page, [])


def two_browsers_have_one_history(person, _):
    desk, phone = person.page(person.profile(), url), person.page(person.profile(PHONE), url)
    empty(desk)
    ask(desk, "[[count 4]]")
    answered(desk)
    titles(phone, ["[[count 4]]"])
    phone.locator("#menu").tap()
    phone.locator("#talks a").tap()
    expect(last(phone)).to_have_text("1 2 3 4")
    expect(phone.locator(".facts")).to_contain_text("tokens")
    # Both go on with it, each in its own way, and nothing is lost.
    ask(phone, "[[count 2]]")
    answered(phone)
    desk.get_by_role("button", name="Ask again").last.click()
    expect(desk.get_by_label("Version 2 of 2")).to_be_visible()
    answered(desk)
    until("what was said on the phone is here", lambda: look(desk) or desk.evaluate("fetch('/v1/conversations').then((all) => all.json()).then(({ data }) => data[0].messages)") == 5)
    desk.get_by_role("button", name="Earlier version").click()
    expect(desk.locator(".prompt")).to_have_text(["[[count 4]]", "[[count 2]]"])
    # A new name here is one there; deleted there, it is gone here.
    desk.get_by_role("button", name="Conversation", exact=True).click()
    desk.get_by_role("menuitem", name="Rename").click()
    desk.get_by_role("textbox", name="Rename").fill("Counting")
    desk.keyboard.press("Enter")
    titles(phone, ["Counting"])
    phone.get_by_role("button", name="Conversation", exact=True).tap()
    phone.get_by_role("menuitem", name="Delete").tap()
    phone.get_by_role("dialog").get_by_role("button", name="Delete").tap()
    titles(desk, [])
    expect(desk.locator("#welcome")).to_be_visible()


def an_answer_is_followed_on_another_browser(person, _):
    desk, other = person.page(person.profile(), url), person.page(person.profile(), url)
    empty(desk)
    ask(desk, "[[count 120]]")
    expect(last(desk)).to_contain_text("1 2 3")
    titles(other, ["[[count 120]]"])
    other.locator("#talks a").click()
    expect(last(other)).to_contain_text("20 21")
    desk.close()
    expect(last(other)).to_contain_text("119 120", timeout=60_000)
    answered(other)


def what_was_kept_here_alone_comes_along(person, _):
    other = person.page(person.profile(), url)
    empty(other)
    context = person.profile()
    page = context.new_page()
    page.goto(f"{url}/theme.js")
    page.evaluate(ALONE)
    page.goto(url)
    expect(page.locator(".notice")).to_contain_text("One conversation that was only in this browser")
    expect(page.locator("#talks a")).to_have_text("From before")
    titles(other, ["From before"])
    other.locator("#search").fill("old answ")
    other.locator("#talks a").click()
    expect(last(other)).to_have_text("An old answer")


def all_that_was_said_is_found_in_any_script(person, _):
    desk = person.page(person.profile(), url)
    empty(desk)
    desk.evaluate("""async () => {
      for (let number = 0; number < 230; number += 1) {
        const messages = [{ id: 'a', role: 'user', content: number === 3 ? '今天天气很好，适合散步' : `words of ${number}` }];
        await fetch(`/v1/conversations/talk${number}`, { method: 'PUT', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ title: `Talk ${number}`, messages, updated_ms: 1000 + number }) });
      }
    }""")
    look(desk)
    # Too many to lie here, and found all the same, and opened.
    until("the list is here", lambda: look(desk) or desk.locator("#talks a").count() == 200)
    desk.locator("#search").fill("天气")
    expect(desk.locator("#talks a")).to_have_count(1)
    desk.locator("#talks a").click()
    expect(desk.locator(".prompt")).to_have_text("今天天气很好，适合散步")
    desk.locator("#search").fill("")
    empty(desk)


def without_a_line_what_was_done_is_done_later(person, _):
    context, other = person.profile(), person.page(person.profile(), url)
    empty(other)
    page = person.page(context, url)
    for words in ("[[count 1]]", "[[count 2]]"):
        page.keyboard.press("Control+Shift+o")
        ask(page, words)
        answered(page)
    titles(other, ["[[count 2]]", "[[count 1]]"])
    page.evaluate("navigator.serviceWorker.ready.then((worker) => worker.active.state)")
    page.reload()
    page.wait_for_function("navigator.serviceWorker.controller !== null")
    context.set_offline(True)
    page.reload()
    expect(page.locator("#offline")).to_be_visible()
    page.locator("#talks a").last.click()
    expect(last(page)).to_have_text("1")
    page.get_by_role("button", name="Conversation", exact=True).click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_role("textbox", name="Rename").fill("Renamed away")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="More about [[count 2]]").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#talks a")).to_have_text(["Renamed away"])
    context.set_offline(False)
    titles(other, ["Renamed away"])


def a_link_shows_what_it_was_until_it_is_revoked(person, _):
    desk, reader = person.page(person.profile(), url), person.profile(PHONE)
    empty(desk)
    desk.get_by_role("button", name="Options of this conversation").click()
    desk.get_by_label("System prompt").fill("a secret of mine")
    desk.keyboard.press("Escape")
    ask(desk, "[[count 3]]")
    answered(desk)
    desk.get_by_role("button", name="Conversation", exact=True).click()
    desk.get_by_role("menuitem", name="Share").click()
    desk.get_by_role("button", name="Make a link").click()
    address = desk.get_by_role("textbox", name="Link").input_value()
    assert address.startswith(f"{url}/#s="), address
    ask_later = desk.get_by_role("dialog")
    desk.keyboard.press("Escape")
    expect(ask_later).to_have_count(0)
    ask(desk, "[[count 5]]")
    answered(desk)
    page = reader.new_page()
    page.goto(address)
    expect(page.locator(".prompt")).to_have_text("[[count 3]]")
    expect(last(page)).to_have_text("1 2 3")
    expect(page.locator("#composer")).to_be_hidden()
    expect(page.get_by_role("button", name="Edit")).to_have_count(0)
    told = json.loads(urllib.request.urlopen(address.replace("#s=", "v1/shares/")).read())
    assert "secret" not in json.dumps(told) and set(told) == {"title", "messages"}, told
    # Its reader goes on with a copy.
    page.get_by_role("button", name="Keep a copy").tap()
    ask(page, "[[count 2]]")
    answered(page)
    expect(page.locator(".prompt")).to_have_text(["[[count 3]]", "[[count 2]]"])
    desk.get_by_role("button", name="Conversation", exact=True).click()
    desk.get_by_role("menuitem", name="Share").click()
    desk.get_by_role("button", name="Revoke").click()
    expect(desk.locator(".notice")).to_contain_text("leads nowhere")
    page.goto("about:blank")
    page.goto(address)
    expect(page.locator(".notice")).to_contain_text("This link leads nowhere")
    expect(page.locator("#welcome")).to_be_visible()


def an_installed_page_asks_for_its_server_once(person, stage):
    context = person.profile(PHONE)
    # As an installed page is told; nothing installs one in a browser without a window.
    context.add_init_script("""{
      const asked = matchMedia.bind(globalThis);
      globalThis.matchMedia = (query) => (query === '(display-mode: standalone)' ? { matches: true } : asked(query));
    }""")
    page = context.new_page()
    page.goto(url)
    which = page.get_by_role("dialog", name="Which server answers you?")
    which.get_by_label("Address of a server").fill(stage.url)
    which.get_by_role("button", name="Add").tap()
    which.get_by_role("button", name=stage.url).first.tap()
    page.wait_for_url(f"{stage.url}/**")
    page.goto(url)
    expect(page.locator("#send")).to_be_enabled()
    expect(page.get_by_role("dialog")).to_have_count(0)


def no_other_page_gets_at_anything(person, stage):
    # What a page of another origin can send without asking, and what it would have to ask for.
    page = person.profile().new_page()
    page.goto(stage.url)
    tried = page.evaluate(
        """async (url) => {
          const tell = (promise) => promise.then((response) => response.type === 'opaque' ? 'opaque' : response.status, () => 'refused');
          const body = JSON.stringify({ title: 'planted' });
          return {
            read: await tell(fetch(`${url}/v1/conversations`)),
            simple: await tell(fetch(`${url}/v1/conversations`, { method: 'POST', mode: 'no-cors', headers: { 'content-type': 'text/plain' }, body })),
            put: await tell(fetch(`${url}/v1/conversations/planted`, { method: 'PUT', headers: { 'content-type': 'application/json' }, body })),
            socket: await new Promise((resolve) => {
              const socket = new WebSocket(`${url.replace('http', 'ws')}/v1/chat/ws?client_id=planted`);
              socket.onopen = () => resolve('open');
              socket.onerror = () => resolve('refused');
            }),
          };
        }""",
        url,
    )
    # The stage's own policy lets its pages connect nowhere else; so without it, by hand:
    assert tried["socket"] == "refused" and tried["read"] == "refused" and tried["put"] == "refused", tried
    host = url.split("://")[1]
    for method, headers, status in [
        ("POST", {"origin": "https://evil.example", "content-type": "text/plain"}, 403),
        ("PUT", {"origin": "null"}, 403),
        ("DELETE", {"origin": f"http://{host}.evil.example"}, 403),
        ("GET", {"host": "evil.example"}, 403),
        ("GET", {"host": f"rebound.example:{host.rsplit(':', 1)[1]}"}, 403),
        ("GET", {"host": host.replace(":", ".nip.io:")}, 403),
    ]:
        path = "/v1/conversations" if method == "POST" else "/v1/conversations/planted"
        request = urllib.request.Request(url + path, data=b"{}" if method in ("POST", "PUT") else None, headers=headers, method=method)
        try:
            answer = urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            answer = error.code
        assert answer == status, (method, headers, answer)
    assert b"planted" not in urllib.request.urlopen(f"{url}/v1/conversations").read()
    # No answer is given to other origins to read.
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/conversations", headers={"origin": "https://evil.example"})) as answer:
        assert not any(name.lower().startswith("access-control") for name in answer.headers), answer.headers


if __name__ == "__main__":
    run([
        two_browsers_have_one_history,
        an_answer_is_followed_on_another_browser,
        what_was_kept_here_alone_comes_along,
        all_that_was_said_is_found_in_any_script,
        without_a_line_what_was_done_is_done_later,
        a_link_shows_what_it_was_until_it_is_revoked,
        an_installed_page_asks_for_its_server_once,
        no_other_page_gets_at_anything,
    ])
