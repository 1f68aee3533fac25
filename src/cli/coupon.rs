//! `couponctl coupon`.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::action::ReasonArgs;
use super::client::{ApiRequest, Noun, PageArgs};
use super::export::ExportArgs;
use super::prompt::ConfirmArgs;
use super::table::Member::{Text, Time};
use super::table::{aside, cell, details, number, page_table, sentence, value, words};
use crate::coupon::{CouponStatus, CouponTimeZone, Currency, MAX_PER_USER, MAX_TOTAL, ValidityPeriod};
use crate::ids::{CouponId, SHARE_UNITS_MIN, SHARES_MAX, are_thin};

#[derive(Debug, Subcommand)]
pub(super) enum CouponVerb {
    Create(CouponCreateArgs),
    /// Lists coupons with their stock, newest first
    #[command(after_long_help = "Example:\n  couponctl coupon list --status open")]
    List {
        /// Show only coupons with this status
        #[arg(long, value_enum)]
        status: Option<CouponStatus>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Shows one coupon with its stock
    #[command(after_long_help = "Example:\n  couponctl coupon show summer")]
    Show {
        /// The coupon's id
        id: CouponId,
    },
    Export(ExportArgs),
    Edit(CouponEditArgs),
    /// Stops accepting requests for a coupon; accepted ones are still decided
    #[command(
        after_long_help = "Example:\n  couponctl coupon pause summer --reason 'The payment provider is away'"
    )]
    Pause {
        /// The coupon's id
        id: CouponId,
        #[command(flatten)]
        why: ReasonArgs,
    },
    /// Accepts requests for a paused coupon again
    #[command(after_long_help = "Example:\n  couponctl coupon resume summer")]
    Resume {
        /// The coupon's id
        id: CouponId,
        #[command(flatten)]
        why: ReasonArgs,
    },
    /// Adds units to a coupon: a number of units, or up to a total
    #[command(after_long_help = "\
Examples:
  couponctl coupon restock summer 100
  couponctl coupon restock summer --total 600

A number of units is sent with an idempotency key, so that the API adds it once. If
the answer is lost, the command prints the --key to repeat it with. A total needs no
key.")]
    Restock {
        /// The coupon's id
        id: CouponId,
        /// Units to add
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOTAL)), required_unless_present = "total")]
        units: Option<u32>,
        /// Number of units to reach in all, instead of UNITS to add
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOTAL)), conflicts_with_all = ["units", "key"])]
        total: Option<u32>,
        /// Idempotency key of an earlier attempt, to repeat it
        #[arg(long, value_parser = super::issue::idempotency_key)]
        key: Option<String>,
        #[command(flatten)]
        why: ReasonArgs,
    },
    /// Archives a coupon for good: it accepts no requests any more
    #[command(after_long_help = "Example:\n  couponctl coupon archive summer --yes")]
    Archive {
        /// The coupon's id
        id: CouponId,
        #[command(flatten)]
        why: ReasonArgs,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
}

/// Creates a coupon that accepts requests from now, or from --starts-at
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl coupon create --id summer --name Summer --total 100 \\
      --ends-at 2036-01-01T00:00:00Z
  couponctl coupon create --id hot --name 'Black Friday' --total 1000000 --shares 3 \\
      --ends-at 2036-01-01T00:00:00Z
  couponctl coupon create --name '여름 할인' --total 5000 \\
      --starts-at 2035-06-01T12:00:00+09:00 --ends-at 2035-06-08T00:00:00+09:00 \\
      --percent-off 10 --max-amount 10000 --valid-for P1M --time-zone Asia/Seoul")]
pub(super) struct CouponCreateArgs {
    /// Id: letters, digits and . _ -  (generated if not given)
    #[arg(long)]
    id: Option<CouponId>,
    /// Name that users see
    #[arg(long)]
    name: String,
    /// Number of units
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOTAL)))]
    total: u32,
    /// Units that one user may hold (default: 1)
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_PER_USER)))]
    per_user: Option<u8>,
    /// When the coupon opens, such as 2036-01-01T00:00:00+09:00 (default: now)
    #[arg(long, value_name = "TIME")]
    starts_at: Option<Timestamp>,
    /// When the coupon ends
    #[arg(long, value_name = "TIME")]
    ends_at: Timestamp,
    /// Amount off the price, in the currency's minor unit: 500 is 5.00 USD, or 500 KRW
    #[arg(long, value_name = "AMOUNT", conflicts_with_all = ["percent_off", "max_amount"])]
    amount_off: Option<u64>,
    /// Percentage off the price
    #[arg(long, value_name = "PERCENT")]
    percent_off: Option<u8>,
    /// Largest amount that --percent-off takes off, in the currency's minor unit
    #[arg(long, value_name = "AMOUNT", requires = "percent_off")]
    max_amount: Option<u64>,
    /// Currency of all amounts (ISO 4217)
    #[arg(long, default_value = "KRW", value_parser = currency)]
    currency: String,
    /// Smallest order that a unit can be used for, in the currency's minor unit
    #[arg(long, value_name = "AMOUNT")]
    min_order_amount: Option<u64>,
    /// Moment until which held units are valid
    #[arg(long, value_name = "TIME", conflicts_with = "valid_for")]
    valid_until: Option<Timestamp>,
    /// How long each held unit is valid from its issue, such as P30D (30 days) or P1M
    #[arg(long, value_name = "DURATION")]
    valid_for: Option<ValidityPeriod>,
    /// Time zone in which --valid-for counts days, weeks, months and years, such as Asia/Seoul (default: UTC)
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<CouponTimeZone>,
    /// Shares that the units are spread over, for ever (default: one for each node of Redis, as long as each has 100,000 units)
    ///
    /// Each share lies in its own partition, serves its own users, and sells at the same time as the others; its last
    /// units go to the shares where people still ask. So one coupon can be as fast as all nodes of a Redis Cluster
    /// together. That helps a coupon that more people want in a second than one node can serve, and no other: requests
    /// share calls of Redis, and more than one or two shares a node, or fewer than 500 units a share, only make these calls
    /// carry fewer requests. One Redis without a cluster has one partition, and so one share. Every API and worker must
    /// run this version before the first coupon with several shares is created.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=SHARES_MAX as i64))]
    shares: Option<u32>,
}

/// Changes a coupon's name, its end, or its start if it has not started
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("change").required(true).multiple(true),
    after_long_help = "\
Examples:
  couponctl coupon edit summer --ends-at 2037-01-01T00:00:00Z
  couponctl coupon edit summer --end-now"
)]
pub(super) struct CouponEditArgs {
    /// The coupon's id
    id: CouponId,
    /// New name
    #[arg(long, group = "change")]
    name: Option<String>,
    /// New start, if the coupon has not started
    #[arg(long, value_name = "TIME", group = "change")]
    starts_at: Option<Timestamp>,
    /// New end: later than the present one, or a past moment to end the coupon now
    #[arg(long, value_name = "TIME", group = "change")]
    ends_at: Option<Timestamp>,
    /// End the coupon now
    #[arg(long, group = "change", conflicts_with = "ends_at")]
    end_now: bool,
    #[command(flatten)]
    why: ReasonArgs,
}

fn currency(text: &str) -> Result<String, String> {
    let currency: Currency = text.parse()?;
    match currency.minor_digits() {
        Some(_) => Ok(currency.as_str().to_owned()),
        None => Err("must be the code of a currency with a minor unit (ISO 4217), such as KRW".into()),
    }
}

impl Noun<CouponVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        let request = match self.verb {
            CouponVerb::List { status, page } => {
                let request = ApiRequest::get("/coupons").query("status", status.map(CouponStatus::as_str));
                return session.send_and_show(request.page(page), list).await;
            }
            CouponVerb::Export(export) => return export.run(&session.api).await,
            CouponVerb::Create(create) => {
                let named = create.id.is_some();
                let request = ApiRequest::post("/coupons").body(create.body()).repeatable(named);
                let created = session.send(request).await?;
                session.show(&created, coupon)?;
                if let Some(note) = thin_note(&created.body) {
                    eprintln!("{note}");
                }
                return Ok(());
            }
            CouponVerb::Show { id } => ApiRequest::get(format!("/coupons/{id}")),
            CouponVerb::Edit(edit) => {
                let request = ApiRequest::patch(format!("/coupons/{}", edit.id)).body(edit.body());
                request.reason(edit.why.reason)
            }
            CouponVerb::Pause { id, why } => {
                ApiRequest::post(format!("/coupons/{id}/pause")).reason(why.reason)
            }
            CouponVerb::Resume { id, why } => {
                ApiRequest::post(format!("/coupons/{id}/resume")).reason(why.reason)
            }
            CouponVerb::Restock { id, units, total, key, why } => {
                let request = ApiRequest::post(format!("/coupons/{id}/restock"));
                let request = match total {
                    Some(total) => request.body(json!({"total": total})),
                    None => request.body(json!({"add": units})).keyed(key),
                };
                request.reason(why.reason)
            }
            CouponVerb::Archive { id, why, yes } => {
                yes.or_ask(&format!("Take coupon {id} out of the offer, for good?"))?;
                ApiRequest::post(format!("/coupons/{id}/archive")).reason(why.reason)
            }
        };
        session.send_and_show(request, coupon).await
    }
}

impl CouponCreateArgs {
    fn body(self) -> Value {
        let currency = self.currency;
        let discount = match (self.amount_off, self.percent_off) {
            (Some(amount), _) => json!({"type": "fixed", "amount": amount, "currency": currency}),
            (None, Some(percent)) => {
                json!({"type": "percent", "percent": percent, "maxAmount": self.max_amount, "currency": currency})
            }
            (None, None) => Value::Null,
        };
        json!({
            "id": self.id.as_ref().map(CouponId::as_str),
            "name": self.name,
            "total": self.total,
            "perUser": self.per_user,
            "startsAt": self.starts_at.unwrap_or_else(Timestamp::now).to_string(),
            "endsAt": self.ends_at.to_string(),
            "discount": discount,
            "minOrderAmount": self.min_order_amount,
            "validUntil": self.valid_until.map(|moment| moment.to_string()),
            "validFor": self.valid_for.as_ref().map(ValidityPeriod::as_str),
            "timeZone": self.time_zone.as_ref().map(CouponTimeZone::as_str),
            "shares": self.shares,
        })
    }
}

impl CouponEditArgs {
    fn body(&self) -> Value {
        // Any past moment ends the coupon now, however far the clocks of the two machines are apart.
        let ends_at = if self.end_now { Some(Timestamp::UNIX_EPOCH) } else { self.ends_at };
        let changes = [
            ("name", self.name.clone()),
            ("startsAt", self.starts_at.map(|moment| moment.to_string())),
            ("endsAt", ends_at.map(|moment| moment.to_string())),
        ];
        let given = changes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        Value::Object(given.collect::<Map<_, _>>())
    }
}

/// Coupons, a line each.
pub(super) fn list(page: &Value) -> String {
    let columns = [
        (words("COUPON"), Text("/id")),
        (sentence("NAME"), Text("/name")),
        (words("STATUS"), Text("/status")),
        (number("LEFT"), Text("/stock/remaining")),
        (number("RESERVED"), Text("/stock/reserved")),
        (number("ISSUED"), Text("/stock/issued")),
        (number("TOTAL"), Text("/stock/total")),
        (aside("STARTS"), Time("/startsAt")),
        (aside("ENDS"), Time("/endsAt")),
    ];
    page_table(page, &columns, "No coupons: `couponctl coupon create` makes one.")
}

fn coupon(coupon: &Value) -> String {
    let number = |pointer: &str| cell(coupon, pointer);
    let stock = match &coupon["stock"] {
        Value::Null => "unknown while Redis is away".into(),
        _ => format!(
            "{} remaining, {} reserved, {} issued of {}",
            number("/stock/remaining"),
            number("/stock/reserved"),
            number("/stock/issued"),
            number("/stock/total"),
        ),
    };
    details(&[
        ("coupon", value(coupon, "/id")),
        ("name", value(coupon, "/name")),
        ("status", value(coupon, "/status")),
        ("stock", Some(stock)),
        ("shares", value(coupon, "/shares")),
        ("per user", value(coupon, "/perUser")),
        ("starts", value(coupon, "/startsAt")),
        ("ends", value(coupon, "/endsAt")),
        ("discount", discount(&coupon["discount"])),
        ("least order", money(&coupon["minOrderAmount"], &coupon["discount"])),
        ("valid until", value(coupon, "/validUntil")),
        ("valid for", value(coupon, "/validFor")),
        ("time zone", value(coupon, "/timeZone")),
        ("created", value(coupon, "/createdAt")),
    ])
}

/// What to say of a new coupon whose shares are too small.
fn thin_note(coupon: &Value) -> Option<String> {
    let whole = |number: &Value| u32::try_from(number.as_u64()?).ok();
    let (shares, total) = (whole(&coupon["shares"])?, whole(&coupon["stock"]["total"])?);
    are_thin(shares, total).then(|| {
        format!(
            "note: {total} units in {shares} shares: fewer than {SHARE_UNITS_MIN} units a share only thin the batches in \
             which Redis hands them out, and move more units at the end. The number of shares stays; restock the \
             coupon, or create another with fewer --shares"
        )
    })
}

fn discount(discount: &Value) -> Option<String> {
    match discount["type"].as_str()? {
        "fixed" => money(&discount["amount"], discount),
        "percent" => {
            let most = money(&discount["maxAmount"], discount).map(|most| format!(", at most {most}"));
            Some(format!("{} %{}", cell(discount, "/percent"), most.unwrap_or_default()))
        }
        _ => Some(discount.to_string()),
    }
}

/// An amount in the currency of a discount, with the digits that the currency has; if the program does not know them,
/// the number as the API sent it.
fn money(amount: &Value, discount: &Value) -> Option<String> {
    let amount = amount.as_u64()?;
    let Some(code) = discount["currency"].as_str() else { return Some(amount.to_string()) };
    Some(match code.parse().ok().and_then(|currency: Currency| currency.minor_digits()) {
        Some(0) => format!("{amount} {code}"),
        Some(digits) => {
            let (unit, width) = (10_u64.pow(digits), digits as usize);
            format!("{}.{:0width$} {code}", amount / unit, amount % unit)
        }
        None => format!("{amount} minor units of {code}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_the_digits_of_its_currency() {
        let shown = |amount: u64, code: &str| money(&json!(amount), &json!({"currency": code})).unwrap();
        assert_eq!(shown(5000, "KRW"), "5000 KRW");
        assert_eq!(shown(500, "USD"), "5.00 USD");
        assert_eq!(shown(5, "USD"), "0.05 USD");
        assert_eq!(shown(1_000_000_000_000, "EUR"), "10000000000.00 EUR");
        assert_eq!(shown(1500, "KWD"), "1.500 KWD");
        assert_eq!(shown(150, "HUF"), "1.50 HUF");
        assert_eq!(shown(150, "UGX"), "150 UGX");
        assert_eq!(shown(150, "ABC"), "150 minor units of ABC");
        assert_eq!(money(&json!(20000), &Value::Null).as_deref(), Some("20000"));
        assert_eq!(money(&Value::Null, &json!({"currency": "USD"})), None);
    }

    #[test]
    fn a_coupon_with_shares_of_few_units_gets_a_note() {
        let note = |coupon: Value| thin_note(&coupon);
        let thin = note(json!({"shares": 4, "stock": {"total": 1_000}})).unwrap();
        assert!(thin.contains("1000 units in 4 shares"), "{thin}");
        assert_eq!(note(json!({"shares": 4, "stock": {"total": 2_000}})), None);
        assert_eq!(note(json!({"shares": 1, "stock": {"total": 1}})), None);
        // Redis is away, or the API is older.
        assert_eq!(note(json!({"shares": 4, "stock": null})), None);
        assert_eq!(note(json!({"stock": {"total": 1}})), None);
    }

    #[test]
    fn a_discount_tells_its_amounts_in_money() {
        let percent = json!({"type": "percent", "percent": 10, "maxAmount": 1050, "currency": "USD"});
        assert_eq!(discount(&percent).as_deref(), Some("10 %, at most 10.50 USD"));
        let fixed = json!({"type": "fixed", "amount": 500, "currency": "USD"});
        assert_eq!(discount(&fixed).as_deref(), Some("5.00 USD"));
    }
}
