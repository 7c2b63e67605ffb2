"""The tree page as people use it: before a made-up tree of any size, and on a real one. Usage: page_tree.py AXE.JS FOLDER [CHECK…]"""

import json
import os
import pathlib
import re
import signal
import sys
import urllib.request

from browser import DESK, PHONE, browser, expect, until
from grove import Grove, Told

AXE, SHOTS = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
WRONG = []


def opened(person, url, size=DESK, language="en-US", theme="light", **more):
    page = person.profile(size, language, theme, **more).new_page()
    page.on("console", lambda message: person.problem(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: person.problem(str(error)))
    page.goto(url + "/tree")
    expect(page.locator(".node.root").first).to_be_visible()
    return page


def node(page, name):
    return page.locator(f'.node[data-name="{name}"]')


def seen(page, name):
    """Looks at a view: by axe, and by whoever opens the pictures."""
    page.screenshot(path=SHOTS / f"{name}.png")
    page.evaluate(AXE.read_text())
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")["violations"]
    WRONG.extend(f"{name}: {each['id']}: {[one['html'][:160] for one in each['nodes'][:3]]} {each['nodes'][0]['failureSummary']}" for each in found)
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        WRONG.append(f"{name}: it is wider than the screen")


def all_views_are_read_by_everyone(person):
    SHOTS.mkdir(parents=True, exist_ok=True)
    for size, theme, language in [("desk", "light", "en"), ("desk", "dark", "zh"), ("phone", "light", "es"), ("phone", "dark", "en")]:
        stage = Told(Grove(12, 3))
        page = opened(person, stage.url, PHONE if size == "phone" else DESK, language, theme)
        name = f"tree-{size}-{theme}-{language}"
        page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.lang") == language
        seen(page, name)
        stage.tell(stage.grove.lose("node-5"))
        expect(node(page, "node-5")).to_have_class(re.compile("s-lost"))
        node(page, "node-2").click()
        expect(page.locator("#panel")).to_be_visible()
        seen(page, f"{name}-node")
        stage.lives = False
        page.locator("#panel .query").first.click()
        expect(page.locator("#panel .trail li").first).to_be_visible()
        seen(page, f"{name}-query")
        page.keyboard.press("Escape")
        page.locator("#people").click()
        expect(page.locator("dialog table")).to_be_visible()
        seen(page, f"{name}-people")
        page.keyboard.press("Escape")
        page.locator("#as-table").click()
        expect(page.locator("#list tbody tr")).to_have_count(13)
        seen(page, f"{name}-table")
        page.context.close()
        stage.close()
    assert not WRONG, "\n".join(WRONG)


PLANS = """async () => {
  const { plan } = await import('/tree-plan.js');
  const wrong = [];
  for (let seed = 1; seed <= 60; seed += 1) {
    let state = seed;
    const below = (n) => Math.floor(((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32) * n);
    const count = [3, 30, 200, 600][seed % 4];
    const nodes = new Map([['root', { name: 'root', role: 'root', tree: 'main', parent: null }], ['spare', { name: 'spare', role: 'standby', tree: 'main', parent: null }]]);
    for (let n = 0; n < count; n += 1) {
      // Some name a parent that is not there, and some go round in circles.
      const parent = ['root', `n${below(n + 1)}`, `n${below(count)}`, 'nobody'][below(20) < 17 ? below(2) : 2 + below(2)];
      nodes.set(`n${n}`, { name: `n${n}`, role: 'node', tree: 'main', parent });
    }
    const hidden = new Set(seed % 3 === 0 ? ['n0', 'n1'] : []);
    const { places, order, children } = plan(nodes, hidden, { w: 400 + below(1200), h: 300 + below(900) });
    const all = [...places.values()];
    if (hidden.size === 0 && (all.length !== nodes.size || new Set(order).size !== nodes.size)) wrong.push(`${seed}: not all are there`);
    for (const [index, one] of all.entries()) for (const other of all.slice(index + 1)) {
      if (Math.abs(one.x - other.x) < (one.w + other.w) / 2 - 0.01 && Math.abs(one.y - other.y) < (one.h + other.h) / 2 - 0.01) wrong.push(`${seed}: ${one.name} is on ${other.name}`);
    }
    for (const one of all) if (one.up !== null && (!children.get(one.up).includes(one.name) || places.get(one.up).y >= one.y)) wrong.push(`${seed}: ${one.name} is not below ${one.up}`);
  }
  return wrong.slice(0, 5);
}"""


def trees_of_every_shape_stand_without_overlaps(person):
    stage = Told(Grove(3), lives=False)
    page = opened(person, stage.url)
    assert (wrong := page.evaluate(PLANS)) == [], wrong
    page.context.close()
    stage.close()


def keys_alone_are_enough(person):
    stage = Told(Grove(12, 3), lives=False)
    page = opened(person, stage.url)
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("node-1")
    expect(page.locator("#found")).to_have_text("4")
    page.keyboard.press("Escape")
    node(page, "root").focus()
    for key, wanted in [("ArrowDown", "node-1"), ("ArrowRight", "node-2"), ("ArrowDown", "node-7"), ("ArrowUp", "node-2"), ("Home", "root"), ("ArrowDown", "node-1")]:
        page.keyboard.press(key)
        expect(node(page, wanted)).to_be_focused()
    assert "ready" in node(page, "node-1").get_attribute("aria-description")
    page.keyboard.press(" ")
    expect(node(page, "node-4")).to_have_count(0)
    expect(node(page, "node-1").locator(".fold")).to_have_text("+3")
    page.keyboard.press("Enter")
    expect(page.locator("#panel h2")).to_have_text("node-1")
    page.get_by_role("button", name="Expand").click()
    expect(node(page, "node-4")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    expect(node(page, "node-1")).to_be_focused()
    # What comes and goes is read out.
    stage.tell(stage.grove.lose("node-9"))
    expect(page.locator("#spoken")).to_have_text("node-9 is lost.")
    stage.close()


def whoever_wants_no_motion_sees_none(person):
    stage = Told(Grove(12, 3))
    page = opened(person, stage.url, reduced_motion="reduce")
    expect(page.locator(".seat.full").first).to_be_visible()
    page.wait_for_timeout(500)
    drawn = "() => { const c = document.querySelector('#motion'); return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((each) => each !== 0); }"
    assert not page.evaluate(drawn)
    page.context.close()
    page = opened(person, stage.url)
    until("lights are drawn", lambda: page.evaluate(drawn))
    stage.close()


def only_operators_see_what_operators_do(person):
    stage = Told(Grove(6, 3), lives=False, operator=False)
    page = opened(person, stage.url)
    node(page, "node-1").click()
    expect(page.locator("#panel dl")).to_contain_text("Qwen" if "Qwen" in stage.grove.nodes["node-1"]["models"][0] else stage.grove.nodes["node-1"]["models"][0])
    expect(page.get_by_role("button", name="Drain")).to_have_count(0)
    expect(page.locator("#people")).to_be_hidden()
    stage.close()


def traced(page, seconds):
    """The milliseconds of script, style and layout in each task of the page's main thread that took in an event or drew one."""
    client = page.context.new_cdp_session(page)
    events = []
    client.on("Tracing.dataCollected", lambda data: events.extend(data["value"]))
    done = []
    client.on("Tracing.tracingComplete", lambda _: done.append(True))
    client.send("Tracing.start", {"transferMode": "ReportEvents", "traceConfig": {"includedCategories": ["devtools.timeline"]}})
    page.wait_for_timeout(seconds * 1000)
    client.send("Tracing.end")
    until("the trace is there", lambda: page.wait_for_timeout(50) or done)
    wanted = {"FunctionCall", "EvaluateScript", "UpdateLayoutTree", "Layout", "FireAnimationFrame", "EventDispatch", "MinorGC", "MajorGC"}
    main = {(each["pid"], each["tid"]) for each in events if each["name"] == "FireAnimationFrame"}
    spans = sorted((each["ts"], each["ts"] + each.get("dur", 0)) for each in events if each["name"] in wanted and each.get("ph") == "X" and (each["pid"], each["tid"]) in main)
    flat = []
    for begin, end in spans:
        # One lies within the other, and counts once.
        if flat and begin < flat[-1][1]:
            flat[-1][1] = max(flat[-1][1], end)
        else:
            flat.append([begin, end])
    return sum(end - begin for begin, end in flat) / 1000, len(flat)


def two_hundred_nodes_are_quick_and_two_thousand_usable(person):
    for nodes, rows, seconds in [(200, 0, 5), (2000, 40, 5)]:
        stage = Told(Grove(nodes, 6, load=0.5, rows=rows), lives=False)
        for _ in range(30):
            stage.grove.step()
        page = opened(person, stage.url, reduced_motion="reduce")
        expect(page.locator(".node")).to_have_count(nodes + 1)
        page.screenshot(path=SHOTS / f"tree-{nodes}.png")
        stage.lives = True
        page.wait_for_timeout(1000)
        spent, _ = traced(page, seconds)
        update = spent / (seconds * 10)
        print(f"{nodes} nodes: {update:.2f} ms of script and layout for an update, ten updates a second", flush=True)
        page.keyboard.press("/")
        page.keyboard.type(f"node-{nodes - 1}")
        expect(page.locator(".node.found")).to_have_count(1)
        page.keyboard.press("Enter")
        expect(page.locator("#panel h2")).to_have_text(f"node-{nodes - 1}")
        page.context.close()
        stage.close()


def a_real_tree(person, url, victim):
    """Nodes are processes, of which `victim` is b's."""
    page = opened(person, url)
    for name in ("root", "a", "b", "c"):
        expect(node(page, name)).to_be_visible()
    expect(node(page, "b")).to_have_class(re.compile("s-ready"))
    page.evaluate("() => { globalThis.lights = 0; const { fill } = CanvasRenderingContext2D.prototype; CanvasRenderingContext2D.prototype.fill = function (...given) { globalThis.lights += 1; return fill.apply(this, given); }; }")
    body = json.dumps({"model": "fake", "prompt": "[[count 400]]", "max_tokens": 500, "stream": True}).encode()
    streams = [urllib.request.urlopen(urllib.request.Request(url + "/v1/completions", data=body, headers={"content-type": "application/json"})) for _ in range(3)]
    expect(page.locator(".node.works")).not_to_have_count(0)
    until("the query is seen on its way", lambda: page.evaluate("globalThis.lights") > 0)
    page.screenshot(path=SHOTS / "tree-real.png")
    page.locator(".seat.full[data-query]").first.click()
    expect(page.locator("#panel .trail li b").first).to_have_text("root")
    page.keyboard.press("Escape")
    for stream in streams:
        stream.close()
    expect(page.locator(".node.works")).to_have_count(0)
    # Drained by a click.
    node(page, "c").click()
    page.get_by_role("button", name="Drain").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    expect(node(page, "c")).to_have_count(0)
    os.kill(int(victim), signal.SIGKILL)
    expect(node(page, "b")).to_have_class(re.compile("s-lost"))
    page.screenshot(path=SHOTS / "tree-lost.png")
    expect(node(page, "b")).to_have_count(0, timeout=40_000)


CHECKS = [trees_of_every_shape_stand_without_overlaps, all_views_are_read_by_everyone, keys_alone_are_enough, whoever_wants_no_motion_sees_none, only_operators_see_what_operators_do, two_hundred_nodes_are_quick_and_two_thousand_usable]

if __name__ == "__main__":
    SHOTS.mkdir(parents=True, exist_ok=True)
    with browser() as person:
        if sys.argv[3:4] == ["real"]:
            a_real_tree(person, *sys.argv[4:])
        else:
            for check in CHECKS:
                if len(sys.argv) == 3 or any(word in check.__name__ for word in sys.argv[3:]):
                    check(person)
                    print("passed", check.__name__, flush=True)
