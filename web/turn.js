// One thing that was said, on the page: a question with its edits, or an answer with what it took. Decides nothing.

import { figures, way } from '/conversation.js';
import { copy, element, icon, pictured } from '/dom.js';
import { Markdown } from '/render.js';
import { language, t } from '/words.js';

/** @import {Said} from './conversation.js' */

/**
 * @typedef {{again: (said: Said) => void, retry: (said: Said) => void, goOn: (said: Said) => void, edit: (said: Said, text: string) => void,
 *   turn: (said: Said, by: number) => void, why: (said: Said) => void, stop: (said: Said) => void}} Acts
 * @typedef {{place: number, of: number, question: Said|null, questions: {place: number, of: number}, lost: boolean, runs: boolean, canAsk: boolean}} Around
 */

/** What was said, as an element that `update` keeps true. */
export class Turn {
  #text = element('div', { class: 'answer', dir: 'auto' });
  #status = element('p', { class: 'status' });
  #error = element('div', { class: 'error', role: 'alert', hidden: true });
  #foot = element('div', { class: 'foot' });
  #actions = element('div', { class: 'actions' });
  #branches = element('div', { class: 'branches' });
  #facts = element('button', { type: 'button', class: 'facts', onclick: () => this.acts.why(this.said) });
  /** @type {Markdown|null} */
  #markdown = null;
  #plain = document.createTextNode('');
  /** @type {ReturnType<typeof setInterval>|undefined} */
  #countdown;
  /** What the parts around the text were last made of. */
  #made = '';
  #editing = false;

  /** @param {Said} said @param {Acts} acts */
  constructor(said, acts) {
    this.said = said;
    this.acts = acts;
    const who = element('h2', { class: 'unseen' });
    who.textContent = said.role === 'user' ? t('you') : said.model;
    this.root = element('li', { class: `turn ${said.role} ${said.mode}`, id: `said-${said.id}` }, who);
    if (said.role === 'user') {
      this.#text.className = 'prompt';
      this.#text.append(this.#plain);
      this.root.append(this.#text, this.#foot);
      this.#foot.append(this.#branches, this.#actions);
    } else {
      if (said.mode === 'chat') {
        this.#markdown = new Markdown(this.#text);
      }
      this.#foot.append(this.#facts, this.#branches, this.#actions);
      this.root.append(element('div', { class: 'reply' }, this.#text, this.#status, this.#error, this.#foot));
    }
  }

  /** @param {Around} around */
  update(around) {
    const { said } = this;
    this.root.dataset.state = said.state;
    if (said.role === 'user') {
      if (!this.#editing) this.#plain.data = said.text;
    } else if (this.#markdown) {
      this.#markdown.show(said.text);
    } else {
      this.#continue(around.question?.text ?? '');
    }
    this.#status.textContent = said.state === 'waiting' || around.lost ? waiting(said, around.lost) : '';
    const ended = !around.runs;
    const shown = facts(said, ended);
    if (this.#facts.textContent !== shown) this.#facts.textContent = shown;
    this.#facts.title = t('why');
    // Buttons are made again only where they differ, so that none is lost under a finger.
    const { question, ...plain } = around;
    const made = JSON.stringify([plain, question?.id, said.state, said.text === '', said.error]);
    if (made === this.#made) return;
    this.#made = made;
    this.#surround(around, ended);
  }

  /** Takes it off the page. */
  remove() {
    clearInterval(this.#countdown);
    this.root.remove();
  }

  /** Prompt and continuation are one text. @param {string} given */
  #continue(given) {
    const { text } = this.said;
    if (this.#text.firstChild === null) this.#text.append(element('span', { class: 'given' }, given), this.#plain);
    // Only what is new, so that a selection survives.
    if (text.startsWith(this.#plain.data)) this.#plain.appendData(text.slice(this.#plain.data.length));
    else this.#plain.data = text;
  }

  /** @param {Around} around @param {boolean} ended */
  #surround(around, ended) {
    const { said, acts } = this;
    this.#branches.replaceChildren(...this.#pages(said, around));
    if (said.mode === 'complete' && around.question) this.#branches.append(...this.#pages(around.question, around.questions));
    const actions = [];
    const whole = () => (said.mode === 'complete' && around.question ? around.question.text : '') + said.text;
    if (said.text !== '') actions.push(copyButton(whole));
    if (said.role === 'user') {
      if (around.canAsk) actions.push(pictured('edit', t('edit'), () => this.#edit(said)));
    } else if (ended) {
      const { question } = around;
      if (around.canAsk && said.mode === 'complete' && question) actions.push(pictured('edit', t('edit'), () => this.#edit(question)));
      if (around.canAsk) actions.push(pictured('again', t('again'), () => acts.again(said)));
      if (around.canAsk && said.mode === 'complete' && said.text !== '') actions.push(pictured('on', t('goOn'), () => acts.goOn(said)));
    }
    this.#actions.replaceChildren(...actions);
    this.#fail(around, ended);
  }

  /** @param {Said} said @param {{place: number, of: number}} around */
  #pages(said, { place, of }) {
    if (of < 2) return [];
    const back = pictured('back', t('branch.back'), () => this.acts.turn(said, -1));
    const forth = pictured('forth', t('branch.forth'), () => this.acts.turn(said, 1));
    back.disabled = place === 1;
    forth.disabled = place === of;
    return [back, element('span', { 'aria-label': t('branch.place', { place, of }) }, `${place}/${of}`), forth];
  }

  /** A question is changed where it stands. @param {Said} question */
  #edit(question) {
    this.#editing = true;
    const area = element('textarea', { class: 'edit', rows: 1, 'aria-label': t('edit'), dir: 'auto' });
    area.value = question.text;
    const fit = () => {
      area.style.height = 'auto';
      area.style.height = `${area.scrollHeight + 2}px`;
    };
    const close = () => {
      this.#editing = false;
      form.replaceWith(this.#text);
      this.#foot.hidden = false;
      this.#actions.querySelector('button')?.focus();
    };
    const form = element('form', { class: 'editing', onsubmit: (/** @type {Event} */ event) => {
      event.preventDefault();
      const text = area.value;
      close();
      if (text.trim() !== '') this.acts.edit(question, text);
    } }, area, element('div', { class: 'row' },
      element('button', { type: 'button', class: 'plain', onclick: close }, t('cancel')),
      element('button', { type: 'submit', class: 'strong' }, t('send'))));
    area.addEventListener('input', fit);
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') {
        event.stopPropagation();
        close();
      } else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.#text.replaceWith(form);
    this.#foot.hidden = true;
    fit();
    area.focus();
  }

  /** Opens the field to change it. */
  edit() {
    if (!this.#editing) this.#edit(this.said);
  }

  /** @param {Around} around @param {boolean} ended */
  #fail(around, ended) {
    const { said } = this;
    clearInterval(this.#countdown);
    this.#error.hidden = said.state !== 'failed';
    if (said.state !== 'failed' || !said.error) {
      this.#error.replaceChildren();
      return;
    }
    const { error } = said;
    const message = element('p', {}, sentence(error.message));
    const button = element('button', { type: 'button', class: 'retry' });
    this.#error.replaceChildren(message, button);
    const left = () => Math.max(0, Math.ceil((error.until - Date.now()) / 1000));
    if (!ended) {
      // It is asked again by itself, at the time for which a place is kept.
      const note = element('span', { class: 'left' });
      const show = () => { note.textContent = t('retry.in', { n: left() }); };
      button.textContent = t('cancel');
      button.onclick = () => this.acts.stop(said);
      button.before(note);
      show();
      this.#countdown = setInterval(show, 1000);
    } else if (error.retryAfter === null && error.status !== 0) {
      // Asking the same again would fail again.
      button.textContent = t('change');
      button.onclick = () => around.question && this.#edit(around.question);
    } else {
      const show = () => {
        button.disabled = left() > 0 || !around.canAsk;
        button.textContent = left() > 0 ? t('retry.later', { n: left() }) : t('again');
        if (left() === 0) clearInterval(this.#countdown);
      };
      button.onclick = () => this.acts.retry(said);
      this.#countdown = setInterval(show, 1000);
      show();
    }
  }
}

/** @param {() => string} text */
function copyButton(text) {
  const made = pictured('copy', t('copy'), async () => {
    if (!await copy(text())) return;
    made.replaceChildren(icon('done'));
    setTimeout(() => made.replaceChildren(icon('copy')), 1200);
  });
  return made;
}

/** @param {Said} said @param {boolean} lost */
function waiting({ origin }, lost) {
  if (lost) return t('wait.lost');
  if (!origin) return t('wait.node');
  if (origin.node === null) return origin.place ? t('wait.place', { place: origin.place }) : t('wait.root');
  return t(origin.running ? 'wait.reads' : 'wait.queued', { node: origin.node });
}

/** Who answered, and what it took. @param {Said} said @param {boolean} ended */
function facts(said, ended) {
  if (said.role === 'user') return '';
  const took = figures(said);
  const parts = [];
  if (said.origin?.node && (took || ended)) parts.push(way(said.origin).join(' › '));
  if (took && ended) {
    if (took.tokens !== null) parts.push(t('tokens', { n: took.tokens }));
    parts.push(t('seconds', { value: seconds(took.seconds) }));
    if (took.rate !== null) parts.push(t('rate', { value: took.rate < 10 ? decimal(took.rate, 1) : Math.round(took.rate) }));
    if (said.state === 'done') parts.push(t('first', { value: seconds(took.first) }));
  }
  if (said.state === 'stopped') parts.push(t('stopped'));
  if (said.state === 'done' && said.reason === 'length') parts.push(t('cut'));
  if (said.origin && said.origin.attempt > 1) parts.push(t('attempt', { value: said.origin.attempt }));
  // Lines break between the facts, not within.
  return parts.map((part) => part.replaceAll(' ', '\u00a0')).join('\u00a0· ');
}

/** As people write it where they live. @param {number} value @param {number} digits */
export const decimal = (value, digits) => value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** @param {number} value */
export const seconds = (value) => decimal(value, value < 10 ? 2 : 1);

/** The API's messages begin in lower case, as they follow a colon elsewhere. @param {string} message */
export function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.?!…。！？]$/.test(text) ? text : `${text}.`;
}
