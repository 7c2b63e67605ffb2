// A conversation as data: what was said, in all its branches, and how its model is asked. No page, no wire, no store.

import { name } from '/api.js';

/** @import {Message, Origin, Request, Usage} from './api.js' */

/**
 * How a model is asked; what is left out is the API's default.
 * @typedef {{temperature?: number, max_tokens?: number, top_p?: number, top_k?: number, min_p?: number, repetition_penalty?: number,
 *   seed?: number, stop?: string[]}} Parameters
 */

/**
 * Something that was said. A question has its answers as children, an answer the questions that follow it.
 * @typedef {object} Said
 * @property {string} id
 * @property {string|null} parent
 * @property {'user'|'assistant'} role
 * @property {string} text
 * @property {number} at when, in milliseconds since 1970
 * @property {'chat'|'complete'} mode
 * @property {string} model that is asked, or answered
 * @property {'waiting'|'streaming'|'done'|'stopped'|'failed'} state
 * @property {string} [begun] what a completion goes on behind
 * @property {Origin|null} [origin]
 * @property {Usage|null} [usage]
 * @property {string|null} [reason] why it ended
 * @property {{message: string, status: number, retryAfter: number|null, until: number}|null} [error] with the time from which asking again may help
 * @property {number|null} [first] when the first text came, in milliseconds since it was asked for
 * @property {number|null} [took] until its end, likewise
 * @property {Request|null} [request] to go on with, while it has not ended
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} created
 * @property {number} updated
 * @property {string} model
 * @property {'chat'|'complete'|null} mode null: what the model does best
 * @property {string} system
 * @property {Parameters} parameters
 * @property {string|null} leaf the end of the branch that is shown
 * @property {Map<string, Said>} said
 */

/** Longer titles are cut, in characters. */
const TITLE_MAX = 80;

/** @param {{model?: string, system?: string, parameters?: Parameters}} [like] @returns {Conversation} */
export function conversation({ model = '', system = '', parameters = {} } = {}) {
  const now = Date.now();
  return { id: name(), title: '', created: now, updated: now, model, mode: null, system, parameters, leaf: null, said: new Map() };
}

/** The branch that is shown, from its beginning. @param {Conversation} talk @param {string|null} [end] @returns {Said[]} */
export function branch(talk, end = talk.leaf) {
  const found = [];
  for (let at = end; at !== null; ) {
    const said = talk.said.get(at);
    // A loop can't be built here, but it can be imported.
    if (!said || found.length > talk.said.size) break;
    found.push(said);
    at = said.parent;
  }
  return found.reverse();
}

/** The others that were said in its place, itself among them, oldest first. @param {Conversation} talk @param {Said} said */
export function siblings(talk, said) {
  return [...talk.said.values()].filter((other) => other.parent === said.parent && other.role === said.role).sort(older);
}

/** Shows the branch through something that was said, to what was last said behind it. @param {Conversation} talk @param {Said} said */
export function turnTo(talk, said) {
  const newest = [...talk.said.values()].sort(older).reverse();
  talk.leaf = (newest.find((each) => branch(talk, each.id).includes(said)) ?? said).id;
}

/**
 * Adds something at the end of a branch, and shows it.
 * @param {Conversation} talk @param {Pick<Said, 'parent'|'role'|'text'|'mode'|'model'|'state'> & Partial<Said>} what
 * @returns {Said}
 */
export function add(talk, what) {
  const said = { id: name(), at: Date.now(), ...what };
  talk.said.set(said.id, said);
  talk.leaf = said.id;
  if (talk.title === '' && said.role === 'user') talk.title = entitle(said.text);
  return said;
}

/** What a model is told before it answers at the end of a branch. @param {Conversation} talk @param {string|null} end @returns {Message[]} */
export function messages(talk, end) {
  const system = talk.system.trim() === '' ? [] : [{ role: /** @type {'system'} */ ('system'), content: talk.system }];
  const told = branch(talk, end).filter(({ text, mode }) => mode === 'chat' && text !== '').map(({ role, text }) => ({ role, content: text }));
  return [...system, ...told];
}

/** @param {string} text */
export function entitle(text) {
  const line = text.trim().split('\n', 1)[0].replace(/\s+/g, ' ');
  return line.length > TITLE_MAX ? `${[...line].slice(0, TITLE_MAX - 1).join('')}…` : line;
}

/** What an answer took. @param {Said} said */
export function figures({ first, took, usage }) {
  if (first === null || first === undefined) return null;
  const tokens = usage?.completion_tokens ?? null;
  const streaming = took ? (took - first) / 1000 : 0;
  return {
    seconds: (took ?? first) / 1000,
    first: first / 1000,
    tokens,
    // The first token came before the clock started.
    rate: tokens !== null && tokens > 1 && streaming > 0 ? (tokens - 1) / streaming : null,
  };
}

/** The way down the tree, each node once. @param {Origin} origin */
export function way({ node, trail }) {
  const names = trail.map((hop) => hop.node).filter((each, at, all) => each !== '' && each !== all[at - 1]);
  if (node && names.at(-1) !== node) names.push(node);
  return names;
}

/** @param {Said} a @param {Said} b */
const older = (a, b) => a.at - b.at || (a.id < b.id ? -1 : 1);
