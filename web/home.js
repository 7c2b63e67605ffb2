// Where conversations live: with the API, where it keeps them for who asks, and in this browser (`cache.js`), which is what is read and
// written here. What changed here goes there, what changed there comes here, and without a line nothing is lost.

import { ApiError, ask } from '/api.js';
import * as cache from '/cache.js';
import { keep, recall } from '/kept.js';

/** @import {Conversation, Said} from './conversation.js' */
/** @import {Entry, Found} from './cache.js' */

const PATH = '/v1/conversations';
/** How often is looked for what changed elsewhere, while somebody looks, in milliseconds. */
const LOOK_EVERY = 10_000;
/** What changes here goes there that much later at most, in milliseconds: an answer grows many times in a second. */
const SEND_AFTER = 2000;
/** As many are brought here to be read without a line, the newest; the others when somebody opens them. */
const BROUGHT_MAX = 200;
/** Of one request, in characters; the API takes 4 MiB. */
const SENT_MAX = 500_000;
const LISTED = 1000;

let keeps = false;
let tag = '';
let lastLook = 0;
let again = false;
/** @type {Promise<void>|null} */
let looking = null;
/** @type {ReturnType<typeof setTimeout>|undefined} */
let later;
/** What the API does not take, as it was then. @type {Map<string, number>} */
const refused = new Map();
/** @type {((news: {changed?: string, removed?: string}) => void)[]} */
const watchers = [];

export const list = cache.list;

/** Whether the API keeps them. */
export const isKept = () => keeps;

/** Says whose they are: an owner's that the API keeps them for, or nobody's. Tells how many came from this browser alone. @param {string|null} owner */
export async function begin(owner) {
  keeps = owner !== null;
  if (owner === null) return 0;
  const whose = owner === 'everybody' ? '' : owner;
  /** @type {(Conversation|null)[]} */
  let brought = [];
  if (whose !== '' && whose !== recall('owner')) {
    // What was said here before there were keys, or before somebody signed in, is theirs from now on.
    cache.belong('');
    brought = await Promise.all((await cache.list()).map(({ id }) => cache.load(id)));
    cache.belong(whose);
    for (const talk of brought) if (talk) await cache.save(talk);
    cache.belong('');
    for (const talk of brought) if (talk) await cache.remove(talk.id);
    cache.belong(whose);
  }
  keep('owner', whose);
  // Later, what the API has not got yet is only on its way.
  const alone = recall('kept') ? 0 : (await cache.entries()).filter(({ revision }) => revision === undefined).length;
  keep('kept', true);
  for (const event of ['focus', 'online', 'visibilitychange']) addEventListener(event, () => look());
  setInterval(() => { if (!document.hidden && Date.now() - lastLook >= LOOK_EVERY) look(); }, 1000);
  look();
  return alone;
}

/** Forgets whose they were, and what lies here of theirs. */
export function end() {
  const whose = recall('owner') ?? '';
  if (whose !== '') cache.forget(whose);
  keep('owner', null);
  keep('kept', null);
}

// What lies here is there at once, before anybody was asked.
cache.belong(recall('owner') ?? '');

/** @param {string} id @param {boolean} [newest] the API is asked first @returns {Promise<Conversation|null>} */
export async function load(id, newest = false) {
  let here = await cache.load(id);
  if (keeps && (newest || !here || (here.revision ?? 0) < 0)) {
    await bring(id).catch(() => {});
    here = await cache.load(id);
  }
  if (!here) return null;
  const { revision, unsent, removed, saves, ...talk } = here;
  return talk;
}

/** @param {Conversation} talk @param {Iterable<Said>} [changed] */
export async function save(talk, changed) {
  await cache.save(talk, changed);
  soon();
}

/** @param {string} id @param {string} title */
export async function rename(id, title) {
  await cache.rename(id, title);
  soon();
}

/** A conversation, or only some of what was said in it. @param {string} id @param {string[]} [said] */
export async function remove(id, said) {
  if (said) await cache.unsay(id, said);
  else await cache.remove(id, true);
  soon();
}

/** @param {string} text @returns {Promise<Found[]>} */
export async function search(text) {
  const here = await cache.search(text);
  if (!keeps) return here;
  try {
    const { data } = await (await ask(`${PATH}/search?limit=50&q=${encodeURIComponent(text.slice(0, 300))}`)).json();
    const known = new Set(here.map(({ id }) => id));
    for (const { id, client_id, title, updated_ms, excerpt, message_id } of data) {
      const name = client_id ?? id;
      if (!known.has(name)) here.push({ id: name, title, updated: updated_ms, excerpt, said: message_id });
      known.add(name);
    }
  } catch { /* what lies here has to do */ }
  return here;
}

/** Tells what another tab did, or another browser. @param {(news: {changed?: string, removed?: string}) => void} told */
export function watch(told) {
  watchers.push(told);
  cache.watch(told);
}

/** @param {{changed?: string, removed?: string}} news */
const tell = (news) => watchers.forEach((told) => told(news));

/** When what changed here is there, if anybody takes it. */
export async function settled() {
  await looking;
  look();
  await looking;
}

// ---- There and back

function soon() {
  if (!keeps) return;
  later ??= setTimeout(() => look(), Math.max(0, lastLook + SEND_AFTER - Date.now()));
}

/** Sends what changed here, and brings what changed there. */
function look() {
  clearTimeout(later);
  later = undefined;
  // Who comes while somebody looks has something that may have been passed over.
  if (looking) again = true;
  looking ??= exchange().catch((error) => {
    if (!(error instanceof ApiError)) console.warn('not exchanged', error);
  }).then(() => {
    lastLook = Date.now();
    looking = null;
    if (again) soon();
    again = false;
  });
}

async function exchange() {
  // Tabs do it one after the other.
  if (navigator.locks) await navigator.locks.request('banyan.exchange', both);
  else await both();
}

async function both() {
  for (const id of await cache.gone()) {
    await ask(`${PATH}/${id}`, { method: 'DELETE' }).catch(unlessGone);
    await cache.told(id);
  }
  for (const { id, unsent, revision, saves } of newestFirst(await cache.entries())) {
    if ((unsent || revision === undefined) && refused.get(id) !== (saves ?? 0)) await send(id);
  }
  const found = await listed();
  if (!found) return;
  const here = new Map((await cache.entries()).map((entry) => [entry.id, entry]));
  for (const [place, each] of found.all.entries()) {
    const name = each.client_id ?? each.id;
    const entry = here.get(name);
    here.delete(name);
    if (entry?.unsent || entry?.revision === each.revision) continue;
    if (place < BROUGHT_MAX) await bring(name);
    else if (entry?.revision !== -each.revision && await cache.receive(read({ ...each, items: [] }), -each.revision)) tell({ changed: name });
  }
  for (const { id, revision, unsent } of here.values()) if (revision !== undefined && !unsent) await dropped(id);
  // What is not here by now is looked for again.
  tag = found.tag;
}

/** All that the API keeps; null where nothing has changed. */
async function listed() {
  const all = [];
  let after = '';
  let newest = '';
  for (;;) {
    const response = await fetch(`${PATH}?limit=${LISTED}${after}`, { headers: after === '' && tag ? { 'if-none-match': tag } : {} });
    if (response.status === 304) return null;
    if (!response.ok) throw new ApiError(response.statusText, { status: response.status });
    newest ||= response.headers.get('etag') ?? '';
    const { data, has_more, last_id } = await response.json();
    all.push(...data);
    if (!has_more) return { all, tag: newest };
    after = `&after=${last_id}`;
  }
}

/** @param {string} id */
async function bring(id) {
  let found;
  try {
    found = await (await ask(`${PATH}/${id}`)).json();
  } catch (error) {
    unlessGone(error);
    return;
  }
  if (await cache.receive(read(found), found.revision)) tell({ changed: id });
}

/** @param {string} id */
async function send(id) {
  const talk = await cache.load(id);
  if (!talk) return;
  const { revision, saves = 0, unsent, removed = [], said, title, created, updated, model, mode, system, parameters, leaf } = talk;
  const about = { title, created_ms: whole(created), updated_ms: whole(updated), extra: { model, mode, system, parameters, leaf } };
  const wanted = revision === undefined ? [...said.values()] : [...said.values()].filter((each) => unsent?.includes(each.id));
  let known = revision === undefined ? undefined : Math.abs(revision);
  let mine = true;
  // In pieces that the API takes.
  for (let at = 0; at === 0 || at < wanted.length;) {
    const messages = [];
    for (let size = 0; at < wanted.length && (size === 0 || size + wanted[at].text.length < SENT_MAX); at += 1) {
      messages.push(message(wanted[at]));
      size += JSON.stringify(messages.at(-1)).length;
    }
    try {
      const body = JSON.stringify({ ...about, known, messages, removed }, sound);
      const told = await (await ask(`${PATH}/${id}`, { method: 'PUT', headers: { 'content-type': 'application/json' }, body })).json();
      mine &&= told.before === (known ?? 0);
      known = told.revision;
    } catch (error) {
      if (!(error instanceof ApiError) || error.status === 0 || error.status === 401 || error.retryAfter !== null) throw error;
      if (error.status === 404) return dropped(id);
      // It is not taken as it is, now or ever: it stays here.
      console.warn(`${id} is kept in this browser alone`, error);
      refused.set(id, saves);
      return;
    }
    if (wanted.length === 0) break;
  }
  // What somebody else changed as well is brought.
  await cache.sent(id, saves, mine ? known : -(known ?? 0));
}

/** It was deleted elsewhere. @param {string} id */
async function dropped(id) {
  await cache.remove(id);
  tell({ removed: id });
}

/** @param {unknown} error */
function unlessGone(error) {
  if (!(error instanceof ApiError && error.status === 404)) throw error;
}

/** @template {{updated: number}} T @param {T[]} all @returns {T[]} */
const newestFirst = (all) => all.sort((a, b) => b.updated - a.updated);

/** @param {number} ms */
const whole = (ms) => Math.max(0, Math.round(ms));

/** Half a character is no text. @param {string} _ @param {unknown} value */
const sound = (_, value) => (typeof value === 'string' ? value.replace(/\p{Surrogate}/gu, '\ufffd') : value);

/** As the API has it. @param {Said} said */
function message({ id, parent, role, text, at, model, origin, ...extra }) {
  return { id, parent, role, content: text, created_ms: whole(at), model, node: origin?.node ?? '', extra: { ...extra, origin } };
}

/** As the page has it. @param {any} found @returns {Conversation} */
function read({ id, client_id, title, created_ms, updated_ms, extra, items }) {
  /** @type {Map<string, Said>} */
  const said = new Map(items.map((/** @type {any} */ { id, parent, role, content, created_ms, model, node, extra }) => [id, {
    mode: 'chat', state: 'done', origin: node ? { query: '', node, attempt: 1, running: false, trail: [] } : null, ...extra,
    id, parent, role: role === 'user' ? 'user' : 'assistant', text: content, at: created_ms, model,
  }]));
  return {
    model: '', mode: null, system: '', parameters: {}, leaf: items.at(-1)?.id ?? null, ...extra,
    id: client_id ?? id, title, created: created_ms, updated: updated_ms, said,
  };
}
