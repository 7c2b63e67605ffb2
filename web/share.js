// Links to a conversation as it is at a moment: making one, taking it back, and reading what somebody's leads to.

import { ApiError, ask } from '/api.js';
import { add, branch, conversation } from '/conversation.js';
import { notice, open } from '/dialog.js';
import { copy, element } from '/dom.js';
import * as home from '/home.js';
import { sentence } from '/turn.js';
import { t } from '/words.js';

/** @import {Conversation} from './conversation.js' */

/** Which link the page was opened by, if it was. */
export const link = () => /^#s=(\w+)$/.exec(location.hash)?.[1];

/** What a link leads to, as a conversation that nobody keeps. @param {string} id */
export async function shared(id) {
  const { title, messages } = await (await ask(`/v1/shares/${encodeURIComponent(id)}`)).json();
  const talk = conversation();
  for (const { role, content, model, created_ms, mode } of messages) {
    add(talk, { parent: talk.leaf, role: role === 'user' ? 'user' : 'assistant', text: content, at: created_ms, model, mode: mode === 'complete' ? mode : 'chat', state: 'done' });
    talk.model = model || talk.model;
  }
  talk.title = title;
  return talk;
}

/** Makes a link, or shows the one that there is. @param {string} id */
export async function share(id) {
  const path = `/v1/conversations/${id}`;
  const content = element('div', { class: 'sharing' });
  const dialog = open(t('share'), 'small', element('p', { class: 'hint' }, t('share.hint')), content);
  /** @param {string} name @param {string} kind @param {() => Promise<unknown>} act */
  const button = (name, kind, act) => element('button', { type: 'button', class: kind, onclick: () => act().catch((/** @type {unknown} */ error) => {
    content.replaceChildren(element('p', { class: 'wrong', role: 'alert' }, error instanceof ApiError ? sentence(error.message) : String(error)));
  }) }, name);
  const make = async () => {
    // What is shared is what the API has.
    await home.settled();
    const talk = /** @type {Conversation} */ (await home.load(id));
    const body = JSON.stringify({ messages: branch(talk).map((said) => said.id) });
    show((await (await ask(`${path}/share`, { method: 'POST', headers: { 'content-type': 'application/json' }, body })).json()).id);
  };
  /** @param {string|undefined} found */
  const show = (found) => {
    if (!found) {
      content.replaceChildren(element('div', { class: 'row' }, button(t('share.make'), 'strong', make)));
      return;
    }
    const address = element('input', { type: 'text', readonly: true, value: `${location.origin}/#s=${found}`, 'aria-label': t('share.link') });
    content.replaceChildren(
      element('form', { class: 'adding', onsubmit: (/** @type {Event} */ event) => event.preventDefault() }, address, button(t('copy'), 'strong', async () => {
        if (await copy(address.value)) notice(t('copied'));
        else address.select();
      })),
      element('div', { class: 'row' },
        button(t('share.revoke'), 'plain danger', async () => {
          await ask(`${path}/share`, { method: 'DELETE' });
          dialog.close();
          notice(t('share.revoked'));
        }),
        button(t('share.again'), 'plain', make)));
    address.select();
  };
  try {
    await home.settled();
    show((await (await ask(`${path}?last=0`)).json()).share);
  } catch (error) {
    content.replaceChildren(element('p', { class: 'wrong', role: 'alert' }, error instanceof ApiError ? sentence(error.message) : String(error)));
  }
}
