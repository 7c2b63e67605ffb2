// What this browser keeps of conversations (IndexedDB): all there is where the API keeps none, and otherwise what can be read without a
// line, and what the API has not got yet. Knows no wire.

/** @import {Conversation, Said} from './conversation.js' */

/**
 * @typedef {{id: string, title: string, updated: number, model: string}} Summary
 * @typedef {{id: string, title: string, updated: number, excerpt: string, said: string|null}} Found
 */

/**
 * A conversation as it lies here, without what was said.
 * @typedef {object} Entry
 * @property {number} [revision] of the API's that lies here; below 0: not all of it
 * @property {string[]|null} [unsent] names of what was said that the API has not got; null: it has everything
 * @property {string[]} [removed] likewise, of what is no longer wanted
 * @property {number} [saves] grows with each change
 */

const NAME = 'banyan';
const VERSION = 2;
/** As many as somebody reads. */
const FOUND_MAX = 50;
/** Characters around what was found. */
const AROUND = 60;

/** Tells the other tabs, and they this one. */
const channel = typeof BroadcastChannel === 'undefined' ? null : new BroadcastChannel(NAME);

/** @type {Promise<IDBDatabase>|null} */
let opened = null;
/** Who is signed in: each has a history of their own. */
let owner = '';

const named = (/** @type {string} */ whose) => (whose === '' ? NAME : `${NAME}.${whose}`);

/** Goes to somebody's history. @param {string} whose */
export function belong(whose) {
  if (whose === owner) return;
  opened?.then((before) => before.close());
  [opened, owner] = [null, whose];
}

/** Leaves nothing of somebody here. @param {string} whose */
export function forget(whose) {
  belong('');
  indexedDB.deleteDatabase(named(whose));
}

function database() {
  opened ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open(named(owner), VERSION);
    opening.onupgradeneeded = ({ oldVersion }) => {
      if (oldVersion < 1) {
        opening.result.createObjectStore('talks', { keyPath: 'id' });
        opening.result.createObjectStore('said', { keyPath: ['talk', 'id'] });
      }
      opening.result.createObjectStore('gone', { keyPath: 'id' });
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

/** @param {string} id @returns {Promise<(Conversation & Entry)|null>} */
export async function load(id) {
  const transaction = (await database()).transaction(['talks', 'said']);
  const [talk, said] = await Promise.all([
    result(transaction.objectStore('talks').get(id)),
    result(transaction.objectStore('said').getAll(within(id))),
  ]);
  return talk ? { ...talk, said: new Map(said.map(({ talk: _, ...each }) => [each.id, each])) } : null;
}

/** All that lies here, without what was said. @returns {Promise<(Conversation & Entry)[]>} */
export async function entries() {
  return result((await database()).transaction('talks').objectStore('talks').getAll());
}

/**
 * Changes a conversation that lies here.
 * @param {string} id @param {(entry: any, said: IDBObjectStore) => any} change what is kept instead; null where nothing is
 */
async function alter(id, change) {
  const transaction = (await database()).transaction(['talks', 'said'], 'readwrite');
  const talks = transaction.objectStore('talks');
  const kept = change(await result(talks.get(id)), transaction.objectStore('said'));
  if (kept) talks.put(kept);
  await complete(transaction);
  channel?.postMessage({ changed: id });
}

/** Keeps a conversation, and what changed of what was said: all of it unless told otherwise. @param {Conversation} conversation @param {Iterable<Said>} [changed] */
export function save({ said, ...talk }, changed = said.values()) {
  const names = [...changed];
  return alter(talk.id, (entry, into) => {
    for (const each of names) into.put({ ...each, talk: talk.id });
    return { ...talk, ...unsent(entry, names.map(({ id }) => id)) };
  });
}

/** What the API has not got. @param {Entry|undefined} entry @param {string[]} [names] @param {string[]} [removed] @returns {Entry} */
function unsent(entry, names = [], removed = []) {
  return {
    revision: entry?.revision, saves: (entry?.saves ?? 0) + 1,
    unsent: [...new Set([...(entry?.unsent ?? []), ...names])].filter((each) => !removed.includes(each)), removed: [...(entry?.removed ?? []), ...removed],
  };
}

/** @param {string} id @param {string} title */
export function rename(id, title) {
  return alter(id, (entry) => entry && { ...entry, title, ...unsent(entry) });
}

/** Takes some of what was said away. @param {string} id @param {string[]} names */
export function unsay(id, names) {
  return alter(id, (entry, said) => {
    for (const each of names) said.delete([id, each]);
    return entry && { ...entry, ...unsent(entry, [], names) };
  });
}

/** The API has what was sent to it. @param {string} id @param {number} saves that were made by then @param {number|undefined} revision */
export function sent(id, saves, revision) {
  return alter(id, (entry) => entry && { ...entry, revision, ...(entry.saves === saves && { unsent: null, removed: [] }) });
}

/** Keeps what the API has, in place of what lies here; not where something is unsent. @param {Conversation} conversation @param {number} revision @returns {Promise<boolean>} */
export async function receive({ said, ...talk }, revision) {
  let taken = true;
  await alter(talk.id, (entry, into) => {
    taken = !entry?.unsent;
    if (!taken) return null;
    into.delete(within(talk.id));
    for (const each of said.values()) into.put({ ...each, talk: talk.id });
    return { ...talk, revision, unsent: null };
  });
  return taken;
}

/** @param {string} id @param {boolean} [everywhere] the API is to be told */
export async function remove(id, everywhere = false) {
  const transaction = (await database()).transaction(['talks', 'said', 'gone'], 'readwrite');
  transaction.objectStore('talks').delete(id);
  transaction.objectStore('said').delete(within(id));
  if (everywhere) transaction.objectStore('gone').put({ id });
  await complete(transaction);
  channel?.postMessage({ removed: id });
}

/** Of which the API has not heard that they were removed. @returns {Promise<string[]>} */
export async function gone() {
  const all = await result((await database()).transaction('gone').objectStore('gone').getAll());
  return all.map(({ id }) => id);
}

/** @param {string} id */
export async function told(id) {
  const transaction = (await database()).transaction('gone', 'readwrite');
  transaction.objectStore('gone').delete(id);
  await complete(transaction);
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

/** Tells what another tab did. @param {(news: {changed?: string, removed?: string}) => void} tell */
export function watch(tell) {
  channel?.addEventListener('message', ({ data }) => tell(data));
}
