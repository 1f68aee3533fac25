/* Asks the API with the operator's key. All paths are relative, since the service may live under a path. */

import { getLanguage, t } from './text.js';

const CALL_MAX_MS = 20_000;
const RETRY_MS = 2_000;

let key = recall('key');
let onSignedOut = () => {};
let skew = 0; // the server's clock minus this one, in ms

// Storage may be forbidden; then the page forgets. The key is kept for this tab only, and never in an address.
function recall(name) { try { return sessionStorage.getItem(`coupon-console-${name}`) ?? ''; } catch { return ''; } }
function remember(name, value) { try { sessionStorage.setItem(`coupon-console-${name}`, value); } catch { /* forget */ } }

export const serverNow = () => Date.now() + skew;
export const part = encodeURIComponent;
export const hasKey = () => key !== '';
export function useKey(text) { key = text.trim(); remember('key', key); }
export function whenSignedOut(then) { onSignedOut = then; }

/** A query string of the values that are given. */
export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== '' && value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : '';
}

function headers(more = {}) {
  return { Accept: 'application/json, application/problem+json', 'Accept-Language': getLanguage(), ...(key && { Authorization: `Bearer ${key}` }), ...more };
}

/** One exchange. Never throws: `problem` says what went wrong, and `gone` that nobody waits for the answer any more. */
export async function call(method, path, { body, idempotencyKey, signal } = {}) {
  const more = { ...(body && { 'Content-Type': 'application/json' }), ...(idempotencyKey && { 'Idempotency-Key': idempotencyKey }) };
  const limits = [AbortSignal.timeout(CALL_MAX_MS), signal].filter(Boolean);
  const answer = { ok: false, status: 0, body: null };
  try {
    const response = await fetch(path, { method, headers: headers(more), cache: 'no-store', signal: AbortSignal.any(limits), body: body && JSON.stringify(body) });
    const date = Date.parse(response.headers.get('date'));
    if (date) skew = Math.abs(date - Date.now()) > 2000 ? date - Date.now() : 0; // Date counts whole seconds
    answer.status = response.status;
    answer.location = response.headers.get('location');
    answer.body = await response.json();
  } catch { // no connection, no time, or no JSON: judged below
    if (signal?.aborted) return { ...answer, gone: true };
  }
  answer.ok = answer.status >= 200 && answer.status < 300 && typeof answer.body === 'object' && answer.body !== null;
  if (answer.ok) return answer;
  // A gateway on the way may answer, too: a problem is the service's own by its type.
  const own = String(answer.body?.type).endsWith(`/problems/${answer.body?.code}`);
  answer.problem = own ? answer.body : { title: t(answer.status ? 'strange' : 'network'), status: answer.status };
  if (answer.status === 401) onSignedOut(answer.problem);
  return answer;
}

export const get = (path, signal) => call('GET', path, { signal });

export function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => { clearTimeout(timer); signal?.removeEventListener('abort', done); resolve(); };
    const timer = setTimeout(done, signal?.aborted ? 0 : ms);
    signal?.addEventListener('abort', done);
  });
}

/** Does `work` again and again until the signal aborts, but not while nobody sees the page. */
export async function every(ms, signal, work) {
  while (!signal.aborted) {
    if (!document.hidden) await work();
    await pause(ms, signal);
  }
}

/** Follows the live figures (server-sent events, read with fetch, which can send a key). `tell` gets each, or null while they cannot be read. */
export async function follow(signal, tell) {
  while (!signal.aborted) {
    try {
      const response = await fetch('events', { headers: headers({ Accept: 'text/event-stream' }), cache: 'no-store', signal });
      if (!response.ok) throw new Error(response.status);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (text + value).split('\n\n');
        text = events.pop();
        for (const event of events) {
          const field = (name) => event.split('\n').find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1).trim();
          if (field('event') === 'figures') tell(JSON.parse(field('data')));
          else if (field('event')) tell(null);
        }
      }
    } catch {
      if (signal.aborted) return;
      tell(null);
    }
    await pause(RETRY_MS, signal);
  }
}
