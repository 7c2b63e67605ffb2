// The branch of a conversation that is shown: makes its turns, follows what changes, and keeps its end in sight.

import { branch, siblings } from '/conversation.js';
import { at } from '/dom.js';
import { Turn } from '/turn.js';

/** @import {Answers} from './answers.js' */
/** @import {Conversation, Said} from './conversation.js' */
/** @import {Acts, Around} from './turn.js' */

/** How near to the end counts as reading along, in pixels. */
const NEAR = 80;

/** What is painted takes at most that part of the time, so that a slow machine still answers its person. */
const SHARE = 6;

/** How often a screen reader is told more, at most, in milliseconds. */
const SPEAK_EVERY = 1500;

export class Thread {
  /** @type {Map<string, Turn>} */
  #turns = new Map();
  /** @type {Conversation|null} */
  #talk = null;
  /** @type {Set<Said>} */
  #dirty = new Set();
  #frame = 0;
  #paintAfter = 0;
  #along = true;
  /** How much of an answer was spoken. @type {{id: string, upTo: number, at: number}} */
  #spoken = { id: '', upTo: 0, at: 0 };

  /** @param {Acts} acts @param {Answers} answers @param {() => boolean} canAsk */
  constructor(acts, answers, canAsk) {
    this.acts = acts;
    this.answers = answers;
    this.canAsk = canAsk;
    this.list = at('turns');
    this.scroll = at('scroll');
    this.down = at('down');
    this.scroll.addEventListener('scroll', () => {
      this.#along = this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < NEAR;
      this.down.hidden = this.#along;
    }, { passive: true });
    this.down.addEventListener('click', () => this.toEnd());
  }

  /** Shows a conversation's branch. @param {Conversation} talk */
  show(talk) {
    const other = this.#talk?.id !== talk.id;
    this.#talk = talk;
    const shown = branch(talk);
    const ids = new Set(shown.map(({ id }) => id));
    for (const [id, turn] of this.#turns) {
      if (ids.has(id) && turn.said === talk.said.get(id)) continue;
      turn.remove();
      this.#turns.delete(id);
    }
    const nodes = shown.map((said) => {
      let turn = this.#turns.get(said.id);
      if (!turn) {
        turn = new Turn(said, this.acts);
        this.#turns.set(said.id, turn);
      }
      turn.update(this.#around(talk, said));
      return turn.root;
    });
    nodes.forEach((node, place) => {
      if (this.list.children[place] !== node) this.list.insertBefore(node, this.list.children[place] ?? null);
    });
    if (other) this.toEnd();
    else this.#follow();
  }

  /** Something changed in what was said: it is painted with the next frame. @param {Said} said */
  changed(said) {
    this.#dirty.add(said);
    if (this.#frame !== 0) return;
    const wait = this.#paintAfter - performance.now();
    // Frames stop where nobody looks; the text goes on all the same.
    this.#frame = 1;
    if (wait > 20 || document.hidden) setTimeout(() => this.#paint(), Math.max(wait, document.hidden ? 200 : 0));
    else requestAnimationFrame(() => this.#paint());
  }

  /** @param {Said} said */
  turn(said) {
    return this.#turns.get(said.id);
  }

  toEnd() {
    this.#along = true;
    this.down.hidden = true;
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  /** @param {string} id */
  toSaid(id) {
    const turn = this.#turns.get(id);
    if (!turn) return;
    turn.root.scrollIntoView({ block: 'start' });
    turn.root.classList.add('found');
    setTimeout(() => turn.root.classList.remove('found'), 2000);
  }

  #paint() {
    this.#frame = 0;
    const began = performance.now();
    const talk = this.#talk;
    for (const said of this.#dirty) {
      // A conversation that is no longer shown is painted when it is again.
      if (talk && talk.said.get(said.id) === said) {
        this.#turns.get(said.id)?.update(this.#around(talk, said));
        this.#speak(said);
      }
    }
    this.#dirty.clear();
    this.#follow();
    const took = performance.now() - began;
    this.#paintAfter = performance.now() + took * SHARE;
  }

  #follow() {
    if (this.#along) this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  /** @param {Conversation} talk @param {Said} said @returns {Around} */
  #around(talk, said) {
    const place = (/** @type {Said} */ one) => {
      const all = siblings(talk, one);
      return { place: all.indexOf(one) + 1, of: all.length };
    };
    const question = said.role === 'assistant' && said.parent !== null ? talk.said.get(said.parent) ?? null : null;
    return {
      ...place(said), question, questions: question ? place(question) : { place: 1, of: 1 },
      lost: this.answers.lost(said), runs: this.answers.runs(said), canAsk: this.canAsk(),
    };
  }

  /** Tells a screen reader whole sentences, now and then: token by token it would never come to an end. @param {Said} said */
  #speak(said) {
    if (said.role !== 'assistant') return;
    if (this.#spoken.id !== said.id) this.#spoken = { id: said.id, upTo: 0, at: 0 };
    const now = Date.now();
    const ended = !this.answers.runs(said);
    const fresh = said.text.slice(this.#spoken.upTo);
    const sentences = ended || fresh.length > 2000 ? fresh : /^[\s\S]*[.!?。！？\n](?=\s|$)/.exec(fresh)?.[0] ?? '';
    if (sentences.trim() === '' || (now - this.#spoken.at < SPEAK_EVERY && !ended)) return;
    this.#spoken = { id: said.id, upTo: this.#spoken.upTo + sentences.length, at: now };
    const spoken = document.createElement('p');
    spoken.textContent = sentences.trim().slice(0, 2000);
    const region = at('spoken');
    region.append(spoken);
    // What was said need not be kept.
    while (region.childNodes.length > 3) region.firstChild?.remove();
  }
}
