// What is known of the tree, as events tell it. Knows no page.

/**
 * @typedef {{name: string, tree: string, parent: string|null, role: string, state: string, device: string, models: string[],
 *   slots: number, running: number, queued: number, tokens: number, tokens_per_s: number}} Node
 * @typedef {{id: string, state: string, node: string, trail: string[]}} Query
 * @typedef {{whole?: boolean, nodes: (Partial<Node> & {name: string})[], gone?: string[], queries: Query[], waiting: number, live: number}} News
 * @typedef {{query: Query, before: Query|null}} Move
 */

const ENDED = new Set(['finished', 'failed', 'cancelled']);

export class Model {
  /** @type {Map<string, Node>} */
  nodes = new Map();
  /** @type {Map<string, Query>} */
  queries = new Map();
  /** Ids of the queries that a node holds, by the node's name. @type {Map<string, Set<string>>} */
  held = new Map();
  waiting = 0;
  live = 0;

  /**
   * Takes in an event, and tells what is to be drawn: whether the tree has another shape, which nodes are others, what moved, how many
   * tokens came from whom, and whose state is another one.
   * @param {News} news
   */
  apply(news) {
    const before = this.nodes;
    const known = this.queries;
    if (news.whole) {
      this.nodes = new Map();
      this.queries = new Map();
      this.held = new Map();
    }
    let shape = news.whole === true;
    /** @type {Set<string>} */
    const changed = new Set();
    /** @type {Map<string, number>} */
    const drops = new Map();
    /** What those were whose state is another one. @type {Map<string, string|undefined>} */
    const turned = new Map();
    for (const told of news.nodes) {
      const old = this.nodes.get(told.name) ?? before.get(told.name);
      const node = /** @type {Node} */ ({ ...(this.nodes.get(told.name) ?? {}), ...told });
      const came = node.tokens - (old?.tokens ?? node.tokens);
      if (came > 0) drops.set(node.name, came);
      if (!old || old.parent !== node.parent || old.role !== node.role) shape = true;
      if (old?.state !== node.state) turned.set(node.name, old?.state);
      this.nodes.set(node.name, node);
      changed.add(node.name);
    }
    for (const name of news.gone ?? []) {
      turned.set(name, this.nodes.get(name)?.state);
      shape = this.nodes.delete(name) || shape;
    }
    /** @type {Move[]} */
    const moves = [];
    for (const query of news.queries) {
      const old = known.get(query.id) ?? null;
      if (old) this.#let(old, changed);
      if (ENDED.has(query.state)) {
        this.queries.delete(query.id);
      } else {
        this.queries.set(query.id, query);
        if (query.node) {
          if (!this.held.has(query.node)) this.held.set(query.node, new Set());
          this.held.get(query.node)?.add(query.id);
          changed.add(query.node);
        }
      }
      // What was there before somebody looked did not move now.
      if (!news.whole) moves.push({ query, before: old });
    }
    [this.waiting, this.live] = [news.waiting, news.live];
    return { shape, changed, moves, drops, turned };
  }

  /** @param {Query} query @param {Set<string>} changed */
  #let(query, changed) {
    const held = this.held.get(query.node);
    if (!held?.delete(query.id)) return;
    if (held.size === 0) this.held.delete(query.node);
    changed.add(query.node);
  }

  /** The queries that a node holds, those that run first. @param {string} name @returns {Query[]} */
  at(name) {
    const held = [...(this.held.get(name) ?? [])].map((id) => /** @type {Query} */ (this.queries.get(id)));
    return held.sort((a, b) => Number(b.state === 'running') - Number(a.state === 'running') || (a.id < b.id ? -1 : 1));
  }

  totals() {
    const sum = { nodes: 0, running: 0, queued: 0, rate: 0 };
    for (const { role, running, queued, tokens_per_s: rate } of this.nodes.values()) {
      if (role === 'node') sum.nodes += 1;
      sum.running += running;
      sum.queued += queued;
      sum.rate += rate;
    }
    return sum;
  }
}
