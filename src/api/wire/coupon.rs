//! Coupons on the wire.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::action::reason;
use super::fields::{self, Fields};
use crate::coupon::{
    self, CouponStatus, CouponTimeZone, MAX_PER_USER, MAX_TOTAL, RestockAmount, Stock, Validity,
};
use crate::http::Problem;
use crate::http::problem::FieldError;
use crate::ids::{CouponId, PartitionId, SHARES_MAX, Shares};

/// Amounts of money are whole numbers of the currency's minor unit (ISO 4217), at most this.
const AMOUNT_MAX: u64 = 1_000_000_000_000;
const NAME_MAX: usize = 100;

/// A coupon, with its live stock.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Coupon {
    #[schema(value_type = String, example = "summer")]
    id: String,
    #[schema(example = "여름 할인")]
    name: String,
    /// Units that one user may hold.
    #[schema(example = 1)]
    per_user: u8,
    #[schema(value_type = String, format = DateTime)]
    starts_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    ends_at: Timestamp,
    #[schema(required = true)]
    discount: Option<Discount>,
    /// The least order that it can be used for, in the minor unit of the discount's currency.
    #[schema(required = true, example = 20000)]
    min_order_amount: Option<u64>,
    /// Held units are valid until this moment, if it is the same for all.
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
    /// Held units are valid for this long from their issue (ISO 8601).
    #[schema(required = true, example = "P30D")]
    valid_for: Option<String>,
    /// Where the days, weeks, months and years of `validFor` are counted: an IANA name.
    #[schema(example = "Asia/Seoul")]
    time_zone: String,
    status: CouponStatus,
    /// Null while Redis is away, or while what it holds of this coupon cannot be read; in a list
    /// also where it would have to be counted.
    #[schema(required = true)]
    stock: Option<Stock>,
    /// How many parts of the data its units are spread over.
    #[schema(example = 1)]
    shares: u32,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// What the coupon takes off the price.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(crate) enum Discount {
    Fixed {
        /// In the currency's minor unit: 500 is 5.00 USD, or 500 KRW.
        #[schema(example = 5000, minimum = 1, maximum = 1000000000000_i64)]
        amount: u64,
        #[schema(example = "KRW", pattern = "^[A-Z]{3}$")]
        currency: String,
    },
    #[serde(rename_all = "camelCase")]
    Percent {
        #[schema(example = 10, minimum = 1, maximum = 100)]
        percent: u8,
        /// At most this much off, in the currency's minor unit.
        #[schema(example = 10000, minimum = 1, maximum = 1000000000000_i64)]
        max_amount: Option<u64>,
        #[schema(example = "KRW", pattern = "^[A-Z]{3}$")]
        currency: String,
    },
}

impl Coupon {
    /// A coupon as it is at `now`.
    pub fn new(coupon: coupon::Coupon, stock: Option<Stock>, now: Timestamp) -> Self {
        let status = CouponStatus::of(&coupon, stock.map(|stock| stock.remaining), now);
        let (valid_until, valid_for) = match &coupon.validity {
            Validity::Unlimited => (None, None),
            Validity::Until(moment) => (Some(*moment), None),
            Validity::For(duration) => (None, Some(duration.as_str().to_owned())),
        };
        Coupon {
            id: coupon.id.to_string(),
            name: coupon.name,
            per_user: coupon.per_user,
            starts_at: coupon.starts_at,
            ends_at: coupon.ends_at,
            discount: coupon.discount.map(Discount::from),
            min_order_amount: coupon.min_order_amount,
            valid_until,
            valid_for,
            time_zone: coupon.time_zone.as_str().to_owned(),
            status,
            stock,
            shares: coupon.shares.count(),
            created_at: coupon.created_at,
        }
    }

    /// Whether it has this status.
    pub fn is(&self, status: CouponStatus) -> bool {
        self.status == status
    }
}

impl From<coupon::Discount> for Discount {
    fn from(discount: coupon::Discount) -> Self {
        match discount {
            coupon::Discount::Fixed { amount, currency } => {
                Discount::Fixed { amount, currency: currency.as_str().to_owned() }
            }
            coupon::Discount::Percent { percent, max_amount, currency } => {
                Discount::Percent { percent, max_amount, currency: currency.as_str().to_owned() }
            }
        }
    }
}

// Documents a body; `create` reads it.
/// A new coupon.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({
    "id": "autumn", "name": "가을 할인", "total": 100, "perUser": 1,
    "startsAt": "2026-01-01T00:00:00+09:00", "endsAt": "2036-01-01T00:00:00+09:00",
    "discount": {"type": "fixed", "amount": 5000, "currency": "KRW"}, "minOrderAmount": 20000, "validFor": "P30D",
    "timeZone": "Asia/Seoul"
}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct CreateCoupon {
    /// Generated if missing.
    #[schema(
        pattern = "^([A-Za-z0-9_-]|[A-Za-z0-9_-][A-Za-z0-9._-]|[.][A-Za-z0-9_-]|[A-Za-z0-9._-]{3,64})$"
    )]
    id: Option<String>,
    /// 1 to 100 characters as people see them, and at most 1,000 bytes; kept in Unicode's NFC. Control
    /// characters, bidi controls and invisible characters are refused; a joiner or a variation selector is
    /// taken where it belongs, in an emoji or a script that needs it.
    #[schema(
        min_length = 1,
        max_length = 1000,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$"
    )]
    name: String,
    #[schema(minimum = 1, maximum = 10000000)]
    total: u32,
    #[schema(minimum = 1, maximum = 100, default = 1)]
    per_user: Option<u8>,
    #[schema(format = DateTime)]
    starts_at: String,
    #[schema(format = DateTime)]
    ends_at: String,
    discount: Option<Discount>,
    /// In the minor unit of the discount's currency.
    #[schema(minimum = 0, maximum = 1000000000000_i64)]
    min_order_amount: Option<u64>,
    /// Not before `endsAt`, and not together with `validFor`.
    #[schema(format = DateTime)]
    valid_until: Option<String>,
    /// ISO 8601, such as `P30D`: one second to ten years.
    valid_for: Option<String>,
    /// Where the days, weeks, months and years of `validFor` are counted: an IANA name.
    #[schema(default = "UTC", example = "Asia/Seoul")]
    time_zone: Option<String>,
    /// How many parts of the data its units are spread over, for ever: each sells its own, at the same time as the others, and
    /// serves its own users. At most as many as there are partitions, and units. If not given, one for each node of
    /// Redis, as long as each has 100,000 units.
    #[schema(minimum = 1, maximum = 64)]
    shares: Option<u32>,
}

/// Reads a new coupon from a body; `now` is when it is created. Returns it beside the number of its shares, if that is given:
/// where it lies is not determined yet.
///
/// # Errors
/// 422 `invalid` with every error.
pub fn create(body: Value, now: Timestamp) -> Result<(coupon::Coupon, Option<u32>), Problem> {
    let mut fields = Fields::of(body)?;
    let id = fields.optional("id", fields::parsed::<CouponId>);
    let name = fields.required("name", fields::words(NAME_MAX));
    let total = fields.required("total", fields::whole(1, MAX_TOTAL.into()));
    let per_user = fields.optional("perUser", fields::whole(1, MAX_PER_USER.into()));
    let starts_at = fields.required("startsAt", fields::moment);
    let ends_at = fields.required("endsAt", fields::moment);
    let discount = fields.object("discount", discount);
    let min_order_amount = fields.optional("minOrderAmount", fields::whole(0, AMOUNT_MAX));
    let valid_until = fields.optional("validUntil", fields::moment);
    let valid_for = fields.optional("validFor", fields::parsed::<crate::coupon::ValidityPeriod>);
    let time_zone = fields.optional("timeZone", fields::parsed::<CouponTimeZone>);
    let shares = fields.optional("shares", fields::whole(1, SHARES_MAX as u64));

    if let (Some(shares), Some(total)) = (shares, total)
        && shares > total
    {
        fields.wrong("shares", "must be at most total: each share needs a unit");
    }
    if let (Some(starts_at), Some(ends_at)) = (starts_at, ends_at)
        && ends_at <= starts_at
    {
        fields.wrong("endsAt", "must be after startsAt");
    }
    if let (Some(valid_until), Some(ends_at)) = (valid_until, ends_at)
        && valid_until < ends_at
    {
        fields.wrong("validUntil", "must not be before endsAt: what is issued last could not be used");
    }
    if valid_until.is_some() && valid_for.is_some() {
        fields.wrong("validFor", "cannot be given together with validUntil");
    }
    let complete = (|| {
        Some(coupon::Coupon {
            id: id.unwrap_or_else(CouponId::generate),
            name: name?,
            total: total?,
            per_user: per_user.unwrap_or(1),
            starts_at: starts_at?,
            ends_at: ends_at?,
            discount,
            min_order_amount,
            validity: match (valid_until, valid_for) {
                (Some(moment), _) => Validity::Until(moment),
                (None, Some(duration)) => Validity::For(duration),
                (None, None) => Validity::Unlimited,
            },
            time_zone: time_zone.unwrap_or(CouponTimeZone::UTC),
            paused: false,
            archived: false,
            generation: 1,
            created_at: now,
            shares: Shares::one(PartitionId::ONE),
        })
    })();
    Ok((fields.finish(complete)?, shares))
}

/// The problem of a coupon with more shares than there are partitions.
pub(crate) fn too_many_shares(most: usize) -> Problem {
    wrong_shares(match most {
        1 => "must be 1: the deployment has one partition; a Redis Cluster has several".to_owned(),
        most => format!("must be at most {most}: there are so many partitions"),
    })
}

/// The problem of a coupon in several shares while an older version may write to the ledger, whose indexes know no moves.
pub(crate) fn shares_before_migration() -> Problem {
    wrong_shares("must be 1 until the upgrade is finished with couponctl ledger migrate".to_owned())
}

fn wrong_shares(detail: String) -> Problem {
    Problem::invalid(vec![FieldError { pointer: Some("#/shares".into()), parameter: None, detail }])
}

fn discount(fields: &mut Fields) -> Option<coupon::Discount> {
    let kind = fields.required("type", fields::string)?;
    let currency = fields.required("currency", currency);
    match kind.as_str() {
        "fixed" => {
            let amount = fields.required("amount", fields::whole(1, AMOUNT_MAX));
            Some(coupon::Discount::Fixed { amount: amount?, currency: currency? })
        }
        "percent" => {
            let percent = fields.required("percent", fields::whole(1, 100));
            let max_amount = fields.optional("maxAmount", fields::whole(1, AMOUNT_MAX));
            Some(coupon::Discount::Percent { percent: percent?, max_amount, currency: currency? })
        }
        _ => {
            fields.wrong("type", "must be \"fixed\" or \"percent\"");
            None
        }
    }
}

/// A currency that amounts can be in. A stored coupon may have another one, from before this was checked.
fn currency(value: Value) -> Result<coupon::Currency, String> {
    let currency: coupon::Currency = fields::parsed(value)?;
    match currency.minor_digits() {
        Some(_) => Ok(currency),
        None => Err("must be the code of a currency with a minor unit (ISO 4217), such as KRW".into()),
    }
}

// Documents a body; `restock` reads it.
/// How many units to add, or how many there are to be: one of the two.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"total": 5100}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct RestockCoupon {
    /// Units to add. With an `Idempotency-Key`.
    #[schema(minimum = 1, maximum = 10000000)]
    add: Option<u32>,
    /// Units there are to be in all; not fewer than there are.
    #[schema(minimum = 1, maximum = 10000000)]
    total: Option<u32>,
    /// Why, for the record of operators' actions: 1 to 200 characters.
    #[schema(min_length = 1, max_length = 2000)]
    reason: Option<String>,
}

/// Reads how many units to add.
///
/// # Errors
/// 422 `invalid` with every error.
pub fn restock(body: Value) -> Result<RestockAmount, Problem> {
    let mut fields = Fields::of(body)?;
    let units = fields::whole(1, MAX_TOTAL.into());
    fields.optional("reason", reason);
    if !fields.has("total") {
        let add = fields.required("add", units);
        return fields.finish(add.map(RestockAmount::Add));
    }
    if fields.has("add") {
        fields.optional("add", &units);
        fields.wrong("total", "cannot be given together with add");
    }
    let total = fields.required("total", units);
    fields.finish(total.map(RestockAmount::Total))
}

/// The problem of a restock that the coupon has no room for, or that would take units away.
pub(crate) fn wrong_restock(coupon: &coupon::Coupon, units: RestockAmount) -> Problem {
    let (pointer, detail) = match units {
        RestockAmount::Add(_) => {
            let room = MAX_TOTAL.saturating_sub(coupon.total);
            ("#/add", format!("would make more than {MAX_TOTAL} units; {room} can be added"))
        }
        RestockAmount::Total(_) => {
            ("#/total", format!("must be at least {}: there are so many units", coupon.total))
        }
    };
    Problem::invalid(vec![FieldError { pointer: Some(pointer.into()), parameter: None, detail }])
}

// Documents a body; `edit` reads it.
/// What to change of a coupon.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"name": "가을 할인", "endsAt": "2037-01-01T00:00:00Z"}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct EditCoupon {
    /// 1 to 100 characters as people see them, and at most 1,000 bytes; kept in Unicode's NFC. Control
    /// characters, bidi controls and invisible characters are refused; a joiner or a variation selector is
    /// taken where it belongs, in an emoji or a script that needs it.
    #[schema(
        min_length = 1,
        max_length = 1000,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$"
    )]
    name: Option<String>,
    /// Until it started.
    #[schema(format = DateTime)]
    starts_at: Option<String>,
    /// Later than it is, and not after `validUntil`; or a moment that is past to end it now.
    #[schema(format = DateTime)]
    ends_at: Option<String>,
    /// Why, for the record of operators' actions: 1 to 200 characters.
    #[schema(min_length = 1, max_length = 2000)]
    reason: Option<String>,
}

/// Reads the changes to a coupon as it is at `now`.
///
/// # Errors
/// 422 `invalid` with every error.
pub fn edit(body: Value, coupon: &coupon::Coupon, now: Timestamp) -> Result<coupon::CouponChange, Problem> {
    let mut fields = Fields::of(body)?;
    let name = fields.optional("name", fields::words(NAME_MAX));
    let starts_at = fields.optional("startsAt", fields::moment);
    let mut ends_at = fields.optional("endsAt", fields::moment);
    fields.optional("reason", reason);
    // The present value is always allowed.
    if starts_at.is_some_and(|moment| moment != coupon.starts_at) && coupon.starts_at <= now {
        fields.wrong("startsAt", "cannot be changed any more: it has started");
    }
    match ends_at {
        Some(moment) if moment <= now => ends_at = Some(now.min(coupon.ends_at)),
        Some(moment) if moment < coupon.ends_at => {
            fields.wrong("endsAt", "can be made later, or past to end it now; not sooner");
        }
        _ => {}
    }
    if let (Some(moment), Validity::Until(valid_until)) = (ends_at, &coupon.validity)
        && moment > coupon.ends_at.max(*valid_until)
    {
        let why =
            format!("must not be after validUntil, {valid_until}: what is issued then could not be used");
        fields.wrong("endsAt", why);
    }
    if starts_at.unwrap_or(coupon.starts_at) >= ends_at.unwrap_or(coupon.ends_at) {
        let wrong = if starts_at.is_some() { "startsAt" } else { "endsAt" };
        fields.wrong(wrong, "startsAt must be before endsAt");
    }
    fields.finish(Some(coupon::CouponChange::Edit { name, starts_at, ends_at }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Language;
    use serde_json::json;

    fn wrong(body: Value) -> Vec<String> {
        let problem = create(body, Timestamp::UNIX_EPOCH).unwrap_err().to_value(Language::English, "r", "");
        problem["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["pointer"].as_str().unwrap().to_owned())
            .collect()
    }

    fn right() -> Value {
        json!({"name": "n", "total": 1, "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2026-01-02T00:00:00Z"})
    }

    fn with(name: &str, value: Value) -> Value {
        let mut body = right();
        body[name] = value;
        body
    }

    #[test]
    fn a_coupon_needs_little_and_gets_defaults() {
        let (coupon, shares) = create(right(), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(shares, None);
        assert_eq!((coupon.per_user, coupon.total), (1, 1));
        assert_eq!(coupon.validity, Validity::Unlimited);
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(wrong(json!({})), ["#/name", "#/total", "#/startsAt", "#/endsAt"]);
        for (name, value) in [
            ("id", json!("a b")),
            ("name", json!("")),
            ("total", json!(0)),
            ("total", json!(10_000_001)),
            ("total", json!("1")),
            ("perUser", json!(101)),
            ("startsAt", json!("tomorrow")),
            ("endsAt", json!("2026-01-01T00:00:00Z")),
            ("validFor", json!("P0D")),
            ("validUntil", json!("2025-01-01T00:00:00Z")),
            ("validUntil", json!("2026-01-01T23:59:59Z")),
            ("validFor", json!("PT0.5S")),
            ("timeZone", json!("KST")),
            ("timeZone", json!(9)),
            ("minOrderAmount", json!(-1)),
            ("shares", json!(0)),
            ("shares", json!(2)),
            ("shares", json!("1")),
            ("unknown", json!(1)),
        ] {
            assert_eq!(wrong(with(name, value)), [format!("#/{name}")]);
        }
        assert_eq!(wrong(with("discount", json!({"type": "free", "currency": "KRW"}))), ["#/discount/type"]);
        assert_eq!(
            wrong(with("discount", json!({"type": "percent", "percent": 0, "currency": "won"}))),
            ["#/discount/currency", "#/discount/percent"]
        );
    }

    #[test]
    fn a_currency_is_one_of_iso_4217_that_amounts_can_be_in() {
        let fixed = |code: &str| with("discount", json!({"type": "fixed", "amount": 1, "currency": code}));
        for code in ["KRW", "USD", "EUR", "BHD", "CLF"] {
            assert!(create(fixed(code), Timestamp::UNIX_EPOCH).is_ok(), "{code}");
        }
        // No such currency; gold; none.
        for code in ["ABC", "XAU", "XXX"] {
            assert_eq!(wrong(fixed(code)), ["#/discount/currency"], "{code}");
        }
    }
}
