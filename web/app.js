// The chat page: wires what a person does to the conversation that is shown.

import { Answers } from '/answers.js';
import * as api from '/api.js';
import { add, branch, conversation, siblings, turnTo } from '/conversation.js';
import { notice } from '/dialog.js';
import { at, element } from '/dom.js';
import * as home from '/home.js';
import { keep, recall } from '/kept.js';
import { about, adjust, best, pickModel } from '/options.js';
import { arrived, choose, session, signIn } from '/servers.js';
import { settings } from '/settings.js';
import { link, shared } from '/share.js';
import { Side } from '/side.js';
import { Thread } from '/thread.js';
import { sentence } from '/turn.js';
import { why } from '/why.js';
import { preferred, speak, t } from '/words.js';

/** @import {Conversation, Said} from './conversation.js' */

/** How long to wait before looking for models again, in milliseconds. */
const LOOK_AGAIN = 2000;
/** A longer draft is not kept, in characters. */
const DRAFT_MAX = 200_000;
const PHONE = matchMedia('(max-width: 48rem)');

const prompt = /** @type {HTMLTextAreaElement} */ (at('prompt'));
const send = /** @type {HTMLButtonElement} */ (at('send'));
const stop = at('stop');

/** @type {Conversation} */
let talk = conversation();
/** @type {api.Model[]} */
let models = [];
/** Why there are none. @type {api.ApiError|null} */
let unreachable = null;
let looked = false;
/** What is shown is somebody's that shared it. */
let reading = false;
/** @type {ReturnType<typeof setTimeout>|undefined} */
let looking;

const model = () => models.find(({ id }) => id === talk.model);
const mode = () => talk.mode ?? best(model());
const canAsk = () => models.length > 0 && !answers.in(talk) && !reading;

const answers = new Answers((changedTalk, said) => {
  if (changedTalk.id === talk.id) {
    // A turn that is new has no place yet.
    if (thread.turn(said)) thread.changed(said);
    else thread.show(talk);
  }
  if (said.error?.status === 401) signIn();
  if (answers.lost(said) && models.length > 0) look();
  const runs = answers.runs(said);
  if (runs !== running.has(said.id)) {
    if (runs) running.add(said.id);
    else running.delete(said.id);
    side.draw();
    if (changedTalk.id === talk.id) {
      composerState();
      thread.show(talk);
    }
  }
});
/** Answers whose beginning is known to the list. @type {Set<string>} */
const running = new Set();

const thread = new Thread({
  again: (said) => {
    const question = said.parent === null ? null : talk.said.get(said.parent);
    if (question && canAsk()) asked(answers.ask(talk, { ...question, model: talk.model || question.model }));
  },
  retry: (said) => canAsk() && asked(answers.again(talk, said)),
  goOn: (said) => {
    const question = said.parent === null ? null : talk.said.get(said.parent);
    if (question && canAsk()) asked(answers.ask(talk, question, said.text));
  },
  edit: (said, text) => {
    if (!canAsk()) return;
    const question = add(talk, { parent: said.parent, role: 'user', text, mode: mode(), model: talk.model, state: 'done' });
    asked(answers.ask(talk, question));
  },
  turn: (said, by) => {
    const all = siblings(talk, said);
    const next = all[all.indexOf(said) + by];
    if (!next) return;
    turnTo(talk, next);
    saved();
    thread.show(talk);
  },
  why,
  stop: (said) => answers.stop(said),
}, answers, canAsk);

const side = new Side({
  opened: (id, said) => show(id, said),
  removed: (id) => {
    keep(`draft.${id}`, null);
    if (id !== talk.id) return;
    const under = answers.in(talk);
    if (under) answers.stop(under);
    fresh();
  },
  renamed: (id, title) => {
    if (id !== talk.id) return;
    talk.title = title;
    draw();
  },
  running: (id) => answers.in(/** @type {Conversation} */ ({ id })) !== undefined,
});

// ---- Models

async function look() {
  clearTimeout(looking);
  try {
    models = await api.models();
    unreachable = null;
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    models = [];
    unreachable = error;
    if (error.status === 401 && !reading) signIn();
  }
  looked = true;
  if (!unreachable) begin().catch(console.warn);
  if (models.length === 0) looking = setTimeout(look, LOOK_AGAIN);
  else if (!model() && talk.said.size === 0) talk.model = (models.find(({ id }) => id === recall('model')) ?? models[0]).id;
  draw();
  thread.show(talk);
}

/** Begins to share the conversations with the API, where it keeps them. */
function begin() {
  begun ??= session().then(async (who) => {
    if (who === null) begun = null;
    const count = await home.begin(who?.keeps ?? null);
    if (who?.keeps) side.draw();
    if (count > 0) notice(t('kept.now', { n: count }));
  });
  return begun;
}
/** @type {Promise<void>|null} */
let begun = null;

// ---- The conversation that is shown

/** @param {string} id @param {string|null} [said] */
async function show(id, said = null) {
  const before = talk;
  if (answers.in(/** @type {Conversation} */ ({ id })) && before.id === id) return thread.toEnd();
  const under = shownBefore.get(id);
  const loaded = under && answers.in(under) ? under : await home.load(id).catch(() => null) ?? await begin().then(() => home.load(id)).catch(() => null);
  if (!loaded) {
    notice(t('talk.gone'));
    return fresh();
  }
  talk = loaded;
  reading = false;
  shownBefore.set(id, talk);
  for (const [other, each] of shownBefore) if (each !== talk && !answers.in(each)) shownBefore.delete(other);
  if (said !== null) {
    const there = talk.said.get(said);
    if (there) turnTo(talk, there);
  }
  if (location.hash !== `#c=${id}`) history.pushState(null, '', `#c=${id}`);
  opened();
  if (said !== null) thread.toSaid(said);
  resume();
}

/** Shows what a link leads to. @param {string} id */
async function read(id) {
  try {
    reading = true;
    talk = await shared(id);
    opened();
  } catch (error) {
    notice(error instanceof api.ApiError ? sentence(error.message) : String(error), { name: t('close'), act: () => {} });
    fresh();
  }
}

at('keep').addEventListener('click', async () => {
  await home.save(talk);
  show(talk.id);
  side.draw();
});

/** Goes on with what is under way. */
function resume() {
  for (const each of talk.said.values()) {
    if ((each.state === 'waiting' || each.state === 'streaming') && !answers.runs(each)) answers.resume(talk, each).catch(console.error);
  }
}
/** Those whose answers may still be under way: what is shown must be what they write to. @type {Map<string, Conversation>} */
const shownBefore = new Map();

/** A new conversation, asked as the person likes it. */
function fresh() {
  reading = false;
  const defaults = recall('defaults') ?? {};
  talk = conversation({ model: recall('model') ?? '', ...defaults });
  if (!model() && models.length > 0) talk.model = models[0].id;
  if (/^#[cs]=/.test(location.hash)) history.pushState(null, '', location.pathname);
  opened();
  prompt.focus({ preventScroll: true });
}

function opened() {
  prompt.value = recall(`draft.${draftName()}`) ?? '';
  fit();
  closeDrawer();
  side.mark(talk.id);
  draw();
  thread.show(talk);
  composerState();
}

/** Everything around the turns. */
function draw() {
  const empty = talk.said.size === 0;
  const known = model();
  at('welcome').hidden = !empty;
  at('turns').hidden = empty;
  document.title = talk.title === '' ? 'Banyan' : `${talk.title} · Banyan`;
  at('title').textContent = talk.title;
  at('talk-more').hidden = empty || reading;
  at('model-name').textContent = talk.model || t(looked ? 'model.none' : 'model.looking');
  at('model-is').textContent = known ? t(mode() === 'chat' ? 'model.chats' : 'model.completes') : '';
  at('tuned').hidden = talk.system.trim() === '' && Object.keys(talk.parameters).length === 0;
  at('offline').hidden = !looked || models.length > 0 || reading;
  at('reading').hidden = !reading;
  at('composer').hidden = reading;
  at('offline-text').textContent = unreachable ? t('offline', { reason: sentence(unreachable.message) }) : t('model.start');
  if (empty) greet(known);
  composerState();
}

/** @param {api.Model|undefined} known */
function greet(known) {
  at('greeting').textContent = t(`greeting.${mode()}`);
  const nodes = known?.banyan?.nodes.length ?? 0;
  at('about').textContent = known ? `${t('about.nodes', { n: nodes, model: known.id })} ${t(`about.${mode()}`)}` : '';
  at('starters').replaceChildren(...[1, 2, 3].map((number) => {
    const text = t(`starter.${mode()}.${number}`);
    return element('li', {}, element('button', { type: 'button', disabled: !canAsk(), onclick: () => submit(text) }, text));
  }));
}

function saved() {
  if (talk.said.size > 0) home.save(talk, []).catch(console.error);
  draw();
}

// ---- Asking

/** @param {string} text */
function submit(text) {
  if (text.trim() === '' || !canAsk()) return false;
  if (!model() && talk.said.size === 0) talk.model = models[0].id;
  const parent = talk.leaf;
  const question = add(talk, { parent, role: 'user', text, mode: mode(), model: talk.model, state: 'done' });
  asked(answers.ask(talk, question));
  return true;
}

/** @param {Promise<void>} asking */
function asked(asking) {
  asking.catch(console.error);
  shownBefore.set(talk.id, talk);
  if (location.hash !== `#c=${talk.id}`) history.pushState(null, '', `#c=${talk.id}`);
  side.mark(talk.id);
  thread.show(talk);
  thread.toEnd();
  draw();
}

function composerState() {
  const runs = answers.in(talk) !== undefined;
  send.hidden = runs;
  stop.hidden = !runs;
  send.disabled = models.length === 0;
  prompt.placeholder = t(`prompt.${mode()}`);
  at('prompt-label').textContent = t(`prompt.label.${mode()}`);
}

// ---- The composer

const draftName = () => (talk.said.size === 0 ? 'new' : talk.id);

function keepDraft() {
  keep(`draft.${draftName()}`, prompt.value.slice(0, DRAFT_MAX));
}

function fit() {
  prompt.style.height = 'auto';
  prompt.style.height = `${prompt.scrollHeight}px`;
}

at('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = prompt.value;
  const draft = draftName();
  if (!submit(text)) return;
  prompt.value = '';
  keep(`draft.${draft}`, null);
  fit();
  prompt.focus({ preventScroll: true });
});
prompt.addEventListener('input', () => {
  fit();
  keepDraft();
});
prompt.addEventListener('keydown', (event) => {
  if (event.key === 'ArrowUp' && prompt.value === '' && canAsk()) {
    const last = branch(talk).filter(({ role }) => role === 'user').at(-1);
    if (last) {
      event.preventDefault();
      thread.turn(last)?.edit();
    }
    return;
  }
  // While a character is being composed (Chinese, Japanese), Enter belongs to the composition; a phone's Enter breaks lines.
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing || matchMedia('(pointer: coarse)').matches) return;
  event.preventDefault();
  /** @type {HTMLFormElement} */ (at('composer')).requestSubmit();
});
stop.addEventListener('click', () => {
  const under = answers.in(talk);
  if (under) answers.stop(under);
  prompt.focus({ preventScroll: true });
});

// ---- Keys

document.addEventListener('keydown', (event) => {
  const key = event.key.toLowerCase();
  const held = event.ctrlKey || event.metaKey;
  if (held && !event.shiftKey && key === 'k') {
    event.preventDefault();
    openSide();
    at('search').focus();
  } else if (held && !event.shiftKey && key === 'b') {
    event.preventDefault();
    toggleSide();
  } else if (held && event.shiftKey && key === 'o') {
    event.preventDefault();
    fresh();
  } else if (event.key === 'Escape' && !document.querySelector('dialog[open], [popover]:popover-open')) {
    if (document.documentElement.dataset.drawer === 'open') return closeDrawer();
    const under = answers.in(talk);
    if (under) answers.stop(under);
  }
});

// ---- The side: a column on a desk, a drawer on a phone

function openSide() {
  if (PHONE.matches) {
    document.documentElement.dataset.drawer = 'open';
  } else {
    delete document.documentElement.dataset.side;
    keep('side', null);
  }
  expanded();
}

function closeDrawer() {
  if (document.documentElement.dataset.drawer !== 'open') return;
  delete document.documentElement.dataset.drawer;
  expanded();
  at('menu').focus();
}

function toggleSide() {
  const { dataset } = document.documentElement;
  if (PHONE.matches ? dataset.drawer !== 'open' : dataset.side === 'closed') return openSide();
  if (PHONE.matches) return closeDrawer();
  dataset.side = 'closed';
  keep('side', false);
  expanded();
}

function expanded() {
  const { dataset } = document.documentElement;
  const is = PHONE.matches ? dataset.drawer === 'open' : dataset.side !== 'closed';
  at('menu').setAttribute('aria-expanded', String(is));
  // What a drawer covers is not for the keyboard, and what is away is for nobody.
  at('side').inert = !is;
  at('stage').inert = PHONE.matches && is;
}

at('menu').addEventListener('click', toggleSide);
at('veil').addEventListener('click', closeDrawer);
PHONE.addEventListener('change', () => {
  delete document.documentElement.dataset.drawer;
  expanded();
});

// ---- The bar and the rest

const adjusted = () => {
  saved();
  thread.show(talk);
};
at('fresh').addEventListener('click', fresh);
at('fresh-too').addEventListener('click', fresh);
at('model').addEventListener('click', () => pickModel(talk, models, adjusted));
at('options').addEventListener('click', () => adjust(talk, adjusted));
at('talk-more').addEventListener('click', () => side.actions(at('talk-more'), talk.id, talk.title));
at('settings').addEventListener('click', () => settings({ spoken: inLanguage, changed: changedElsewhere }));
at('another').addEventListener('click', () => choose());
at('try').addEventListener('click', look);

/** @param {string} wanted */
async function inLanguage(wanted) {
  await speak(wanted === 'auto' ? preferred(navigator.languages) : wanted);
  draw();
  side.draw();
  // Their words are made with them.
  const shown = talk;
  talk = conversation();
  thread.show(talk);
  talk = shown;
  thread.show(talk);
}

/** Conversations came or went without this page's doing. */
async function changedElsewhere() {
  await side.draw();
  if (talk.said.size > 0 && !answers.in(talk) && !await home.load(talk.id)) fresh();
}

/** @type {ReturnType<typeof setTimeout>|undefined} */
let drawing;

home.watch(async ({ changed, removed }) => {
  // Many may come at once.
  drawing ??= setTimeout(() => {
    drawing = undefined;
    side.draw();
  }, 50);
  if (removed === talk.id) return fresh();
  if (changed !== talk.id || answers.in(talk)) return;
  // Another tab writes to what is shown here: what was said joins, and the branch that is read stays.
  const kept = await home.load(talk.id);
  if (!kept || kept.id !== talk.id || answers.in(talk)) return;
  for (const [id, said] of kept.said) {
    const here = talk.said.get(id);
    if (here) Object.assign(here, said);
    else talk.said.set(id, said);
  }
  const follows = talk.leaf !== null && [...kept.said.values()].some(({ parent }) => parent === talk.leaf);
  const end = talk.leaf === null ? null : talk.said.get(talk.leaf);
  if (follows && end) turnTo(talk, end);
  talk.title = kept.title;
  draw();
  thread.show(talk);
  resume();
});

const named = () => /^#c=(\w+)$/.exec(location.hash)?.[1];
addEventListener('popstate', () => {
  const id = named();
  const shown = link();
  if (shown) return read(shown);
  if (id && id !== talk.id) show(id);
  else if (!id && talk.said.size > 0) fresh();
});
addEventListener('online', look);
addEventListener('offline', look);

await speak(recall('language') ?? preferred(navigator.languages));
arrived(location.hash);
expanded();
const [shown, lent] = [named(), link()];
await Promise.all([lent ? read(lent) : shown ? show(shown) : fresh(), side.draw(), look()]);
performance.mark('banyan-ready');
// An installed page has no field for addresses.
if (matchMedia('(display-mode: standalone)').matches && !recall('asked')) {
  keep('asked', true);
  choose(t('servers.which'));
}

if ('serviceWorker' in navigator && isSecureContext) {
  // The one script address that is made from a text.
  const trusted = /** @type {any} */ (globalThis).trustedTypes?.createPolicy('banyan', { createScriptURL: () => '/sw.js' });
  navigator.serviceWorker.register(trusted?.createScriptURL('') ?? '/sw.js').catch(console.warn);
}
