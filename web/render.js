// Markdown on the page. Text nodes and a few kinds of elements, whatever the model says; as a text grows, only what changed
// is touched, so that a selection survives and a long answer costs no more than its last block.

import { copy, element, icon } from '/dom.js';
import { language, tokens } from '/highlight.js';
import { inline } from '/inline.js';
import { offset, parse } from '/markdown.js';
import { t } from '/words.js';

/** @import {Inline} from './inline.js' */
/** @import {Block} from './markdown.js' */

/** Lines of code that are coloured; the rest is plain. */
const COLOURED_MAX = 4000;

/**
 * Characters that would show one thing and mean another: terminals' commands, and marks that reverse the order of what follows.
 * @param {string} text
 */
export function visible(text) {
  return text
    .replace(/\r\n?/g, '\n')
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (control) => String.fromCharCode(0x2400 + control.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, '\u2426');
}

/**
 * A block with its elements.
 * @typedef {{block: Block, node: HTMLElement, update: (block: any) => boolean}} View
 */

/** A text that grows, under an element. */
export class Markdown {
  #text = '';
  /** Where the first block begins that may still change. */
  #settled = 0;
  /** @type {View[]} those from there on */
  #views = [];

  /** @param {HTMLElement} host */
  constructor(host) {
    this.host = host;
  }

  /** Shows a text; one that begins with the former is cheap. @param {string} text */
  show(text) {
    const seen = visible(text);
    if (!seen.startsWith(this.#text)) {
      this.#settled = 0;
      this.#views = [];
      this.host.replaceChildren();
    }
    this.#text = seen;
    const rest = seen.slice(this.#settled);
    const blocks = parse(rest);
    reconcile(this.host, this.#views, blocks);
    // A block's first two lines say that it is one: until they are whole, they may yet go on with the block before.
    let last = blocks.length - 1;
    const whole = rest.lastIndexOf('\n', rest.lastIndexOf('\n') - 1);
    while (last > 0 && offset(rest, blocks[last].line) > whole) last -= 1;
    if (last > 0) {
      this.#settled += offset(rest, blocks[last].line);
      this.#views.splice(0, last);
    }
  }
}

/** Makes views of blocks those of others. @param {HTMLElement} host @param {View[]} views @param {Block[]} blocks */
function reconcile(host, views, blocks) {
  blocks.forEach((block, at) => {
    const view = views[at];
    if (view && view.block.t === block.t && (view.block.src === block.src || view.update(block))) {
      view.block = block;
      return;
    }
    const made = make(block);
    if (view) view.node.replaceWith(made.node);
    else host.append(made.node);
    views[at] = made;
  });
  for (const view of views.splice(blocks.length)) view.node.remove();
}

/** @param {Block} block @returns {View} */
function make(block) {
  switch (block.t) {
    case 'p': return flowing(block, element('p', { dir: 'auto' }), (/** @type {any} */ { text }) => text);
    case 'h': {
      // Models skip levels, and readers are told of none: all stand below the turn's own heading.
      const made = flowing(block, element('h3', { dir: 'auto', class: `level-${block.level}` }), (/** @type {any} */ { text }) => text);
      const { update } = made;
      made.update = (next) => next.level === block.level && update(next);
      return made;
    }
    case 'hr': return { block, node: element('hr'), update: () => true };
    case 'code': return code(block);
    case 'quote': {
      const node = element('blockquote', { dir: 'auto' });
      /** @type {View[]} */
      const views = [];
      const update = (/** @type {any} */ { blocks }) => {
        reconcile(node, views, blocks);
        return true;
      };
      update(block);
      return { block, node, update };
    }
    case 'list': return list(block);
    case 'table': return table(block);
  }
}

/** @param {Block} block @param {HTMLElement} node @param {(block: any) => string} textOf @returns {View} */
function flowing(block, node, textOf) {
  /** @type {Inline[]} */
  let shown = [];
  const update = (/** @type {any} */ next) => {
    shown = flow(node, shown, inline(textOf(next)));
    return true;
  };
  update(block);
  return { block, node, update };
}

/** Makes the children of an element those of other pieces. @param {Element} node @param {Inline[]} before @param {Inline[]} pieces */
function flow(node, before, pieces) {
  pieces.forEach((piece, at) => {
    const old = before[at];
    const there = node.childNodes[at];
    if (old?.t === 'text' && piece.t === 'text') {
      const text = /** @type {Text} */ (there);
      if (piece.s.startsWith(old.s)) {
        if (piece.s.length > old.s.length) text.appendData(piece.s.slice(old.s.length));
      } else {
        text.data = piece.s;
      }
      return;
    }
    if (old && JSON.stringify(old) === JSON.stringify(piece)) return;
    const made = inlined(piece);
    if (there) there.replaceWith(made);
    else node.append(made);
  });
  while (node.childNodes.length > pieces.length) node.lastChild?.remove();
  return pieces;
}

/** @param {Inline} piece @returns {Node} */
function inlined(piece) {
  switch (piece.t) {
    case 'text': return document.createTextNode(piece.s);
    case 'code': return element('code', { dir: 'ltr' }, piece.s);
    case 'br': return element('br');
    case 'a': {
      const { host } = new URL(piece.href);
      const link = element('a', { href: piece.href, title: piece.href, target: '_blank', rel: 'noopener noreferrer nofollow' });
      flow(link, [], piece.c);
      const said = /(?:^|\/\/)([\w-]+(?:\.[\w-]+)+)/.exec(link.textContent ?? '');
      // A link that names one place and leads to another says so.
      if (said && host !== '' && said[1].replace(/^www\./, '') !== host.replace(/^www\./, '')) link.append(element('small', {}, ` (${host})`));
      return link;
    }
    default: {
      const made = element(piece.t);
      flow(made, [], piece.c);
      return made;
    }
  }
}

/** @param {Extract<Block, {t: 'list'}>} block @returns {View} */
function list(block) {
  const node = element(block.ordered ? 'ol' : 'ul', { dir: 'auto', start: block.ordered && block.start !== 1 ? block.start : null });
  /** @type {{src: string, node: HTMLElement, box: HTMLInputElement|null, views: View[]}[]} */
  const rows = [];
  const update = (/** @type {typeof block} */ next) => {
    const other = rows.some((row, at) => next.items[at] && (row.box === null) !== (next.items[at].task === null));
    if (other || next.ordered !== block.ordered || next.start !== block.start) return false;
    node.classList.toggle('loose', !next.tight);
    next.items.forEach((item, at) => {
      let row = rows[at];
      if (row?.src === item.src) return;
      if (!row) {
        const box = item.task === null ? null : element('input', { type: 'checkbox', disabled: true, 'aria-label': t('task') });
        row = { src: '', node: element('li', { class: box ? 'task' : null }), box, views: [] };
        rows[at] = row;
        node.append(row.node);
        if (box) row.node.append(box);
      }
      row.src = item.src;
      if (row.box) row.box.checked = item.task === true;
      reconcile(row.node, row.views, item.blocks);
    });
    for (const row of rows.splice(next.items.length)) row.node.remove();
    return true;
  };
  update(block);
  return { block, node, update };
}

/** @param {Extract<Block, {t: 'table'}>} block @returns {View} */
function table(block) {
  const head = element('thead');
  const body = element('tbody');
  // What is wider than the page scrolls by itself, by keyboard as well.
  const node = element('div', { class: 'table', tabindex: '0', role: 'region', 'aria-label': t('table') }, element('table', {}, head, body));
  let shown = 0;
  let last = '';
  const row = (/** @type {string[]} */ texts, /** @type {'th'|'td'} */ tag) => element('tr', {}, ...texts.map((text, at) => {
    const cell = element(tag, { dir: 'auto', class: block.align[at] });
    flow(cell, [], inline(text));
    return cell;
  }));
  const update = (/** @type {typeof block} */ next) => {
    if (next.align.join() !== block.align.join() || next.rows[0].join('|') !== block.rows[0].join('|')) return false;
    if (shown === 0) head.append(row(next.rows[0], 'th'));
    // Rows only join at the end; the last one may still grow.
    if (shown > 1 && next.rows[shown - 1]?.join('|') !== last) {
      body.lastChild?.remove();
      shown -= 1;
    }
    for (shown = Math.max(1, shown); shown < next.rows.length; shown += 1) body.append(row(next.rows[shown], 'td'));
    last = next.rows[shown - 1]?.join('|') ?? '';
    return next.rows.length === body.childNodes.length + 1;
  };
  update(block);
  return { block, node, update };
}

/** @param {Extract<Block, {t: 'code'}>} block @returns {View} */
function code(block) {
  const known = language(block.lang);
  const lines = element('code');
  let text = '';
  const button = element('button', { type: 'button', class: 'copy', onclick: async () => {
    if (!await copy(text)) return;
    button.replaceChildren(icon('done'), t('copied'));
    setTimeout(() => button.replaceChildren(icon('copy'), t('copy')), 1500);
  } }, icon('copy'), t('copy'));
  const pre = element('pre', { tabindex: '0', role: 'region', 'aria-label': t('code') }, lines);
  const node = element('div', { class: 'code', dir: 'ltr' }, element('div', { class: 'code-bar' }, element('span', {}, block.lang), button), pre);
  /** Whole lines that are shown, and within what each of them ends. */
  let whole = 0;
  let within = '';
  /** @type {ChildNode[]} of the last line, which may still grow */
  let tail = [];
  const update = (/** @type {typeof block} */ next) => {
    if (next.lang !== block.lang || !next.text.startsWith(text)) return false;
    const from = text.lastIndexOf('\n') + 1;
    text = next.text;
    for (const piece of tail) piece.remove();
    tail = [];
    const fresh = text.slice(from).split('\n');
    fresh.forEach((line, at) => {
      const [found, after] = tokens(whole < COLOURED_MAX ? known : null, line, within);
      const made = found.map(({ kind, s }) => (kind === '' ? document.createTextNode(s) : element('span', { class: `hl-${kind}` }, s)));
      if (at < fresh.length - 1) {
        lines.append(...made, '\n');
        within = after;
        whole += 1;
      } else {
        lines.append(...made);
        tail = made;
      }
    });
    return true;
  };
  update(block);
  return { block, node, update };
}
