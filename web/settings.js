// What holds for the whole page: theme, language, all conversations at once, the keys.

import { confirm, notice, open } from '/dialog.js';
import { download, element } from '/dom.js';
import * as home from '/home.js';
import { keep, recall } from '/kept.js';
import { choose, session, signIn, signOut } from '/servers.js';
import { fromJson, toJson } from '/transfer.js';
import { LANGUAGES, t } from '/words.js';

/** @import {Conversation} from './conversation.js' */

const KEYS = [['Ctrl K', 'keys.search'], ['Ctrl B', 'keys.side'], ['Ctrl Shift O', 'keys.fresh'], ['Enter', 'keys.send'], ['Shift Enter', 'keys.line'], ['↑', 'keys.edit'], ['Esc', 'keys.stop']];

/** @param {{spoken: (language: string) => void, changed: () => void}} told */
export async function settings({ spoken, changed }) {
  const theme = choice(t('theme'), { auto: t('theme.auto'), light: t('theme.light'), dark: t('theme.dark') }, recall('theme') ?? 'auto', (value) => {
    keep('theme', value === 'auto' ? null : value);
    dress();
  });
  const tongue = choice(t('language'), { auto: t('theme.auto'), ...LANGUAGES }, recall('language') ?? 'auto', (value) => {
    keep('language', value === 'auto' ? null : value);
    dialog.close();
    spoken(value);
  });
  const file = element('input', { type: 'file', accept: '.json,application/json', class: 'unseen', tabindex: '-1', 'aria-label': t('import') });
  file.addEventListener('change', async () => {
    const picked = file.files?.[0];
    if (!picked) return;
    const talks = fromJson(await picked.text());
    for (const talk of talks) await home.save(talk);
    dialog.close();
    notice(talks.length === 0 ? t('import.none') : t('import.done', { n: talks.length }));
    changed();
  });
  const data = element('div', { class: 'row wrap' },
    element('button', { type: 'button', class: 'plain', onclick: () => exportAll() }, t('export.all')),
    element('button', { type: 'button', class: 'plain', onclick: () => file.click() }, t('import')), file,
    element('button', { type: 'button', class: 'plain danger', onclick: async () => {
      if (!await confirm(t('remove.all.sure'), t('remove'))) return;
      for (const { id } of await home.list()) await home.remove(id);
      dialog.close();
      changed();
    } }, t('remove.all')));
  const who = await session();
  const key = !who?.required ? null : who.signed_in
    ? element('button', { type: 'button', class: 'plain', onclick: () => signOut().then(home.end).then(() => location.reload()) }, t('sign.out'))
    : element('button', { type: 'button', class: 'plain', onclick: () => signIn() }, t('sign.in'));
  const dialog = open(t('settings'), 'settings', theme, tongue,
    element('div', { class: 'row wrap' }, element('button', { type: 'button', class: 'plain', onclick: () => choose() }, t('servers')), key),
    element('h3', {}, t('conversations')), data,
    element('h3', {}, t('keys')),
    element('dl', { class: 'keys' }, ...KEYS.flatMap(([name, does]) => [
      element('dt', {}, ...name.split(' ').map((one) => element('kbd', {}, one))), element('dd', {}, t(does)),
    ])));
}

/** As the person wants it, or the system. */
export function dress() {
  const theme = recall('theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

/** @param {string} name @param {Record<string, string>} values @param {string} chosen @param {(value: string) => void} changed */
function choice(name, values, chosen, changed) {
  const select = element('select', { name }, ...Object.entries(values).map(([value, label]) => element('option', { value, selected: value === chosen }, label)));
  select.addEventListener('change', () => changed(select.value));
  return element('label', { class: 'choice' }, element('span', {}, name), select);
}

async function exportAll() {
  const talks = [];
  for (const { id } of await home.list()) talks.push(await home.load(id));
  const there = /** @type {Conversation[]} */ (talks.filter((talk) => talk !== null));
  download('banyan.json', 'application/json', toJson(there));
}
