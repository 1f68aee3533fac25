/* The campaigns with their live stock and rates; and one of them: how it burns down, and how it is steered. */

import { call, every, get, part, query, serverNow } from './api.js';
import { card, confirmed, details, h, pill, problemBox, setText } from './dom.js';
import { actionList } from './records.js';
import { duration, moment, number, statusName, t } from './text.js';

const LIST_EVERY_MS = 2_000, ONE_EVERY_MS = 1_000, DEAD_EVERY_MS = 5_000;
const RATE_OVER_MS = 10_000, SAMPLES_MAX = 900;
const STATUSES = ['open', 'scheduled', 'paused', 'soldOut', 'ended', 'archived'];
const TONES = { open: 'good', scheduled: 'warn', paused: 'warn', soldOut: 'bad' };

const samples = new Map(); // coupon id → [{ at, stock }], as far as they were seen here

function learn({ id, stock }) {
  if (!stock) return;
  const seen = samples.get(id) ?? [];
  seen.push({ at: Date.now(), stock });
  samples.set(id, seen.slice(-SAMPLES_MAX));
}

/** Issued and accepted units a second, over the last ten seconds; null while too little was seen. */
function rates(id) {
  const seen = samples.get(id) ?? [], last = seen.at(-1);
  const first = seen.find(({ at }) => last.at - at <= RATE_OVER_MS);
  if (!first || last.at - first.at < 1_500) return null;
  const seconds = (last.at - first.at) / 1000, taken = ({ total, remaining }) => total - remaining;
  return { issued: (last.stock.issued - first.stock.issued) / seconds, accepted: (taken(last.stock) - taken(first.stock)) / seconds };
}

function drawBar(node, stock) {
  for (const name of ['issued', 'reserved']) {
    const share = stock ? 100 * stock[name] / stock.total : 0;
    const span = node.querySelector(`.${name}`);
    span.style.width = `${share}%`;
    span.classList.toggle('some', share > 0);
  }
}
const bar = (style = '') => h('div', { class: `bar ${style}`, 'aria-hidden': 'true' }, h('i', { class: 'issued' }), h('i', { class: 'reserved' }));

const windowText = ({ startsAt, endsAt }) => `${moment(startsAt)} – ${moment(endsAt)}`;
const link = (id) => `#campaign/${part(id)}`;

/** The list. Rows are kept, so that the focus survives a refresh. */
export function campaigns(_, { signal }) {
  const status = h('select', { id: 'status' }, h('option', { value: '' }, t('allStatuses')), STATUSES.map((name) => h('option', { value: name }, statusName(name))));
  const problem = h('div'), empty = h('p', { class: 'empty', hidden: true }, t('noCampaigns')), body = h('tbody');
  const more = h('button', { type: 'button', hidden: true }, t('more'));
  const titles = [[t('coupon')], [t('status')], [t('stock')], [t('remaining'), 'number'], [t('reserved'), 'number'], [t('issued'), 'number'], [t('total'), 'number'], [t('perSecond'), 'number'], [t('window')]];
  const rows = new Map();
  let limit = 50;

  function row(id) {
    const cells = titles.map(([title, style]) => h('td', { 'data-label': title, class: style }));
    const name = h('a', { href: link(id), class: 'name' }), state = pill('');
    cells[0].append(h('div', {}, name, ' ', h('code', {}, id)));
    cells[1].append(state);
    cells[2].append(bar());
    return { node: h('tr', {}, cells), cells, name, state };
  }

  function draw(coupon) {
    const { cells, name, state } = rows.get(coupon.id), { stock } = coupon;
    setText(name, coupon.name);
    setText(state, statusName(coupon.status));
    state.className = `pill ${TONES[coupon.status] ?? ''}`;
    drawBar(cells[2], stock);
    ['remaining', 'reserved', 'issued', 'total'].forEach((figure, at) => setText(cells[3 + at], number(stock?.[figure])));
    setText(cells[7], number(rates(coupon.id)?.issued));
    setText(cells[8], windowText(coupon));
  }

  async function refresh() {
    const list = await get(`coupons${query({ limit, status: status.value })}`, signal);
    if (list.gone) return;
    problem.replaceChildren(problemBox(list.problem));
    if (!list.ok) return;
    list.body.items.forEach(learn);
    const wanted = new Set(list.body.items.map((coupon) => coupon.id));
    for (const [id, { node }] of rows) if (!wanted.has(id)) { node.remove(); rows.delete(id); }
    list.body.items.forEach((coupon, at) => {
      if (!rows.has(coupon.id)) rows.set(coupon.id, row(coupon.id));
      const { node } = rows.get(coupon.id);
      if (body.children[at] !== node) body.insertBefore(node, body.children[at] ?? null);
      draw(coupon);
    });
    empty.hidden = rows.size > 0;
    more.hidden = !list.body.nextCursor || limit >= 500;
  }

  status.onchange = refresh;
  more.onclick = () => { limit += 50; refresh(); };
  every(LIST_EVERY_MS, signal, refresh);
  return card(
    h('div', { class: 'head' }, h('h2', {}, t('campaigns')), h('label', {}, t('status'), status)),
    problem, h('table', {}, h('thead', {}, h('tr', {}, titles.map(([title, style]) => h('th', { scope: 'col', class: style }, title)))), body), empty, more);
}

const SVG = 'http://www.w3.org/2000/svg';

/** Draws how many units were left since the page was opened. */
function drawChart({ svg, line, area, since, change }, id) {
  const seen = samples.get(id) ?? [];
  if (seen.length < 2) return;
  const [first, last] = [seen[0], seen.at(-1)], most = Math.max(...seen.map(({ stock }) => stock.total), 1);
  const x = (at) => 1000 * (at - first.at) / (last.at - first.at || 1), y = (left) => 200 - 196 * left / most;
  const points = seen.map(({ at, stock }) => `${x(at).toFixed(1)} ${y(stock.remaining).toFixed(1)}`);
  line.setAttribute('d', `M ${points.join(' L ')}`);
  area.setAttribute('d', `M 0 200 L ${points.join(' L ')} L 1000 200 Z`);
  const time = duration((last.at - first.at) / 1000);
  svg.setAttribute('aria-label', t('burnDownOf', { first: number(first.stock.remaining), last: number(last.stock.remaining), time }));
  setText(since, `−${time}`);
  setText(change, `${number(first.stock.remaining)} → ${number(last.stock.remaining)}`);
}

function chart() {
  const svg = document.createElementNS(SVG, 'svg'), [area, line] = ['area', ''].map((style) => {
    const path = document.createElementNS(SVG, 'path');
    if (style) path.setAttribute('class', style);
    return path;
  });
  for (const [name, value] of [['class', 'chart'], ['viewBox', '0 0 1000 200'], ['preserveAspectRatio', 'none'], ['role', 'img'], ['aria-label', t('burnDown')]]) svg.setAttribute(name, value);
  svg.append(area, line);
  return { svg, line, area, since: h('span'), change: h('span') };
}

/** One campaign. */
export function campaign([id], { signal, mayAct }) {
  const path = `coupons/${part(id)}`, problem = h('div'), told = h('p', { class: 'done', role: 'status' });
  const name = h('h2', {}, id), state = pill(''), stockBar = bar('big'), about = h('div'), burn = chart(), latest = h('div');
  const names = ['remaining', 'reserved', 'issued', 'total', 'perSecond', 'acceptedPerSecond', 'soldOutIn', 'deadLetters'];
  const values = Object.fromEntries(names.map((figure) => [figure, h('dd')]));
  const buttons = Object.fromEntries(['pause', 'resume', 'restock', 'end'].map((verb) =>
    [verb, h('button', { type: 'button', class: verb === 'end' ? 'danger' : '', onclick: () => steer(verb) }, t(verb))]));
  let coupon = null;

  function draw() {
    const { stock, status } = coupon, rate = rates(id);
    setText(name, coupon.name);
    setText(state, statusName(status));
    state.className = `pill ${TONES[status] ?? ''}`;
    drawBar(stockBar, stock);
    for (const figure of ['remaining', 'reserved', 'issued', 'total']) setText(values[figure], stock ? number(stock[figure]) : t('unknown'));
    setText(values.perSecond, number(rate?.issued));
    setText(values.acceptedPerSecond, number(rate?.accepted));
    setText(values.soldOutIn, stock?.remaining && rate?.accepted > 0 ? duration(stock.remaining / rate.accepted) : t('never'));
    drawChart(burn, id);
    const text = windowText(coupon) + status;
    if (about.dataset.of !== text) {
      about.dataset.of = text;
      const shares = coupon.shares > 1 ? number(coupon.shares) : null;
      about.replaceChildren(details([['id', h('code', {}, id)], [t('window'), windowText(coupon)], [t('perUser'), number(coupon.perUser)], [t('shares'), shares]]));
    }
    buttons.pause.hidden = !['open', 'scheduled', 'soldOut'].includes(status);
    buttons.resume.hidden = status !== 'paused';
    buttons.restock.hidden = status === 'archived';
    buttons.end.hidden = !['open', 'paused', 'soldOut'].includes(status);
  }

  async function refresh() {
    const answer = await get(path, signal);
    if (answer.gone) return;
    problem.replaceChildren(problemBox(answer.problem));
    if (!answer.ok) return;
    coupon = answer.body;
    learn(coupon);
    draw();
  }

  async function refreshRest() {
    const [dead, done] = await Promise.all([get(`dead-letters${query({ couponId: id, limit: 1 })}`, signal), get('operator-actions?limit=500', signal)]);
    if (dead.ok) values.deadLetters.replaceChildren(h('a', { href: `#dead-letters/${part(id)}` }, number(dead.body.matched)));
    if (done.ok) latest.replaceChildren(actionList(done.body.items.filter(({ target }) => target.split('?')[0].split('/')[2] === id).slice(0, 5)));
  }

  async function steer(verb) {
    const units = h('input', { id: 'units', inputmode: 'numeric', autocomplete: 'off' });
    const count = () => Number(units.value);
    const check = () => {
      const wrong = verb === 'restock' && !(Number.isInteger(count()) && count() >= 1 && count() <= 10_000_000);
      units.setAttribute('aria-invalid', String(wrong));
      return wrong ? t('unitsWrong') : null;
    };
    const fields = verb === 'restock' ? [h('label', {}, t('units'), units)] : [];
    const reason = await confirmed({ title: t(verb), text: t(`${verb}Text`, { name: coupon?.name ?? id }), fields, check, danger: verb === 'end' });
    if (reason === null) return;
    setText(told, '');
    const answer = await {
      pause: () => call('POST', `${path}/pause`, { body: { reason } }),
      resume: () => call('POST', `${path}/resume`, { body: { reason } }),
      restock: () => call('POST', `${path}/restock`, { body: { add: count(), reason }, idempotencyKey: crypto.getRandomValues(new Uint32Array(4)).join('-') }),
      end: () => call('PATCH', path, { body: { endsAt: new Date(serverNow() - 1_000).toISOString(), reason } }),
    }[verb]();
    problem.replaceChildren(problemBox(answer.problem));
    if (!answer.ok) return;
    setText(told, t('done'));
    coupon = answer.body;
    draw();
    refreshRest();
  }

  every(ONE_EVERY_MS, signal, refresh);
  every(DEAD_EVERY_MS, signal, refreshRest);
  const figure = (key) => h('div', {}, h('dt', {}, t(key)), values[key]);
  return h('div', { class: 'stack' },
    h('p', {}, h('a', { href: '#campaigns' }, `← ${t('allCampaigns')}`)),
    h('div', { class: 'stack two' },
      card(h('div', { class: 'head' }, name, state), problem, stockBar, h('dl', { class: 'figures' }, names.map(figure)),
        h('h3', {}, t('burnDown')), burn.svg, h('div', { class: 'axis' }, burn.since, burn.change, h('span', {}, t('now')))),
      h('div', { class: 'stack' },
        card(h('h2', { class: 'head' }, t('steering')), about, mayAct && h('div', { class: 'row end' }, Object.values(buttons)), told),
        card(h('h2', { class: 'head' }, t('latestActions')), latest))));
}
