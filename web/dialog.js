// Windows over the page: made when they open, gone when they close; the browser keeps the focus within.

import { element, pictured } from '/dom.js';
import { t } from '/words.js';

/**
 * Opens one.
 * @param {string} title @param {string} kind @param {...(Node|null)} content
 */
export function open(title, kind, ...content) {
  const close = pictured('close', t('close'), () => dialog.close());
  const dialog = element('dialog', { class: `dialog ${kind}`, 'aria-label': title },
    element('header', {}, element('h2', {}, title), close), element('div', { class: 'content' }, ...content));
  dialog.addEventListener('close', () => dialog.remove());
  // A press beside it closes it.
  dialog.addEventListener('pointerdown', (event) => {
    const box = dialog.getBoundingClientRect();
    const beside = event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom;
    if (event.target === dialog && beside) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Asks for a yes. @param {string} question @param {string} yes @returns {Promise<boolean>} */
export function confirm(question, yes) {
  return new Promise((resolve) => {
    const decide = element('button', { type: 'button', class: 'strong danger', onclick: () => dialog.close('yes') }, yes);
    const dialog = open(question, 'small', element('div', { class: 'row' },
      element('button', { type: 'button', class: 'plain', onclick: () => dialog.close() }, t('cancel')), decide));
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'));
    decide.focus();
  });
}

/** Asks for a line of text; null when none is given. @param {string} title @param {string} value @returns {Promise<string|null>} */
export function ask(title, value) {
  return new Promise((resolve) => {
    const input = element('input', { type: 'text', 'aria-label': title, maxlength: 200, value, dir: 'auto' });
    const form = element('form', { method: 'dialog', onsubmit: () => { dialog.returnValue = 'yes'; } }, input,
      element('div', { class: 'row' },
        element('button', { type: 'button', class: 'plain', onclick: () => dialog.close() }, t('cancel')),
        element('button', { type: 'submit', class: 'strong', value: 'yes' }, t('save'))));
    const dialog = open(title, 'small', form);
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes' && input.value.trim() !== '' ? input.value.trim() : null));
    input.select();
  });
}

/**
 * A list of things to do, beside the button that opened it.
 * @param {HTMLElement} beside @param {{name: string, act: () => void, danger?: boolean}[]} items
 */
export function menu(beside, items) {
  const list = element('div', { class: 'menu', role: 'menu', popover: 'auto' }, ...items.map(({ name, act, danger }) => element('button', {
    type: 'button', role: 'menuitem', class: danger ? 'danger' : null,
    onclick: () => {
      list.hidePopover();
      act();
    },
  }, name)));
  (beside.closest('nav, header') ?? document.body).append(list);
  list.addEventListener('toggle', (event) => {
    if (/** @type {ToggleEvent} */ (event).newState !== 'closed') return;
    if (list.contains(document.activeElement) || document.activeElement === document.body) beside.focus();
    list.remove();
  });
  list.addEventListener('keydown', (event) => {
    const buttons = [...list.querySelectorAll('button')];
    const here = buttons.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
    if (step === 0) return;
    event.preventDefault();
    buttons[(here + step + buttons.length) % buttons.length].focus();
  });
  list.showPopover();
  const box = beside.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = list;
  const below = box.bottom + height + 8 < innerHeight;
  list.style.left = `${Math.max(8, Math.min(box.right - width, innerWidth - width - 8))}px`;
  list.style.top = `${below ? box.bottom + 4 : Math.max(8, box.top - height - 4)}px`;
  list.querySelector('button')?.focus();
}

/** Says something in passing. @param {string} text @param {{name: string, act: () => void}} [more] */
export function notice(text, more) {
  const said = element('div', { class: 'notice', role: 'status' }, element('span', {}, text));
  if (more) {
    said.append(element('button', { type: 'button', class: 'plain', onclick: () => {
      said.remove();
      more.act();
    } }, more.name));
  }
  for (const old of document.querySelectorAll('.notice')) old.remove();
  document.body.append(said);
  setTimeout(() => said.remove(), more ? 15_000 : 4000);
}
