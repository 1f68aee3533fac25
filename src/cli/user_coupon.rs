//! `couponctl user-coupon`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{ApiRequest, Noun, PageArgs};
use super::prompt::ConfirmArgs;
use super::table::Member::{Text, Time};
use super::table::{aside, details, item_table, number, page_table, sentence, value, words};
use crate::ids::{IssuanceId, UserId};
use crate::redemption::Reference;

#[derive(Debug, Subcommand)]
pub(super) enum UserCouponVerb {
    /// Lists the coupons that a user holds, newest first
    #[command(after_long_help = "Example:\n  couponctl user-coupon list u1 --status active")]
    List {
        /// The user's id
        user: UserId,
        /// Show only coupons with this status
        #[arg(long, value_parser = ["active", "used", "expired", "revoked"])]
        status: Option<String>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Shows one user coupon, with its history
    #[command(
        visible_alias = "show",
        after_long_help = "Example:\n  couponctl user-coupon get u1 01a206a0-caad-7000-95cf-bcf9c90eb941"
    )]
    Get(UserCouponSelector),
    /// Uses a user coupon; safe to repeat with the same reference
    #[command(after_long_help = "\
Example:
  couponctl user-coupon use u1 01a206a0-caad-7000-95cf-bcf9c90eb941 order-17")]
    Use {
        #[command(flatten)]
        which: UserCouponSelector,
        /// What the coupon is used for, such as an order number
        reference: Reference,
    },
    /// Undoes the use of a user coupon
    #[command(after_long_help = "\
Example:
  couponctl user-coupon restore u1 01a206a0-caad-7000-95cf-bcf9c90eb941 order-17")]
    Restore {
        #[command(flatten)]
        which: UserCouponSelector,
        /// Undo only the use with this reference; the command is then safe to repeat
        reference: Option<Reference>,
    },
    /// Revokes a user coupon for good; its unit stays issued
    #[command(after_long_help = "\
Example:
  couponctl user-coupon revoke u1 01a206a0-caad-7000-95cf-bcf9c90eb941 --yes")]
    Revoke {
        #[command(flatten)]
        which: UserCouponSelector,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
}

/// One user coupon.
#[derive(Debug, Args)]
pub(super) struct UserCouponSelector {
    /// The user's id
    user: UserId,
    /// Id of the user coupon: that of its issuance
    id: IssuanceId,
}

impl UserCouponSelector {
    fn path(&self) -> String {
        format!("/user-coupons/{}/{}", self.user, self.id)
    }
}

impl Noun<UserCouponVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        let request = match self.verb {
            UserCouponVerb::List { user, status, page } => {
                let request = ApiRequest::get(format!("/user-coupons/{user}")).query("status", status);
                return session.send_and_show(request.page(page), list).await;
            }
            UserCouponVerb::Get(which) => ApiRequest::get(which.path()),
            UserCouponVerb::Use { which, reference } => ApiRequest::post(format!("{}/use", which.path()))
                .body(json!({"reference": reference.as_str()})),
            UserCouponVerb::Restore { which, reference } => {
                let request =
                    ApiRequest::post(format!("{}/restore", which.path())).repeatable(reference.is_some());
                request.body(json!({"reference": reference.as_ref().map(Reference::as_str)}))
            }
            UserCouponVerb::Revoke { which, yes } => {
                yes.or_ask(&format!("Take user coupon {} of {} away, for good?", which.id, which.user))?;
                ApiRequest::post(format!("{}/revoke", which.path()))
            }
        };
        session.send_and_show(request, user_coupon).await
    }
}

fn list(page: &Value) -> String {
    let columns = [
        (words("USER COUPON"), Text("/id")),
        (words("COUPON"), Text("/couponId")),
        (number("SERIAL"), Text("/serial")),
        (words("STATUS"), Text("/status")),
        (words("ISSUED"), Time("/issuedAt")),
        (aside("VALID UNTIL"), Time("/validUntil")),
        (aside("USED"), Time("/usedAt")),
        (sentence("REFERENCE"), Text("/reference")),
    ];
    let nothing = if page["nextCursor"].is_null() { "No user coupons." } else { "None on this page." };
    page_table(page, &columns, nothing)
}

fn user_coupon(held: &Value) -> String {
    let columns = [
        (words("WHEN"), Time("/at")),
        (words("EVENT"), Text("/event")),
        (words("REFERENCE"), Text("/reference")),
        (sentence("BY"), Text("/by")),
    ];
    let properties = details(&[
        ("user coupon", value(held, "/id")),
        ("coupon", value(held, "/couponId")),
        ("user", value(held, "/userId")),
        ("serial", value(held, "/serial")),
        ("status", value(held, "/status")),
        ("issued", value(held, "/issuedAt")),
        ("valid until", value(held, "/validUntil")),
        ("used", value(held, "/usedAt")),
        ("reference", value(held, "/reference")),
    ]);
    format!("{properties}\n{}", item_table(&held["history"], &columns, ""))
}
