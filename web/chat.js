// One conversation: what was said, and the answer that is under way. Knows the API, not the page.

import * as api from '/api.js';

/**
 * One question and its answer.
 * @typedef {object} Turn
 * @property {'chat'|'complete'} mode
 * @property {string} model
 * @property {string} prompt
 * @property {string} answer
 * @property {'waiting'|'streaming'|'done'|'stopped'|'failed'} state
 * @property {api.Origin|null} origin
 * @property {api.Usage|null} usage
 * @property {string|null} reason why the answer ended
 * @property {api.ApiError|null} error
 * @property {number} asked milliseconds, monotonic
 * @property {number|null} first when the first text came
 * @property {number|null} ended
 */

export class Conversation {
  /** @type {Turn[]} */
  turns = [];
  /** @type {AbortController|null} */
  #running = null;

  get busy() {
    return this.#running !== null;
  }

  /**
   * Asks, and tells about every change until the answer has ended.
   * @param {{mode: 'chat'|'complete', model: string, prompt: string, temperature: number, tokens: number}} question
   * @param {(turn: Turn) => void} changed
   * @returns {Promise<Turn>}
   */
  async ask({ mode, model, prompt, temperature, tokens }, changed) {
    /** @type {Turn} */
    const turn = {
      mode, model, prompt, answer: '', state: 'waiting', origin: null, usage: null, reason: null, error: null,
      asked: performance.now(), first: null, ended: null,
    };
    const messages = this.#messages();
    this.turns.push(turn);
    const running = new AbortController();
    this.#running = running;
    changed(turn);
    const common = { model, temperature, max_tokens: tokens };
    try {
      const news = mode === 'chat'
        ? api.chat({ ...common, messages: [...messages, { role: 'user', content: prompt }] }, running.signal)
        : api.complete({ ...common, prompt }, running.signal);
      for await (const { text, origin, usage, reason } of news) {
        if (origin) turn.origin = origin;
        if (usage) turn.usage = usage;
        if (reason) turn.reason = reason;
        if (text) {
          turn.first ??= performance.now();
          turn.state = 'streaming';
          turn.answer += text;
        }
        changed(turn);
      }
      turn.state = 'done';
    } catch (error) {
      turn.state = error.name === 'AbortError' ? 'stopped' : 'failed';
      if (turn.state === 'failed') turn.error = error;
    }
    turn.ended = performance.now();
    if (this.#running === running) this.#running = null;
    changed(turn);
    return turn;
  }

  /** Ends the answer under way; the node that runs it is free within a step. */
  stop() {
    this.#running?.abort();
  }

  /** Forgets a turn, to ask it again. @param {Turn} turn */
  drop(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
  }

  clear() {
    this.stop();
    this.turns = [];
  }

  /** What the model is told of the conversation so far. @returns {api.Message[]} */
  #messages() {
    return this.turns
      .filter((turn) => turn.mode === 'chat' && turn.answer !== '')
      .flatMap((turn) => [{ role: 'user', content: turn.prompt }, { role: 'assistant', content: turn.answer }]);
  }
}

/** What a turn took, once it has begun. @param {Turn} turn */
export function figures(turn) {
  if (turn.first === null) return null;
  const ended = turn.ended ?? performance.now();
  const tokens = turn.usage?.completion_tokens ?? null;
  const streaming = (ended - turn.first) / 1000;
  return {
    seconds: (ended - turn.asked) / 1000,
    first: (turn.first - turn.asked) / 1000,
    tokens,
    // The first token came before the clock started.
    rate: tokens !== null && tokens > 1 && streaming > 0 ? (tokens - 1) / streaming : null,
  };
}
