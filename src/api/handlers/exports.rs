//! Exports: all units of a coupon, streamed. A page is read when the client has taken the page before, so an export
//! holds one page, however large the coupon and however slow the client.

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::stream;

use crate::api::App;
use crate::api::state::limits::Slot;
use crate::api::wire::export::{self as wire, ExportEnd, ExportedUnit, Format, UnreadableUnit};
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::api::wire::user_coupon::UserCoupon;
use crate::coupon::Expiry;
use crate::failure::Unreadable;
use crate::http::{Code, Problem};
use crate::ids::{CouponId, Unit};
use crate::redemption::{HeldCoupon, NAMELESS_MAX, UNITS_PAGE};
use crate::runtime::damage::damaged;

/// All units of a coupon that are held, by serial.
///
/// NDJSON: a line a unit, and at the end a line with `end`, `count`, `unreadable` and `after`; an export
/// without it was cut. CSV (RFC 4180): a row a unit, under a row of titles; it has no last row, so a client must
/// heed whether the transfer was complete. A unit whose record this version cannot read has a line or a row of
/// its own, with the status `unreadable` and what else can be told of it: its id at least. Those that name no
/// serial come last. A cell that a spreadsheet would take for a formula, a number that it
/// cannot keep (`007`, `1E5`, more than 15 digits), a date or the like has an apostrophe before it, as has one
/// that begins with an apostrophe: take away one to have it back. NDJSON has everything as it is.
///
/// A cut export goes on with `after`, the last serial that came; a CSV then has no titles, so that the
/// parts can be put together. Of a coupon in several shares, units that were moved between them come after the others, so
/// that going on may repeat some: their `id` tells. What is issued while an export runs may be in it or not: `GET /outcomes`
/// tells. For services and operators.
#[utoipa::path(
    get, path = "/coupons/{id}/user-coupons", operation_id = "exportUserCoupons", tag = "exports",
    params(
        ("id" = String, Path, example = "summer"),
        ("format" = Option<Format>, Query, description = "Before `Accept`; `ndjson` if neither says"),
        ("after" = Option<u64>, Query, maximum = 4294967295_i64, description = "Only serials above this one; 0 if not given"),
    ),
    responses(
        (status = 200, description = "Each line is a UserCoupon or an UnreadableUnit, the last an ExportEnd", content(
            (String = "application/x-ndjson"),
            (String = "text/csv"),
        )),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn user_coupons(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
    mut query: Query,
) -> Result<Response, Problem> {
    let format = query.take("format", str::parse)?.unwrap_or_else(|| Format::accepted(&headers));
    let after = query.take("after", serial)?;
    query.finish()?;
    let not_found = || Problem::new(Code::CouponNotFound);
    let coupon: CouponId = id.parse().map_err(|_| not_found())?;
    let slot = app.limits.exports.take()?;
    let expiry = app.holdings.coupons.expiry(&coupon).await?.ok_or_else(not_found)?;

    let file = format!("attachment; filename=\"{coupon}.{}\"", format.extension());
    let mut export = Export {
        app,
        coupon,
        expiry,
        format,
        after: after.unwrap_or(0),
        count: 0,
        unreadable: 0,
        next: ExportStep::Page,
        _slot: slot,
    };
    // A failure of the first page can still be answered with a problem.
    let mut first = export.page().await?;
    if format == Format::Csv && after.is_none() {
        first = [wire::titles(), first].concat().into();
    }
    let rest = stream::try_unfold(export, Export::next);
    let parts = futures::StreamExt::chain(stream::iter([Ok(first)]), rest);
    let headers = [
        (header::CONTENT_TYPE, format.media_type()),
        (header::CONTENT_DISPOSITION, file.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept"),
    ];
    Ok((headers, Body::from_stream(parts)).into_response())
}

fn serial(text: &str) -> Result<u32, String> {
    let parsed = text.parse().ok().filter(|_| text.bytes().all(|digit| digit.is_ascii_digit()));
    parsed.ok_or_else(|| "must be a serial: a whole number from 0 to 4294967295".into())
}

/// An export under way.
struct Export {
    app: App,
    coupon: CouponId,
    expiry: Expiry,
    format: Format,
    /// The number of the last unit that was read.
    after: u32,
    /// Units so far.
    count: u64,
    /// Units among them whose record cannot be read.
    unreadable: u64,
    next: ExportStep,
    _slot: Slot,
}

enum ExportStep {
    Page,
    /// Units that name no serial.
    Nameless,
    /// The line that says that the export is complete.
    End,
    Nothing,
}

impl Export {
    /// The next part. An error breaks the transfer off, which tells the client that the export is not complete.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, std::io::Error> {
        if self.app.lifecycle.stopping.is_cancelled() {
            return Err(std::io::Error::other("the service stops"));
        }
        let broken_off = |problem: Problem, export: &Self| {
            let (coupon, after) = (&export.coupon, export.after);
            tracing::warn!(%coupon, after, code = problem.code.as_str(), "an export was broken off");
            std::io::Error::other("the next page cannot be read")
        };
        let part = match self.next {
            ExportStep::Page => self.page().await.map_err(|problem| broken_off(problem, &self))?,
            ExportStep::Nameless => self.nameless().await.map_err(|problem| broken_off(problem, &self))?,
            ExportStep::End => self.end().map_err(std::io::Error::other)?,
            ExportStep::Nothing => return Ok(None),
        };
        Ok(Some((part, self)))
    }

    async fn page(&mut self) -> Result<Bytes, Problem> {
        let held = self.app.holdings.redemptions.units_after(&self.coupon, self.after).await?;
        let last = held.iter().rev().find_map(|held| match held {
            Ok(holding) => holding.decision.unit(),
            Err(unreadable) => unreadable.unit,
        });
        // A page without any serial does not say where to go on; units beyond any total are the last ones.
        let is_last = held.len() < UNITS_PAGE || last.is_none();
        if is_last {
            self.next = ExportStep::Nameless;
        }
        self.after = last.map_or(self.after, Unit::number);
        self.written(held)
    }

    async fn nameless(&mut self) -> Result<Bytes, Problem> {
        let units = self.app.holdings.redemptions.nameless_units(&self.coupon).await?;
        if units.len() == NAMELESS_MAX {
            // There may be more of them, which the export would leave out.
            return Err(Problem::new(Code::Unavailable));
        }
        self.next = match self.format {
            Format::Ndjson => ExportStep::End,
            Format::Csv => ExportStep::Nothing,
        };
        self.written(units.into_iter().map(Err).collect())
    }

    fn written(&mut self, held: Vec<Result<HeldCoupon, Unreadable>>) -> Result<Bytes, Problem> {
        self.count += held.len() as u64;
        let mut units = Vec::with_capacity(held.len());
        for held in held {
            units.push(match held {
                Ok(holding) => ExportedUnit::Readable(UserCoupon::new(&holding, &self.expiry)),
                Err(unreadable) => {
                    damaged!(unreadable.record; coupon = %self.coupon, error = %unreadable, "a unit is exported as unreadable");
                    self.unreadable += 1;
                    ExportedUnit::Unreadable(UnreadableUnit::new(&self.coupon, unreadable))
                }
            });
        }
        let written = match self.format {
            Format::Ndjson => wire::lines(&units),
            Format::Csv => wire::table(&units),
        };
        written.map_err(|error| {
            tracing::error!(%error, "a unit cannot be written");
            Problem::new(Code::Internal)
        })
    }

    fn end(&mut self) -> serde_json::Result<Bytes> {
        self.next = ExportStep::Nothing;
        let mut line = serde_json::to_vec(&ExportEnd::new(self.count, self.unreadable, self.after))?;
        line.push(b'\n');
        Ok(line.into())
    }
}
