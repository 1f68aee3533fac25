/* The console's words in both languages, and how it writes numbers and times. */

const TEXTS = {
  title: ['Coupon console', '쿠폰 콘솔'], views: ['Views', '화면'], language: ['Language', '언어'],
  campaigns: ['Campaigns', '캠페인'], deadLetters: ['Dead letters', '데드 레터'], search: ['Search', '찾기'],
  accounts: ['Accounts', '장부와 상태'], actions: ['Actions', '운영 기록'],
  signIn: ['Sign in', '로그인'], signOut: ['Sign out', '로그아웃'], key: ['API key of a viewer or an operator', 'viewer 또는 operator의 API 키'],
  keyHint: ['The key stays in this tab, and goes with it.', '키는 이 탭에만 있고, 탭을 닫으면 사라집니다.'],
  noRole: ['This key may not watch the service: it needs the role viewer or operator.', '이 키로는 서비스를 볼 수 없습니다. viewer나 operator 역할이 필요합니다.'],
  viewer: ['viewer', 'viewer(보기)'], operator: ['operator', 'operator(운영)'], open: ['open', '진행 중'],
  openService: ['no credentials needed', '인증 없이 사용 중'],
  parts: ['Servers', '서버'], backlog: ['Waiting', '대기'], oldest: ['Oldest waits', '가장 오래된 대기'], workers: ['Workers', '워커'],
  figures: ['Figures', '수치'], live: ['live', '실시간'], away: ['reconnecting', '다시 연결하는 중'],
  ok: ['ok', '정상'], warmingUp: ['recovering', '복구 중'], refusesWrites: ['refuses writes', '쓰기 거부'], unavailable: ['away', '응답 없음'],
  aliveOf: ['{alive} of {all}', '{all} 중 {alive}'],
  scheduled: ['Scheduled', '시작 전'], paused: ['Paused', '일시 중지'], soldOut: ['Sold out', '소진'], ended: ['Ended', '종료'], archived: ['Archived', '보관됨'],
  openCoupon: ['Open', '진행 중'], allStatuses: ['All', '전체'], status: ['Status', '상태'],
  coupon: ['Coupon', '쿠폰'], window: ['From, until', '기간'], stock: ['Stock', '수량'], remaining: ['Left', '남음'], reserved: ['Reserved', '처리 중'], issued: ['Issued', '발급'],
  total: ['Total', '전체'], perSecond: ['Issued/s', '초당 발급'], acceptedPerSecond: ['Accepted/s', '초당 접수'], perUser: ['Per user', '1인당'], shares: ['Shares', '나눈 몫'],
  noCampaigns: ['No campaigns.', '캠페인이 없습니다.'], more: ['More', '더 보기'], unknown: ['not known now', '지금은 알 수 없음'],
  allCampaigns: ['All campaigns', '캠페인 목록'], burnDown: ['Left, since this page was opened', '이 화면을 연 뒤의 남은 수량'],
  now: ['now', '지금'], burnDownOf: ['Units left, from {first} to {last}, over {time}', '{time} 동안 남은 수량 {first}장에서 {last}장으로'],
  soldOutIn: ['Sold out in about', '소진 예상'], never: ['–', '–'],
  steering: ['Steer', '조정'], pause: ['Pause', '일시 중지'], resume: ['Resume', '재개'], restock: ['Restock', '수량 추가'], edit: ['Change', '변경'], archive: ['Archive', '보관'], end: ['End now', '지금 종료'],
  pauseText: ['Nothing more is accepted for “{name}” until it is resumed. What was accepted is still decided.', '재개할 때까지 ‘{name}’ 쿠폰을 더 접수하지 않습니다. 이미 접수된 요청은 처리됩니다.'],
  resumeText: ['Requests for “{name}” are accepted again.', '‘{name}’ 쿠폰의 요청을 다시 접수합니다.'],
  restockText: ['Units are added to “{name}”. They can never be taken away.', '‘{name}’ 쿠폰의 수량을 늘립니다. 늘린 수량은 줄일 수 없습니다.'],
  endText: ['“{name}” ends now, for good. What was accepted is still decided.', '‘{name}’ 쿠폰을 지금 종료합니다. 되돌릴 수 없으며, 이미 접수된 요청은 처리됩니다.'],
  units: ['Units to add', '추가할 수량'], unitsWrong: ['Enter a number from 1 to 10,000,000.', '1에서 10,000,000 사이의 숫자를 입력하세요.'],
  reasonFor: ['Reason, for the record', '기록에 남길 이유'], reasonMissing: ['Give a reason: it is kept in the record.', '기록에 남을 이유를 입력하세요.'],
  cancel: ['Cancel', '취소'], done: ['Done.', '처리했습니다.'],
  latestActions: ['Latest actions on it', '이 쿠폰의 최근 작업'],
  filter: ['Filter', '조건'], couponId: ['Coupon id', '쿠폰 id'], userId: ['User id', '사용자 id'], reasonHas: ['Reason contains', '이유에 포함된 말'],
  minAge: ['At least as old as', '최소 경과 시간'], maxAge: ['At most as old as', '최대 경과 시간'], ageHint: ['Ages such as 15m, 2h or 2d.', '경과 시간은 15m, 2h, 2d처럼 씁니다.'],
  show: ['Show', '보기'], matchedN: ['{n} match, the oldest first', '{n}건, 오래된 것부터'], partitionsAway: ['Without partitions {n}, which do not answer.', '응답하지 않는 파티션 {n}은(는) 빠져 있습니다.'], noDeadLetters: ['No dead letters match.', '해당하는 데드 레터가 없습니다.'],
  issuance: ['Issuance', '발급 건'], setAside: ['Set aside', '빼 둔 시각'], user: ['User', '사용자'], serial: ['Serial', '일련번호'], attempts: ['Attempts', '시도'], reason: ['Reason', '이유'], steer: ['Do', '처리'],
  redrive: ['Redrive', '재처리'], discard: ['Discard', '폐기'], redriveAll: ['Redrive all {n}', '{n}건 모두 재처리'], discardAll: ['Discard all {n}', '{n}건 모두 폐기'],
  redriveText: ['All {n} dead letters that match go back into the queue, once their cause is mended.', '해당하는 데드 레터 {n}건을 큐로 되돌립니다. 원인을 먼저 해결하세요.'],
  discardText: ['All {n} dead letters that match are rejected for good, and their units go to others.', '해당하는 데드 레터 {n}건을 완전히 거절하고, 그 수량을 되돌립니다.'],
  redriveOneText: ['Dead letter {id} goes back into the queue.', '데드 레터 {id}를 큐로 되돌립니다.'], discardOneText: ['Dead letter {id} is rejected for good, and its unit goes to others.', '데드 레터 {id}를 완전히 거절하고, 그 한 장을 되돌립니다.'],
  everything: ['No filter is set: every dead letter is meant.', '조건이 없습니다. 모든 데드 레터를 처리합니다.'], everythingMissing: ['Confirm that every dead letter is meant.', '모든 데드 레터를 처리할 것인지 확인하세요.'],
  changedFilter: ['The filter was changed: show what matches first.', '조건이 바뀌었습니다. 먼저 해당하는 것을 보세요.'],
  progressOf: ['{done} of {matched} done, {failed} failed', '{matched}건 중 {done}건 처리, {failed}건 실패'],
  running: ['Running', '실행 중'], finished: ['Ended', '끝남'], interrupted: ['Its process has ended; what is done stays done. Ask again for the rest.', '실행하던 프로세스가 종료되었습니다. 처리한 것은 남아 있으니 나머지는 다시 요청하세요.'],
  searchFor: ['A user, an issuance or a request id', '사용자, 발급 건 또는 요청 id'], find: ['Find', '찾기'],
  nothingFound: ['Nothing has this id.', '이 id에 해당하는 것이 없습니다.'], logsToo: ['Of request ids, only those of operators’ actions are found here; the logs have all.', '요청 id는 운영 기록에 있는 것만 여기서 찾을 수 있습니다. 나머지는 로그에 있습니다.'],
  holds: ['Holds', '보유 쿠폰'], holdsNothing: ['Holds nothing.', '보유한 쿠폰이 없습니다.'], state: ['State', '상태'], acceptedAt: ['Accepted', '접수'], decidedAt: ['Decided', '확정'], registered: ['Registered', '등록'], name: ['Name', '이름'],
  queued: ['Queued', '대기 중'], rejected: ['Rejected', '거절'], active: ['Active', '사용 가능'], used: ['Used', '사용 완료'], expired: ['Expired', '기간 만료'], revoked: ['Revoked', '회수됨'],
  ahead: ['Ahead of it', '앞선 대기'], deadLetter: ['Dead letter', '데드 레터'], issuedAt: ['Issued', '발급'],
  recoveredAt: ['Data certified since', '데이터 인증 시각'], auditedAt: ['Latest audit', '최근 감사'], auditedCoupons: ['Coupons audited', '감사한 쿠폰'],
  findings: ['Findings', '발견'], noFindings: ['none', '없음'], notAudited: ['not yet since the recovery', '복구 뒤 아직 없음'], findingHint: ['couponctl audit --full names each, and says what to do.', 'couponctl audit --full이 하나하나와 해야 할 일을 알려 줍니다.'],
  redis: ['Redis', 'Redis'], mongodb: ['MongoDB', 'MongoDB'], ready: ['Ready', '준비'], yes: ['yes', '예'], no: ['no', '아니요'],
  worker: ['Worker', '워커'], alive: ['alive', '동작 중'], gone: ['gone', '없음'], heartbeat: ['Heartbeat', '마지막 신호'], says: ['Says', '정보'], noWorkers: ['No worker has sent a heartbeat.', '신호를 보낸 워커가 없습니다.'],
  when: ['When', '언제'], who: ['Who', '누가'], what: ['What', '무엇을'], input: ['Sent', '보낸 내용'], outcome: ['Ended', '결과'], request: ['Request id', '요청 id'], noActions: ['No actions.', '기록이 없습니다.'], unclear: ['not known', '알 수 없음'],
  network: ['The service cannot be reached', '서비스에 연결할 수 없습니다'], strange: ['The answer is not one of this service', '이 서비스의 응답이 아닙니다'],
};

let language = 'en';

export const setLanguage = (to) => { language = to === 'ko' ? 'ko' : 'en'; };
export const getLanguage = () => language;

/** A text of the table. What a later version of the service may say and the table does not have stands for itself. */
export function t(key, values = {}) {
  return (TEXTS[key]?.[language === 'ko' ? 1 : 0] ?? String(key)).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '');
}

export const number = (n) => (typeof n === 'number' ? n.toLocaleString(language, { maximumFractionDigits: 1 }) : '–');

/** A moment, to the second. */
export function moment(text) {
  const at = new Date(text);
  return Number.isNaN(at.getTime()) ? '–' : at.toLocaleString(language, { dateStyle: 'short', timeStyle: 'medium', hourCycle: 'h23' });
}

/** A length of time in its largest unit. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return '–';
  const [unit, size] = [['day', 86400], ['hour', 3600], ['minute', 60]].find(([, n]) => seconds >= n) ?? ['second', 1];
  const digits = seconds < 10 ? 1 : 0;
  return new Intl.NumberFormat(language, { style: 'unit', unit, maximumFractionDigits: digits }).format(seconds / size);
}

/** The name of a coupon's status: `open` is also a caller's. */
export const statusName = (status) => t(status === 'open' ? 'openCoupon' : status);
