// The page of the tree: takes in its events, and has them drawn, moved, listed and told.

import { at } from '/dom.js';
import { recall } from '/kept.js';
import { signIn } from '/servers.js';
import { Drawing, said } from '/tree-draw.js';
import { Model } from '/tree-model.js';
import { Motion } from '/tree-motion.js';
import { Panel, people } from '/tree-panel.js';
import { family, plan, way } from '/tree-plan.js';
import { Table } from '/tree-table.js';
import { View } from '/tree-view.js';
import { preferred, speak, t } from '/words.js';

/** @import {Move, News} from './tree-model.js' */
/** @import {Place} from './tree-plan.js' */

/** Nodes of which drops are drawn for one event; more are a shower in which nobody tells one from the other. */
const DROPS_MAX = 28;
/** Names that are read out together. */
const SPOKEN_MAX = 3;
/** The pause before another try, where the browser makes none. */
const AGAIN = 3000;
const WAITING = new Set(['waiting', 'sent']);

await speak(recall('language') ?? preferred(navigator.languages), {
  en: () => import('/words/tree/en.js'), zh: () => import('/words/tree/zh.js'), es: () => import('/words/tree/es.js'),
});
document.title = `${t('tree')} · Banyan`;

const model = new Model();
const picture = /** @type {SVGSVGElement} */ (/** @type {unknown} */ (at('picture')));
const worlds = [at('wood'), picture].map((each) => /** @type {Element} */ (each.firstElementChild));
const search = /** @type {HTMLInputElement} */ (at('search'));
const [list, tip, empty] = [at('list'), at('tip'), at('empty')];
const drawing = new Drawing(worlds[0], worlds[1]);
const motion = new Motion(/** @type {HTMLCanvasElement} */ (at('motion')));
const view = new View(picture, worlds, () => {
  [motion.view.k, motion.view.x, motion.view.y] = [view.k, view.x, view.y];
  tip.hidden = true;
});
/** @type {Set<string>} */
const collapsed = new Set();
let planned = plan(model.nodes, collapsed, view.space);
/** The node that the keys are at. */
let current = '';
/** @type {Set<string>|null} */
let found = null;

const session = await fetch('/v1/session').then((response) => response.json()).catch(() => ({}));
const panel = new Panel({
  model,
  operator: session.operator === true,
  closed: () => {
    drawing.point('way', null);
    document.body.classList.remove('beside');
    refit();
    focus(current);
  },
  opened: (name) => {
    current = name;
    drawing.point('way', null);
    document.body.classList.add('beside');
    refit();
  },
  way: (names) => {
    document.body.classList.add('beside');
    drawing.point('way', new Set(names));
  },
  collapse: (name) => {
    if (!collapsed.delete(name)) collapsed.add(name);
    arrange();
  },
  hides: (name) => ((planned.children.get(name) ?? []).length === 0 ? null : collapsed.has(name)),
});
const table = new Table(list, model, (name) => panel.node(name));
at('people').hidden = session.operator !== true;

// ---- Events

/** What came since the last frame. */
let pending = { shape: false, changed: /** @type {Set<string>} */ (new Set()), moves: /** @type {Move[]} */ ([]), drops: /** @type {Map<string, number>} */ (new Map()) };
let due = 0;
/** @type {EventSource|null} */
let source = null;

function listen() {
  source = new EventSource('/v1/tree/events');
  source.onmessage = ({ data }) => {
    document.body.classList.remove('away');
    /** @type {News} */
    const news = JSON.parse(data);
    const { shape, changed, moves, drops, turned } = model.apply(news);
    // What the root says of all is drawn with it.
    for (const root of planned.roots) changed.add(root);
    if (!news.whole) announce(turned);
    pending.shape ||= shape;
    for (const name of changed) pending.changed.add(name);
    // Unseen, nothing moves, and what would have is not kept.
    if (!document.hidden) {
      pending.moves.push(...moves);
      for (const [name, tokens] of drops) pending.drops.set(name, tokens);
    }
    if (due === 0) due = requestAnimationFrame(draw);
  };
  source.onerror = async () => {
    document.body.classList.add('away');
    empty.textContent = t('tree.away');
    if (source?.readyState !== EventSource.CLOSED) return;
    const now = await fetch('/v1/session').then((response) => response.json()).catch(() => null);
    if (now?.required && !now.signed_in) signIn();
    else setTimeout(listen, AGAIN);
  };
}

function draw() {
  due = 0;
  const { shape, changed, moves, drops } = pending;
  pending = { shape: false, changed: new Set(), moves: [], drops: new Map() };
  if (shape) arrange();
  else drawing.update(changed, model);
  table.update();
  panel.update(changed, moves.map(({ query }) => query));
  totals();
  show(moves, drops);
}

function arrange() {
  // What is on its way goes where nothing stands any more.
  motion.lights = [];
  planned = plan(model.nodes, collapsed, view.space);
  drawing.arrange(planned, model);
  empty.hidden = planned.order.length > 0;
  if (search.value) find();
  else table.arrange(family(model.nodes).order, (name) => planned.places.get(name)?.depth ?? 0, found);
  if (!view.chosen) view.fit(planned.bounds);
  if (!planned.places.has(current)) current = planned.order[0] ?? '';
  for (const [name, { group }] of drawing.shapes) group.setAttribute('tabindex', name === current ? '0' : '-1');
}

/** @param {Move[]} moves @param {Map<string, number>} drops */
function show(moves, drops) {
  /** When queries of this event that have both come and ended have arrived. @type {Map<string, number>} */
  const arrived = new Map();
  for (const { query, before } of moves) {
    const place = planned.places.get(seen(query.node));
    if (place && (before === null || WAITING.has(before.state)) && place.up !== null) arrived.set(query.id, motion.descend(way(planned.places, place.name), query.id));
    if (place && query.state === 'finished' && place.up !== null) motion.drop(place, root(place), 'answer', query.id, arrived.get(query.id) ?? 0);
  }
  let left = DROPS_MAX;
  for (const name of drops.keys()) {
    const place = planned.places.get(seen(name));
    if (!place || place.up === null || left === 0) continue;
    left -= 1;
    motion.drop(place, root(place), 'token', model.at(name)[0]?.id ?? '', Math.random() * 90);
  }
}

/** The root of its tree. @param {Place} place @returns {Place} */
function root(place) {
  const up = place.up === null ? undefined : planned.places.get(place.up);
  return up ? root(up) : place;
}

/** The node that is drawn for one: itself, or the one that hides it. @param {string} name */
function seen(name) {
  let at = name;
  for (let steps = 0; steps < 64 && !planned.places.has(at); steps += 1) at = model.nodes.get(at)?.parent ?? '';
  return at;
}

function totals() {
  const { nodes, running, queued, rate } = model.totals();
  const parts = [t('tree.nodes', { n: nodes }), t('tree.run', { n: running }), ...(queued + model.waiting > 0 ? [t('tree.queued', { n: queued + model.waiting })] : []), ...(rate > 0 ? [t('rate', { value: rate.toFixed(0) })] : [])];
  const text = parts.join(' · ');
  const box = at('totals');
  if (box.textContent !== text) box.textContent = text;
}

/** Reads out who came, and who was lost. @param {Map<string, string|undefined>} turned what they were */
function announce(turned) {
  /** @type {string[]} */
  const told = [];
  for (const [name, before] of turned) {
    const state = model.nodes.get(name)?.state;
    if (state === 'lost') {
      told.push(t('tree.lost', { name }));
      const place = planned.places.get(name);
      if (place) motion.vanish(place);
    } else if (state === undefined && before !== 'lost') told.push(t('tree.gone', { name }));
    else if (state && before === undefined) told.push(t('tree.came', { name }));
  }
  if (told.length > 0) at('spoken').replaceChildren(told.slice(0, SPOKEN_MAX).join(' '), told.length > SPOKEN_MAX ? ' …' : '');
}

// ---- What people do

const named = (/** @type {EventTarget|null} */ target) => /** @type {Element|null} */ (target)?.closest?.('[data-name]')?.getAttribute('data-name') ?? null;

picture.addEventListener('click', (event) => {
  if (view.moved) return;
  const seat = /** @type {Element} */ (event.target).closest('[data-query]')?.getAttribute('data-query');
  const name = named(event.target);
  const [x, y] = [(event.offsetX - view.x) / view.k, (event.offsetY - view.y) / view.k];
  const light = seat ?? (name ? null : motion.at(x, y, 16 / view.k));
  if (light) panel.query(light);
  else if (name && /** @type {Element} */ (event.target).closest('.fold')) panel.host.collapse(name);
  else if (name) panel.node(name);
  else panel.close();
});

picture.addEventListener('pointermove', (event) => {
  const name = event.pointerType === 'mouse' ? named(event.target) : null;
  const node = name === null ? undefined : model.nodes.get(name);
  tip.hidden = !node;
  if (!node) return;
  tip.textContent = said(node);
  tip.style.left = `${Math.max(8, Math.min(event.offsetX + 14, picture.clientWidth - 300))}px`;
  tip.style.top = `${event.offsetY + 18}px`;
});
picture.addEventListener('pointerleave', () => { tip.hidden = true; });

/** @param {string} name */
function focus(name) {
  const shape = drawing.shapes.get(name);
  const place = planned.places.get(name);
  if (!shape || !place || picture.classList.contains('away')) return;
  drawing.shapes.get(current)?.group.setAttribute('tabindex', '-1');
  current = name;
  shape.group.setAttribute('tabindex', '0');
  // Read when it is needed, so that it need not be written ten times a second.
  const node = model.nodes.get(name);
  if (node) shape.group.setAttribute('aria-description', said(node));
  if (!view.sees(place)) view.centre(place);
  /** @type {SVGElement} */ (shape.group).focus({ preventScroll: true });
}

picture.addEventListener('focusin', ({ target }) => {
  const node = model.nodes.get(named(target) ?? '');
  if (node) drawing.shapes.get(node.name)?.group.setAttribute('aria-description', said(node));
});

picture.addEventListener('keydown', (event) => {
  const place = planned.places.get(current);
  if (!place) return;
  const siblings = place.up === null ? planned.roots : (planned.children.get(place.up) ?? []).filter((name) => planned.places.has(name));
  const index = siblings.indexOf(current);
  /** @type {Record<string, () => void>} */
  const keys = {
    ArrowUp: () => focus(place.up ?? current),
    ArrowDown: () => focus((planned.children.get(current) ?? []).find((name) => planned.places.has(name)) ?? current),
    ArrowLeft: () => focus(siblings[index - 1] ?? current),
    ArrowRight: () => focus(siblings[index + 1] ?? current),
    Home: () => focus(planned.order[0]),
    End: () => focus(planned.order[planned.order.length - 1]),
    Enter: () => panel.node(current),
    ' ': () => {
      panel.host.collapse(current);
      focus(current);
    },
  };
  if (!Object.hasOwn(keys, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  keys[event.key]();
});

addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !document.querySelector('dialog')) panel.close();
  if (/** @type {Element} */ (event.target).closest?.('input, textarea, dialog') || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === '+') view.zoom(1.25);
  else if (event.key === '-') view.zoom(0.8);
  else if (event.key === '0') view.fit(planned.bounds);
  else if (event.key === '/') search.focus();
  else return;
  event.preventDefault();
});

function find() {
  const words = search.value.toLocaleLowerCase().split(/\s+/).filter((word) => word !== '');
  const holds = (/** @type {string} */ text) => words.every((word) => text.includes(word));
  found = words.length === 0 ? null : new Set([...model.nodes.values()].filter(({ name, device, models, state }) => holds([name, device, ...models, state, t(`tree.state.${state}`)].join(' ').toLocaleLowerCase())).map(({ name }) => name));
  // What is found is shown.
  let opened = false;
  for (const name of found ?? []) for (let up = model.nodes.get(name)?.parent; up; up = up === model.nodes.get(up)?.parent ? null : model.nodes.get(up)?.parent) opened = collapsed.delete(up) || opened;
  if (opened) {
    planned = plan(model.nodes, collapsed, view.space);
    drawing.arrange(planned, model);
  }
  drawing.point('found', found);
  at('found').textContent = found ? String(found.size) : '';
  table.arrange(family(model.nodes).order, (name) => planned.places.get(name)?.depth ?? 0, found);
}

search.addEventListener('input', find);
search.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') {
    search.value = '';
    find();
  }
  if (event.key !== 'Enter' || !found || found.size === 0) return;
  const names = planned.order.filter((name) => found?.has(name));
  const next = names[(names.indexOf(current) + 1) % names.length];
  const place = planned.places.get(next);
  current = next;
  if (place) view.centre(place, 0.8);
  panel.node(next);
  search.focus();
});

at('nearer').addEventListener('click', () => view.zoom(1.3));
at('farther').addEventListener('click', () => view.zoom(1 / 1.3));
at('all').addEventListener('click', () => view.fit(planned.bounds));
at('people').addEventListener('click', people);
at('as-table').addEventListener('click', () => {
  list.hidden = !list.hidden;
  at('as-table').setAttribute('aria-pressed', String(!list.hidden));
  for (const id of ['wood', 'picture', 'motion', 'zoom', 'legend']) at(id).classList.toggle('away', !list.hidden);
  table.arrange(family(model.nodes).order, (name) => planned.places.get(name)?.depth ?? 0, found);
});

function refit() {
  motion.fit();
  if (!view.chosen && planned.order.length > 0) arrange();
}

new ResizeObserver(refit).observe(picture);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => motion.fit());
listen();
