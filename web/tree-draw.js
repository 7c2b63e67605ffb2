// The drawing: a card, a chip or a leaf for each node and the branches between, as SVG. Only what changed is written.

import { branch } from '/tree-plan.js';
import { t } from '/words.js';

/** @import {Model, Node} from './tree-model.js' */
/** @import {Place, Look} from './tree-plan.js' */

const SVG = 'http://www.w3.org/2000/svg';
/** Places of an engine that are drawn one by one. */
const SEATS_MAX = 8;

/** Characters that stand on a card. */
const WHAT_MAX = 24;

/** @param {string} tag @param {Record<string, string|number>} attributes @param {...Element} children */
function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** @param {string} text @param {number} most */
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** @param {Node} node */
function described({ models, device }) {
  const both = [...models, device].filter((each) => each).join(' · ');
  return both.length <= WHAT_MAX ? both : cut(models.join(', ') || device, WHAT_MAX);
}

/** What a node is said to be, in one line. @param {Node} node */
export function said(node) {
  const parts = [node.name, t(`tree.state.${node.state}`)];
  if (node.role === 'node') {
    parts.push(t('tree.runs', { running: node.running, slots: node.slots }));
    if (node.queued > 0) parts.push(t('tree.queued', { n: node.queued }));
    if (node.tokens_per_s > 0) parts.push(rate(node));
  }
  return parts.join(' · ');
}

/** @param {{tokens_per_s: number}} node */
export const rate = ({ tokens_per_s: value }) => t('rate', { value: value.toFixed(value < 10 ? 1 : 0) });

/** One node as it is drawn. */
class Shape {
  /** @param {string} name @param {Look} look @param {boolean} root */
  constructor(name, look, root) {
    const { kind, w, h } = look;
    this.kind = root ? 'card' : kind;
    this.root = root;
    /** What is written already. @type {Record<string, string>} */
    this.written = {};
    /** What it was pointed at as. @type {Set<string>} */
    this.marks = new Set();
    this.group = svg('g', { role: 'button', tabindex: '-1', 'data-name': name });
    if (kind === 'leaf') this.group.setAttribute('aria-label', name);
    if (kind === 'leaf' && !root) {
      this.load = svg('circle', { class: 'load', r: 0 });
      const label = svg('text', { class: 'name', y: h / 2 + 4, 'text-anchor': 'middle', 'aria-hidden': 'true' });
      label.textContent = cut(name, 9);
      this.group.append(svg('circle', { class: 'body', r: w / 2 - 1 }), this.load, label);
      return;
    }
    const [left, top] = [-w / 2, -h / 2];
    const place = (/** @type {string} */ css, /** @type {number} */ x, /** @type {number} */ y) => svg('text', { class: css, x: left + x, y: top + y });
    if (root && kind === 'leaf') {
      this.group.append(svg('circle', { class: 'body', r: 26 }), mark(0, 0, 34));
      return;
    }
    this.group.append(svg('rect', { class: 'body', x: left, y: top, width: w, height: h, rx: kind === 'card' ? 16 : 11 }));
    if (root) this.group.append(mark(left + (kind === 'card' ? 30 : 18), 0, kind === 'card' ? 42 : 24));
    else this.group.append(svg('circle', { class: 'dot', cx: left + (kind === 'card' ? 19 : 13), cy: top + (kind === 'card' ? 21 : 16), r: kind === 'card' ? 5 : 4 }));
    const label = kind === 'card' ? place('name', root ? 58 : 32, root ? 36 : 26) : place('name', root ? 34 : 23, root ? 23 : 20);
    label.textContent = cut(name, kind === 'card' ? 17 : 9);
    this.group.append(label);
    if (kind === 'card') {
      this.what = place('what', root ? 58 : 18, root ? 57 : 46);
      this.rate = svg('text', { class: 'rate', x: left + w - 16, y: top + 69, 'text-anchor': 'end' });
      this.group.append(this.what, this.rate);
    }
    if (root) return;
    this.seats = svg('g', { class: 'seats', transform: kind === 'card' ? `translate(${left + 18} ${top + 65})` : `translate(${left + 12} ${top + 28})` });
    this.group.append(this.seats);
  }

  /** @param {string} key @param {string} value @param {() => void} write */
  once(key, value, write) {
    if (this.written[key] === value) return;
    this.written[key] = value;
    write();
  }

  /** @param {Node} node @param {Model} model */
  show(node, model) {
    const { group } = this;
    const queries = model.at(node.name);
    this.once('class', `node ${this.kind} ${node.role} s-${node.state}${node.running > 0 ? ' works' : ''}${[...this.marks].map((each) => ` ${each}`).join('')}`, () => group.setAttribute('class', this.written.class));
    const full = Math.min(1, node.running / Math.max(1, node.slots));
    this.once('load', full.toFixed(2), () => this.load?.setAttribute('r', String(Math.sqrt(full) * 7.5)));
    const { what, rate: speed, seats } = this;
    if (what) {
      const text = this.root ? (node.role === 'standby' ? t('tree.role.standby') : model.waiting > 0 ? t('tree.waiting', { n: model.waiting }) : t('tree.under', { n: model.live })) : described(node);
      this.once('what', text, () => { what.textContent = text; });
    }
    if (speed) {
      const text = node.tokens_per_s > 0 ? rate(node) : node.state === 'ready' || node.state === 'busy' ? '' : t(`tree.state.${node.state}`);
      this.once('rate', this.root ? '' : text, () => { speed.textContent = this.written.rate; });
    }
    if (seats) this.once('seats', `${node.slots} ${node.running} ${node.queued} ${this.kind === 'card' ? queries.map(({ id }) => id).join() : ''}`, () => seats.replaceChildren(...this.seated(node, queries)));
  }

  /** @param {Node} node @param {{id: string, state: string}[]} queries */
  seated({ slots, running, queued }, queries) {
    if (this.kind !== 'card' || slots > SEATS_MAX) {
      const wide = this.kind === 'card' ? 96 : 72;
      const bar = [svg('rect', { class: 'seat', y: -2, width: wide, height: 5, rx: 2.5 }), svg('rect', { class: 'seat full', y: -2, width: (wide * Math.min(running, slots)) / Math.max(1, slots), height: 5, rx: 2.5 })];
      if (queued > 0) bar.push(svg('circle', { class: 'seat waits', cx: wide + 6, cy: 0.5, r: 3 }));
      return bar;
    }
    const runs = queries.filter(({ state }) => state === 'running');
    const waits = queries.filter(({ state }) => state !== 'running');
    const made = Array.from({ length: slots }, (_, seat) => {
      const circle = svg('circle', { class: seat < running ? 'seat full' : 'seat', cx: 5 + seat * 13, cy: 0, r: 5 });
      if (runs[seat]) circle.setAttribute('data-query', runs[seat].id);
      return circle;
    });
    for (let at = 0; at < Math.min(queued, 3); at += 1) {
      const one = svg('rect', { class: 'seat waits', x: 6 + slots * 13 + at * 9, y: -3, width: 6, height: 6, rx: 1.5 });
      if (waits[at]) one.setAttribute('data-query', waits[at].id);
      made.push(one);
    }
    return made;
  }
}

/** @param {number} x @param {number} y @param {number} size */
function mark(x, y, size) {
  return svg('use', { class: 'mark', href: '/icons.svg#banyan', x: x - size / 2, y: y - size / 2, width: size, height: size });
}

export class Drawing {
  /** @type {Map<string, Shape>} */
  shapes = new Map();
  /** @type {Map<string, SVGElement>} */
  branches = new Map();
  /** The look that the shapes were made for. */
  kind = '';

  /** @param {Element} under of branches @param {Element} over of nodes */
  constructor(under, over) {
    this.under = under;
    this.over = over;
  }

  /** Draws a plan: what stays moves, what is new grows, what is gone goes. @param {{look: Look, places: Map<string, Place>}} planned @param {Model} model */
  arrange({ look, places }, model) {
    const { shapes, branches } = this;
    if (this.kind !== look.kind) {
      this.over.replaceChildren();
      shapes.clear();
      this.kind = look.kind;
    }
    for (const [name, shape] of shapes) {
      if (places.has(name)) continue;
      shape.group.remove();
      shapes.delete(name);
    }
    for (const [name, path] of branches) {
      if (places.get(name)?.drawn && places.get(name)?.up !== null) continue;
      path.remove();
      branches.delete(name);
    }
    const [made, drawn] = [document.createDocumentFragment(), document.createDocumentFragment()];
    for (const [name, place] of places) {
      const node = /** @type {Node} */ (model.nodes.get(name));
      let shape = shapes.get(name);
      if (!shape || shape.root !== (node.role !== 'node')) {
        shape?.group.remove();
        shape = new Shape(name, look, node.role !== 'node');
        shapes.set(name, shape);
        made.append(shape.group);
      }
      shape.group.setAttribute('transform', `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})`);
      fold(shape, place);
      shape.show(node, model);
      const up = place.up === null ? undefined : places.get(place.up);
      if (!up || !place.drawn) continue;
      let path = branches.get(name);
      if (!path) {
        path = svg('path', { 'data-of': name });
        branches.set(name, path);
        drawn.append(path);
      }
      const { from, one, two, stem, to } = branch(place, up);
      const at = (/** @type {{x: number, y: number}} */ { x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`;
      path.setAttribute('d', `M${at(from)}C${at(one)} ${at(two)} ${at(stem)}L${at(to)}`);
      path.setAttribute('stroke-width', ((1.8 + 1.9 * Math.log2(1 + place.below)) * (look.kind === 'leaf' ? 0.6 : 1)).toFixed(1));
    }
    this.over.append(made);
    this.under.append(drawn);
  }

  /** @param {Iterable<string>} names @param {Model} model */
  update(names, model) {
    for (const name of names) {
      const node = model.nodes.get(name);
      if (node) this.shapes.get(name)?.show(node, model);
    }
  }

  /** Shows what was found, or a way. @param {string} css @param {Set<string>|null} names null: nothing */
  point(css, names) {
    this.over.classList.toggle(`has-${css}`, names !== null);
    for (const [name, { group, marks, written }] of this.shapes) {
      const wanted = names?.has(name) ?? false;
      if (marks.has(css) === wanted) continue;
      if (wanted) marks.add(css);
      else marks.delete(css);
      group.classList.toggle(css, wanted);
      written.class = '';
    }
    for (const [name, path] of this.branches) path.classList.toggle(css, names?.has(name) ?? false);
  }
}

/** How many are hidden below. @param {Shape} shape @param {Place} place */
function fold(shape, { hidden, h }) {
  shape.once('hidden', String(hidden), () => {
    shape.group.querySelector('.fold')?.remove();
    if (hidden === 0) return;
    const text = svg('text', { y: 4, 'text-anchor': 'middle' });
    text.textContent = `+${hidden}`;
    shape.group.append(svg('g', { class: 'fold', transform: `translate(0 ${h / 2 + 12})` }, svg('rect', { x: -20, y: -10, width: 40, height: 20, rx: 10 }), text));
  });
}
