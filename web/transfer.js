// Conversations as files: JSON, which can be read back, and Markdown, to read.

import { name } from '/api.js';
import { branch, entitle } from '/conversation.js';

/** @import {Origin} from './api.js' */
/** @import {Conversation, Said} from './conversation.js' */

const FORMAT = 'banyan-conversations';
const VERSION = 1;
/** More is no history of one person, in characters. */
const SIZE_MAX = 64 << 20;

/** @param {Conversation[]} talks */
export function toJson(talks) {
  const conversations = talks.map(({ said, ...talk }) => ({ ...talk, said: [...said.values()].map(({ request: _, ...each }) => each) }));
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/** The branch that is shown. @param {Conversation} talk @param {{you: string, system: string}} names */
export function toMarkdown(talk, names) {
  const parts = [`# ${talk.title}`];
  if (talk.system.trim() !== '') parts.push(`**${names.system}**\n\n${talk.system}`);
  for (const { role, text, model } of branch(talk)) parts.push(`**${role === 'user' ? names.you : model}**\n\n${text}`);
  return `${parts.join('\n\n')}\n`;
}

/** A file's name out of a title. @param {string} title */
export function fileName(title) {
  return title.replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '').slice(0, 60) || 'conversation';
}

/**
 * Conversations out of a file, under ids of their own, so that nothing here is overwritten. Whatever is in it, only what is known is
 * taken.
 * @param {string} text
 * @returns {Conversation[]} none when it is no such file
 */
export function fromJson(text) {
  if (text.length > SIZE_MAX) return [];
  let read;
  try {
    read = JSON.parse(text);
  } catch {
    return [];
  }
  if (read?.format !== FORMAT || !Array.isArray(read.conversations)) return [];
  return read.conversations.map(conversation).filter((/** @type {Conversation} */ talk) => talk.said.size > 0);
}

/** @param {any} value */
const string = (value) => (typeof value === 'string' ? value : '');
/** @param {any} value */
const number = (value) => (Number.isFinite(value) ? Number(value) : 0);
/**
 * @template T
 * @param {any} value @param {T[]} known
 * @returns {T}
 */
const oneOf = (value, ...known) => (known.includes(value) ? value : known[0]);

/** @param {any} read @returns {Conversation} */
function conversation(read) {
  /** @type {Map<string, string>} */
  const ids = new Map();
  /** @type {Map<string, Said>} */
  const said = new Map();
  for (const each of Array.isArray(read?.said) ? read.said : []) {
    // A parent stands before its children, so that there is no loop.
    const parent = ids.get(string(each?.parent)) ?? null;
    if (!each || (each.parent !== null && parent === null)) continue;
    const id = name();
    ids.set(string(each.id), id);
    said.set(id, {
      id, parent, role: oneOf(each.role, 'user', 'assistant'), text: string(each.text), at: number(each.at),
      mode: oneOf(each.mode, 'chat', 'complete'), model: string(each.model), state: oneOf(each.state, 'done', 'stopped', 'failed'),
      reason: string(each.reason) || null, first: number(each.first) || null, took: number(each.took) || null, begun: string(each.begun) || undefined,
      usage: each.usage ? { prompt_tokens: number(each.usage.prompt_tokens), completion_tokens: number(each.usage.completion_tokens), total_tokens: number(each.usage.total_tokens) } : null,
      origin: each.origin ? origin(each.origin) : null,
    });
  }
  /** @type {Record<string, any>} */
  const parameters = {};
  for (const known of ['temperature', 'max_tokens', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'seed']) {
    if (Number.isFinite(read?.parameters?.[known])) parameters[known] = read.parameters[known];
  }
  const stop = read?.parameters?.stop;
  if (Array.isArray(stop)) parameters.stop = stop.filter((each) => typeof each === 'string').slice(0, 16);
  const first = [...said.values()].find(({ role }) => role === 'user');
  return {
    id: name(), title: entitle(string(read?.title)) || entitle(first?.text ?? ''), created: number(read?.created), updated: number(read?.updated),
    model: string(read?.model), mode: oneOf(read?.mode, null, 'chat', 'complete'), system: string(read?.system), parameters,
    leaf: ids.get(string(read?.leaf)) ?? [...said.keys()].at(-1) ?? null, said,
  };
}

/** @param {any} read @returns {Origin} */
function origin(read) {
  const trail = Array.isArray(read.trail) ? read.trail.slice(0, 200) : [];
  return {
    query: string(read.query), node: string(read.node) || null, attempt: number(read.attempt), running: false,
    trail: trail.map((/** @type {any} */ hop) => ({ node: string(hop?.node), reason: string(hop?.reason), ms: number(hop?.ms) })),
  };
}
