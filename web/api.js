// The API as the page needs it: models, answers as they come, and who one is. Knows nothing of the page.

import { t } from '/words.js';

/**
 * @typedef {{id: string, banyan?: {chat: boolean, context: number, nodes: string[]}}} Model
 * @typedef {{role: 'system'|'user'|'assistant', content: string}} Message
 * @typedef {{node: string, reason: string, ms: number}} Hop
 * @typedef {{query: string, node: string|null, attempt: number, running: boolean, trail: Hop[], place?: number}} Origin
 * @typedef {{prompt_tokens: number, completion_tokens: number, total_tokens: number, prompt_tokens_details?: {cached_tokens: number}}} Usage
 * @typedef {{text?: string, origin?: Origin, usage?: Usage, reason?: string, last: string}} News
 */

/**
 * What is asked for. `key` names the request: sent again with it, it finds the answer that is under way.
 * @typedef {{path: string, body: string, key: string, last: string}} Request
 */

/** What went wrong, as it can be told to people. */
export class ApiError extends Error {
  /** @param {string} message @param {{status?: number, code?: string|null, retryAfter?: number|null}} [more] */
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    /** Seconds, or null where waiting is no help. */
    this.retryAfter = retryAfter;
  }
}

/** @param {AbortSignal} [signal] @returns {Promise<Model[]>} */
export async function models(signal) {
  const response = await ask('/v1/models', { signal });
  return (await response.json()).data;
}

/** @param {Message[]} messages @param {{model: string} & Record<string, unknown>} parameters @returns {Request} */
export function chat(messages, parameters) {
  return request('/v1/chat/completions', { ...parameters, messages });
}

/** @param {string} prompt @param {{model: string} & Record<string, unknown>} parameters @returns {Request} */
export function complete(prompt, parameters) {
  return request('/v1/completions', { ...parameters, prompt });
}

/** @param {string} path @param {object} asked @returns {Request} */
function request(path, asked) {
  const body = JSON.stringify({ ...asked, stream: true, resumable: true, places: true, stream_options: { include_usage: true } });
  return { path, body, key: name(), last: '' };
}

let latest = 0;

/** A name that nobody else makes, behind all that were made here before: the time, and 80 random bits. */
export function name() {
  const random = crypto.getRandomValues(new Uint8Array(10));
  latest = Math.max(Date.now(), latest + 1);
  return latest.toString(16).padStart(12, '0') + Array.from(random, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** How long to look for a lost answer, and the pause between two looks, in milliseconds. The tree keeps it for 30 s. */
const RESUME_FOR = 30_000;
const RESUME_PAUSE = 500;

/**
 * An answer, piece by piece; `last` in what it tells is the event to go on behind.
 * @param {Request} request @param {AbortSignal} signal @param {() => void} [lost] called when the line is
 * @returns {AsyncGenerator<News>}
 */
export async function* answer({ path, body, key, last }, signal, lost = () => {}) {
  let lostAt = null;
  try {
    for (;;) {
      try {
        const headers = { 'content-type': 'application/json', 'idempotency-key': key, ...(last && { 'last-event-id': last }) };
        const response = await ask(path, { method: 'POST', headers, body, signal });
        let done = false;
        // Read to the very end, so that the connection can serve the next request.
        for await (const { data, id } of events(response.body)) {
          last = id || last;
          lostAt = null;
          if (data === '[DONE]') {
            done = true;
            continue;
          }
          const event = JSON.parse(data);
          if (event.error) {
            const { message, code, type } = event.error;
            throw new ApiError(message, { status: 200, code, retryAfter: type === 'invalid_request_error' ? null : 0 });
          }
          const choice = event.choices[0];
          yield {
            text: choice?.delta?.content || choice?.text || undefined,
            origin: event.banyan,
            usage: event.usage ?? undefined,
            reason: choice?.finish_reason ?? undefined,
            last,
          };
        }
        if (done) return;
        throw new ApiError(t('error.broken'), { retryAfter: 0 });
      } catch (error) {
        // The line was lost, or the API that answered is gone or about to; another one knows what became of it.
        const away = error instanceof ApiError && (error.status === 0 || error.status >= 502 || error.code === 'shutting_down');
        lostAt ??= performance.now();
        if (!away || error.retryAfter === null || (last === '' && error.status !== 0) || performance.now() - lostAt > RESUME_FOR) throw error;
        lost();
        await pause(RESUME_PAUSE, signal);
      }
    }
  } finally {
    // It would go on for a while, for somebody to come back.
    if (signal.aborted) forget(path, last, key);
  }
}

/** @param {string} path @param {string} last @param {string} key */
function forget(path, last, key) {
  const named = last ? `${path}/${last.split(':')[0]}` : path;
  fetch(named, { method: 'DELETE', headers: { 'idempotency-key': key }, keepalive: true }).catch(() => {});
}

/** @param {number} ms @param {AbortSignal} signal */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const end = () => reject(signal.reason);
    setTimeout(() => {
      signal.removeEventListener('abort', end);
      resolve(undefined);
    }, ms);
    signal.addEventListener('abort', end, { once: true });
  });
}

/**
 * Server-sent events, one by one; comments are signs of life and skipped.
 * @param {ReadableStream<Uint8Array>|null} body
 * @returns {AsyncGenerator<{data: string, id: string}>}
 */
export async function* events(body) {
  if (!body) return;
  const reader = body.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let unread = '';
  let data = [];
  let id = '';
  try {
    for (;;) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (error instanceof Error && error.name === 'AbortError') throw error;
        throw new ApiError(t('error.lost'), { retryAfter: 0 });
      }
      if (read.done) return;
      unread += read.value;
      // A line may end in the next piece; only whole ones are read.
      const lines = unread.split(/\r\n|\n|\r(?!$)/);
      unread = lines.pop() ?? '';
      for (const line of lines) {
        if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
        if (line.startsWith('id:')) id = line.slice(3).replace(/^ /, '');
        if (line === '' && data.length > 0) {
          yield { data: data.join('\n'), id };
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * A request whose failure can be told to people.
 * @param {string} path @param {RequestInit} [options]
 */
export async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error instanceof Error && error.name === 'AbortError') throw error;
    throw new ApiError(t('error.unreachable'), { retryAfter: 3 });
  }
  if (response.ok) return response;
  const after = Number.parseInt(response.headers.get('retry-after') ?? '', 10);
  let error = null;
  try {
    ({ error } = await response.json());
  } catch {
    // Not ours: a proxy's page, say. The status has to do.
  }
  const message = error?.message ?? t('error.status', { status: `${response.status} ${response.statusText}` });
  // A request that is itself at fault fails again; anything else may pass.
  const passing = response.headers.get('x-should-retry') !== 'false' && (response.status === 429 || response.status >= 500);
  const retryAfter = passing ? (Number.isNaN(after) ? 0 : Math.min(after, 3600)) : null;
  throw new ApiError(message, { status: response.status, code: error?.code ?? null, retryAfter });
}
