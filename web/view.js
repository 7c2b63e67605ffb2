// The page's elements: built from text nodes, never from markup. Decides nothing.

import { figures } from '/chat.js';

const SVG = 'http://www.w3.org/2000/svg';

/**
 * An element with attributes and children.
 * @param {string} tag @param {Record<string, any>} [attributes] @param {...(Node|string|null)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** @param {string} name one of icons.svg */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const use = document.createElementNS(SVG, 'use');
  use.setAttribute('href', `/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** One turn on the page; `update` follows the turn. */
export class TurnView {
  #answer = document.createTextNode('');
  #status = element('p', { class: 'status' });
  #facts = element('p', { class: 'facts' });
  #actions = element('div', { class: 'actions' });
  #error = element('div', { class: 'error', role: 'alert', hidden: true });
  /** @type {number|null} */
  #countdown = null;
  #ended = false;

  /**
   * @param {import('./chat.js').Turn} turn
   * @param {{again: (turn: any) => void, goOn: (turn: any) => void, edit: (turn: any) => void}} actions
   */
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    const said = element('div', { class: 'answer' }, this.#answer);
    const prompt = element('div', { class: 'prompt' }, turn.prompt);
    this.root = element('li', { class: `turn ${turn.mode}`, 'aria-busy': 'true' });
    if (turn.mode === 'chat') {
      this.root.append(element('p', { class: 'unseen' }, 'You:'), prompt, element('p', { class: 'unseen' }, 'Answer:'));
      this.root.append(element('div', { class: 'reply' }, said, this.#status, this.#error, this.#foot()));
    } else {
      // Prompt and continuation are one text.
      const text = element('div', { class: 'text' }, element('span', { class: 'given' }, turn.prompt), element('span', { class: 'answer' }, this.#answer));
      this.root.append(element('div', { class: 'reply' }, text, this.#status, this.#error, this.#foot()));
    }
    this.update();
  }

  update() {
    const { turn } = this;
    if (this.#answer.data !== turn.answer) {
      // Only what is new, so that a selection survives.
      this.#answer.appendData(turn.answer.slice(this.#answer.data.length));
    }
    this.root.dataset.state = turn.state;
    this.#status.textContent = turn.state === 'waiting' ? waiting(turn) : '';
    this.#facts.textContent = facts(turn);
    this.#facts.title = turn.origin ? `query ${turn.origin.query}` : '';
    if (turn.ended !== null && !this.#ended) this.#end();
  }

  /** Takes the turn off the page. */
  remove() {
    if (this.#countdown !== null) clearInterval(this.#countdown);
    this.root.remove();
  }

  #foot() {
    return element('div', { class: 'foot' }, this.#facts, this.#actions);
  }

  #end() {
    this.#ended = true;
    const { turn } = this;
    this.root.removeAttribute('aria-busy');
    const whole = () => (turn.mode === 'chat' ? turn.answer : turn.prompt + turn.answer);
    if (turn.answer !== '') this.#actions.append(copyButton(whole));
    if (turn.error) this.#fail(turn.error);
    else this.#actions.append(button('again', 'Ask again', () => this.actions.again(turn)));
    if (turn.mode === 'complete' && turn.answer !== '') this.#actions.append(button('on', 'Go on', () => this.actions.goOn(turn)));
  }

  #fail(error) {
    const again = element('button', { type: 'button', class: 'retry', onclick: () => this.actions.again(this.turn) }, 'Ask again');
    this.#error.hidden = false;
    this.#error.append(element('p', {}, sentence(error.message)));
    if (error.retryAfter === null) {
      // Asking the same again would fail again.
      this.#error.append(element('button', { type: 'button', class: 'retry', onclick: () => this.actions.edit(this.turn) }, 'Change it'));
      return;
    }
    this.#error.append(again);
    let left = error.retryAfter;
    const show = () => {
      again.disabled = left > 0;
      again.textContent = left > 0 ? `Ask again in ${left} s` : 'Ask again';
      if (left === 0 && this.#countdown !== null) clearInterval(this.#countdown);
      left -= 1;
    };
    show();
    if (error.retryAfter > 0) this.#countdown = setInterval(show, 1000);
  }
}

function button(name, label, act) {
  return element('button', { type: 'button', class: 'quiet', 'aria-label': label, title: label, onclick: act }, icon(name));
}

function copyButton(text) {
  const made = button('copy', 'Copy', async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      // Not allowed outside a secure context; the text can still be selected.
      return;
    }
    made.replaceChildren(icon('done'));
    setTimeout(() => made.replaceChildren(icon('copy')), 1200);
  });
  return made;
}

function waiting(turn) {
  const { origin } = turn;
  if (!origin) return 'finding a node…';
  return origin.node === null ? 'waiting at the root…' : origin.running ? `${origin.node} reads…` : `queued at ${origin.node}…`;
}

/** Who answered, and what it took. */
function facts(turn) {
  const took = figures(turn);
  const parts = [];
  if (turn.origin?.node && (took || turn.ended !== null)) parts.push(path(turn.origin));
  if (took && turn.ended !== null) {
    if (took.tokens !== null) parts.push(`${took.tokens} ${took.tokens === 1 ? 'token' : 'tokens'}`);
    parts.push(`${seconds(took.seconds)} s`);
    if (took.rate !== null) parts.push(`${took.rate < 10 ? took.rate.toFixed(1) : Math.round(took.rate)} tokens/s`);
    if (turn.state === 'done') parts.push(`first after ${seconds(took.first)} s`);
  }
  if (turn.state === 'stopped') parts.push('stopped');
  if (turn.state === 'done' && turn.reason === 'length') parts.push('cut at the limit');
  if (turn.origin && turn.origin.attempt > 1) parts.push(`attempt ${turn.origin.attempt}`);
  // Lines break between the facts, not within.
  return parts.map((part) => part.replaceAll(' ', '\u00a0')).join('\u00a0· ');
}

/** The way down the tree, each node once. */
function path({ node, trail }) {
  const way = trail.map((hop) => hop.node).filter((name, at, all) => name !== '' && name !== all[at - 1]);
  if (way.at(-1) !== node) way.push(node);
  return way.join(' › ');
}

const seconds = (value) => value.toFixed(value < 10 ? 2 : 1);

/** The API's messages begin in lower case, as they follow a colon elsewhere. */
function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.?!…]$/.test(text) ? text : `${text}.`;
}
