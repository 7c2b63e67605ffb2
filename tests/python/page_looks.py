"""How the page looks and is read: every view in both sizes, both themes and all languages, through axe; screenshots are kept.

Usage: page_looks.py AXE.JS FOLDER URL (of a tree without weights whose API is open, and has a store)
"""

import pathlib
import re
import sys

from browser import DESK, PHONE, answered, ask, expect, run
from stage import WEB, Says

AXE, SHOTS, URL = pathlib.Path(sys.argv.pop(1)), pathlib.Path(sys.argv.pop(1)), sys.argv.pop(1).rstrip("/")
ANSWER = """A banyan is a **fig** that begins its life on another tree; see [its page](https://example.org/banyan).

## How it grows

1. A seed falls into a crack.
2. Roots drop to the ground, and become `trunks`:
   - [x] first thin
   - [ ] then thick

> One tree, and a forest.

```rust
/// How many trunks a banyan has after so many years.
fn trunks(years: u32) -> u32 {
    let grown = years / 4; // slow at first
    println!("{grown} trunks", grown = grown);
    grown.max(1)
}
```

| Tree | Trunks | Since |
|:--|--:|:-:|
| Thimmamma Marrimanu | 4,000 | 1434 |
| The Great Banyan | 3,772 | 1787 |
"""
LOOKS = [(size, theme, language) for size in ("desk", "phone") for theme in ("light", "dark") for language in ("en", "zh", "es")]
# Windows look alike in all languages but for their words; each language is seen in one size and theme, at least.
WINDOWS = [("desk", "light", "en"), ("phone", "dark", "es"), ("phone", "light", "zh"), ("desk", "dark", "en")]


def seen(page, name):
    """Looks at a view: by axe, and by whoever opens the pictures."""
    page.evaluate("() => Promise.all(document.getAnimations().map((each) => each.playState === 'running' && each.effect.getTiming().iterations === 1 ? each.finished : null))")
    # Pictures that are used for the first time come with the next frame but one.
    page.evaluate("() => new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen)))")
    page.screenshot(path=SHOTS / f"{name}.png")
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")["violations"]
    told = [f"{each['id']}: {[node['html'][:160] for node in each['nodes']]} {each['nodes'][0]['failureSummary']}" for each in found]
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        told.append("it is wider than the screen")
    WRONG.extend(f"{name}: {each}" for each in told)


# All of it is told at the end.
WRONG = []


def axe_finds_nothing_on_any_view(person, stage):
    SHOTS.mkdir(parents=True, exist_ok=True)
    for look in LOOKS:
        size, theme, language = look
        stage.answers = [Says(ANSWER)]
        page = person.page(person.profile(PHONE if size == "phone" else DESK, language, theme), stage.url)
        page.evaluate(AXE.read_text())
        name = f"{size}-{theme}-{language}"
        expect(page.locator("#starters button").first).to_be_enabled()
        seen(page, f"{name}-welcome")
        ask(page, "What is a banyan, and how many trunks does it have?")
        answered(page)
        seen(page, f"{name}-answer")
        assert page.evaluate("document.documentElement.lang") == language
        if look in WINDOWS:
            windows(page, stage, name)
        page.context.close()
    assert not WRONG, "\n".join(WRONG)


def windows(page, stage, name):
    for button in ["#model", "#options", ".facts", "#talk-more"]:
        page.locator(button).last.click()
        seen(page, f"{name}-{button.strip('#.')}")
        page.keyboard.press("Escape")
    if "phone" in name:
        page.locator("#menu").click()
        expect(page.locator("#side")).to_be_visible()
        seen(page, f"{name}-side")
    page.locator("#settings").click()
    seen(page, f"{name}-settings")
    page.locator("dialog .plain").first.click()
    seen(page, f"{name}-servers")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.locator(".turn.user").hover()
    page.locator(".turn.user .actions button").last.click()
    seen(page, f"{name}-edit")
    page.keyboard.press("Escape")
    stage.away = True
    ask(page, "Is anybody there?")
    expect(page.locator("#offline")).to_be_visible(timeout=30_000)
    seen(page, f"{name}-offline")
    stage.away = False
    expect(page.locator("#offline")).to_be_hidden()


def links_look_well_to_who_makes_and_who_reads_them(person, stage):
    for look in WINDOWS:
        size, theme, language = look
        name = f"{size}-{theme}-{language}"
        page = person.page(person.profile(PHONE if size == "phone" else DESK, language, theme), URL)
        page.evaluate(AXE.read_text())
        ask(page, f"[[count 30]] {name}")
        answered(page)
        page.locator("#talk-more").click()
        page.locator(".menu button").nth(1).click()
        expect(page.locator(".sharing button")).to_have_count(1)
        seen(page, f"{name}-share")
        page.locator(".sharing button").click()
        address = page.locator(".sharing input").input_value()
        seen(page, f"{name}-shared")
        page.goto("about:blank")
        page.goto(address)
        page.evaluate(AXE.read_text())
        expect(page.locator("#reading")).to_be_visible()
        seen(page, f"{name}-reading")
        page.context.close()
    assert not WRONG, "\n".join(WRONG)


def every_language_has_every_word(person, stage):
    page = person.page(person.profile(), stage.url)
    words = page.evaluate(
        "async () => Object.fromEntries(await Promise.all(['en', 'zh', 'es'].map(async (each) => [each, { ...(await import(`/words/${each}.js`)).default, ...(await import(`/words/tree/${each}.js`)).default }])))"
    )
    forms = {"en": ("one", "other"), "es": ("one", "other"), "zh": ("other",)}
    base = {key: re.sub(r"\.(one|other)$", "", key) for key in words["en"]}
    for language, said in words.items():
        for key, text in words["en"].items():
            wanted = [f"{base[key]}.{form}" for form in forms[language]] if key != base[key] else [key]
            for each in wanted:
                assert said.get(each), (language, each)
                missing = set(re.findall(r"\{(\w+)\}", text)) ^ set(re.findall(r"\{(\w+)\}", said[each]))
                # One needs no figure.
                assert missing <= {"n"}, (language, each, missing)
        extra = {re.sub(r"\.(one|other)$", "", key) for key in said} - set(base.values())
        assert not extra, (language, extra)
    # What the page says is there, and what is there is said.
    source = "".join(path.read_text() for path in WEB.rglob("*") if path.suffix in (".js", ".html") and "words/" not in str(path))
    said = set(re.findall(r"""\bt\('([\w.]+)'""", source)) | set(re.findall(r'data-t(?:-label|-placeholder)?="([\w.]+)"', source))
    said |= set(re.findall(r"'((?:keys|tree)\.[\w.]+)'", source)) | set(re.findall(r"\? '([\w.]+)' : '", source)) | set(re.findall(r" : '([\w.]+)'", source))
    begun = tuple(each for each in re.findall(r"\bt\(`([\w.]+)\$\{", source))
    known = set(base.values()) | set(words["en"])
    assert not (missing := {key for key in re.findall(r"""\bt\('([\w.]+)'""", source) if key not in known}), missing
    unsaid = {key for key in base.values() if key not in said and not key.startswith(begun)}
    assert not unsaid, unsaid


def the_page_can_be_installed(person, stage):
    page = person.page(person.profile(), stage.url)
    told = page.context.new_cdp_session(page).send("Page.getAppManifest")
    assert not told["errors"], told["errors"]
    page.wait_for_function("navigator.serviceWorker.getRegistration().then((found) => found?.active?.state === 'activated')")
    wrong = page.context.new_cdp_session(page).send("Page.getInstallabilityErrors")["installabilityErrors"]
    # A profile that keeps nothing can install nothing.
    assert [each["errorId"] for each in wrong] in ([], ["in-incognito"]), wrong


if __name__ == "__main__":
    run([axe_finds_nothing_on_any_view, links_look_well_to_who_makes_and_who_reads_them, every_language_has_every_word, the_page_can_be_installed])
