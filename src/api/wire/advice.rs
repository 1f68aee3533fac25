//! What to do about each problem, in both languages, by the name of its code.

use std::borrow::Cow;

use crate::http::problem::under;
use crate::http::{Code, Language};

/// What a client, or the person who uses it, should do next. `base` is the path under which they reach the service.
pub(crate) fn advice(code: Code, language: Language, base: &str) -> Cow<'static, str> {
    let found = ADVICE.iter().find(|(name, ..)| *name == code.as_str());
    under(
        base,
        match (found, language) {
            (Some((_, english, _)), Language::English) => english,
            (Some((_, _, korean)), Language::Korean) => korean,
            (None, _) => "",
        },
    )
}

const ADVICE: &[(&str, &str, &str)] = &[
    (
        "already-issued",
        "Show what the user holds: the links are in userCoupons. Do not repeat the request.",
        "userCoupons의 링크로 사용자가 가진 쿠폰을 보여 주세요. 같은 요청을 반복하지 마세요.",
    ),
    (
        "sold-out",
        "Tell the user. Units come back only if a request that was accepted is rejected, or an operator adds some.",
        "사용자에게 소진되었다고 알려 주세요. 접수된 요청이 거절되거나 운영자가 수량을 늘릴 때만 다시 생깁니다.",
    ),
    (
        "discarded",
        "If the user still wants the coupon, request it with a new Idempotency-Key.",
        "사용자가 여전히 쿠폰을 원하면 새 Idempotency-Key로 다시 요청하세요.",
    ),
    (
        "not-started",
        "Wait for startsAt, and request then. Retry-After counts from the server's clock, so the device's need not be right.",
        "startsAt까지 기다린 뒤 요청하세요. Retry-After는 서버 시계를 기준으로 하므로 기기 시계가 틀려도 됩니다.",
    ),
    (
        "ended",
        "Tell the user. The request cannot succeed any more.",
        "사용자에게 종료되었다고 알려 주세요. 더는 발급되지 않습니다.",
    ),
    (
        "paused",
        "Tell the user to come back; an operator resumes the coupon by hand.",
        "나중에 다시 시도하도록 안내하세요. 운영자가 직접 발급을 재개합니다.",
    ),
    ("archived", "Take the coupon out of what is shown.", "화면에서 이 쿠폰을 내려 주세요."),
    (
        "coupon-not-found",
        "Check the id: letters, digits and . _ - in the same case as the coupon was made with.",
        "아이디를 확인하세요. 쿠폰을 만들 때와 대소문자까지 같아야 합니다.",
    ),
    (
        "user-not-found",
        "Register the user first, or check the id: it is case-sensitive.",
        "먼저 사용자를 등록하거나 아이디를 확인하세요. 대소문자를 구분합니다.",
    ),
    (
        "issuance-not-found",
        "Check the id. If an accepted request was answered with it, request again: it is safe.",
        "아이디를 확인하세요. 접수 응답으로 받은 아이디라면 다시 요청해도 안전합니다.",
    ),
    (
        "user-coupon-not-found",
        "Check both ids, and whether the issuance is already decided: GET {base}/issuances/{id}.",
        "두 아이디를 확인하고, GET {base}/issuances/{id}로 발급이 확정되었는지 확인하세요.",
    ),
    (
        "action-not-found",
        "Check the id: GET {base}/operator-actions lists all there are.",
        "아이디를 확인하세요. 전체 목록은 GET {base}/operator-actions에 있습니다.",
    ),
    (
        "action-running",
        "Wait until it has ended: GET {base}/operator-actions shows how far it is. Then send the request again.",
        "GET {base}/operator-actions에서 진행 상황을 보고, 끝난 뒤 다시 요청하세요.",
    ),
    (
        "already-used",
        "Do not give the discount. If it is the same order, send the same reference: then the answer is the same as before.",
        "할인을 적용하지 마세요. 같은 주문이라면 같은 reference로 보내면 이전과 같은 응답을 받습니다.",
    ),
    (
        "not-used",
        "There is nothing to do: the coupon can be used.",
        "할 일이 없습니다. 쿠폰을 사용할 수 있는 상태입니다.",
    ),
    (
        "expired",
        "Tell the user until when it was valid.",
        "사용자에게 유효기간이 언제까지였는지 알려 주세요.",
    ),
    ("revoked", "Tell the user to ask the shop.", "사용자에게 고객센터로 문의하도록 안내하세요."),
    (
        "coupon-exists",
        "If sameAsRequested is true, an earlier attempt made it as you asked: go on with it. Else choose another id; ids are never used again.",
        "sameAsRequested가 true이면 이전 시도에서 요청한 그대로 만들어진 것이니 그대로 쓰세요. 아니라면 다른 아이디를 쓰세요. 아이디는 다시 쓰이지 않습니다.",
    ),
    ("user-exists", "The user is registered: go on.", "이미 등록된 사용자이니 그대로 진행하세요."),
    (
        "cursor-expired",
        "Take a new place (GET {base}/outcomes), export each coupon (GET {base}/coupons/{id}/user-coupons), then follow from that place. Follow more often, or let MongoDB keep a longer oplog.",
        "새 위치를 받고(GET {base}/outcomes) 쿠폰마다 내보내기를 한 뒤(GET {base}/coupons/{id}/user-coupons) 그 위치부터 이어서 읽으세요. 더 자주 읽거나 MongoDB의 oplog 보관 기간을 늘리세요.",
    ),
    (
        "unauthenticated",
        "Get a new token, or check the key, and send the request again.",
        "토큰을 새로 받거나 키를 확인한 뒤 다시 요청하세요.",
    ),
    ("forbidden", "Use credentials whose role allows it.", "권한이 있는 역할의 인증 정보로 요청하세요."),
    (
        "malformed",
        "Mend the client: detail says where the body stops being JSON.",
        "클라이언트를 고치세요. 본문이 어디에서 JSON이 아니게 되는지는 detail에 있습니다.",
    ),
    (
        "invalid",
        "Mend what errors names: pointer is a place in the body, parameter one of the query, the path or the headers.",
        "errors에 적힌 항목을 고치세요. pointer는 본문의 위치, parameter는 쿼리·경로·헤더의 이름입니다.",
    ),
    (
        "key-reused",
        "Repeat the request as it was first sent, or send this one with a new key.",
        "처음 보낸 그대로 다시 요청하거나, 이 요청은 새 키로 보내세요.",
    ),
    (
        "too-large",
        "Send less. No request of this API needs that much.",
        "본문을 줄이세요. 이 API에는 그렇게 큰 요청이 필요하지 않습니다.",
    ),
    ("uri-too-long", "Send a shorter path and query.", "경로와 쿼리를 줄이세요."),
    ("head-too-large", "Send fewer or shorter headers.", "헤더를 줄이세요."),
    (
        "unsupported-media-type",
        "Send the body as JSON, with Content-Type: application/json.",
        "본문을 JSON으로, Content-Type: application/json 헤더와 함께 보내세요.",
    ),
    (
        "not-found",
        "Check the path; {base}/docs lists all there are.",
        "경로를 확인하세요. 전체 목록은 {base}/docs에 있습니다.",
    ),
    (
        "method-not-allowed",
        "Use one of the methods that Allow names.",
        "Allow 헤더에 있는 메서드를 사용하세요.",
    ),
    (
        "timeout",
        "Send the same request again. With an Idempotency-Key it is the same attempt.",
        "같은 요청을 다시 보내세요. Idempotency-Key가 같으면 같은 시도로 처리됩니다.",
    ),
    (
        "rate-limited",
        "Wait for Retry-After, then send the same request again.",
        "Retry-After만큼 기다린 뒤 같은 요청을 다시 보내세요.",
    ),
    (
        "overloaded",
        "If retryable is true, wait for Retry-After, then send the same request again, with the same Idempotency-Key. If it is false, look first whether it was done.",
        "retryable이 true이면 Retry-After만큼 기다린 뒤 같은 Idempotency-Key로 같은 요청을 다시 보내세요. false이면 먼저 처리되었는지 확인하세요.",
    ),
    (
        "unavailable",
        "If retryable is true, wait for Retry-After, then send the same request again, with the same Idempotency-Key. If it is false, look first whether it was done. Operators: {base}/readyz names the part.",
        "retryable이 true이면 Retry-After만큼 기다린 뒤 같은 Idempotency-Key로 같은 요청을 다시 보내세요. false이면 먼저 처리되었는지 확인하세요. 운영자는 {base}/readyz에서 어느 부분인지 볼 수 있습니다.",
    ),
    (
        "share-unreachable",
        "Wait for Retry-After, then send the same request again: it was not accepted, and repeating it is safe. Do not tell the user that the coupon is sold out; the part that does not answer may have units. Operators: {base}/readyz names it.",
        "Retry-After만큼 기다린 뒤 같은 요청을 다시 보내세요. 접수되지 않았으므로 다시 보내도 안전합니다. 응답하지 않는 곳에 수량이 남아 있을 수 있으니 소진되었다고 안내하지 마세요. 운영자는 {base}/readyz에서 어느 곳인지 볼 수 있습니다.",
    ),
    (
        "warming-up",
        "If retryable is true, wait for Retry-After, then send the same request again; if it is false, look first whether it was done. It usually takes seconds; what was accepted is kept.",
        "retryable이 true이면 Retry-After만큼 기다린 뒤 같은 요청을 다시 보내고, false이면 먼저 처리되었는지 확인하세요. 보통 몇 초면 끝나며 이미 접수된 요청은 유지됩니다.",
    ),
    (
        "outcome-unreadable",
        "Do not repeat the request: it is decided. Tell the operators the id; they mend the record in MongoDB, or run the version that wrote it.",
        "이미 확정된 요청이니 반복하지 마세요. 운영자에게 아이디를 알려 주세요. 운영자는 MongoDB의 기록을 고치거나 그 기록을 쓴 버전을 실행해야 합니다.",
    ),
    (
        "internal",
        "Tell the operators the requestId: it finds the cause in the logs. What was asked for may have happened.",
        "운영자에게 requestId를 알려 주세요. 로그에서 원인을 찾을 수 있습니다. 요청한 일은 처리되었을 수도 있습니다.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_advice_for_every_code_in_both_languages() {
        for code in Code::ALL {
            for language in [Language::English, Language::Korean] {
                assert!(!advice(*code, language, "").is_empty(), "{code:?} in {language:?}");
            }
        }
    }
}
