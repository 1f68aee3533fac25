//! Turning away whom there is no room for, before anything else is done for them: not who they are, not
//! what they ask for. To be of any use a refusal must cost far less than what it saves.

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

/// What is turned away: requests for a coupon. Whoever asks what became of one is always heard.
const PATH: &str = "/user-coupons";

/// See the module's documentation.
pub(crate) struct Shedding {
    app: App,
    complete: CompleteLayer,
}

impl Shedding {
    pub fn new(app: App) -> Self {
        Shedding { complete: app.complete(), app }
    }
}

impl LoadShedder for Shedding {
    fn concerns(&self, request: &Request<Incoming>) -> bool {
        request.method() == Method::POST && request.uri().path() == PATH
    }

    fn has_room(&self) -> bool {
        !self.app.issuing.reservations.refuses()
    }

    fn refusal(&self, request: &Request<Incoming>) -> Response {
        if let Some(limit) = &self.app.limits.address {
            limit.note(request);
        }
        // As where there is no room behind the router.
        let problem = Problem::from(Failure::Overloaded { operation: "request a coupon" });
        RequestMeta::of(request, &self.complete).complete(problem.into_response(), Some(PATH))
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
