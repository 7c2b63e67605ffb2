// How a conversation's model is asked: the model, what it does, the system prompt, the parameters.

import { open } from '/dialog.js';
import { element, icon } from '/dom.js';
import { keep } from '/kept.js';
import { t } from '/words.js';

/** @import {Model} from './api.js' */
/** @import {Conversation, Parameters} from './conversation.js' */

/** Name, least, most, step, and what the API does without it. @type {[keyof Parameters, number, number, number, string][]} */
const NUMBERS = [
  ['temperature', 0, 2, 0.1, '0.8'], ['max_tokens', 1, 10_000_000, 1, '∞'], ['top_p', 0, 1, 0.05, '1'], ['top_k', 0, 1_000_000, 1, '0'],
  ['min_p', 0, 1, 0.01, '0'], ['repetition_penalty', 0.1, 10, 0.05, '1'], ['seed', -(2 ** 53), 2 ** 53, 1, ''],
];

/** What a model does when nobody says: a base model has no chat format of its own, and completing text is what it does best. @param {Model|undefined} model */
export const best = (model) => (model?.banyan?.chat === false ? 'complete' : 'chat');

/** What a model is, in a few words. @param {Model} model */
export function about({ banyan }) {
  if (!banyan) return '';
  return [t(banyan.chat ? 'model.chats' : 'model.completes'), t('model.context', { n: banyan.context }), t('model.nodes', { n: banyan.nodes.length })].join(' · ');
}

/**
 * Lets a person choose.
 * @param {Conversation} talk @param {Model[]} models @param {() => void} changed
 */
export function pickModel(talk, models, changed) {
  const list = element('ul', { class: 'models' }, ...models.map((model) => {
    const chosen = model.id === talk.model;
    return element('li', {}, element('button', {
      type: 'button', 'aria-pressed': String(chosen), autofocus: chosen, onclick: () => {
        if (!chosen) talk.mode = null;
        talk.model = model.id;
        keep('model', model.id);
        changed();
        dialog.close();
      },
    }, element('span', {}, element('b', {}, model.id), element('small', {}, about(model))), chosen ? icon('done') : null));
  }));
  const model = models.find(({ id }) => id === talk.model);
  const dialog = open(t('model'), 'pick', list, modes(talk, model, changed));
}

/** @param {Conversation} talk @param {Model|undefined} model @param {() => void} changed */
function modes(talk, model, changed) {
  return element('fieldset', {}, element('legend', {}, t('mode')), element('div', { class: 'modes' }, ...['chat', 'complete'].map((mode) => {
    const input = element('input', { type: 'radio', name: 'mode', value: mode, checked: (talk.mode ?? best(model)) === mode });
    input.addEventListener('change', () => {
      talk.mode = mode === best(model) ? null : /** @type {'chat'|'complete'} */ (mode);
      changed();
    });
    return element('label', {}, input, element('span', {}, t(`mode.${mode}`)));
  })));
}

/** @param {Conversation} talk @param {() => void} changed */
export function adjust(talk, changed) {
  const system = element('textarea', { rows: 4, dir: 'auto', placeholder: t('system.hint') });
  system.value = talk.system;
  system.addEventListener('change', () => {
    talk.system = system.value;
    changed();
  });
  const parameters = /** @type {Record<string, any>} */ (talk.parameters);
  const fields = NUMBERS.map(([name, min, max, step, otherwise]) => {
    const input = element('input', {
      type: 'number', min, max, step: 'any', inputmode: step < 1 ? 'decimal' : 'numeric', placeholder: otherwise, value: parameters[name] ?? null,
    });
    input.addEventListener('change', () => {
      const value = input.valueAsNumber;
      if (Number.isNaN(value)) delete parameters[name];
      else parameters[name] = Math.min(max, Math.max(min, step === 1 ? Math.round(value) : value));
      input.value = parameters[name] ?? '';
      changed();
    });
    return element('label', {}, element('span', {}, t(`parameter.${name}`)), input, element('small', {}, t(`parameter.${name}.hint`)));
  });
  const stop = element('textarea', { rows: 1 });
  stop.value = (talk.parameters.stop ?? []).join('\n');
  stop.addEventListener('change', () => {
    const texts = stop.value.split('\n').filter((text) => text !== '').slice(0, 16);
    if (texts.length > 0) parameters.stop = texts;
    else delete parameters.stop;
    changed();
  });
  const always = element('button', { type: 'button', class: 'plain', onclick: () => {
    keep('defaults', { system: talk.system, parameters: talk.parameters });
    always.textContent = t('defaults.done');
  } }, t('defaults'));
  open(t('options'), 'options',
    element('label', {}, element('span', {}, t('system')), system),
    element('div', { class: 'numbers' }, ...fields),
    element('label', {}, element('span', {}, t('parameter.stop')), stop, element('small', {}, t('parameter.stop.hint'))),
    element('div', { class: 'row' }, always));
}
