// The API as the page needs it: models, and answers as they come. Knows nothing of the page.

/**
 * @typedef {{id: string, banyan?: {chat: boolean, context: number, nodes: string[]}}} Model
 * @typedef {{role: 'system'|'user'|'assistant', content: string}} Message
 * @typedef {{query: string, node: string|null, attempt: number, running: boolean, trail: {node: string, reason: string, ms: number}[]}} Origin
 * @typedef {{prompt_tokens: number, completion_tokens: number, total_tokens: number}} Usage
 * @typedef {{text?: string, origin?: Origin, usage?: Usage, reason?: string}} News
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

/**
 * Answers a conversation, piece by piece.
 * @param {{model: string, messages: Message[], temperature: number, max_tokens: number}} request
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<News>}
 */
export function chat(request, signal) {
  return answer('/v1/chat/completions', request, signal, (choice) => choice.delta?.content);
}

/**
 * Continues a text, piece by piece.
 * @param {{model: string, prompt: string, temperature: number, max_tokens: number}} request
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<News>}
 */
export function complete(request, signal) {
  return answer('/v1/completions', request, signal, (choice) => choice.text);
}

/** How long to look for a lost answer, and the pause between two looks, in milliseconds. The tree keeps it for 30 s. */
const RESUME_FOR = 30_000;
const RESUME_PAUSE = 500;

async function* answer(path, request, signal, textOf) {
  const body = JSON.stringify({ ...request, stream: true, resumable: true, stream_options: { include_usage: true } });
  // The last event that was seen: another API, or this one, goes on behind it.
  let last = '';
  let lostAt = null;
  try {
    for (;;) {
      try {
        const headers = { 'content-type': 'application/json', ...(last && { 'last-event-id': last }) };
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
          if (event.error) throw new ApiError(event.error.message, { status: 200, code: event.error.code, retryAfter: 0 });
          const choice = event.choices[0];
          yield {
            text: (choice && textOf(choice)) || undefined,
            origin: event.banyan,
            usage: event.usage ?? undefined,
            reason: choice?.finish_reason ?? undefined,
          };
        }
        if (done) return;
        throw new ApiError('The answer broke off: the connection ended before it was complete.', { retryAfter: 0 });
      } catch (error) {
        // The line was lost, or the API that answered is gone or about to; another one knows what became of it.
        const away = error.status === 0 || error.status >= 502 || error.code === 'shutting_down';
        const lost = error instanceof ApiError && away && last !== '';
        lostAt ??= performance.now();
        if (!lost || performance.now() - lostAt > RESUME_FOR) throw error;
        await pause(RESUME_PAUSE, signal);
      }
    }
  } finally {
    // It would go on for a while, for somebody to come back.
    if (signal.aborted && last) fetch(`${path}/${last.split(':')[0]}`, { method: 'DELETE', keepalive: true }).catch(() => {});
  }
}

/** @param {number} ms @param {AbortSignal} signal */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, ms);
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
}

/**
 * Server-sent events, one by one; comments are signs of life and skipped.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{data: string, id: string}>}
 */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = '';
  let data = [];
  let id = '';
  try {
    for (;;) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (error.name === 'AbortError') throw error;
        throw new ApiError('The connection to the API was lost.', { retryAfter: 0 });
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

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('The API can’t be reached. Is it still running?', { retryAfter: 3 });
  }
  if (response.ok) return response;
  const after = Number.parseInt(response.headers.get('retry-after') ?? '', 10);
  let error = null;
  try {
    ({ error } = await response.json());
  } catch {
    // Not ours: a proxy's page, say. The status has to do.
  }
  const message = error?.message ?? `The API answered ${response.status} ${response.statusText}.`;
  // A request that is itself at fault fails again; anything else may pass.
  const passing = response.status === 429 || response.status >= 500;
  const retryAfter = Number.isNaN(after) ? (passing ? 0 : null) : after;
  throw new ApiError(message, { status: response.status, code: error?.code ?? null, retryAfter });
}
