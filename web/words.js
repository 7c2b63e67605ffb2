// What the page says, in the language of who reads it. `words/` has a file per language, each with the same keys.

import en from '/words/en.js';

/** @typedef {keyof typeof en} Key */

/** Those that there are, by what they call themselves. @type {Record<string, string>} */
export const LANGUAGES = { en: 'English', zh: '中文', es: 'Español' };

/** @type {Record<string, () => Promise<{default: Record<string, string>}>>} */
const FILES = { zh: () => import('/words/zh.js'), es: () => import('/words/es.js') };

/** @type {Record<string, string>} */
let words = en;
export let language = 'en';
let plural = new Intl.PluralRules('en');

/**
 * Reads in a language; one that is not there is English. `own` are the words of one page alone.
 * @param {string} wanted @param {Record<string, () => Promise<{default: Record<string, string>}>>} [own]
 */
export async function speak(wanted, own = {}) {
  const loaded = await FILES[wanted]?.().catch(() => null);
  language = loaded ? wanted : 'en';
  words = { ...(loaded?.default ?? en), ...(await own[language]?.())?.default };
  plural = new Intl.PluralRules(language);
  document.documentElement.lang = language;
  for (const each of document.querySelectorAll('[data-t]')) each.textContent = t(/** @type {HTMLElement} */ (each).dataset.t ?? '');
  for (const each of document.querySelectorAll('[data-t-label]')) {
    const label = t(/** @type {HTMLElement} */ (each).dataset.tLabel ?? '');
    each.setAttribute('aria-label', label);
    if (each instanceof HTMLButtonElement) each.title = label;
  }
  for (const each of document.querySelectorAll('[data-t-placeholder]')) {
    each.setAttribute('placeholder', t(/** @type {HTMLElement} */ (each).dataset.tPlaceholder ?? ''));
  }
}

/** The first of a person's languages that there is. @param {readonly string[]} wanted */
export function preferred(wanted) {
  return wanted.map((tag) => tag.toLowerCase().split('-', 1)[0]).find((tag) => Object.hasOwn(LANGUAGES, tag)) ?? 'en';
}

/** Words by their key; `{name}` in them is replaced, and `n` decides between one and many. @param {string} key @param {Record<string, string|number>} [values] */
export function t(key, values = {}) {
  const form = typeof values.n === 'number' ? `${key}.${plural.select(values.n)}` : key;
  const said = words[form] ?? words[`${key}.other`] ?? words[key] ?? key;
  return said.replace(/\{(\w+)\}/g, (_, name) => shown(values[name]));
}

/** @param {string|number|undefined} value */
function shown(value) {
  return typeof value === 'number' ? value.toLocaleString(language) : String(value ?? '');
}
