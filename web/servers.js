// The servers that a person uses, and who one is to this one. Pages talk to their own server only, so that choosing another one goes
// to its page; a key is turned by the API into a cookie that scripts can't read.

import { ApiError, ask } from '/api.js';
import { notice, open } from '/dialog.js';
import { element, pictured } from '/dom.js';
import { keep, recall } from '/kept.js';
import { sentence } from '/turn.js';
import { t } from '/words.js';

/** More are no list to choose from. */
const SERVERS_MAX = 20;

/** @param {string} text @returns {string|null} an origin */
function origin(text) {
  const full = /^[a-z]+:\/\//i.test(text) ? text : `${/^(?:localhost|127\.|\[::1\]|10\.|192\.168\.)/.test(text) ? 'http' : 'https'}:\/\/${text}`;
  try {
    const { protocol, origin: found } = new URL(full);
    return protocol === 'http:' || protocol === 'https:' ? found : null;
  } catch {
    return null;
  }
}

/** @returns {string[]} */
function known() {
  const kept = recall('servers');
  const others = Array.isArray(kept) ? kept.filter((each) => typeof each === 'string' && origin(each) === each) : [];
  return [...new Set([location.origin, ...others])].slice(0, SERVERS_MAX);
}

/** @param {string} server */
function add(server) {
  keep('servers', [...new Set([...known(), server])].slice(0, SERVERS_MAX));
}

/** Goes to another server, which may remember this one. @param {string} server */
function go(server) {
  location.assign(`${server}/#from=${encodeURIComponent(location.origin)}`);
}

/** Somebody came from another server: offers to remember it. @param {string} hash */
export function arrived(hash) {
  const from = new URLSearchParams(hash.slice(1)).get('from');
  const server = from && origin(from);
  if (from) history.replaceState(null, '', location.pathname);
  if (!server || known().includes(server)) return;
  notice(t('servers.from', { server }), { name: t('servers.remember'), act: () => add(server) });
}

/** Shows them all. @param {string} [title] */
export function choose(title = t('servers')) {
  const list = element('ul', { class: 'models' });
  const show = () => list.replaceChildren(...known().map((server) => {
    const here = server === location.origin;
    const button = element('button', { type: 'button', 'aria-pressed': String(here), onclick: () => (here ? dialog.close() : go(server)) },
      element('span', {}, element('b', {}, server), element('small', {}, here ? t('servers.here') : '')));
    const remove = here ? null : pictured('close', t('servers.forget', { server }), () => {
      keep('servers', known().filter((each) => each !== server));
      show();
    });
    return element('li', {}, button, remove);
  }));
  const input = element('input', { type: 'text', inputmode: 'url', autocapitalize: 'none', spellcheck: 'false', placeholder: 'banyan.example.com', 'aria-label': t('servers.address') });
  const wrong = element('p', { class: 'wrong', role: 'alert' });
  const form = element('form', { class: 'adding', onsubmit: (/** @type {Event} */ event) => {
    event.preventDefault();
    const server = origin(input.value.trim());
    wrong.textContent = server ? '' : t('servers.wrong');
    if (!server) return;
    add(server);
    input.value = '';
    show();
  } }, input, element('button', { type: 'submit', class: 'strong' }, t('servers.add')));
  show();
  const dialog = open(title, 'pick', list, form, wrong, element('p', { class: 'hint' }, t('servers.hint')));
}

const SESSION = '/v1/session';

/**
 * Who one is; null where the API can't be asked.
 * @returns {Promise<{required: boolean, signed_in: boolean, keeps?: string}|null>}
 */
export async function session() {
  try {
    return await (await ask(SESSION)).json();
  } catch {
    return null;
  }
}

/** @type {HTMLDialogElement|null} */
let shown = null;

/** Asks for a key; the page is loaded again with it. */
export function signIn() {
  if (shown?.open) return;
  const key = element('input', { type: 'password', autocomplete: 'current-password', 'aria-label': t('sign.key'), placeholder: t('sign.key'), required: true });
  const wrong = element('p', { class: 'wrong', role: 'alert' });
  const form = element('form', { class: 'adding', onsubmit: async (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      await ask(SESSION, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ key: key.value.trim() }) });
      location.reload();
    } catch (error) {
      wrong.textContent = error instanceof ApiError ? sentence(error.message) : String(error);
      key.select();
    }
  } }, key, element('button', { type: 'submit', class: 'strong' }, t('sign.in')));
  shown = open(t('sign.in'), 'small', element('p', { class: 'hint' }, t('sign.hint')), form, wrong);
  key.focus();
}

export function signOut() {
  return ask(SESSION, { method: 'DELETE' });
}
