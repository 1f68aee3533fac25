// Requests a coupon, and tells what became of it: the outcome is "issued", the code of a problem, or "unknown".
// After "unknown", as after a reload, calling it again asks for the same coupon, not for another one.
export async function requestCoupon(api, userId, couponId, { headers = {}, tries = 10, onQueued = () => {} } = {}) {
  const name = `coupon:${userId}:${couponId}`;
  const key = recall(name) ?? newKey(); // One key a wish, until the wish is decided.
  remember(name, key);
  const body = JSON.stringify({ userId, couponId });
  const post = { method: "POST", body, headers: { ...headers, "Content-Type": "application/json", "Idempotency-Key": key } };
  for (let id, failed = 0; failed < tries; ) {
    const [url, request] = id ? [`/issuances/${id}?wait=20`, { headers }] : ["/user-coupons?wait=5", post];
    const { issuance, problem, waitMs } = await ask(api + url, request);
    if (issuance?.userId === userId && issuance.couponId === couponId) {
      if (issuance.state !== "queued") {
        forget(name, key); // What the user wishes for next is a new wish.
        return { outcome: issuance.problem?.code ?? "issued", issuance, problem: issuance.problem };
      }
      [id, failed] = [issuance.id, 0];
      onQueued(issuance); // "412 people are before you": accepted is not yet issued.
      await sleep(Math.min(issuance.pollAfterMs, LONGEST_MS));
      continue;
    }
    const decided = NO.includes(problem?.code) || problem?.issuance, passes = !problem || problem.retryable || AGAIN.includes(problem.code);
    if (decided) forget(name, key);
    if (decided || !passes) return { outcome: problem.code, problem };
    if (problem?.code === "issuance-not-found") id = undefined; // Accepted, and lost before it was decided: anew.
    failed += 1;
    const backOffMs = waitMs > 0 ? Math.min(waitMs, LONGEST_MS) : 250 * 2 ** Math.min(failed, 6);
    await sleep(backOffMs * (1 + Math.random())); // Those who were turned away together must not return together.
  }
  return { outcome: "unknown" };
}

// Sends a request. What answers may be a proxy, a gateway or the login page of a café: only what has the status, the
// type and the shape of the service's own answers is one. Repeating is safe: the key makes it the same request.
async function ask(url, request) {
  let waitMs; // What a Retry-After asks for, in seconds or as a date.
  try {
    const response = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout?.(LONGEST_MS), ...request });
    const after = response.headers.get("Retry-After") ?? "", type = response.headers.get("Content-Type") ?? "";
    waitMs = /^\d+$/.test(after) ? 1000 * after : Date.parse(after) - Date.now();
    const body = await response.json(), is = (wanted) => type.split(";")[0].trim().toLowerCase() === wanted;
    if ([200, 201, 202].includes(response.status) && is("application/json") && isIssuance(body)) return { issuance: body };
    if (response.status >= 400 && body.status === response.status && is("application/problem+json") && isProblem(body))
      return { problem: body, waitMs: body.retryAfterMs ?? waitMs };
  } catch { /* No connection, no answer in time, or no JSON: nobody knows whether the request arrived. */ }
  return { waitMs };
}

const LONGEST_MS = 60_000;
const NO = ["already-issued", "sold-out", "discarded", "not-started", "ended", "paused", "archived", "coupon-not-found",
  "user-not-found"]; // What decides a request that is not issued. So does the link of an issuance: it was rejected.
const AGAIN = ["internal", "issuance-not-found"]; // What passes, beside what says so of itself.
const isText = (value) => typeof value === "string";
const isProblem = (it) => isText(it.code) && it.type?.endsWith?.(`/problems/${it.code}`) && typeof it.retryable === "boolean";
const isDecided = (it) => (it.state === "issued" && it.serial > 0) || (it.state === "rejected" && isText(it.problem?.code));
const isIssuance = (it) => isText(it.id) && ((it.state === "queued" && it.pollAfterMs >= 0) || isDecided(it));
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// Keys outlive a reload in the storage of the tab. Where there is none, or it is full, they last as long as the page.
const kept = new Map();
const storage = (use) => { try { return use(sessionStorage); } catch { return null; } };
const recall = (name) => storage((tab) => tab.getItem(name)?.match(/^[\w-]{16,64}$/)?.[0]) ?? kept.get(name);
const remember = (name, key) => { kept.set(name, key); storage((tab) => tab.setItem(name, key)); };
const forget = (name, key) => { if (recall(name) === key) { kept.delete(name); storage((tab) => tab.removeItem(name)); } };
const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
