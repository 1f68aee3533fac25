// Plays request, poll and use with a client whose types were generated from the served document.
// Compiling it is half of the test: a switch over the states knows the members of each, and that there
// are no others.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Schemas = components["schemas"];

declare const process: { argv: string[]; exitCode: number };
const [baseUrl, key] = process.argv.slice(2);
const api = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });
const [userId, couponId] = ["u3", "summer"];

function must(holds: unknown, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

/** The unit, once there is one. */
function serial(issuance: Schemas["Issuance"]): number | undefined {
  switch (issuance.state) {
    case "queued":
      must(issuance.pollAfterMs >= 0 && issuance.ahead >= 0, "when to ask again");
      return undefined;
    case "issued":
      return issuance.serial;
    case "rejected":
      throw new Error(issuance.problem.code);
    default:
      return issuance satisfies never;
  }
}

/** What a discount takes off, in words. */
function off(discount: Schemas["Discount"]): string {
  switch (discount.type) {
    case "fixed":
      return `${discount.amount} ${discount.currency}`;
    case "percent":
      return `${discount.percent} %`;
    default:
      return discount satisfies never;
  }
}

const coupon = await api.GET("/coupons/{id}", { params: { path: { id: couponId } } });
must(coupon.data?.status === "open", "the coupon is open");
must(coupon.data.discount !== null && off(coupon.data.discount), "it has a discount");
must(coupon.data.stock === null || coupon.data.stock.remaining > 0, "there are units");

const body = { userId, couponId };
const request = { params: { header: { "Idempotency-Key": "typescript-1" } }, body };
const requested = await api.POST("/user-coupons", request);
must(requested.data !== undefined && requested.response.status === 202, "it is accepted");

const id = requested.data.id;
let issuance: Schemas["Issuance"] = requested.data;
while (serial(issuance) === undefined) {
  const polled = await api.GET("/issuances/{id}", { params: { path: { id }, query: { wait: 10 } } });
  must(polled.data, "it can be polled");
  issuance = polled.data;
}

const path = { userId, id };
const use = { params: { path }, body: { reference: "order-1" } };
const used = await api.POST("/user-coupons/{userId}/{id}/use", use);
must(used.data?.status === "used" && used.data.reference === "order-1", "it is used");
must(used.data.history.map((change) => change.event).join() === "issued,used", "its history says so");
const held = await api.GET("/user-coupons/{userId}", { params: { path: { userId }, query: { status: "used" } } });
must(held.data?.nextCursor === null, "it is the only page");
must(held.data.items[0]?.serial === serial(issuance), "the user holds it");

const again = await api.POST("/user-coupons", { body });
must(again.error?.code === "already-issued" && !again.error.retryable, "no second one");
must(again.error.userCoupons?.length === 1, "and where the first one is");
const wrong = await api.POST("/user-coupons", { body: { userId: "..", couponId } });
must(wrong.error?.errors?.[0]?.pointer === "#/userId", "what is wrong with a request");
console.log(`   ${userId} used number ${serial(issuance)}`);
