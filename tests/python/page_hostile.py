"""A model that says what no model should: the page shows it as text, and nothing of it runs, loads, or leads astray.

Usage: page_hostile.py URL (of a tree without weights)
"""

import sys

from browser import answered, ask, expect, last, run
from stage import Says

URL = sys.argv.pop(1)

ESC = "\x1b"
HOSTILE = {
    "markup": "<script>hit()</script><img src=x onerror=hit()><svg onload=hit()><iframe src='javascript:hit()'></iframe><b>bold?</b>",
    "links": "[a](javascript:hit()) [b](JaVaScRiPt:hit()) [c](data:text/html,<script>hit()</script>) [d](vbscript:x) [e](//evil.example) "
    "[f](java\tscript:hit()) [g](&#106;avascript:hit()) [h](file:///etc/passwd) [i](http://evil.example) <javascript:hit()> [j]( javascript:hit())",
    "pictures": "![tracker](https://evil.example/pixel.png) ![x](data:image/svg+xml,<svg/onload=hit()>)",
    "fences": "```html\n<script>hit()</script>\n```\n~~~\n<img src=x onerror=hit()>\n~~~\n```\nnever closed <script>hit()</script>",
    "tables": "|<script>|[x](javascript:hit())|\n|---|---|\n|<img src=x onerror=hit()>|`<b>`|",
    "attributes": '[x](https://a.example/" onmouseover="hit()) [y](https://a.example/?q=\'onfocus=hit()) ```" onclick="hit()\nx\n```',
    "terminal": f"{ESC}[31mred{ESC}[0m {ESC}]8;;http://evil.example{ESC}\\link{ESC}]8;;{ESC}\\ bell\x07 back\x08\x08",
    "reversed": "file\u202egnp.exe and \u2066hidden\u2069 and `\u202ecode`",
    "names": "[__proto__](https://a.example) constructor hasOwnProperty ```__proto__\nx\n``` &constructor; &__proto__;",
    "spoof": "[https://bank.example/login](https://evil.example/login)",
    "line": "a" * 100_000,
    "spaced": " ".join("word" for _ in range(20_000)),
    "nested": ">" * 500 + " deep\n\n" + "- " * 300 + "x\n\n" + "[" * 5000 + "](" * 500 + "*" * 3000 + "_a" * 3000 + "`" * 3001,
    "broken": "\ufffd\ud83d \u0000 \u2028 \u2029 \u200b",
}

# What may be there, whatever was said.
CHECK = """(host) => {
  const tags = new Set('P BR CODE EM STRONG DEL A SMALL H3 UL OL LI INPUT BLOCKQUOTE HR DIV SPAN BUTTON PRE TABLE THEAD TBODY TR TH TD svg use'.split(' '));
  const names = new Set('class dir href title target rel start type disabled checked aria-label aria-hidden tabindex role'.split(' '));
  const wrong = [];
  let depth = 0;
  for (const node of host.querySelectorAll('*')) {
    if (!tags.has(node.tagName)) wrong.push(node.tagName);
    for (const { name, value } of node.attributes) {
      if (!names.has(name)) wrong.push(`${node.tagName} ${name}=${value}`);
      if (name === 'href' && node.tagName === 'A' && !/^(https?:\\/\\/|mailto:)/.test(value)) wrong.push(value);
      if (name === 'href' && node.tagName === 'use' && !value.startsWith('/icons.svg#')) wrong.push(value);
    }
    if (node.tagName === 'A' && (node.rel !== 'noopener noreferrer nofollow' || node.target !== '_blank')) wrong.push(node.outerHTML);
    let up = 0;
    for (let at = node; at !== host; at = at.parentNode) up += 1;
    depth = Math.max(depth, up);
  }
  if (depth > 60) wrong.push(`depth ${depth}`);
  if (/[\\u0000-\\u0008\\u000b-\\u001f\\u202a-\\u202e\\u2066-\\u2069]/.test(host.textContent)) wrong.push('control characters');
  if (globalThis.hits) wrong.push('something ran');
  return wrong;
}"""

FUZZ = """async ([seed, rounds, check]) => {
  const { Markdown } = await import('/render.js');
  const { inline } = await import('/inline.js');
  const checked = (0, eval)(check);
  let state = seed;
  const random = (below) => {
    state = Math.imul(state ^ (state >>> 15), state | 1) ^ (state + 0x6d2b79f5);
    return ((state ^ (state >>> 14)) >>> 0) % below;
  };
  const pieces = ['*', '**', '_', '~~', '`', '```', '~~~', '\\n', '\\n\\n', '  ', '    ', '- ', '1. ', '2) ', '- [ ] ', '- [x] ', '> ', '# ', '###### ', '---', '===',
    '|', '|---|', ':-:', '[', ']', '(', ')', '](', '](https://a.b)', '![', '<', '>', '<script>', '</', 'javascript:', 'data:', 'https://', 'mailto:x@y.z', 'http://a.b/(c)',
    '&', '&lt;', '&#106;', '\\\\', '\\\\(', '\\\\)', '$$', '\\t', 'word', 'a', '中文', '。', 'é', '\\u202e', '\\u001b[0m', '"', "'", '!', '.', ':', 'js', 'onerror=', '\\r', '\\ud83d', '🌳'];
  const wrong = [];
  for (let round = 0; round < rounds && wrong.length < 5; round += 1) {
    const parts = Array.from({ length: 1 + random(40) }, () => pieces[random(pieces.length)]);
    const text = parts.join('');
    const whole = document.createElement('div');
    const grown = document.createElement('div');
    try {
      new Markdown(whole).show(text);
      const view = new Markdown(grown);
      for (let at = 0; at <= parts.length; at += 1 + random(4)) view.show(parts.slice(0, at).join(''));
      view.show(text);
    } catch (error) {
      wrong.push(['threw', text, String(error)]);
      continue;
    }
    const found = checked(whole);
    if (found.length > 0) wrong.push(['unsafe', text, found.join()]);
    if (whole.innerHTML !== grown.innerHTML) wrong.push(['differs', text, whole.innerHTML, grown.innerHTML]);
  }
  return wrong;
}"""


def nothing_that_is_said_runs_or_loads(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("() => { globalThis.hit = () => { globalThis.hits = true; }; }")
    for name, text in HOSTILE.items():
        stage.answers = [Says(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))]
        page.get_by_role("button", name="New conversation").first.click()
        ask(page, name)
        answered(page)
        wrong = last(page).evaluate(CHECK)
        assert not wrong, (name, wrong)
    assert all(url.startswith((stage.url, "blob:")) for url in asked), asked
    # What a person writes is text as well, here and in the list.
    page.get_by_role("button", name="New conversation").first.click()
    ask(page, "<img src=x onerror=hit()>")
    answered(page)
    expect(page.locator(".turn.user .prompt")).to_have_text("<img src=x onerror=hit()>")
    expect(page.locator("#talks a").first).to_have_text("<img src=x onerror=hit()>")
    assert page.evaluate("globalThis.hits") is None


def a_real_trees_worst_words_are_text(person, stage):
    context = person.profile()
    page = person.page(context, URL)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("() => { globalThis.hit = () => { globalThis.hits = true; }; }")
    for words in ("[[hostile 40]]", "[[hostile 400]]", "<b onclick=hit()> [[hostile 90]]"):
        page.get_by_role("button", name="New conversation").first.click()
        ask(page, words)
        answered(page)
        expect(last(page)).to_contain_text("aaaaaaaaaa")
        wrong = last(page).evaluate(CHECK)
        assert not wrong, (words, wrong)
        # Whole, from where it is kept, as it was when it grew.
        grown = last(page).inner_text()
        page.reload()
        expect(last(page)).to_contain_text("aaaaaaaaaa")
        assert last(page).inner_text() == grown
        assert not last(page).evaluate(CHECK)
        page.evaluate("() => { globalThis.hit = () => { globalThis.hits = true; }; }")
    # What was found among it is an excerpt, and as harmless.
    page.locator("#search").fill("evil example")
    expect(page.locator("#talks a").first).to_contain_text("evil.example")
    assert all(each.startswith((URL, "blob:")) for each in asked), [each for each in asked if not each.startswith(URL)]
    assert page.locator("#talks img, #talks script, #talks b").count() == 0 and page.evaluate("globalThis.hits") is None


def a_link_says_where_it_leads(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    stage.answers = [Says(HOSTILE["spoof"])]
    ask(page, "Link")
    answered(page)
    expect(last(page)).to_have_text("https://bank.example/login (evil.example)")


def any_text_is_safe_and_looks_the_same_whole_or_grown(person, stage):
    context = person.profile(bypass_csp=True)
    page = person.page(context, stage.url)
    for seed in range(1, 5):
        wrong = page.evaluate(FUZZ, [seed, 1500, CHECK])
        assert not wrong, (seed, wrong)


def a_growing_answer_touches_only_its_end(person, stage):
    context = person.profile()
    page = person.page(context, stage.url)
    touched = page.evaluate(
        """async () => {
          const { Markdown } = await import('/render.js');
          const host = document.createElement('div');
          const block = (n) => `Paragraph ${n} with **bold** words.\\n\\n- one\\n- two\\n\\n\\`\\`\\`js\\nlet a = ${n};\\n\\`\\`\\`\\n\\n`;
          let text = Array.from({ length: 300 }, (_, n) => block(n)).join('');
          const view = new Markdown(host);
          view.show(text);
          const old = new Set([...host.children].slice(0, -1));
          let outside = 0;
          const seen = (records) => { for (const { target } of records) for (const each of old) if (each.contains(target)) outside += 1; };
          const observer = new MutationObserver(seen);
          observer.observe(host, { childList: true, characterData: true, subtree: true });
          for (const word of 'and so it goes on, with `code` and **more**'.split(' ')) view.show(text += `${word} `);
          seen(observer.takeRecords());
          return outside;
        }"""
    )
    assert touched == 0, touched


if __name__ == "__main__":
    run([
        nothing_that_is_said_runs_or_loads,
        a_real_trees_worst_words_are_text,
        a_link_says_where_it_leads,
        any_text_is_safe_and_looks_the_same_whole_or_grown,
        a_growing_answer_touches_only_its_end,
    ])
