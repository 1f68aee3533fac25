/*
 * The operators' console: sign in with a key, then watch campaigns, the queue and dead letters, and steer them.
 *
 * - It asks the API as any other client does; the API decides what the key may do, and a viewer sees no buttons.
 * - The part of the address behind # names the view and nothing secret.
 * - A view is a function `(arguments, context)` that returns a node; its signal aborts when another view is shown.
 */

import { every, follow, get, hasKey, useKey, whenSignedOut } from './api.js';
import { campaign, campaigns } from './campaigns.js';
import { deadLetters } from './dead-letters.js';
import { $, problemBox, setText } from './dom.js';
import { accounts, actions } from './records.js';
import { search } from './search.js';
import { duration, getLanguage, number, setLanguage, t } from './text.js';

const VIEWS = { campaigns, campaign, 'dead-letters': deadLetters, search, accounts, actions };
const READY_EVERY_MS = 5_000;

let caller = null; // who is signed in
let session = new AbortController(); // aborted at sign-out
let shown = new AbortController(); // aborted when another view is shown

const remembered = () => { try { return localStorage.getItem('coupon-console-language'); } catch { return null; } };

function translate() {
  document.documentElement.lang = getLanguage();
  document.title = t('title');
  for (const node of document.querySelectorAll('[data-t]')) setText(node, t(node.dataset.t));
  for (const node of document.querySelectorAll('[data-t-label]')) node.setAttribute('aria-label', t(node.dataset.tLabel));
  for (const button of document.querySelectorAll('[data-lang]')) button.setAttribute('aria-pressed', String(button.dataset.lang === getLanguage()));
  if (caller) setText($('caller'), caller.who === 'open' ? t('openService') : `${caller.who} · ${t(caller.role)}`);
}

function speak(language) {
  setLanguage(language);
  try { localStorage.setItem('coupon-console-language', getLanguage()); } catch { /* forget */ }
  translate();
  if (caller) show();
}

// Anybody may write anything behind the #.
function decoded(text) { try { return decodeURIComponent(text); } catch { return text; } }

/** Shows the view that the address names. */
function show(event) {
  shown.abort();
  shown = new AbortController();
  if (!caller) return;
  const [name, ...rest] = location.hash.slice(1).split('/').map(decoded);
  const view = VIEWS[name] ? name : 'campaigns';
  for (const link of $('views').children) {
    const current = link.hash === `#${view === 'campaign' ? 'campaigns' : view}`;
    if (current) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
  }
  $('view').dataset.view = view;
  $('view').replaceChildren(VIEWS[view](rest, { signal: shown.signal, mayAct: caller.role === 'operator' }));
  if (event) $('main').focus(); // somebody went there
}

async function enter() {
  const answer = await get('caller');
  if (answer.status === 401) return; // signed out already
  if (!answer.ok) return leave(answer.problem);
  caller = answer.body;
  $('sign-in').hidden = true;
  for (const id of ['views', 'strip']) $(id).hidden = false;
  $('sign-out').hidden = !hasKey();
  translate();
  session = new AbortController();
  follow(session.signal, showFigures);
  every(READY_EVERY_MS, session.signal, showParts);
  show();
}

/** Shows the form to sign in, and why, where a key was refused. */
function leave(problem = null) {
  const had = hasKey();
  session.abort();
  shown.abort();
  caller = null;
  if (!problem || [401, 403].includes(problem.status)) useKey('');
  $('view').replaceChildren();
  setText($('caller'), '');
  for (const id of ['views', 'strip', 'sign-out']) $(id).hidden = true;
  $('sign-in').hidden = false;
  const why = problem?.status === 403 ? { ...problem, detail: t('noRole') } : problem;
  // Without a key the refusal is no news.
  $('sign-in-problem').replaceChildren(why?.status === 401 && !had ? '' : problemBox(why));
}

function figure(id, text, tone = '') {
  setText($(id), text);
  $(id).className = tone;
}

function showFigures(figures) {
  figure('link', t(figures ? 'live' : 'away'), figures ? 'good' : 'warn');
  if (!figures) return;
  const { queue, workers } = figures;
  const waits = queue.oldestAt ? (Date.parse(queue.readAt) - Date.parse(queue.oldestAt)) / 1000 : 0;
  const alive = workers.filter((worker) => worker.alive).length;
  figure('backlog', number(queue.backlog));
  figure('oldest', queue.oldestAt ? duration(waits) : '–', waits > 30 ? 'bad' : waits > 5 ? 'warn' : '');
  figure('workers', t('aliveOf', { alive: number(alive), all: number(workers.length) }), alive ? '' : 'bad');
  figure('dead', number(queue.deadLetters), queue.deadLetters ? 'bad' : '');
}

async function showParts() {
  const { body, problem } = await get('readyz', session.signal);
  const { redis, mongodb } = body ?? {};
  const parts = [['Redis', redis], ['MongoDB', mongodb]].filter(([, state]) => state && state !== 'ok');
  if (problem && !redis) return figure('parts', t('unavailable'), 'bad');
  figure('parts', parts.length ? parts.map(([name, state]) => `${name}: ${t(state)}`).join(', ') : t('ok'), parts.length ? 'bad' : 'good');
}

$('key-form').onsubmit = (event) => {
  event.preventDefault();
  useKey($('key').value);
  $('key').value = '';
  enter();
};
$('sign-out').onclick = () => leave();
for (const button of document.querySelectorAll('[data-lang]')) button.onclick = () => speak(button.dataset.lang);
addEventListener('hashchange', show);
whenSignedOut(leave);
setLanguage(remembered() ?? (navigator.language.toLowerCase().startsWith('ko') ? 'ko' : 'en'));
translate();
enter();
