// Why an answer came from where it came: its way down the tree, hop by hop, and what it took.

import { figures } from '/conversation.js';
import { open } from '/dialog.js';
import { element } from '/dom.js';
import { decimal, seconds } from '/turn.js';
import { t } from '/words.js';

/** @import {Said} from './conversation.js' */

/** @param {Said} said */
export function why(said) {
  const { origin, usage } = said;
  const took = figures(said);
  /** @type {[string, string][]} */
  const rows = [[t('why.model'), said.model]];
  if (origin?.node) rows.push([t('why.node'), origin.node]);
  if (took) {
    rows.push([t('why.first'), t('seconds', { value: seconds(took.first) })], [t('why.whole'), t('seconds', { value: seconds(took.seconds) })]);
    if (took.rate !== null) rows.push([t('why.rate'), t('rate', { value: decimal(took.rate, 1) })]);
  }
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    rows.push([t('why.prompt'), `${t('tokens', { n: usage.prompt_tokens })}${cached > 0 ? ` (${t('why.cached', { n: cached })})` : ''}`]);
    rows.push([t('why.answer'), t('tokens', { n: usage.completion_tokens })]);
  }
  if (origin && origin.attempt > 1) rows.push([t('why.attempt'), String(origin.attempt)]);
  const trail = (origin?.trail ?? []).map((hop) => element('li', {},
    element('b', {}, hop.node || t('why.root')), element('span', {}, t(`reason.${hop.reason}`)), element('time', {}, `${decimal(hop.ms, 1)} ms`)));
  open(t('why'), 'why',
    element('dl', {}, ...rows.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)])),
    trail.length > 0 ? element('h3', {}, t('why.way')) : null,
    trail.length > 0 ? element('ol', { class: 'trail' }, ...trail) : null,
    origin ? element('p', { class: 'hint' }, t('why.more'), ' ', element('code', {}, `banyan why ${origin.query}`)) : null);
}
