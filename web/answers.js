// The answers that are under way: asks, goes on where a line or the page was lost, and keeps what came. Knows no elements.

import * as api from '/api.js';
import { add, branch, messages } from '/conversation.js';
import * as home from '/home.js';
import { t } from '/words.js';

/** @import {Conversation, Said} from './conversation.js' */

/** How often what came is kept, in milliseconds: a reload repeats no more than that from the tree. */
const KEEP_EVERY = 700;

/** How often a refusal with a time to wait is followed by another try without anybody's doing. */
const TRIES_MAX = 5;

/** A completion's length where none is given, in tokens: a base model does not end by itself. */
const COMPLETION_TOKENS = 200;
const TEMPERATURE = 0.8;

export class Answers {
  /** @type {Map<string, {talk: Conversation, said: Said, controller: AbortController, lost: boolean}>} */
  #running = new Map();
  /** Those that another tab may follow. @type {Set<string>} */
  #awaited = new Set();

  /** @param {(talk: Conversation, said: Said) => void} changed told about every change */
  constructor(changed) {
    this.changed = changed;
    // The last moment at which a page on a phone may still write.
    addEventListener('pagehide', () => {
      for (const { talk, said } of this.#running.values()) home.save(talk, [said]).catch(() => {});
    });
  }

  /** @param {Said} said */
  runs(said) {
    return this.#running.has(said.id);
  }

  /** Whether the line is lost and looked for. @param {Said} said */
  lost(said) {
    return this.#running.get(said.id)?.lost ?? false;
  }

  /** What runs in a conversation. @param {Conversation} talk @returns {Said|undefined} */
  in(talk) {
    return [...this.#running.values()].find((run) => run.talk.id === talk.id)?.said;
  }

  /**
   * Answers something that a person said, once more where there is an answer already.
   * @param {Conversation} talk @param {Said} question @param {string} [begun] what a completion goes on behind
   */
  async ask(talk, question, begun = '') {
    const { mode, model } = question;
    const { stop, ...others } = talk.parameters;
    /** @type {{model: string} & Record<string, unknown>} */
    const parameters = { model, temperature: TEMPERATURE, ...(mode === 'complete' && { max_tokens: COMPLETION_TOKENS }), ...others };
    if (stop && stop.length > 0) parameters.stop = stop;
    const request = mode === 'chat' ? api.chat(messages(talk, question.id), parameters) : api.complete(question.text + begun, parameters);
    const said = add(talk, {
      parent: question.id, role: 'assistant', text: begun, begun: begun || undefined, mode, model, state: 'waiting',
      origin: null, usage: null, reason: null, error: null, first: null, took: null, request,
    });
    talk.updated = said.at;
    await this.#run(talk, said);
  }

  /** Goes on with an answer that ended with its page, or with another tab. @param {Conversation} talk @param {Said} said */
  async resume(talk, said) {
    if (this.runs(said) || this.#awaited.has(said.id) || !said.request) return;
    if (!navigator.locks) return this.#run(talk, said);
    this.#awaited.add(said.id);
    // Whoever follows it holds this; the page that is gone does not.
    await navigator.locks.request(lock(said), async () => {
      const kept = (await home.load(talk.id, true))?.said.get(said.id);
      if (kept) Object.assign(said, kept);
      if (said.state === 'waiting' || said.state === 'streaming') await this.#follow(talk, said);
      else this.changed(talk, said);
    }).finally(() => this.#awaited.delete(said.id));
  }

  /** Asks again for what was refused or failed, in its place. @param {Conversation} talk @param {Said} said */
  async again(talk, said) {
    const question = branch(talk, said.parent).at(-1);
    if (!question || this.runs(said)) return;
    await home.remove(talk.id, [said.id]).catch(() => {});
    talk.said.delete(said.id);
    talk.leaf = question.id;
    await this.ask(talk, question, said.begun);
  }

  /** Ends an answer; the node that runs it is free within a step. @param {Said} said */
  stop(said) {
    this.#running.get(said.id)?.controller.abort(new DOMException('stopped', 'AbortError'));
  }

  /** @param {Conversation} talk @param {Said} said */
  async #run(talk, said) {
    if (!navigator.locks) return this.#follow(talk, said);
    await navigator.locks.request(lock(said), () => this.#follow(talk, said));
  }

  /** @param {Conversation} talk @param {Said} said */
  async #follow(talk, said) {
    const controller = new AbortController();
    const run = { talk, said, controller, lost: false };
    this.#running.set(said.id, run);
    const kept = (/** @type {unknown} */ error) => console.warn('not kept', error);
    // All of it: the question is new as well.
    await home.save(talk, [...branch(talk, said.id)].slice(-2)).catch(kept);
    this.changed(talk, said);
    let keptAt = Date.now();
    for (let tries = 1; ; tries += 1) {
      try {
        const request = /** @type {api.Request} */ (said.request);
        const lost = () => {
          run.lost = true;
          this.changed(talk, said);
        };
        for await (const { text, origin, usage, reason, last } of api.answer(request, controller.signal, lost)) {
          run.lost = false;
          request.last = last;
          if (origin) said.origin = origin;
          if (usage) said.usage = usage;
          if (reason) said.reason = reason;
          if (text) {
            said.first ??= Date.now() - said.at;
            said.state = 'streaming';
            said.text += text;
          }
          this.changed(talk, said);
          if (Date.now() - keptAt > KEEP_EVERY) {
            keptAt = Date.now();
            home.save(talk, [said]).catch(kept);
          }
        }
        said.state = 'done';
      } catch (error) {
        said.state = error instanceof Error && error.name === 'AbortError' ? 'stopped' : 'failed';
        if (said.state === 'failed') {
          const { message, status, retryAfter } = told(error);
          said.error = { message, status, retryAfter, until: Date.now() + (retryAfter ?? 0) * 1000 };
          // A place is kept for who comes back in time; the bytes of the request are what it is kept for.
          if (retryAfter && (status === 429 || status === 503) && said.text === (said.begun ?? '') && tries < TRIES_MAX) {
            this.changed(talk, said);
            try {
              await api.pause(retryAfter * 1000, controller.signal);
              said.state = 'waiting';
              said.error = null;
              said.request = { .../** @type {api.Request} */ (said.request), key: api.name(), last: '' };
              this.changed(talk, said);
              continue;
            } catch {
              if (said.error) said.error.until = Date.now();
            }
          }
        }
      }
      break;
    }
    said.took = Date.now() - said.at;
    said.request = null;
    this.#running.delete(said.id);
    await home.save(talk, [said]).catch(kept);
    this.changed(talk, said);
  }
}

/** @param {Said} said */
const lock = (said) => `banyan.answer.${said.id}`;

/** @param {unknown} error */
function told(error) {
  if (error instanceof api.ApiError) {
    // The tree kept it for a while; only asking anew helps.
    if (error.code === 'answer_not_found') error.retryAfter = 0;
    return error;
  }
  console.error(error);
  return new api.ApiError(t('error.own', { message: String(error) }), { retryAfter: 0 });
}
