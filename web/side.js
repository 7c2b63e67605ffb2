// The list of conversations: by day, searched, renamed, exported, deleted.

import { ask, confirm, menu } from '/dialog.js';
import { at, download, element, icon } from '/dom.js';
import * as home from '/home.js';
import { share } from '/share.js';
import { fileName, toJson, toMarkdown } from '/transfer.js';
import { language, t } from '/words.js';

/** As many as are shown before somebody asks for more. */
const SHOWN = 200;

/** A pause in typing, in milliseconds, after which is searched. */
const TYPING = 120;

const DAY = 86_400_000;

/** @import {Found, Summary} from './cache.js' */
/** @typedef {{opened: (id: string, said: string|null) => void, removed: (id: string) => void, renamed: (id: string, title: string) => void, running: (id: string) => boolean}} Told */

export class Side {
  #shown = SHOWN;
  #current = '';
  /** @type {ReturnType<typeof setTimeout>|undefined} */
  #typing;
  /** Which drawing is the last one asked for. */
  #drawing = 0;

  /** @param {Told} told */
  constructor(told) {
    this.told = told;
    this.list = at('talks');
    this.field = /** @type {HTMLInputElement} */ (at('search'));
    this.field.addEventListener('input', () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.draw(), TYPING);
    });
    this.field.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && this.field.value !== '') {
        event.stopPropagation();
        this.field.value = '';
        this.draw();
      } else if (event.key === 'ArrowDown') {
        event.preventDefault();
        this.list.querySelector('a')?.focus();
      } else if (event.key === 'Enter') {
        this.list.querySelector('a')?.click();
      }
    });
    this.list.addEventListener('keydown', (event) => {
      const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
      if (step === 0) return;
      event.preventDefault();
      const links = [...this.list.querySelectorAll('a')];
      const next = links.indexOf(/** @type {HTMLAnchorElement} */ (document.activeElement)) + step;
      if (next < 0) this.field.focus();
      else links[next]?.focus();
    });
  }

  /** @param {string} id of the conversation that is shown */
  mark(id) {
    this.#current = id;
    for (const link of this.list.querySelectorAll('a')) {
      if (link.dataset.talk === id) link.setAttribute('aria-current', 'page');
      else link.removeAttribute('aria-current');
    }
  }

  async draw() {
    this.#drawing += 1;
    const drawing = this.#drawing;
    const words = this.field.value.trim();
    // A private window may keep nothing; the page works all the same.
    const nodes = words === '' ? this.#all(await home.list().catch(() => [])) : this.#found(await home.search(words).catch(() => []));
    if (drawing !== this.#drawing) return;
    const focused = /** @type {HTMLElement|null} */ (document.activeElement)?.dataset?.talk;
    this.list.replaceChildren(...nodes);
    if (focused) /** @type {HTMLElement|null} */ (this.list.querySelector(`a[data-talk="${focused}"]`))?.focus();
    this.mark(this.#current);
  }

  /** @param {Summary[]} all */
  #all(all) {
    if (all.length === 0) return [element('p', { class: 'hint' }, t('talks.none'))];
    /** @type {Map<string, Summary[]>} */
    const groups = new Map();
    for (const talk of all.slice(0, this.#shown)) {
      const day = dayOf(talk.updated);
      groups.set(day, [...(groups.get(day) ?? []), talk]);
    }
    /** @type {Node[]} */
    const nodes = [...groups].map(([day, talks]) => element('section', {}, element('h2', {}, day), element('ul', {}, ...talks.map((talk) => this.#row(talk)))));
    if (all.length > this.#shown) {
      nodes.push(element('button', { type: 'button', class: 'plain more', onclick: () => {
        this.#shown += SHOWN;
        this.draw();
      } }, t('talks.more')));
    }
    return nodes;
  }

  /** @param {Found[]} found */
  #found(found) {
    if (found.length === 0) return [element('p', { class: 'hint', role: 'status' }, t('search.none'))];
    return [element('section', {}, element('h2', { role: 'status' }, t('search.found', { n: found.length })),
      element('ul', {}, ...found.map((each) => this.#row(each, each.excerpt, each.said))))];
  }

  /** @param {{id: string, title: string}} talk @param {string} [excerpt] @param {string|null} [said] */
  #row(talk, excerpt = '', said = null) {
    const title = talk.title || t('untitled');
    const more = element('button', { type: 'button', class: 'quiet', 'aria-label': t('talk.more', { title }), 'aria-haspopup': 'menu', onclick: () => this.actions(more, talk.id, title) }, icon('more'));
    return element('li', { class: this.told.running(talk.id) ? 'running' : null },
      element('a', { href: `#c=${talk.id}`, 'data-talk': talk.id, onclick: (/** @type {MouseEvent} */ event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.told.opened(talk.id, said);
      } }, element('span', { dir: 'auto' }, title), excerpt ? element('small', { dir: 'auto' }, excerpt) : null), more);
  }

  /** What can be done with a conversation. @param {HTMLElement} beside @param {string} id @param {string} title */
  actions(beside, id, title) {
    const exported = async (/** @type {'json'|'md'} */ kind) => {
      const talk = await home.load(id);
      if (!talk) return;
      if (kind === 'json') download(`${fileName(title)}.json`, 'application/json', toJson([talk]));
      else download(`${fileName(title)}.md`, 'text/markdown', toMarkdown(talk, { you: t('you'), system: t('system') }));
    };
    menu(beside, [
      { name: t('rename'), act: async () => {
        const given = await ask(t('rename'), title);
        if (given === null) return;
        await home.rename(id, given);
        this.told.renamed(id, given);
        this.draw();
      } },
      ...(home.isKept() ? [{ name: t('share'), act: () => share(id) }] : []),
      { name: t('export.md'), act: () => exported('md') },
      { name: t('export.json'), act: () => exported('json') },
      { name: t('remove'), danger: true, act: async () => {
        if (!await confirm(t('remove.sure', { title }), t('remove'))) return;
        this.told.removed(id);
        await home.remove(id);
        this.draw();
      } },
    ]);
  }
}

/** @param {number} time */
function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return t('day.today');
  if (time >= midnight - DAY) return t('day.yesterday');
  if (time >= midnight - 7 * DAY) return t('day.week');
  if (time >= midnight - 30 * DAY) return t('day.month');
  return new Intl.DateTimeFormat(language, { month: 'long', year: 'numeric' }).format(time);
}
