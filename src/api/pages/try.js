/*
 * The try-it page: press the button of a first-come-first-served campaign and watch what the API answers.
 * A visitor picks a coupon and a user, requests an issuance, polls it to its outcome, presses twice, starts a rush,
 * and reads every HTTP exchange. It uses the public API only: no framework, no build step, nothing from elsewhere.
 *
 * - All URLs are relative, since the service may live under a path prefix; they are built from ids.
 * - Data reaches the document through textContent only; what is repeated is a <template> of the page.
 * - One `state`, one render function for each part of the page; changing the language renders everything again.
 */

const STRINGS = {
  title: ['Coupon System', 'Coupon System'],
  tagline: ['First come, first served. Never one too many, and an answer for everyone.', '선착순 쿠폰을 정해진 수량만큼만 발급하고, 요청한 모두에게 결과를 알려드려요.'],
  links: ['Links', '링크'], language: ['Language', '언어'],
  coupons: ['Coupons', '쿠폰'], chooseCoupon: ['Choose a coupon', '쿠폰 선택'],
  noCoupons: ['No coupons yet. Make one below.', '아직 쿠폰이 없어요. 아래에서 만들어 보세요.'],
  live: ['Live', '실시간'], away: ['Reconnecting', '다시 연결하는 중'],
  scheduled: ['Scheduled', '시작 전'], open: ['Open', '진행 중'], paused: ['Paused', '일시 중지'], soldOut: ['Sold out', '소진'],
  ended: ['Ended', '종료'], archived: ['Archived', '보관됨'],
  fixedOff: ['{amount} off', '{amount} 할인'], percentOff: ['{percent}% off', '{percent}% 할인'],
  minOrder: ['orders from {amount}', '{amount} 이상 주문 시'], minorUnits: ['{n} minor units of {currency}', '{currency} 최소 단위 {n}'],
  percentOffMax: ['{percent}% off, up to {amount}', '{percent}% 할인 (최대 {amount})'], perUserN: ['{n} per user', '1인당 {n}장'],
  starts: ['starts {when}', '{when} 시작'], ends: ['ends {when}', '{when} 종료'], endedWhen: ['ended {when}', '{when} 종료됨'],
  issuedN: ['Issued {n}', '발급 {n}'], reservedN: ['Reserved {n}', '처리 중 {n}'], leftN: ['Left {n}', '남음 {n}'], ofN: ['of {n}', '전체 {n}'],
  noStock: ['Stock is not known for the moment.', '지금은 수량을 확인할 수 없어요.'],
  makeCoupon: ['Make a coupon', '쿠폰 만들기'], name: ['Name', '이름'], total: ['How many', '수량'], perUser: ['Per user', '1인당 한도'],
  makeHint: ['Opens now, closes in an hour, takes ₩5,000 off.', '지금부터 1시간 동안 받을 수 있는 5,000원 할인 쿠폰이에요.'],
  make: ['Make it', '만들기'], made: ['Made, and chosen.', '쿠폰을 만들고 선택했어요.'], checkFields: ['Check the marked fields.', '표시된 항목을 확인해 주세요.'],
  request: ['Request one', '쿠폰 받기'], user: ['User', '사용자'], useId: ['Use this id', '이 ID 사용'], randomUser: ['New random user', '임의 사용자 만들기'],
  noUser: ['A new user is made when you press, unless you enter an id.', 'ID를 입력하지 않으면 요청할 때 새 사용자를 만들어요.'],
  userMade: ['Registered {id}.', '{id} 사용자를 등록했어요.'], userFound: ['{id} exists already; using it.', '이미 등록된 {id} 사용자로 진행해요.'],
  userGone: ['The user of last time is not registered here any more.', '지난번에 쓰던 사용자가 더는 등록되어 있지 않아요.'],
  badUser: ['An id has 1 to 64 letters, digits or . _ : @ -', 'ID는 영문, 숫자, . _ : @ - 로 1~64자까지 쓸 수 있어요.'],
  access: ['Access', '인증'], token: ['Token or API key', '토큰 또는 API 키'], useToken: ['Use it', '사용'],
  needsToken: ['This service asks for credentials. They stay in this tab.', '인증 정보가 필요한 서비스예요. 입력한 값은 이 탭에만 남아요.'],
  tokenUser: ['{id} is the subject of the token.', '토큰의 사용자는 {id} 님이에요.'],
  press: ['Request coupon', '쿠폰 받기'], pressTwice: ['Press twice', '두 번 누르기'],
  twiceHint: ['“Press twice” sends two requests at once, as an impatient thumb does.', '‘두 번 누르기’는 급한 마음에 연달아 누른 것처럼 요청 두 개를 동시에 보내요.'],
  idle: ['Press the button: the answer and what follows appear here.', '버튼을 누르면 응답과 이후 과정이 여기에 나타나요.'],
  pickFirst: ['Choose a coupon first.', '먼저 쿠폰을 선택해 주세요.'],
  sending: ['Sending the request…', '요청을 보내는 중…'], queued: ['Accepted, not issued yet', '접수했어요. 아직 발급 전이에요'],
  issued: ['Issued', '발급 완료'], rejected: ['Not issued', '발급되지 않았어요'], refused: ['Not accepted', '접수되지 않았어요'], gaveUp: ['No answer yet', '아직 응답을 받지 못했어요'],
  stepAccepted: ['Accepted', '접수'], stepQueued: ['In the queue', '대기열'], stepOutcome: ['Outcome', '결과'],
  answered: ['{status} after {ms} ms', '{status}, {ms}ms'], ahead: ['{n} ahead', '앞에 {n}명'], aheadWait: ['{n} ahead, about {ms} ms', '앞에 {n}명, 약 {ms}ms'],
  serial: ['Serial', '일련번호'], yours: ['It belongs to {id}', '{id} 님의 쿠폰이에요'], afterMs: ['{ms} ms after the press', '누른 뒤 {ms}ms'],
  pressN: ['Press {n}', '{n}번째'],
  sameId: ['Both presses got the same issuance: one request, at most one coupon.', '두 요청 모두 같은 발급 ID를 받았어요. 여러 번 눌러도 한 건으로 처리돼요.'],
  safe: ['Safe to repeat: asking again never issues twice.', '다시 요청해도 중복으로 발급되지 않아요.'],
  retryIn: ['Trying again in {s} s.', '{s}초 뒤에 다시 시도해요.'], pressAgain: ['Press again to ask once more for the same issuance.', '버튼을 다시 누르면 같은 요청으로 한 번 더 물어봐요.'],
  network: ['The server cannot be reached', '서버에 연결할 수 없어요'], networkDetail: ['The connection failed or timed out before an answer came.', '응답을 받기 전에 연결이 끊겼거나 시간이 초과됐어요.'],
  strange: ['The server answered {status}', '서버가 {status} 응답을 보냈어요'], strangeDetail: ['The answer is not one that this page knows.', '이 페이지가 해석할 수 없는 응답이에요.'],
  held: ['What this user holds', '보유 쿠폰'], holdsNothing: ['Nothing yet.', '아직 받은 쿠폰이 없어요.'],
  active: ['Active', '사용 가능'], used: ['Used', '사용 완료'], expired: ['Expired', '기간 만료'], revoked: ['Revoked', '회수됨'],
  rush: ['Rush', '동시 요청'], rushHint: ['Many new users ask for the chosen coupon at the same moment.', '새 사용자 여러 명이 선택한 쿠폰을 한꺼번에 요청해요.'],
  rushUsers: ['Users', '사용자 수'], rushStart: ['Start the rush', '한꺼번에 요청'], stop: ['Stop', '중지'], badCount: ['Enter a number from 1 to 500.', '1에서 500 사이의 숫자를 입력해 주세요.'],
  tUsers: ['Users', '사용자'], tAccepted: ['Accepted', '접수'], tIssued: ['Issued', '발급'], tSoldOut: ['Sold out', '소진'], tOther: ['Other', '기타'],
  tMedian: ['Median', '중앙값'], tMax: ['Slowest', '최대'],
  rushUsersPhase: ['Registering users for “{name}”…', '‘{name}’ 쿠폰을 요청할 사용자를 등록하는 중…'], rushPhase: ['Requesting “{name}”…', '‘{name}’ 쿠폰을 요청하는 중…'],
  rushDone: ['“{name}”: {accepted} accepted, and all {accepted} have their outcome. Times run from acceptance to outcome on the server’s clock.', '‘{name}’: 접수된 {accepted}건 모두 결과가 나왔어요. 시간은 서버 시계로 잰 접수부터 결과까지예요.'],
  rushOpen: ['“{name}”: {n} of {accepted} accepted were still undecided when watching stopped. They keep their place and get an outcome.', '‘{name}’: 접수된 {accepted}건 중 {n}건은 지켜보기를 멈출 때까지 결과가 나오지 않았어요. 순서는 유지되고 결과도 반드시 나와요.'],
  log: ['HTTP exchanges', 'HTTP 요청과 응답'], clear: ['Clear', '지우기'], copy: ['Copy as curl', 'curl로 복사'], copied: ['Copied', '복사했어요'], selected: ['Selected: press Ctrl C', '선택했어요. Ctrl+C를 누르세요'],
  logHint: ['What this page sends and what comes back, newest first. Open a line for the bodies and a curl command.', '이 페이지가 주고받은 내용을 최신순으로 보여줘요. 줄을 열면 본문과 curl 명령을 볼 수 있어요.'],
  items: ['items {n}', '항목 {n}개'],
};

const MAX_LOG = 80, MAX_ATTEMPTS = 6, RUSH_PARALLEL = 6, RUSH_WATCH_MS = 120_000, CALL_TIMEOUT_MS = 15_000;
const PILLS = { open: 'good', scheduled: 'warn', paused: 'warn', soldOut: 'bad', active: 'good', revoked: 'bad', expired: 'bad' };
const STATES = ['queued', 'issued', 'rejected'];
const SHOWN_HEADERS = ['location', 'retry-after', 'idempotent-replayed', 'ratelimit', 'ratelimit-policy', 'content-language'];

const state = {
  coupons: [], linked: null, listProblem: null, couponId: recall('sessionStorage', 'coupon'),
  userId: recall('sessionStorage', 'user') ?? '', userNote: null, held: [], heldProblem: null,
  run: null, // the request on show: { phase, key, couponId, presses, issuance, problem, retryMs, started, tookMs }
  rush: null, // the rush on show: { phase, coupon, n, stop, users, accepted, decided, issued, soldOut, others, times }
};
let lang = recall('localStorage', 'lang') ?? (navigator.language.toLowerCase().startsWith('ko') ? 'ko' : 'en');
let token = recall('sessionStorage', 'token') ?? ''; // an API key or a user's token, once the service asked for one
let clockSkew = 0; // the server's clock minus ours: a coupon that starts now must not start in the server's future
let following = new AbortController(); // aborted when the user, the coupon or the request changes
let refreshing = new AbortController();

// Small tools

const $ = (id) => document.getElementById(id);
const clamp = (n, low, high) => Math.min(high, Math.max(low, n));
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const part = encodeURIComponent;
const hex = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((b) => b.toString(16).padStart(2, '0')).join('');
const serverNow = () => Date.now() + clockSkew;
const chosenCoupon = () => state.coupons.find((c) => c.id === state.couponId);
const couponName = (id) => state.coupons.find((c) => c.id === id)?.name ?? id;

// Storage may be forbidden; then the page forgets.
function recall(area, key) { try { return window[area].getItem(`coupon-try-${key}`); } catch { return null; } }
function remember(area, key, value) { try { window[area].setItem(`coupon-try-${key}`, value); } catch { /* forget */ } }

/** Waits, and returns early when the signal aborts. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => { clearTimeout(timer); signal?.removeEventListener('abort', done); resolve(); };
    const timer = setTimeout(done, signal?.aborted ? 0 : ms);
    signal?.addEventListener('abort', done);
  });
}

/** Runs at most `limit` pieces of work at a time, first come, first served. */
function gate(limit) {
  let free = limit;
  const waiting = [];
  return async (work) => {
    if (free > 0) free -= 1; else await new Promise((resolve) => waiting.push(resolve));
    try { return await work(); } finally { if (waiting.length) waiting.shift()(); else free += 1; }
  };
}

function setText(node, text) { if (node.textContent !== String(text)) node.textContent = text; }
/** Sets the texts of descendants by selector; an empty one is hidden. */
function fill(root, texts) {
  for (const [selector, text] of Object.entries(texts)) {
    const node = root.querySelector(selector);
    setText(node, text || '');
    node.hidden = !text;
  }
  return root;
}
function clone(template, texts = {}) {
  const node = $(template).content.firstElementChild.cloneNode(true);
  translate(node);
  return fill(node, texts);
}
function setPill(node, status) { node.className = `pill ${PILLS[status] ?? ''}`; setText(node, STRINGS[status] ? t(status) : status); }
function markField(field, wrong) { field?.setAttribute('aria-invalid', String(wrong)); return wrong; }

// Language, numbers, times

// Digits of the minor unit (ISO 4217), in which amounts are counted, where they are not 2. Browsers count
// some currencies otherwise, as prices are written; so are their own digits not asked for.
const MINOR_DIGITS = {
  BIF: 0, CLP: 0, DJF: 0, GNF: 0, ISK: 0, JPY: 0, KMF: 0, KRW: 0, PYG: 0, RWF: 0, UGX: 0, UYI: 0, VND: 0, VUV: 0, XAF: 0, XOF: 0, XPF: 0,
  BHD: 3, IQD: 3, JOD: 3, KWD: 3, LYD: 3, OMR: 3, TND: 3, CLF: 4, UYW: 4,
};

/** A text of the page. What a later version of the service may say and the page has no words for stands for itself. */
function t(key, values = {}) { return (STRINGS[key]?.[lang === 'ko' ? 1 : 0] ?? String(key)).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? ''); }
function number(n) { return Number(n).toLocaleString(lang); }
/** An amount of minor units in words; nothing without one. */
function money(amount, currency) {
  if (typeof amount !== 'number') return '';
  if (lang === 'ko' && currency === 'KRW') return `${number(amount)}원`;
  const digits = MINOR_DIGITS[currency] ?? 2, known = !Intl.supportedValuesOf || Intl.supportedValuesOf('currency').includes(currency);
  try {
    const format = new Intl.NumberFormat(lang, { style: 'currency', currency, minimumFractionDigits: digits, maximumFractionDigits: digits });
    if (known || currency in MINOR_DIGITS) return format.format(amount / 10 ** digits);
  } catch { /* no currency at all */ }
  return t('minorUnits', { n: number(amount), currency });
}
function relative(time) {
  const seconds = (Date.parse(time) - serverNow()) / 1000;
  const [unit, size] = [['day', 86400], ['hour', 3600], ['minute', 60]].find(([, n]) => Math.abs(seconds) >= n) ?? ['second', 1];
  return new Intl.RelativeTimeFormat(lang, { numeric: 'auto' }).format(Math.trunc(seconds / size), unit);
}
function translate(root) {
  for (const node of root.querySelectorAll('[data-t]')) node.textContent = t(node.dataset.t);
  for (const node of root.querySelectorAll('[data-t-label]')) node.setAttribute('aria-label', t(node.dataset.tLabel));
}
function speak(language) {
  lang = language;
  document.documentElement.lang = lang;
  translate(document);
  for (const button of document.querySelectorAll('[data-lang]')) button.setAttribute('aria-pressed', String(button.dataset.lang === lang));
  for (const render of [renderCoupons, renderUser, renderHeld, renderRun, renderRush]) render();
}

// The API

/** One exchange. Never throws: `problem` says what went wrong, `aborted` that nobody wants the answer any more. */
async function call(method, path, { body, key, signal, group, through = (work) => work() } = {}) {
  const headers = { Accept: 'application/json, application/problem+json', 'Accept-Language': lang };
  if (body) headers['Content-Type'] = 'application/json';
  if (key) headers['Idempotency-Key'] = key;
  if (token) headers.Authorization = 'Bearer $COUPON_TOKEN'; // as the log shows it
  const sentHeaders = token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
  return through(async () => {
    const answer = { status: 0, headers: new Headers(), body: null }, sent = performance.now();
    const limits = [AbortSignal.timeout(CALL_TIMEOUT_MS), signal].filter(Boolean);
    try {
      const response = await fetch(path, { method, headers: sentHeaders, cache: 'no-store', signal: AbortSignal.any(limits), body: body && JSON.stringify(body) });
      Object.assign(answer, { status: response.status, headers: response.headers });
      answer.body = await response.json();
    } catch { // no connection, no time, or no JSON: judged below
      if (signal?.aborted) return { aborted: true };
    }
    answer.ms = Math.round(performance.now() - sent);
    judge(answer);
    if (answer.status === 401 || answer.status === 403) askForToken();
    record({ method, path, sentHeaders: headers, sentBody: body, group, at: new Date(), ...answer });
    return answer;
  });
}

/** Says whether an answer is good; if not, what the problem is, whether repeating may help and when. */
function judge(answer) {
  const { status, headers, body } = answer, date = Date.parse(headers.get('date'));
  if (date) clockSkew = Math.abs(date - Date.now()) > 2000 ? date - Date.now() : 0; // Date counts whole seconds
  const type = (headers.get('content-type') ?? '').split(';')[0].trim().toLowerCase();
  answer.ok = status >= 200 && status < 300 && type === 'application/json' && typeof body === 'object' && body !== null;
  answer.replayed = headers.get('idempotent-replayed') === 'true';
  if (answer.ok) return;
  // A gateway or a login page on the way may answer, too: a problem is the service's own by its type.
  const own = type === 'application/problem+json' && String(body?.type).endsWith(`/problems/${body?.code}`);
  answer.problem = own ? body : { local: status ? 'strange' : 'network', status };
  answer.repeatable = [0, 408, 429, 502, 503, 504].includes(status) || (!own && status < 400);
  answer.unsure = answer.repeatable || status >= 500 || Boolean(answer.problem.local); // it may have been accepted all the same
  const after = headers.get('retry-after') ?? '', afterMs = /^\d+$/.test(after) ? after * 1000 : Date.parse(after) - serverNow();
  answer.retryMs = clamp([own && body.retryAfterMs, afterMs].find((ms) => typeof ms === 'number' && ms >= 0) ?? 1500, 200, 60_000);
}

/** Repeats when the server asks for it, within bounds. Every use is safe to repeat: it carries its id or its key. */
async function callAgain(method, path, options, onRetry = () => {}) {
  for (let attempt = 1; ; attempt += 1) {
    const answer = await call(method, path, options);
    if (answer.aborted || !answer.repeatable || attempt === MAX_ATTEMPTS) return answer;
    onRetry(answer);
    await pause(answer.retryMs, options.signal);
  }
}

/** Polls an issuance to its outcome, telling every news; stops when aborted or when the server refuses for good. */
async function follow(issuance, options, onNews = () => {}) {
  if (!STATES.includes(issuance.state)) return { issuance, problem: { local: 'strange', status: 200 } };
  while (issuance.state === 'queued' && !options.signal.aborted) {
    await pause(clamp(issuance.pollAfterMs ?? 250, 50, 2000), options.signal);
    const answer = await call('GET', `issuances/${part(issuance.id)}`, options);
    if (answer.aborted) break;
    if (answer.ok && STATES.includes(answer.body.state)) issuance = answer.body;
    else if (answer.ok) return { issuance, problem: { local: 'strange', status: answer.status } };
    else if (!answer.repeatable) return { issuance, problem: answer.problem };
    onNews({ issuance, problem: answer.problem, retryMs: answer.retryMs });
    if (!answer.ok) await pause(answer.retryMs, options.signal);
  }
  return { issuance, problem: issuance.problem };
}

async function register(id, options) {
  if (id === subject()) return { ok: true, existed: true, registered: true }; // users cannot register themselves
  const answer = await callAgain('POST', 'users', { ...options, body: { id } });
  const existed = answer.problem?.code === 'user-exists';
  return { ...answer, existed, registered: answer.ok || existed };
}

// Access

/** The user whom the token is of; nothing for an API key. */
function subject() {
  try { return JSON.parse(atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'))).sub; } catch { return undefined; }
}

function askForToken() { $('access').hidden = false; }

function useToken(event) {
  event.preventDefault();
  token = $('token').value.trim();
  remember('sessionStorage', 'token', token);
  const id = subject();
  if (id) { forgetRun(); chooseUser(id, ['tokenUser', { id }]); } else refreshHeld();
}

// Coupons

/** Reads the list, shows it, and does so again in a second for as long as the page is visible. */
async function refreshCoupons() {
  refreshing.abort();
  const { signal } = refreshing = new AbortController();
  if (document.hidden) return;
  const list = await call('GET', 'coupons?limit=50', { signal, group: 'coupons' });
  const coupons = list.ok && Array.isArray(list.body.items) ? [...list.body.items] : state.coupons;
  if (list.ok && state.couponId && !coupons.some((c) => c.id === state.couponId)) { // chosen, but further down the list
    const one = await call('GET', `coupons/${part(state.couponId)}`, { signal, group: 'coupon' });
    if (one.ok) coupons.unshift(one.body); else if (one.status === 404) state.couponId = null;
  }
  if (signal.aborted) return;
  const first = rows.size === 0;
  Object.assign(state, { coupons, linked: list.ok, listProblem: list.problem });
  if (!state.couponId && coupons.length) chooseCoupon((coupons.find((c) => c.status === 'open') ?? coupons[0]).id);
  renderCoupons();
  if (first) { reveal(); renderHeld(); }
  await pause(list.ok ? 1000 : Math.max(1000, list.retryMs), signal);
  if (!signal.aborted) refreshCoupons();
}

function chooseCoupon(id) {
  state.couponId = id;
  remember('sessionStorage', 'coupon', id);
  forgetRun();
  renderCoupons();
}

/** Scrolls the list, not the page, to the chosen coupon. */
function reveal() { $('coupons').scrollTop = (rows.get(state.couponId)?.offsetTop ?? 0) - $('coupons').offsetTop - 4; }

function offText(discount) {
  const { type, percent, amount, maxAmount, currency } = discount ?? {};
  if (type === 'fixed') return t('fixedOff', { amount: money(amount, currency) });
  if (type === 'percent') return t(maxAmount ? 'percentOffMax' : 'percentOff', { percent, amount: money(maxAmount, currency) });
  return type;
}
function offerText({ id, discount, minOrderAmount, perUser }) {
  const least = minOrderAmount && discount && t('minOrder', { amount: money(minOrderAmount, discount.currency) });
  return [offText(discount), least, t('perUserN', { n: number(perUser) }), id].filter(Boolean).join(' · ');
}
function windowText({ startsAt, endsAt }) {
  const format = new Intl.DateTimeFormat(lang, { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
  const [key, time] = Date.parse(startsAt) > serverNow() ? ['starts', startsAt] : [Date.parse(endsAt) > serverNow() ? 'ends' : 'endedWhen', endsAt];
  return `${format.formatRange(new Date(startsAt), new Date(endsAt))} · ${t(key, { when: relative(time) })}`;
}

/** Sets the widths of a bar's parts; one that is not empty stays visible. */
function drawBar(bar, total, parts) {
  for (const [name, n] of Object.entries(parts)) {
    const span = bar.querySelector(`.${name}`);
    span.style.width = `${clamp(100 * n / total, 0, 100)}%`;
    span.classList.toggle('some', n > 0);
  }
}
function drawStock(node, stock) {
  for (const name of ['.bar', '.legend']) node.querySelector(name).hidden = !stock;
  node.querySelector('.unknown').hidden = Boolean(stock);
  if (!stock) return;
  const { total, issued, reserved, remaining } = stock;
  drawBar(node.querySelector('.bar'), total, { issued, reserved });
  for (const [name, key, n] of [['issued', 'issuedN', issued], ['reserved', 'reservedN', reserved], ['left', 'leftN', remaining], ['of', 'ofN', total]]) {
    setText(node.querySelector(`.legend .${name}`), t(key, { n: number(n) }));
  }
}

const rows = new Map(); // coupon id → its row, kept so that focus and transitions survive a refresh
function couponRow(id) {
  const row = clone('coupon-row'), input = row.querySelector('input');
  row.append(clone('stock'));
  input.value = id;
  input.onchange = () => chooseCoupon(id);
  rows.set(id, row);
  return row;
}

function renderCoupons() {
  for (const [id, row] of rows) if (!state.coupons.some((c) => c.id === id)) { row.remove(); rows.delete(id); }
  state.coupons.forEach((coupon, i) => {
    const row = rows.get(coupon.id) ?? couponRow(coupon.id), place = $('coupons').children[i + 1]; // after the legend
    if (place !== row) $('coupons').insertBefore(row, place ?? null);
    fill(row, { '.name': coupon.name, '.offer': offerText(coupon), '.when': windowText(coupon) });
    setPill(row.querySelector('.pill'), coupon.status);
    drawStock(row, coupon.stock);
    row.querySelector('input').checked = coupon.id === state.couponId;
  });
  const coupon = chosenCoupon();
  $('chosen').hidden = !coupon;
  if (coupon) drawStock(fill($('chosen'), { '.name': coupon.name }), coupon.stock);
  $('coupons-empty').hidden = !state.linked || state.coupons.length > 0;
  $('link-state').classList.toggle('live', state.linked === true);
  setText($('link-state'), state.linked === null ? '' : t(state.linked ? 'live' : 'away'));
  showProblem($('coupons-problem'), state.listProblem);
}

async function makeCoupon(event) {
  event.preventDefault();
  const form = event.target, button = form.querySelector('button');
  const wrong = [...form.elements].filter((field) => field.name && markField(field, !field.checkValidity()));
  setText($('make-note'), wrong.length ? t('checkFields') : '');
  showProblem($('make-problem'), null);
  if (wrong.length) return wrong[0].focus();
  const start = serverNow(), { name, total, perUser } = Object.fromEntries(new FormData(form));
  button.disabled = true;
  const answer = await call('POST', 'coupons', { body: {
    name: name.trim(), total: Number(total), perUser: Number(perUser),
    startsAt: new Date(start).toISOString(), endsAt: new Date(start + 3_600_000).toISOString(),
    discount: { type: 'fixed', amount: 5000, currency: 'KRW' },
  } });
  button.disabled = false;
  showProblem($('make-problem'), answer.problem);
  for (const { pointer } of answer.problem?.errors ?? []) markField(form.elements[pointer?.replace('#/', '')], true);
  if (!answer.ok) return;
  setText($('make-note'), t('made'));
  form.elements.name.value = '';
  state.coupons.unshift(answer.body);
  chooseCoupon(answer.body.id);
  reveal();
}

// Users and what they hold

function chooseUser(id, note) {
  Object.assign(state, { userId: id, userNote: note, held: [], heldProblem: null });
  remember('sessionStorage', 'user', id);
  $('user-id').value = id;
  renderUser();
  refreshHeld();
}

/** Registers the id if it is new, or a random one without an id, and makes it the user. False if that did not work. */
async function useUser(typed, signal) {
  const id = typed || subject() || `guest-${hex(6)}`;
  $('user-id').value = id;
  if (markField($('user-id'), !$('user-id').checkValidity())) {
    state.userNote = ['badUser'];
    showRun(null);
    return renderUser();
  }
  const answer = await register(id, { signal });
  if (answer.registered) chooseUser(id, [answer.existed ? 'userFound' : 'userMade', { id }]);
  else if (!answer.aborted) showRun({ phase: 'refused', presses: [], problem: answer.problem });
  return answer.registered;
}

function renderUser() {
  setText($('access-note'), t('needsToken'));
  setText($('user-note'), state.userNote ? t(...state.userNote) : state.userId ? '' : t('noUser'));
}

async function refreshHeld() {
  const id = state.userId;
  const answer = id ? await call('GET', `user-coupons/${part(id)}`, { group: `held ${id}` }) : { ok: true, body: { items: [] } };
  if (id !== state.userId) return;
  if (answer.problem?.code === 'user-not-found') return chooseUser('', ['userGone']);
  Object.assign(state, { held: answer.ok && Array.isArray(answer.body.items) ? answer.body.items : state.held, heldProblem: answer.problem });
  renderHeld();
}

function renderHeld() {
  showProblem($('held-problem'), state.heldProblem);
  $('held-empty').hidden = state.held.length > 0;
  $('held').replaceChildren(...state.held.map(({ couponId, serial, issuedAt, status }) => {
    const line = clone('held-line', { '.name': couponName(couponId), code: `#${serial}`, time: new Date(issuedAt).toLocaleTimeString(lang) });
    setPill(line.querySelector('.pill'), status);
    return line;
  }));
}

// One request, or two at once

function showRun(run) { state.run = run; renderRun(); }
/** Drops the request on show and whatever still polls it. Returns the signal for what comes next. */
function forgetRun(next = null) {
  following.abort();
  following = new AbortController();
  showRun(next);
  return following.signal;
}

async function press(times) {
  const coupon = chosenCoupon(), typed = $('user-id').value.trim(), last = state.run;
  if (!coupon) return showRun({ phase: 'pickFirst', presses: [] });
  // While nothing is decided, pressing again is the same request: the same key, so the server answers with the same id.
  const again = last?.key && typed === state.userId && ['sending', 'queued', 'gaveUp'].includes(last.phase);
  const signal = forgetRun({ phase: 'sending', presses: [] });
  if ((!typed || typed !== state.userId) && !(await useUser(typed, signal))) return;
  const run = { phase: 'sending', key: again ? last.key : `try-${hex(8)}`, couponId: coupon.id, presses: [], started: performance.now() };
  const tell = (news) => { if (!signal.aborted) showRun(Object.assign(run, { retryMs: null }, news)); };
  tell();
  const request = { body: { userId: state.userId, couponId: coupon.id }, key: run.key, signal };
  const once = () => callAgain('POST', 'user-coupons', request, ({ problem, retryMs }) => tell({ problem, retryMs }));
  const presses = await Promise.all(Array.from({ length: times }, once));
  if (signal.aborted) return;
  const accepted = presses.find((answer) => answer.ok);
  if (accepted) await followRun(accepted.body, presses, tell, signal);
  else tell({ presses, problem: presses[0].problem, phase: presses[0].unsure ? 'gaveUp' : 'refused' });
  tell({ tookMs: Math.round(performance.now() - run.started) });
  if (!signal.aborted) { refreshCoupons(); refreshHeld(); }
}

async function followRun(issuance, presses, tell, signal) {
  if (STATES.includes(issuance.state)) tell({ presses, issuance, problem: issuance.problem, phase: issuance.state });
  const end = await follow(issuance, { signal, group: `poll ${issuance.id}` }, (news) => tell({ ...news, phase: news.issuance.state }));
  tell({ presses, ...end, phase: end.problem?.local ? 'gaveUp' : end.problem ? 'rejected' : end.issuance.state });
}

function renderRun() {
  const { phase, presses = [], issuance, problem, retryMs, tookMs, couponId } = state.run ?? {};
  const tone = { issued: 'good', rejected: 'bad', refused: 'bad', gaveUp: 'warn' }[phase] ?? '';
  $('headline').className = phase ? `headline ${tone}` : 'hint';
  setText($('headline'), t(phase ?? 'idle'));
  renderPresses(presses);
  renderSteps(phase, presses, issuance);
  const gaveUp = phase === 'gaveUp', passing = gaveUp || Boolean(retryMs);
  const advice = [passing && t('safe'), retryMs && t('retryIn', { s: number(Math.ceil(retryMs / 100) / 10) }), gaveUp && t('pressAgain')];
  showProblem($('problem'), problem, advice);
  $('problem').classList.toggle('passing', passing);
  $('ticket').hidden = phase !== 'issued';
  if (phase !== 'issued') return;
  const whose = [t('yours', { id: issuance.userId }), tookMs && t('afterMs', { ms: number(tookMs) })].filter(Boolean).join(' · ');
  fill($('ticket'), { '.serial span': number(issuance.serial), '.what b': couponName(couponId), '.what span': whose });
}

function renderPresses(presses) {
  $('presses').hidden = presses.length < 2 && !presses[0]?.replayed;
  $('same').hidden = presses.length < 2 || !presses.every((answer) => answer.ok && answer.body.id === presses[0].body.id);
  $('presses').replaceChildren(...presses.map((answer, i) => {
    const line = clone('press-line', { b: t('pressN', { n: i + 1 }), '.status': [answer.status || '—', answer.problem?.code].join(' '), code: answer.ok && answer.body.id });
    line.querySelector('.pill').hidden = !answer.replayed;
    return line;
  }));
}

function renderSteps(phase, presses, issuance) {
  $('steps').hidden = !issuance;
  if (!issuance) return;
  const [accepted, waiting, end] = $('steps').children, first = presses.find((answer) => answer.ok), queued = phase === 'queued';
  const { ahead, estimatedWaitMs } = issuance, waitKey = estimatedWaitMs > 0 ? 'aheadWait' : 'ahead';
  accepted.className = 'done';
  waiting.className = queued ? 'now' : 'done';
  end.className = { issued: 'done', rejected: 'failed' }[phase] ?? '';
  fill(accepted, { small: t('answered', { status: first.status, ms: number(first.ms) }), code: issuance.id });
  fill(waiting, { small: queued && ahead !== undefined && t(waitKey, { n: number(ahead), ms: number(estimatedWaitMs) }) });
  setText($('step-end'), t(queued ? 'stepOutcome' : phase));
}

/** A problem answer, or what went wrong on the way to one, in words. */
function showProblem(box, problem, advice = []) {
  box.hidden = !problem;
  if (!problem) return;
  if (!box.firstChild) box.append(clone('problem-box'));
  const { local, status, code, requestId, startsAt, errors = [] } = problem;
  const when = startsAt && t('starts', { when: relative(startsAt) });
  fill(box, {
    b: local ? t(local, { status }) : problem.title,
    '.detail': [local ? t(`${local}Detail`) : problem.detail, when && `(${when})`].filter(Boolean).join(' '),
    '.advice': advice.filter(Boolean).join(' '),
    '.errors': errors.map(({ pointer, parameter, detail }) => [pointer?.replace('#/', '') ?? parameter, detail].filter(Boolean).join(': ')).join('\n'),
    '.meta': [status, code, requestId].filter(Boolean).join(' · '),
  });
}

// The rush

async function startRush(event) {
  event.preventDefault();
  const n = Number($('rush-count').value), coupon = chosenCoupon();
  const wrong = markField($('rush-count'), !(Number.isInteger(n) && n >= 1 && n <= 500));
  if (wrong || !coupon) return setText($('rush-note'), t(wrong ? 'badCount' : 'pickFirst'));
  const stop = new AbortController(), signal = AbortSignal.any([stop.signal, AbortSignal.timeout(RUSH_WATCH_MS)]);
  const rush = { phase: 'rushUsersPhase', coupon, n, stop, users: 0, accepted: 0, decided: 0, issued: 0, soldOut: 0, others: {}, times: [] };
  const options = { signal, through: gate(RUSH_PARALLEL) };
  state.rush = rush;
  renderRush();
  const users = await Promise.all(Array.from({ length: n }, () => rushUser(rush, options)));
  rush.phase = 'rushPhase';
  await Promise.all(users.filter(Boolean).map((userId) => rushRequest(rush, userId, options)));
  rush.phase = rush.decided === rush.accepted ? 'rushDone' : 'rushOpen';
  renderRush();
  refreshCoupons();
}

async function rushUser(rush, options) {
  const id = `rush-${hex(6)}`, answer = await register(id, { ...options, group: 'rush users' });
  if (answer.registered) rush.users += 1;
  count(rush, answer.registered ? null : answer.problem);
  return answer.registered && id;
}

async function rushRequest(rush, userId, options) {
  const request = { ...options, group: 'rush requests', key: `rush-${hex(8)}`, body: { userId, couponId: rush.coupon.id } };
  const answer = await callAgain('POST', 'user-coupons', request);
  if (!answer.ok) return count(rush, answer.problem);
  rush.accepted += 1;
  renderRushSoon();
  const { issuance, problem } = await follow(answer.body, { ...options, group: 'rush polls' });
  if (issuance.state === 'queued' && !problem) return; // stopped watching
  rush.decided += 1;
  if (issuance.state === 'issued') rush.issued += 1;
  const took = Date.parse(issuance.decidedAt) - Date.parse(issuance.acceptedAt ?? answer.body.acceptedAt);
  if (Number.isFinite(took)) rush.times.push(Math.max(0, took));
  count(rush, problem);
}

/** Counts what was not issued, by its reason. */
function count(rush, problem) {
  const code = problem?.code ?? problem?.local;
  if (code === 'sold-out') rush.soldOut += 1;
  else if (code) rush.others[code] = (rush.others[code] ?? 0) + 1;
  renderRushSoon();
}

let rushFrame = 0;
function renderRushSoon() { rushFrame ||= requestAnimationFrame(() => { rushFrame = 0; renderRush(); }); }

function renderRush() {
  const { rush } = state, running = Boolean(rush?.phase.endsWith('Phase'));
  $('rush-stop').hidden = !running;
  $('rush-start').disabled = running;
  $('rush-result').hidden = !rush;
  if (!rush) return;
  const times = [...rush.times].sort((a, b) => a - b), other = sum(Object.values(rush.others));
  const ms = (n) => (n === undefined ? '–' : `${number(n)} ms`);
  const values = { ...rush, other, median: ms(times[Math.floor((times.length - 1) / 2)]), max: ms(times.at(-1)) };
  for (const cell of $('rush-result').querySelectorAll('dd')) {
    const value = values[cell.dataset.value];
    setText(cell, typeof value === 'number' ? number(value) : value);
  }
  drawBar($('rush-result').querySelector('.bar'), rush.n, { issued: rush.issued, reserved: rush.accepted - rush.decided, refused: rush.soldOut + other });
  setText($('rush-others'), Object.entries(rush.others).map(([code, n]) => `${code} ×${n}`).join(' · '));
  setText($('rush-note'), t(rush.phase, { name: rush.coupon.name, accepted: number(rush.accepted), n: number(rush.accepted - rush.decided) }));
}

// The log

const grouped = new Map(); // exchanges of a kind share a line: polls, refreshes, a rush
function record(exchange) {
  const { group, status, problem, body } = exchange;
  const kind = group ? [group, status, problem?.code ?? body?.state].join(' ') : `single ${hex(8)}`;
  const line = grouped.get(kind) ?? newLine(kind);
  line.count += 1;
  line.exchange = exchange;
  drawLine(line);
  while ($('log').children.length > MAX_LOG) { grouped.delete($('log').lastChild.dataset.kind); $('log').lastChild.remove(); }
}

function newLine(kind) {
  const line = { node: clone('log-line'), count: 0 }, { node } = line, copy = node.querySelector('.copy');
  node.dataset.kind = kind;
  node.querySelector('details').ontoggle = ({ target }) => { if (target.open) fill(node, rawTexts(line.exchange)); };
  copy.onclick = async () => {
    setText(copy, t(await copyText(node.querySelector('.curl'))));
    await pause(2000);
    setText(copy, t('copy'));
  };
  grouped.set(kind, line);
  $('log').prepend(node);
  return line;
}

function drawLine({ node, count: times, exchange: x }) {
  const took = `${number(x.ms)} ms${times > 1 ? ` ×${number(times)}` : ''}`;
  fill(node, { '.status': x.status || '—', '.method': x.method, '.path': `/${x.path}`, '.took': took, '.fields': keyFields(x) });
  node.querySelector('.status').className = `status ${x.ok ? '' : x.repeatable ? 'warn' : 'bad'}`;
}

/** The fields of an answer that tell the story. */
function keyFields({ method, body, problem, replayed, sentBody }) {
  const names = problem ? ['code', 'retryAfterMs'] : [method === 'POST' && 'id', 'state', 'ahead', 'serial', 'status'];
  const words = names.filter((name) => (body?.[name] ?? null) !== null).map((name) => `${name} ${body[name]}`);
  if (problem && sentBody?.id) words.unshift(`id ${sentBody.id}`);
  if (body?.problem) words.push(body.problem.code);
  if (Array.isArray(body?.items)) words.push(t('items', { n: body.items.length }));
  if (problem?.local) words.push(t(problem.local, problem));
  if (replayed) words.push('Idempotent-Replayed');
  return words.join(' · ');
}

function rawTexts(exchange) {
  const { method, path, sentHeaders, sentBody, status, headers, body } = exchange;
  const message = (first, pairs, json) => [first, ...pairs.map(([name, value]) => `${name}: ${value}`), ...(json ? ['', JSON.stringify(json, null, 2)] : [])].join('\n');
  const received = SHOWN_HEADERS.filter((name) => headers.has(name)).map((name) => [name, headers.get(name)]);
  return {
    '.sent': message(`${method} /${path}`, Object.entries(sentHeaders), sentBody),
    '.received': message(status ? `HTTP ${status}` : t('network'), received, body),
    '.curl': curl(exchange),
  };
}

function curl({ method, path, sentHeaders, sentBody }) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  // The shell puts the token in: it is not shown here.
  const headers = Object.entries(sentHeaders).map(([name, value]) => name === 'Authorization' ? `-H "${name}: ${value}"` : `-H ${quote(`${name}: ${value}`)}`);
  const body = sentBody ? [`--data ${quote(JSON.stringify(sentBody))}`] : [];
  return ['curl -i', `-X ${method}`, quote(new URL(path, document.baseURI).href), ...headers, ...body].join(' ');
}

/** Copies the text of a node; where the browser refuses, as over plain http, selects it. Says which. */
async function copyText(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return 'copied';
  } catch {
    getSelection().selectAllChildren(node);
    return 'selected';
  }
}

// Start

$('chosen').append(clone('stock'));
$('user-id').value = state.userId;
$('token').value = token;
$('access').hidden = !token;
$('token-form').onsubmit = useToken;
$('make').onsubmit = makeCoupon;
$('user').onsubmit = (event) => { event.preventDefault(); useUser($('user-id').value.trim(), forgetRun()); };
$('random-user').onclick = () => useUser('', forgetRun());
$('press').onclick = () => press(1);
$('press-twice').onclick = () => press(2);
$('rush').onsubmit = startRush;
$('rush-stop').onclick = () => state.rush?.stop.abort();
$('clear-log').onclick = () => { grouped.clear(); $('log').replaceChildren(); };
for (const button of document.querySelectorAll('[data-lang]')) {
  button.onclick = () => { speak(button.dataset.lang); remember('localStorage', 'lang', lang); };
}
document.addEventListener('visibilitychange', refreshCoupons);
speak(lang);
refreshCoupons();
refreshHeld();
