// What is told of one node or one query, beside the drawing; and who may ask, for an operator.

import { ApiError, ask } from '/api.js';
import { ask as askFor, confirm, notice, open } from '/dialog.js';
import { at, element, pictured } from '/dom.js';
import { rate } from '/tree-draw.js';
import { sentence } from '/turn.js';
import { language, t } from '/words.js';

/** @import {Model, Node, Query} from './tree-model.js' */

/** @typedef {{model: Model, operator: boolean, closed: () => void, opened: (name: string) => void, way: (names: string[]) => void, collapse: (name: string) => void, hides: (name: string) => boolean|null}} Host */

/** Between two looks at a log that goes on, in milliseconds. */
const LOG_PAUSE = 1500;

export class Panel {
  /** @type {{kind: 'node'|'query', id: string}|null} */
  shown = null;
  #read = 0;
  #asked = 0;

  /** @param {Host} host */
  constructor(host) {
    this.host = host;
    this.box = at('panel');
    this.facts = element('dl');
    this.rest = element('div', { class: 'rest' });
  }

  close() {
    if (!this.shown) return;
    this.shown = null;
    this.box.hidden = true;
    this.host.closed();
  }

  /** @param {'node'|'query'} kind @param {string} id @param {string} title @param {(Node|HTMLElement|null)[]} content */
  #open(kind, id, title, content) {
    this.shown = { kind, id };
    this.#asked += 1;
    this.rest.replaceChildren();
    const heading = element('h2', { tabindex: '-1' }, title);
    this.box.replaceChildren(element('header', {}, heading, pictured('close', t('close'), () => this.close())), ...content.filter((each) => each !== null).map((each) => /** @type {HTMLElement} */ (each)));
    this.box.hidden = false;
    this.box.setAttribute('aria-label', title);
    heading.focus({ preventScroll: true });
  }

  /** @param {string} name */
  node(name) {
    const { host } = this;
    const node = host.model.nodes.get(name);
    if (!node) return;
    this.held = element('ul', { class: 'queries' });
    this.log = element('ol', { class: 'log', tabindex: '0', 'aria-label': t('tree.log') });
    const act = (/** @type {string} */ key, /** @type {() => void} */ doing, danger = false) => element('button', { type: 'button', class: danger ? 'plain danger' : 'plain', onclick: doing }, t(key));
    const hides = host.hides(name);
    const fold = hides === null ? null : act(hides ? 'tree.unfold' : 'tree.fold', () => {
      host.collapse(name);
      this.node(name);
    });
    const buttons = [fold];
    if (host.operator && node.role !== 'standby') buttons.push(node.role === 'node' ? act('tree.move', () => this.#move(name)) : null, act('tree.drain', () => this.#drain(name), true));
    this.#open('node', name, name, [this.facts, element('div', { class: 'row wrap' }, ...buttons.filter((each) => each !== null)), this.held, this.rest]);
    this.more = {};
    this.#figures(name);
    if (host.operator) {
      this.rest.append(element('h3', {}, t('tree.log')), this.log);
      this.#decisions(name);
    }
    this.update(new Set([name]));
    host.opened(name);
  }

  /** What stands in the panel changes with the tree. @param {Set<string>} changed @param {Query[]} [moved] */
  update(changed, moved = []) {
    const { shown, host } = this;
    if (shown?.kind === 'query') {
      if (moved.some(({ id }) => id === shown.id)) this.#way(shown.id);
      return;
    }
    if (!shown || !changed.has(shown.id)) return;
    const node = host.model.nodes.get(shown.id);
    if (!node) return this.close();
    const state = element('span', { class: `state s-${node.state}` }, t(`tree.state.${node.state}`));
    /** @type {[string, string|Element][]} */
    const rows = [[t('tree.state'), state]];
    if (node.parent) rows.push([t('tree.parent'), node.parent]);
    if (node.models.length > 0) rows.push([t('tree.models'), node.models.join(', ')]);
    if (node.device) rows.push([t('tree.device'), node.device]);
    if (node.role === 'node') {
      rows.push([t('tree.running'), t('tree.runs', { running: node.running, slots: node.slots })], [t('tree.waits'), String(node.queued)], [t('tree.speed'), rate(node)]);
    } else {
      rows.push([t('tree.waits'), String(host.model.waiting)], [t('tree.live'), String(host.model.live)]);
    }
    rows.push(...Object.entries(this.more ?? {}));
    this.facts.replaceChildren(...rows.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]));
    const queries = node.role === 'node' ? host.model.at(node.name) : [...host.model.queries.values()].filter(({ node: held }) => !held);
    // A button under somebody's finger stays.
    const known = new Map([...(this.held?.children ?? [])].map((each) => [/** @type {HTMLElement} */ (each).dataset.id, each]));
    this.held?.replaceChildren(...queries.slice(0, 30).map(({ id, state: is }) => {
      const item = known.get(id) ?? element('li', { 'data-id': id }, element('button', { type: 'button', class: 'query', onclick: () => this.query(id) }, element('code', {}, short(id)), element('span')));
      const text = t(`tree.query.${is}`);
      const span = /** @type {Element} */ (item.querySelector('span'));
      if (span.textContent !== text) span.textContent = text;
      return item;
    }));
    if (host.operator && performance.now() - this.#read > LOG_PAUSE) this.#decisions(shown.id);
  }

  /** @param {string} id */
  query(id) {
    this.#open('query', id, t('tree.query'), [element('p', { class: 'hint' }, element('code', {}, id)), this.facts, this.rest]);
    this.facts.replaceChildren();
    this.#way(id);
  }

  /** Asks the API, and tells what goes wrong. @param {string} path @param {RequestInit} [options] @returns {Promise<any>} */
  async #ask(path, options) {
    try {
      return await (await ask(path, options)).json();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      notice(sentence(error.message));
      return null;
    }
  }

  /** @param {string} name */
  async #figures(name) {
    const asked = this.#asked;
    // One that is lost has none.
    const told = await ask(path(name)).then((response) => response.json()).catch(() => null);
    if (!told || asked !== this.#asked) return;
    this.more = { [t('tree.uptime')]: span(told.uptime_ms), ...(told.role === 'node' ? { [t('tree.tokens')]: told.tokens.toLocaleString(language) } : {}), [t('tree.version')]: told.version };
    this.update(new Set([name]));
  }

  /** @param {string} name */
  async #decisions(name) {
    this.#read = performance.now();
    const asked = this.#asked;
    const told = await ask(`${path(name)}/log?last=60`).then((response) => response.json()).catch(() => null);
    if (!told || asked !== this.#asked || !this.log) return;
    const lines = told.data.toReversed().map((/** @type {{at_ms: number, text: string}} */ { at_ms, text }) => element('li', {}, element('time', {}, new Date(at_ms).toLocaleTimeString(language)), text));
    this.log.replaceChildren(...lines);
  }

  /** @param {string} name */
  async #drain(name) {
    if (!(await confirm(t('tree.drain.sure', { name }), t('tree.drain')))) return;
    if (await this.#ask(`${path(name)}/drain`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' })) notice(t('tree.drain.done', { name }));
  }

  /** @param {string} name */
  async #move(name) {
    const parent = await askFor(t('tree.move.to', { name }), this.host.model.nodes.get(name)?.parent ?? '');
    if (parent === null) return;
    if (await this.#ask(`${path(name)}/move`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ parent }) })) notice(t('tree.move.done', { name, parent }));
  }

  /** @param {string} id */
  async #way(id) {
    const asked = this.#asked;
    const way = await this.#ask(`/v1/tree/queries/${id}`);
    if (!way || asked !== this.#asked) return;
    /** @type {[string, string][]} */
    const rows = [[t('tree.state'), t(`tree.query.${way.state}`)], [t('why.model'), way.model]];
    if (way.owner) rows.push([t('tree.owner'), way.owner]);
    rows.push([t('why.answer'), t('tokens', { n: way.tokens })]);
    if (way.first_token_us) rows.push([t('why.first'), ms(way.first_token_us)]);
    if (way.ended_us) rows.push([t('why.whole'), ms(way.ended_us)]);
    if (way.error) rows.push([t('tree.error'), sentence(way.error)]);
    this.facts.replaceChildren(...rows.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]));
    /** @typedef {{number: number, holder: string, trail: {node: string, reason: string, spent_us: number}[], outcome: string, sent_us: number}} Attempt */
    const attempts = /** @type {Attempt[]} */ (way.attempts);
    this.rest.replaceChildren(...attempts.flatMap(({ number, trail, outcome, holder }) => [
      element('h3', {}, attempts.length > 1 ? t('attempt', { value: number }) : t('why.way')),
      element('ol', { class: 'trail' }, ...trail.map(({ node, reason, spent_us: spent }) => element('li', {}, element('b', {}, node || t('why.root')), element('span', {}, t(`reason.${reason}`)), element('time', {}, ms(spent))))),
      outcome ? element('p', { class: 'hint' }, `${holder} · ${outcome}`) : null,
    ]).filter((each) => each !== null));
    this.host.way(attempts.at(-1)?.trail.map(({ node }) => node) ?? []);
  }
}

/** Who may ask, and what everybody used in 30 days. */
export async function people() {
  const body = element('div', { class: 'wide', tabindex: '0', role: 'region', 'aria-label': t('tree.people') }, t('tree.people.wait'));
  const dialog = open(t('tree.people'), 'people', body);
  try {
    const [keys, usage] = await Promise.all(['/v1/keys', '/v1/usage?everyone=true'].map(async (each) => (await (await ask(each)).json()).data));
    /** @type {Map<string, {requests: number, failed: number, tokens: number}>} */
    const used = new Map();
    for (const row of usage) {
      const sum = used.get(row.key_id) ?? { requests: 0, failed: 0, tokens: 0 };
      sum.requests += row.requests;
      sum.failed += row.failed;
      sum.tokens += row.prompt_tokens + row.completion_tokens;
      used.set(row.key_id, sum);
    }
    const limit = (/** @type {number|null} */ value) => (value === null ? '–' : value.toLocaleString(language));
    const rows = keys.map((/** @type {any} */ key) => [key.name, t(key.revoked_ms ? 'tree.key.revoked' : key.operator ? 'tree.key.operator' : 'tree.key.good'), limit(key.requests_per_minute), limit(key.tokens_per_minute), key.id]);
    // What was used before there were keys, or by a key that is no more.
    for (const id of used.keys()) if (!keys.some((/** @type {any} */ key) => key.id === id)) rows.push([id || t('tree.everybody'), '', '–', '–', id]);
    const heads = ['tree.key', 'tree.state', 'tree.rpm', 'tree.tpm', 'tree.requests', 'tree.failed', 'tree.tokens'];
    const table = element('table', {}, element('thead', {}, element('tr', {}, ...heads.map((head) => element('th', { scope: 'col' }, t(head))))), element('tbody', {}, ...rows.map((/** @type {string[]} */ [name, state, rpm, tpm, id]) => {
      const { requests, failed, tokens } = used.get(id) ?? { requests: 0, failed: 0, tokens: 0 };
      return element('tr', {}, element('th', { scope: 'row' }, name), ...[state, rpm, tpm, ...[requests, failed, tokens].map((value) => value.toLocaleString(language))].map((cell) => element('td', {}, cell)));
    })));
    body.replaceChildren(rows.length > 0 ? table : element('p', {}, t('tree.people.none')), element('p', { class: 'hint' }, t('tree.people.days')));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    dialog.close();
    notice(sentence(error.message));
  }
}

/** @param {string} name */
const path = (name) => `/v1/tree/nodes/${encodeURIComponent(name)}`;

/** The digits that differ. @param {string} id */
const short = (id) => `…${id.slice(-8)}`;

/** @param {number} us */
const ms = (us) => `${(us / 1000).toFixed(us < 100_000 ? 1 : 0)} ms`;

/** @param {number} time in milliseconds */
function span(time) {
  const seconds = Math.floor(time / 1000);
  const parts = [[86_400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const from = parts.findIndex(([unit]) => seconds >= Number(unit));
  return (from < 0 ? parts.slice(-1) : parts.slice(from, from + 2)).map(([unit, name], at) => `${at === 0 ? Math.floor(seconds / Number(unit)) : Math.floor((seconds % Number(parts[from][0])) / Number(unit))} ${name}`).join(' ');
}
