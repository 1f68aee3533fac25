// Requests a coupon, and tells what became of it: "issued", or a problem.
export async function requestCoupon(api, userId, couponId, { headers = {}, tries = 10, onQueued = () => {} } = {}) {
  // One key an attempt. It outlives a reload, so whoever clicks twice, or comes back, asks for the same.
  const name = `coupon:${userId}:${couponId}`;
  const key = sessionStorage.getItem(name) ?? crypto.randomUUID();
  sessionStorage.setItem(name, key);

  const body = JSON.stringify({ userId, couponId });
  const post = { method: "POST", body, headers: { ...headers, "Content-Type": "application/json", "Idempotency-Key": key } };
  let answer = await patiently(`${api}/user-coupons?wait=5`, post, tries);
  while (answer.body.state === "queued") {
    onQueued(answer.body); // "412 people are before you": accepted is not yet issued.
    await sleep(answer.body.pollAfterMs);
    answer = await patiently(`${api}/issuances/${answer.body.id}?wait=20`, { headers }, tries);
    if (answer.body.code === "issuance-not-found") answer = await patiently(`${api}/user-coupons?wait=5`, post, tries);
  }

  if (answer.body.state === "issued") return { outcome: "issued", issuance: answer.body };
  const problem = answer.body.problem ?? answer.body;
  sessionStorage.removeItem(name); // It is decided: what the user asks for next is a new attempt.
  return { outcome: problem.code, problem };
}

// Sends a request until there is an answer. Repeating is safe: the key makes it the same request.
async function patiently(url, request, tries) {
  for (let tried = 1; ; tried++) {
    let waitMs = 250 * 2 ** Math.min(tried, 6);
    try {
      const response = await fetch(url, request);
      const body = await response.json();
      const passes = [408, 429, 503].includes(response.status);
      if (!passes || tried >= tries) return { status: response.status, body };
      waitMs = body.retryAfterMs ?? 1000 * Number(response.headers.get("Retry-After") ?? 1);
    } catch (offline) {
      if (tried >= tries) throw offline; // Nobody knows whether it arrived: ask again later, with the same key.
    }
    await sleep(waitMs * (1 + Math.random())); // Those who were turned away together must not return together.
  }
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
