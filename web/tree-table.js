// The tree as a table: for who would rather read it, or has it read.

import { element } from '/dom.js';
import { rate } from '/tree-draw.js';
import { language, t } from '/words.js';

/** @import {Model} from './tree-model.js' */

const HEADS = ['tree.node', 'tree.state', 'tree.device', 'tree.models', 'tree.running', 'tree.waits', 'tree.speed'];
/** Between two times that all of it is written, in milliseconds: more often nobody reads it. */
const PAUSE = 500;

export class Table {
  /** @type {Map<string, {row: HTMLElement, cells: HTMLElement[]}>} */
  rows = new Map();
  #due = 0;

  /** @param {HTMLElement} box @param {Model} model @param {(name: string) => void} chosen */
  constructor(box, model, chosen) {
    this.model = model;
    this.chosen = chosen;
    this.body = element('tbody');
    this.box = box;
    box.append(element('table', {}, element('caption', { class: 'unseen' }, t('tree')), element('thead', {}, element('tr', {}, ...HEADS.map((head) => element('th', { scope: 'col' }, t(head))))), this.body));
  }

  /** In the order of the tree. @param {string[]} order @param {(name: string) => number} depth @param {Set<string>|null} found */
  arrange(order, depth, found) {
    for (const name of this.rows.keys()) if (!this.model.nodes.has(name)) this.rows.delete(name);
    this.body.replaceChildren(...order.filter((name) => !found || found.has(name)).map((name) => {
      let known = this.rows.get(name);
      if (!known) {
        const button = element('button', { type: 'button', onclick: () => this.chosen(name) }, name);
        const cells = HEADS.slice(1).map(() => element('td'));
        known = { row: element('tr', {}, element('th', { scope: 'row' }, button), ...cells), cells };
        this.rows.set(name, known);
      }
      const head = /** @type {HTMLElement} */ (known.row.firstElementChild);
      head.style.setProperty('--depth', String(Math.min(depth(name), 12)));
      return known.row;
    }));
    this.#write();
  }

  update() {
    if (this.box.hidden || this.#due !== 0) return;
    this.#due = setTimeout(() => {
      this.#due = 0;
      this.#write();
    }, PAUSE);
  }

  #write() {
    if (this.box.hidden) return;
    for (const [name, { row, cells }] of this.rows) {
      const node = this.model.nodes.get(name);
      if (!node) continue;
      const serves = node.role === 'node';
      row.className = `s-${node.state}`;
      const texts = [
        t(`tree.state.${node.state}`), node.device || '–', node.models.join(', ') || t(`tree.role.${node.role}`),
        serves ? t('tree.runs', { running: node.running, slots: node.slots }) : '–', serves ? node.queued.toLocaleString(language) : this.model.waiting.toLocaleString(language),
        serves ? rate(node) : '–',
      ];
      texts.forEach((text, at) => { if (cells[at].textContent !== text) cells[at].textContent = text; });
    }
  }
}
