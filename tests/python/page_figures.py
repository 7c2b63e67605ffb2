"""What the page costs, measured and printed: no test, as it depends on the machine. Usage: page_figures.py"""

import json

from browser import answered, ask, browser, expect, last
from stage import Says, Stage

WORDS = "the banyan drops roots from every branch, and **each** of them becomes a `trunk` that carries more of the crown".split()
PROSE = [word + (".\n\n" if at % 60 == 59 else " ") for at, word in enumerate(WORDS[n % len(WORDS)] for n in range(10_000))]
CODE = ["```rust\n"] + ["let" if n % 9 == 0 else ";\n" if n % 9 == 8 else f" x{n}" for n in range(10_000)]
ONE = [f"{n} " for n in range(10_000)]
TASKS = "() => { globalThis.tasks = []; new PerformanceObserver((list) => globalThis.tasks.push(...list.getEntries().map((each) => Math.round(each.duration)))).observe({ type: 'longtask' }); }"


def streaming(person, name, pieces):
    stage = Stage()
    page = person.page(person.profile(), stage.url)
    stage.answers = [Says("", pieces=["".join(pieces[:9000]), *pieces[9000:]], rate=200)]
    ask(page, "Go")
    expect(last(page)).not_to_be_empty()
    page.wait_for_timeout(500)
    page.evaluate(TASKS)
    answered(page)
    tasks = page.evaluate("globalThis.tasks")
    print(f"{name}: 10,000 tokens, the last 1,000 at 200/s: {len(tasks)} tasks over 50 ms, longest {max(tasks, default=0)} ms", flush=True)
    page.context.close()
    stage.close()


def opening(person):
    stage = Stage()
    page = person.page(person.profile(), stage.url)
    answer = "A **banyan** is a fig.\n\n- one\n- two\n\n```js\nlet a = 1;\n```\n\nAnd so on, " + "for a while, " * 40
    page.evaluate(
        """async (answer) => {
          const home = await import('/home.js');
          const { add, conversation } = await import('/conversation.js');
          const talk = conversation({ model: 'chatter' });
          for (let n = 0; n < 500; n += 1) add(talk, { parent: talk.leaf, role: n % 2 ? 'assistant' : 'user', text: n % 2 ? answer : `Question ${n}`, mode: 'chat', model: 'chatter', state: 'done' });
          await home.save(talk);
        }""",
        answer,
    )
    page.reload()
    link = page.locator("#talks a")
    expect(link).to_have_count(1)
    took = page.evaluate(
        """async () => {
          const began = performance.now();
          document.querySelector('#talks a').click();
          while (document.querySelectorAll('.turn').length < 500) await new Promise((resolve) => setTimeout(resolve, 1));
          await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
          return Math.round(performance.now() - began);
        }"""
    )
    print(f"a conversation of 500 messages opens in {took} ms", flush=True)
    page.context.close()
    stage.close()


def first_paint(person):
    stage = Stage()
    context = person.profile()
    page = context.new_page()
    context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 4})
    page.goto(stage.url)
    expect(page.locator("#send")).to_be_enabled()
    figures = page.evaluate(
        "() => ({ paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime, interactive: performance.getEntriesByName('banyan-ready')[0]?.startTime })"
    )
    print("at a quarter of the processor's speed, in ms:", json.dumps(figures), flush=True)
    context.close()
    stage.close()


if __name__ == "__main__":
    with browser() as person:
        first_paint(person)
        opening(person)
        streaming(person, "prose", PROSE)
        streaming(person, "code", CODE)
        streaming(person, "one paragraph", ONE)
