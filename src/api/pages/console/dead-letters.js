/* Dead letters: the oldest first, filtered, one by one or all that match in one action with its progress. */

import { call, get, part, pause, query } from './api.js';
import { card, confirmed, h, problemBox, setText, table } from './dom.js';
import { moment, number, t } from './text.js';

const PAGE = 50, ASK_EVERY_MS = 500;
const FIELDS = ['couponId', 'userId', 'reason', 'minAge', 'maxAge'];
const LABELS = { reason: 'reasonHas' };

const isRunning = ({ endedAt, progress }) => endedAt === null && progress?.running === true;

/** How far an action is. Follows it until it has ended, then calls `then`. */
function follow(action, box, signal, then) {
  const bar = h('progress', { max: 1, value: 0, 'aria-label': t('running') }), text = h('p', { role: 'status' });
  const title = h('h3', {}, action.action.endsWith('discard') ? t('discard') : t('redrive'));
  box.replaceChildren(card(title, bar, text));
  const draw = ({ progress, endedAt, status, code }) => {
    const { matched, done, failed } = progress;
    bar.max = matched || 1;
    bar.value = matched ? done + failed : 1;
    const state = endedAt ? `${t('finished')}${status === 200 ? '' : ` (${status} ${code ?? ''})`}` : progress.running ? t('running') : t('interrupted');
    setText(text, `${state}: ${t('progressOf', { done: number(done), matched: number(matched), failed: number(failed) })}`);
  };
  (async () => {
    draw(action);
    while (isRunning(action) && !signal.aborted) {
      await pause(ASK_EVERY_MS, signal);
      const answer = await get(`operator-actions/${part(action.id)}`, signal);
      if (answer.ok) draw(action = answer.body);
    }
    if (!signal.aborted) then();
  })();
}

export function deadLetters([couponId = ''], { signal, mayAct }) {
  const inputs = Object.fromEntries(FIELDS.map((name) => [name, h('input', { id: `filter-${name}`, autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', value: name === 'couponId' ? couponId : '', size: 8 })]));
  const problem = h('div'), list = h('div'), progress = h('div'), matchedText = h('p', { role: 'status' }), told = h('p', { class: 'done', role: 'status' });
  const more = h('button', { type: 'button', hidden: true, onclick: () => load(shownFilter, next) }, t('more'));
  const bulk = Object.fromEntries(['redrive', 'discard'].map((verb) => [verb, h('button', { type: 'button', hidden: true, class: verb === 'discard' ? 'danger' : '', onclick: () => actOnAll(verb) })]));
  let letters = [], matched = 0, next = null, shownFilter = {};

  const filter = () => Object.fromEntries(FIELDS.map((name) => [name, inputs[name].value.trim()]).filter(([, value]) => value));

  const columns = [
    [t('issuance'), (letter) => h('code', {}, letter.id)], [t('setAside'), (letter) => h('time', { datetime: letter.setAsideAt }, moment(letter.setAsideAt))],
    [t('coupon'), (letter) => letter.payload?.couponId], [t('user'), (letter) => letter.payload?.userId], [t('serial'), (letter) => letter.payload?.serial && number(letter.payload.serial), 'number'],
    [t('attempts'), (letter) => number(letter.attempts), 'number'], [t('reason'), (letter) => letter.reason],
  ];
  if (mayAct) {
    columns.push([t('steer'), ({ id }) => h('div', { class: 'row' }, ['redrive', 'discard'].map((verb) =>
      h('button', { type: 'button', class: verb === 'discard' ? 'danger' : '', 'aria-label': `${t(verb)}: ${id}`, onclick: () => actOnOne(verb, id) }, t(verb))))]);
  }

  async function load(wanted, cursor = null) {
    const page = await get(`dead-letters${query({ ...wanted, limit: PAGE, cursor })}`, signal);
    if (page.gone) return;
    problem.replaceChildren(problemBox(page.problem));
    for (const name of FIELDS) inputs[name].setAttribute('aria-invalid', String(Boolean(page.problem?.errors?.some(({ parameter }) => parameter === name))));
    if (!page.ok) return;
    letters = cursor ? [...letters, ...page.body.items] : page.body.items;
    ({ matched, nextCursor: next } = page.body);
    shownFilter = wanted;
    const away = page.body.unavailablePartitions;
    setText(matchedText, [matched ? t('matchedN', { n: number(matched) }) : '', away.length ? t('partitionsAway', { n: away.join(', ') }) : ''].filter(Boolean).join(' · '));
    list.replaceChildren(table('', columns, letters, t('noDeadLetters')));
    more.hidden = !next;
    for (const [verb, button] of Object.entries(bulk)) {
      setText(button, t(`${verb}All`, { n: number(matched) }));
      button.hidden = !mayAct || matched === 0;
    }
  }

  const reload = () => load(shownFilter);

  async function actOnOne(verb, id) {
    const reason = await confirmed({ title: t(verb), text: t(`${verb}OneText`, { id }), danger: verb === 'discard' });
    if (reason === null) return;
    const answer = await call('POST', `dead-letters/${part(id)}/${verb}`, { body: { reason } });
    await reload();
    setText(told, answer.ok ? t('done') : '');
    if (!answer.ok) problem.replaceChildren(problemBox(answer.problem));
  }

  async function actOnAll(verb) {
    const isAll = Object.keys(shownFilter).length === 0;
    if (JSON.stringify(filter()) !== JSON.stringify(shownFilter)) return setText(told, t('changedFilter'));
    const everything = h('input', { type: 'checkbox', id: 'everything' });
    const fields = isAll ? [h('label', { class: 'check' }, everything, t('everything'))] : [];
    const reason = await confirmed({
      title: t(`${verb}All`, { n: number(matched) }), text: t(`${verb}Text`, { n: number(matched) }), fields, danger: verb === 'discard',
      check: () => (isAll && !everything.checked ? t('everythingMissing') : null),
    });
    if (reason === null) return;
    setText(told, '');
    const answer = await call('POST', `dead-letters/${verb}`, { body: { ...(isAll ? { all: true } : { filter: shownFilter }), reason } });
    problem.replaceChildren(problemBox(answer.problem));
    if (answer.ok) follow(answer.body, progress, signal, reload);
  }

  /** An action that somebody began, here or elsewhere, is shown too. */
  async function findRunning() {
    const latest = await get('operator-actions?limit=50', signal);
    const running = latest.ok && latest.body.items.find(isRunning);
    if (running) follow(running, progress, signal, reload);
  }

  load(filter());
  findRunning();
  const field = (name) => h('label', {}, t(LABELS[name] ?? name), inputs[name]);
  const form = h('form', { class: 'filters', 'aria-label': t('filter'), onsubmit: (event) => { event.preventDefault(); setText(told, ''); load(filter()); } },
    FIELDS.map(field), h('button', { class: 'primary' }, t('show')));
  return h('div', { class: 'stack' },
    card(h('h2', { class: 'head' }, t('deadLetters')), form, h('p', { class: 'hint' }, t('ageHint'))),
    progress,
    card(h('div', { class: 'head' }, matchedText, h('div', { class: 'row' }, Object.values(bulk))), told, problem, list, more));
}
