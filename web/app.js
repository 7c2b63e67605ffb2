// The chat page: wires the elements to the conversation.

import * as api from '/api.js';
import { Conversation } from '/chat.js';
import { TurnView, element } from '/view.js';

const at = (id) => document.getElementById(id);
const page = {
  model: at('model'), modes: [...document.querySelectorAll('input[name=mode]')], settings: at('settings'),
  temperature: at('temperature'), temperatureShown: at('temperature-shown'), tokens: at('tokens'), fresh: at('fresh'),
  scroll: at('scroll'), welcome: at('welcome'), greeting: at('greeting'), about: at('about'), starters: at('starters'),
  turns: at('turns'), composer: at('composer'), prompt: at('prompt'), label: at('prompt-label'), send: at('send'), stop: at('stop'),
};

const WORDS = {
  chat: {
    greeting: 'Ask the tree', label: 'Your message', placeholder: 'Ask something',
    starters: ['Tell me a short story about a tree.', 'What is a banyan?', 'Write a small poem about rain.'],
  },
  complete: {
    greeting: 'Begin a text', label: 'Your text', placeholder: 'Begin a text; the model goes on',
    starters: ['Once upon a time there was', 'One day Lily went to the', 'The old tree in the garden'],
  },
};

/** How near to the end counts as reading along, in pixels. */
const NEAR = 80;

/** How long to wait before looking for models again, in milliseconds. */
const LOOK_AGAIN = 2000;

const conversation = new Conversation();
/** @type {Map<object, TurnView>} */
const views = new Map();
/** @type {api.Model[]} */
let models = [];
/** Why there are none, when the API can't be asked. @type {string|null} */
let unreachable = null;

const mode = () => page.modes.find((choice) => choice.checked)?.value ?? 'chat';
const model = () => models.find((known) => known.id === page.model.value);

// ---- Models

async function lookForModels() {
  try {
    models = await api.models();
    unreachable = null;
  } catch (error) {
    models = [];
    unreachable = error.message;
  }
  if (models.length === 0) {
    page.model.replaceChildren(element('option', {}, 'no model yet'));
    page.model.disabled = true;
    setTimeout(lookForModels, LOOK_AGAIN);
  } else {
    const chosen = remembered('model');
    page.model.replaceChildren(...models.map(({ id }) => element('option', { value: id, selected: id === chosen }, id)));
    page.model.disabled = false;
  }
  modelChosen();
}

function modelChosen() {
  const known = model();
  // A base model has no chat format of its own: completing text is what it does best.
  if (known) setMode(known.banyan?.chat === false ? 'complete' : 'chat');
  else greet();
}

function setMode(wanted) {
  for (const choice of page.modes) choice.checked = choice.value === wanted;
  greet();
}

function greet() {
  const words = WORDS[mode()];
  page.greeting.textContent = words.greeting;
  page.label.textContent = words.label;
  page.prompt.placeholder = words.placeholder;
  page.about.replaceChildren(...about(model()).flatMap((sentence) => [element('span', {}, sentence), ' ']));
  page.starters.replaceChildren(...words.starters.map((text) => element('li', {},
    element('button', { type: 'button', disabled: models.length === 0, onclick: () => submit(text) }, text))));
  page.send.disabled = models.length === 0;
}

/** What to know before asking, sentence by sentence. */
function about(known) {
  if (unreachable) return [unreachable];
  if (!known) return ['No node serves a model yet.', 'Start one: banyan node run NAME --parent root'];
  const nodes = known.banyan?.nodes.length ?? 1;
  const who = nodes === 1 ? 'One node serves' : `${nodes} nodes serve`;
  return [`${who} ${known.id}.`, known.banyan?.chat === false ? 'It completes text.' : 'Whichever is idle answers.'];
}

// ---- Asking

async function submit(prompt) {
  if (conversation.busy || prompt.trim() === '' || models.length === 0) return;
  const question = {
    mode: mode(), model: page.model.value, prompt,
    temperature: Number(page.temperature.value), tokens: Math.max(1, Math.trunc(Number(page.tokens.value)) || 200),
  };
  page.welcome.hidden = true;
  page.settings.open = false;
  const asking = conversation.ask(question, changed);
  running(true);
  scrollToEnd();
  await asking;
  running(conversation.busy);
}

function changed(turn) {
  // A conversation that was cleared while its answer came is no longer shown.
  if (!conversation.turns.includes(turn)) return;
  const along = page.scroll.scrollHeight - page.scroll.scrollTop - page.scroll.clientHeight < NEAR;
  let view = views.get(turn);
  if (view) {
    view.update();
  } else {
    view = new TurnView(turn, { again, goOn, edit });
    views.set(turn, view);
    page.turns.append(view.root);
  }
  if (along) scrollToEnd();
}

/** Asks once more, at the end of the conversation. */
function again(turn, prompt = turn.prompt) {
  if (conversation.busy) return;
  forget(turn);
  setMode(turn.mode);
  submit(prompt);
}

function goOn(turn) {
  again(turn, turn.prompt + turn.answer);
}

function edit(turn) {
  if (conversation.busy) return;
  forget(turn);
  setMode(turn.mode);
  page.prompt.value = turn.prompt;
  fit();
  page.prompt.focus();
}

function forget(turn) {
  conversation.drop(turn);
  views.get(turn)?.remove();
  views.delete(turn);
}

function running(is) {
  page.send.hidden = is;
  page.stop.hidden = !is;
  page.turns.setAttribute('aria-busy', String(is));
  if (!is) page.prompt.focus({ preventScroll: true });
}

function scrollToEnd() {
  page.scroll.scrollTop = page.scroll.scrollHeight;
}

// ---- The composer

function fit() {
  page.prompt.style.height = 'auto';
  page.prompt.style.height = `${page.prompt.scrollHeight}px`;
}

page.composer.addEventListener('submit', (event) => {
  event.preventDefault();
  if (conversation.busy) return;
  const prompt = page.prompt.value;
  if (prompt.trim() === '' || models.length === 0) return;
  page.prompt.value = '';
  fit();
  submit(prompt);
});
page.prompt.addEventListener('input', fit);
page.prompt.addEventListener('keydown', (event) => {
  // While a character is being composed (Chinese, Japanese), Enter belongs to the composition.
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  page.composer.requestSubmit();
});
page.stop.addEventListener('click', () => conversation.stop());
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  if (page.settings.open) page.settings.open = false;
  else conversation.stop();
});

// ---- The bar

page.model.addEventListener('change', () => {
  remember('model', page.model.value);
  modelChosen();
});
for (const choice of page.modes) choice.addEventListener('change', greet);
page.temperature.addEventListener('input', showTemperature);
page.fresh.addEventListener('click', () => {
  conversation.clear();
  for (const view of views.values()) view.remove();
  views.clear();
  page.welcome.hidden = false;
  running(false);
});
document.addEventListener('click', (event) => {
  if (page.settings.open && !page.settings.contains(event.target)) page.settings.open = false;
});

function showTemperature() {
  page.temperatureShown.textContent = Number(page.temperature.value).toFixed(1);
}

// What a private window refuses to keep is not worth an error.
function remember(name, value) {
  try {
    localStorage.setItem(`banyan.${name}`, value);
  } catch { /* not kept */ }
}
function remembered(name) {
  try {
    return localStorage.getItem(`banyan.${name}`);
  } catch {
    return null;
  }
}

showTemperature();
lookForModels();
