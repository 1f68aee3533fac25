/* Finds a user, an issuance, or what an operator's request did. */

import { get, part } from './api.js';
import { card, details, h, pill, problemBox, table } from './dom.js';
import { actionTable } from './records.js';
import { moment, number, statusName, t } from './text.js';

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const ACTION_PAGES_MAX = 4;

/** The actions of a request, among the latest. */
async function actionsOf(requestId, signal) {
  const found = [];
  for (let page = 0, cursor = ''; page < ACTION_PAGES_MAX; page += 1) {
    const answer = await get(`operator-actions?limit=500${cursor && `&cursor=${part(cursor)}`}`, signal);
    if (!answer.ok) break;
    found.push(...answer.body.items.filter((action) => action.requestId === requestId));
    cursor = answer.body.nextCursor;
    if (!cursor) break;
  }
  return found;
}

const userLink = (id) => h('a', { href: `#search/${part(id)}` }, id);
const couponLink = (id) => h('a', { href: `#campaign/${part(id)}` }, id);

function issuanceCard({ id, state, couponId, userId, serial, ahead, acceptedAt, decidedAt, problem }) {
  const tone = { issued: 'good', rejected: 'bad' }[state] ?? 'warn';
  return card(h('div', { class: 'head' }, h('h2', {}, t('issuance')), pill(t(state), tone)),
    details([['id', h('code', {}, id)], [t('coupon'), couponLink(couponId)], [t('user'), userLink(userId)], [t('serial'), serial && number(serial)],
      [t('ahead'), typeof ahead === 'number' && number(ahead)], [t('acceptedAt'), acceptedAt && moment(acceptedAt)], [t('decidedAt'), decidedAt && moment(decidedAt)],
      [t('reason'), problem && `${problem.title} (${problem.code})`]].filter(([, value]) => value !== false)));
}

function deadLetterCard(letter) {
  return card(h('div', { class: 'head' }, h('h2', {}, t('deadLetter')), pill(t('deadLetter'), 'bad')),
    details([['id', h('code', {}, letter.id)], [t('setAside'), moment(letter.setAsideAt)], [t('attempts'), number(letter.attempts)], [t('reason'), letter.reason],
      [t('coupon'), letter.payload && couponLink(letter.payload.couponId)], [t('user'), letter.payload && userLink(letter.payload.userId)]]));
}

function userCard(user, held) {
  const columns = [[t('coupon'), ({ couponId }) => couponLink(couponId)], [t('serial'), ({ serial }) => number(serial), 'number'],
    [t('status'), ({ status }) => pill(statusName(status), { active: 'good', revoked: 'bad', expired: 'bad' }[status])],
    [t('issuedAt'), ({ issuedAt }) => moment(issuedAt)], [t('issuance'), ({ id }) => h('a', { href: `#search/${part(id)}` }, h('code', {}, id))]];
  return card(h('h2', { class: 'head' }, t('user')),
    details([['id', h('code', {}, user.id)], [t('name'), user.name], [t('registered'), moment(user.createdAt)]]),
    table(t('holds'), columns, held, t('holdsNothing')));
}

async function find(id, signal) {
  const isIssuance = UUID.test(id), isUser = /^[A-Za-z0-9._:@-]{1,64}$/.test(id);
  const ask = (is, path) => (is ? get(path, signal) : { ok: false });
  const [issuance, letter, user, held, actions] = await Promise.all([
    ask(isIssuance, `issuances/${part(id)}`), ask(isIssuance, `dead-letters/${part(id)}`), ask(isUser && !isIssuance, `users/${part(id)}`),
    ask(isUser && !isIssuance, `user-coupons/${part(id)}`), actionsOf(id, signal)]);
  const parts = [
    issuance.ok && issuanceCard(issuance.body), letter.ok && deadLetterCard(letter.body),
    user.ok && userCard(user.body, held.ok ? held.body.items : []),
    actions.length > 0 && card(h('h2', { class: 'head' }, t('actions')), actionTable(actions)),
  ].filter(Boolean);
  const wrong = [issuance, user].find(({ status }) => status && status !== 200 && status !== 404);
  if (wrong) parts.push(problemBox(wrong.problem));
  return parts.length ? parts : [card(h('p', { class: 'empty' }, t('nothingFound')), h('p', { class: 'hint' }, t('logsToo')))];
}

export function search([id = ''], { signal }) {
  const input = h('input', { id: 'search-id', autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', value: id });
  const results = h('div', { class: 'stack', 'aria-live': 'polite' });
  const look = async (wanted) => {
    const found = await find(wanted, signal);
    if (!signal.aborted) results.replaceChildren(...found);
  };
  const submit = (event) => {
    event.preventDefault();
    const wanted = input.value.trim(), address = `#search/${part(wanted)}`;
    if (!wanted) return;
    if (location.hash === address) look(wanted); else location.hash = address;
  };
  if (id) look(id);
  return h('div', { class: 'stack' },
    card(h('h2', { class: 'head' }, t('search')), h('form', { class: 'filters', onsubmit: submit }, h('label', {}, t('searchFor'), input), h('button', { class: 'primary' }, t('find')))),
    results);
}
