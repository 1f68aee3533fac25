/* The state of the accounts and of the parts; and the record of what operators did. */

import { every, get, query } from './api.js';
import { card, details, h, pill, problemBox, table } from './dom.js';
import { moment, number, t } from './text.js';

const ACCOUNTS_EVERY_MS = 5_000, PAGE = 50;

function accountsCard({ recoveredAt, audit }) {
  const findings = audit?.findings.length ? audit.findings.map(({ code, count }) => h('div', { class: 'text-bad' }, `${code}: ${number(count)}`)) : t('noFindings');
  return card(h('h2', { class: 'head' }, t('accounts')),
    details([[t('recoveredAt'), recoveredAt && moment(recoveredAt)], [t('auditedAt'), audit ? moment(audit.endedAt) : t('notAudited')],
      [t('auditedCoupons'), audit && number(audit.coupons)], [t('findings'), audit && h('div', {}, findings)]]),
    h('p', { class: 'hint' }, t('findingHint')));
}

function partsCard({ ready, redis, mongodb }) {
  const state = (name) => name && pill(t(name), name === 'ok' ? 'good' : 'bad');
  return card(h('h2', { class: 'head' }, t('parts')),
    details([[t('ready'), pill(t(ready ? 'yes' : 'no'), ready ? 'good' : 'bad')], [t('redis'), state(redis)], [t('mongodb'), state(mongodb)]]));
}

const WORKER_COLUMNS = () => [[t('worker'), ({ consumer }) => h('code', {}, consumer)], [t('state'), ({ alive }) => pill(t(alive ? 'alive' : 'gone'), alive ? 'good' : 'bad')],
  [t('heartbeat'), ({ lastHeartbeatAt }) => moment(lastHeartbeatAt)], [t('says'), ({ says }) => says]];

export function accounts(_, { signal }) {
  const view = h('div', { class: 'stack' });
  every(ACCOUNTS_EVERY_MS, signal, async () => {
    const [state, ready, workers] = await Promise.all([get('audit', signal), get('readyz', signal), get('workers', signal)]);
    if (signal.aborted) return;
    const problem = [state, workers].find((answer) => answer.problem)?.problem;
    view.replaceChildren(
      problemBox(problem),
      h('div', { class: 'stack two' }, state.ok ? accountsCard(state.body) : '', ready.body ? partsCard({ ready: ready.ok, ...ready.body }) : ''),
      workers.ok ? card(h('h2', { class: 'head' }, t('workers')), table('', WORKER_COLUMNS(), workers.body, t('noWorkers'))) : '');
  });
  return view;
}

function ended({ status, code, progress, endedAt }) {
  const of = progress && t('progressOf', { done: number(progress.done), matched: number(progress.matched), failed: number(progress.failed) });
  if (endedAt === null) return progress?.running ? h('span', {}, pill(t('running'), 'warn'), ` ${of}`) : h('span', {}, pill(t('unclear'), 'warn'), of ? ` ${of}` : '');
  return h('span', {}, pill([status, code].filter(Boolean).join(' '), status < 400 ? 'good' : 'bad'), of ? ` ${of}` : '');
}

/** What was sent, if it is whole JSON. */
function sent(input) { try { return JSON.parse(input); } catch { return null; } }
const VERBS = ['pause', 'resume', 'restock', 'archive'];

/** What was done to one coupon, briefly: what, who, when, why. */
export function actionList(actions) {
  if (!actions.length) return h('p', { class: 'empty' }, t('noActions'));
  return h('ul', { class: 'plain' }, actions.map((one) => {
    const verb = one.action.startsWith('PATCH') ? 'edit' : one.action.split('/').at(-1), body = sent(one.input);
    return h('li', {}, h('div', { class: 'row' }, h('b', {}, VERBS.includes(verb) || verb === 'edit' ? t(verb) : one.action), one.who, h('time', { datetime: one.at }, moment(one.at)), ended(one)),
      body?.reason && h('div', {}, body.reason));
  }));
}

export function actionTable(actions) {
  return table('', [
    [t('when'), ({ at }) => h('time', { datetime: at }, moment(at))], [t('who'), ({ who }) => who], [t('what'), ({ action, target }) => [h('div', {}, action), h('code', {}, target)]],
    [t('input'), ({ input }) => (input ? h('code', {}, sent(input) ? JSON.stringify(sent(input)) : input) : '')], [t('outcome'), ended], [t('request'), ({ requestId }) => h('code', {}, requestId)],
  ], actions, t('noActions'));
}

export function actions(_, { signal }) {
  const list = h('div'), problem = h('div'), more = h('button', { type: 'button', hidden: true, onclick: () => load(next) }, t('more'));
  let all = [], next = null;
  async function load(cursor = null) {
    const page = await get(`operator-actions${query({ limit: PAGE, cursor })}`, signal);
    if (page.gone) return;
    problem.replaceChildren(problemBox(page.problem));
    if (!page.ok) return;
    all = cursor ? [...all, ...page.body.items] : page.body.items;
    next = page.body.nextCursor;
    list.replaceChildren(actionTable(all));
    more.hidden = !next;
  }
  load();
  return card(h('h2', { class: 'head' }, t('actions')), problem, list, more);
}
