// Where conversations live: in this browser (IndexedDB). Whatever keeps them elsewhere has these functions as well:
// `list`, `load`, `save`, `rename`, `remove`, `search`, `watch`, all by a conversation's id.

/** @import {Conversation, Said} from './conversation.js' */

/**
 * @typedef {{id: string, title: string, updated: number, model: string}} Summary
 * @typedef {{id: string, title: string, updated: number, excerpt: string, said: string|null}} Found
 */

const NAME = 'banyan';
const VERSION = 1;
/** As many as somebody reads. */
const FOUND_MAX = 50;
/** Characters around what was found. */
const AROUND = 60;

/** Tells the other tabs, and they this one. */
const channel = typeof BroadcastChannel === 'undefined' ? null : new BroadcastChannel(NAME);

/** @type {Promise<IDBDatabase>|null} */
let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, VERSION);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore('talks', { keyPath: 'id' });
      opening.result.createObjectStore('said', { keyPath: ['talk', 'id'] });
    };
    opening.onsuccess = () => {
      // A newer page in another tab must not wait for this one.
      opening.result.onversionchange = () => opening.result.close();
      resolve(opening.result);
    };
    opening.onerror = () => reject(opening.error);
  });
  return opened;
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @param {IDBTransaction} transaction */
function complete(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(undefined);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** All that was said in one. @param {string} id */
const within = (id) => IDBKeyRange.bound([id], [id, []]);

/** Newest first. @returns {Promise<Summary[]>} */
export async function list() {
  const talks = (await database()).transaction('talks').objectStore('talks');
  const all = /** @type {Conversation[]} */ (await result(talks.getAll()));
  return all.map(({ id, title, updated, model }) => ({ id, title, updated, model })).sort((a, b) => b.updated - a.updated);
}

/** @param {string} id @returns {Promise<Conversation|null>} */
export async function load(id) {
  const transaction = (await database()).transaction(['talks', 'said']);
  const [talk, said] = await Promise.all([
    result(transaction.objectStore('talks').get(id)),
    result(transaction.objectStore('said').getAll(within(id))),
  ]);
  return talk ? { ...talk, said: new Map(said.map(({ talk: _, ...each }) => [each.id, each])) } : null;
}

/** Keeps a conversation, and what changed of what was said: all of it unless told otherwise. @param {Conversation} conversation @param {Iterable<Said>} [changed] */
export async function save({ said, ...talk }, changed = said.values()) {
  const transaction = (await database()).transaction(['talks', 'said'], 'readwrite');
  transaction.objectStore('talks').put(talk);
  for (const each of changed) transaction.objectStore('said').put({ ...each, talk: talk.id });
  await complete(transaction);
  channel?.postMessage({ changed: talk.id });
}

/** @param {string} id @param {string} title */
export async function rename(id, title) {
  const transaction = (await database()).transaction('talks', 'readwrite');
  const talks = transaction.objectStore('talks');
  const talk = await result(talks.get(id));
  if (talk) talks.put({ ...talk, title });
  await complete(transaction);
  channel?.postMessage({ changed: id });
}

/** A conversation, or only some of what was said in it. @param {string} id @param {string[]} [said] */
export async function remove(id, said) {
  const transaction = (await database()).transaction(['talks', 'said'], 'readwrite');
  if (said) {
    for (const each of said) transaction.objectStore('said').delete([id, each]);
  } else {
    transaction.objectStore('talks').delete(id);
    transaction.objectStore('said').delete(within(id));
  }
  await complete(transaction);
  channel?.postMessage(said ? { changed: id } : { removed: id });
}

/** The conversations in which all words occur, in the title or in something that was said; newest first. @param {string} text @returns {Promise<Found[]>} */
export async function search(text) {
  const words = text.toLocaleLowerCase().split(/\s+/).filter((word) => word !== '');
  if (words.length === 0) return [];
  const holds = (/** @type {string} */ searched) => words.every((word) => searched.includes(word));
  const transaction = (await database()).transaction(['talks', 'said']);
  const talks = /** @type {Conversation[]} */ (await result(transaction.objectStore('talks').getAll()));
  talks.sort((a, b) => b.updated - a.updated);
  /** @type {Found[]} */
  const found = [];
  for (const { id, title, updated } of talks) {
    if (found.length === FOUND_MAX) break;
    const said = /** @type {Said[]} */ (await result(transaction.objectStore('said').getAll(within(id))));
    const at = said.find((each) => holds(each.text.toLocaleLowerCase()));
    if (at) found.push({ id, title, updated, excerpt: excerpt(at.text, words[0]), said: at.id });
    else if (holds(title.toLocaleLowerCase())) found.push({ id, title, updated, excerpt: '', said: null });
  }
  return found;
}

/** @param {string} text @param {string} word */
function excerpt(text, word) {
  const at = Math.max(0, text.toLocaleLowerCase().indexOf(word));
  const from = Math.max(0, at - AROUND);
  const piece = text.slice(from, at + word.length + AROUND).replace(/\s+/g, ' ').trim();
  return `${from > 0 ? '…' : ''}${piece}${at + word.length + AROUND < text.length ? '…' : ''}`;
}

/** Tells what another tab did. @param {(news: {changed?: string, removed?: string}) => void} told */
export function watch(told) {
  channel?.addEventListener('message', ({ data }) => told(data));
}
