//! Refuses requests under overload, before anything else is done for them: neither is the caller identified nor the
//! body read. A refusal helps only if it costs far less than it saves.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;

use crate::Failure;
use crate::api::App;
use crate::http::Problem;
use crate::http::request::{CompleteLayer, RequestMeta};
use crate::http::server::LoadShedder;

/// The route that is shed, by `POST`: requests for a coupon. Polls are always answered.
const PATH: &str = "/user-coupons";

/// Sheds requests while too many wait for a call of `reserve.lua`.
pub(crate) struct Shedding {
    app: App,
    complete: CompleteLayer,
}

impl Shedding {
    /// Sheds while too many requests of `app` wait.
    pub fn new(app: App) -> Self {
        Shedding { complete: app.complete(), app }
    }
}

impl LoadShedder for Shedding {
    fn concerns(&self, request: &Request<Incoming>) -> bool {
        request.method() == Method::POST && request.uri().path() == PATH
    }

    fn has_room(&self) -> bool {
        !self.app.issuing.refuses()
    }

    fn refusal(&self, request: &Request<Incoming>) -> Response {
        self.app.issuing.turned_away.count();
        // The same problem as behind the router.
        let problem = Problem::from(Failure::Overloaded { operation: "request a coupon" });
        let mut response = problem.into_response();
        if let Some(limit) = &self.app.limits.address {
            limit.note(request).add_to(&mut response);
        }
        RequestMeta::of(request, &self.complete).complete(response, Some(PATH))
    }

    fn has_refused(&self, peer: IpAddr) {
        if let Some(limit) = &self.app.limits.address {
            limit.note_peer(peer);
        }
    }

    fn base(&self) -> &str {
        self.app.links.prefix()
    }
}
