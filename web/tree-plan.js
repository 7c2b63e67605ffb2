// Who stands where: nodes by their parents, many leaves of one parent in rows, and the ways along the branches. Knows no page.

import { layout } from '/tree-layout.js';

/** @import {Node} from './tree-model.js' */
/** @import {Box} from './tree-layout.js' */

/**
 * How nodes look: of how many at most, how small, the sizes of one, gaps between, and between leaves in rows.
 * @typedef {{kind: 'card'|'chip'|'leaf', most: number, least: number, w: number, h: number, gap: {x: number, y: number}, near: number}} Look
 */
/** The first is taken that can be read. @type {Look[]} */
const LOOKS = [
  { kind: 'card', most: 60, least: 0.6, w: 190, h: 84, gap: { x: 24, y: 62 }, near: 16 },
  { kind: 'chip', most: 400, least: 0.62, w: 96, h: 36, gap: { x: 14, y: 46 }, near: 9 },
  { kind: 'leaf', most: Infinity, least: 0, w: 22, h: 22, gap: { x: 10, y: 44 }, near: 6 },
];
/** How many leaves of one parent stand side by side before they form rows, and how much wider than high those are: whatever shows the tree largest. */
const ROWS = [[4, 1.7], [4, 3.5], [1, 0.12], [1, 0.35], [1, 1], [Infinity, 1]];
/** Branches are that many times longer, at most, where there is space. */
const LONGER = 4;

/**
 * A node's place: its middle and its size; `stem` is where the branch from its parent turns down, and `last` whether that is drawn with it.
 * @typedef {{name: string, x: number, y: number, w: number, h: number, up: string|null, stem: {x: number, y: number}, below: number, hidden: number, depth: number, drawn: boolean}} Place
 * @typedef {Box & {names: string[], columns: number}} Branch
 */

const natural = new Intl.Collator('en', { numeric: true }).compare;

/**
 * Parents and children as they can be drawn: whose parent is unknown, or only itself, stands below its tree's root.
 * @param {Map<string, Node>} nodes
 */
export function family(nodes) {
  /** @type {Map<string, string[]>} */
  const children = new Map();
  /** @type {string[]} */
  const roots = [];
  /** @type {Map<string, string>} */
  const rootOf = new Map();
  const sorted = [...nodes.values()].sort((a, b) => natural(a.name, b.name));
  for (const { name, role, tree } of sorted) if (role === 'root') rootOf.set(tree, name);
  const add = (/** @type {string} */ parent, /** @type {string} */ name) => {
    const known = children.get(parent);
    if (known) known.push(name);
    else children.set(parent, [name]);
  };
  for (const { name, parent, role, tree } of sorted) {
    const above = role === 'node' && parent !== null && parent !== name && nodes.has(parent) ? parent : role === 'root' ? undefined : rootOf.get(tree);
    if (above === undefined) roots.push(name);
    else add(above, name);
  }
  // While nodes move there may be circles for a moment: whoever is reached from no root hangs from one.
  /** @type {string[]} */
  const order = [];
  const reached = new Set();
  const reach = (/** @type {string} */ from) => {
    const unseen = [from];
    while (unseen.length > 0) {
      const name = /** @type {string} */ (unseen.pop());
      if (reached.has(name)) continue;
      reached.add(name);
      order.push(name);
      for (const child of (children.get(name) ?? []).toReversed()) unseen.push(child);
    }
  };
  roots.forEach(reach);
  for (const { name, parent } of sorted) {
    if (reached.has(name)) continue;
    const from = parent === null ? undefined : children.get(parent);
    if (from) from.splice(from.indexOf(name), 1);
    roots.push(name);
    reach(name);
  }
  return { children, roots, order };
}

/**
 * @param {Map<string, Node>} nodes @param {Set<string>} collapsed those whose children are not shown @param {{w: number, h: number}} space
 */
export function plan(nodes, collapsed, space) {
  const { children, roots, order } = family(nodes);
  const shown = (/** @type {string} */ name) => (collapsed.has(name) ? [] : children.get(name) ?? []);
  /** Nodes below each, shown or not. @type {Map<string, number>} */
  const below = new Map();
  for (const name of order.toReversed()) below.set(name, (children.get(name) ?? []).reduce((sum, child) => sum + 1 + (below.get(child) ?? 0), 0));
  /** @type {string[]} */
  const visible = [];
  const unseen = roots.toReversed();
  while (unseen.length > 0) {
    const name = /** @type {string} */ (unseen.pop());
    visible.push(name);
    unseen.push(...shown(name).toReversed());
  }
  const scale = (/** @type {{w: number, h: number}} */ { w, h }) => Math.min(space.w / w, space.h / h);
  const largest = (/** @type {Look} */ look) => ROWS.map(([row, wider]) => stand(visible, roots, shown, look, row, wider, look.gap)).reduce((best, each) => (scale(each) > scale(best) * 1.02 ? each : best));
  let best = null;
  for (const look of LOOKS) {
    if (visible.length > look.most) continue;
    best = largest(look);
    if (scale(best) >= look.least) break;
  }
  if (!best) throw new Error('leaves are as many as there are');
  const { look } = best;
  // What is wide leaves space below: longer branches use it.
  const spare = space.h / scale(best) - best.h;
  const gap = { x: look.gap.x, y: Math.min(look.gap.y * LONGER, look.gap.y + spare / Math.max(1, best.levels)) };
  const { branches, rows } = stand(visible, roots, shown, look, best.row, best.wider, gap);
  /** @type {Map<string, Place>} */
  const places = new Map();
  /** @type {Map<string, string>} */
  const ups = new Map();
  for (const name of visible) for (const child of shown(name)) ups.set(child, name);
  const put = (/** @type {string} */ name, /** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ top, /** @type {boolean} */ drawn) => {
    const hidden = collapsed.has(name) ? below.get(name) ?? 0 : 0;
    const at = { name, x: x + look.w / 2, y: y + look.h / 2, w: look.w, h: look.h, up: ups.get(name) ?? null, below: below.get(name) ?? 0, hidden, depth: 0, drawn };
    places.set(name, { ...at, stem: { x: at.x, y: top } });
  };
  for (const [name, { x, y }] of branches) put(name, x, y, y, true);
  for (const { names, columns, x, y } of rows) {
    names.forEach((name, index) => {
      const [column, line] = [index % columns, Math.floor(index / columns)];
      put(name, x + column * (look.w + look.near), y + line * (look.h + look.near), y, index + columns >= names.length);
    });
  }
  const bounds = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };
  for (const name of visible) {
    const place = /** @type {Place} */ (places.get(name));
    place.depth = place.up === null ? 0 : (places.get(place.up)?.depth ?? 0) + 1;
    bounds.left = Math.min(bounds.left, place.x - place.w / 2);
    bounds.right = Math.max(bounds.right, place.x + place.w / 2);
    bounds.top = Math.min(bounds.top, place.y - place.h / 2);
    bounds.bottom = Math.max(bounds.bottom, place.y + place.h / 2);
  }
  return { look, places, bounds, order: visible, children, roots };
}

/**
 * One way to stand: leaves of whom has more than `row` of them form rows.
 * @param {string[]} visible @param {string[]} roots @param {(name: string) => string[]} shown @param {Look} look @param {number} row @param {number} wider @param {{x: number, y: number}} gap
 */
function stand(visible, roots, shown, look, row, wider, gap) {
  /** @type {Map<string, Branch>} */
  const branches = new Map();
  /** @type {Branch[]} */
  const rows = [];
  for (const name of visible.toReversed()) {
    const leaves = shown(name).filter((child) => shown(child).length === 0);
    const inRows = leaves.length > row;
    const single = inRows ? shown(name).filter((child) => shown(child).length > 0) : shown(name);
    const boxes = single.map((child) => /** @type {Branch} */ (branches.get(child)));
    if (inRows) {
      const columns = Math.max(1, Math.round(Math.sqrt((leaves.length * wider * (look.h + look.near)) / (look.w + look.near))));
      const lines = Math.ceil(leaves.length / columns);
      const block = {
        w: columns * (look.w + look.near) - look.near, h: lines * (look.h + look.near) - look.near,
        children: [], x: 0, y: 0, names: leaves, columns,
      };
      rows.push(block);
      boxes.splice(Math.ceil(boxes.length / 2), 0, block);
    }
    branches.set(name, { w: look.w, h: look.h, children: boxes, x: 0, y: 0, names: [name], columns: 1 });
  }
  const tops = roots.map((name) => /** @type {Branch} */ (branches.get(name)));
  layout(tops.length === 1 ? tops[0] : { w: 0, h: -gap.y, children: tops, x: 0, y: 0 }, gap);
  const all = [...branches.values(), ...rows];
  const edges = all.reduce(({ left, right, bottom }, { x, y, w, h }) => ({ left: Math.min(left, x), right: Math.max(right, x + w), bottom: Math.max(bottom, y + h) }), { left: 0, right: 0, bottom: 0 });
  const levels = new Set(all.map(({ y }) => y)).size - 1;
  return { look, branches, rows, row, wider, levels, w: edges.right - edges.left, h: edges.bottom };
}

/** The branch to a node from the one above it: a curve to where it turns down, and on. @param {Place} at @param {Place} up */
export function branch(at, up) {
  const from = { x: up.x, y: up.y + up.h / 2 };
  const bend = (at.stem.y - from.y) * 0.6;
  return { from, one: { x: from.x, y: from.y + bend }, two: { x: at.stem.x, y: at.stem.y - bend }, stem: at.stem, to: { x: at.x, y: at.y - at.h / 2 } };
}

const STEPS = 10;

/** The points of the way from the root to a node. @param {Map<string, Place>} places @param {string} name */
export function way(places, name) {
  /** @type {number[][]} */
  const points = [];
  for (let at = places.get(name); at; at = at.up === null ? undefined : places.get(at.up)) {
    const up = at.up === null ? undefined : places.get(at.up);
    if (!up) {
      points.push([at.x, at.y + at.h / 2]);
      break;
    }
    const { from, one, two, stem, to } = branch(at, up);
    points.push([to.x, to.y]);
    for (let step = STEPS; step > 0; step -= 1) {
      const t = step / STEPS;
      const u = 1 - t;
      const [a, b, c, d] = [u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t];
      points.push([a * from.x + b * one.x + c * two.x + d * stem.x, a * from.y + b * one.y + c * two.y + d * stem.y]);
    }
  }
  return points.reverse();
}
