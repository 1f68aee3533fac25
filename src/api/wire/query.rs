//! Reads a query strictly: each parameter is parsed once, and an unknown one is an error.

use axum::extract::{FromRequestParts, RawQuery};
use axum::http::request::Parts;

use crate::http::Problem;

/// The parameters of a query that are not read yet.
pub struct Query {
    parameters: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let RawQuery(raw) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        Ok(Query::of(&raw.unwrap_or_default()))
    }
}

impl Query {
    /// The parameters of a query string, without its question mark.
    pub fn of(raw: &str) -> Self {
        Query { parameters: form_urlencoded::parse(raw.as_bytes()).into_owned().collect() }
    }

    /// Reads a parameter; `None` if it is missing.
    ///
    /// # Errors
    /// 422 `invalid` with what `parse` says.
    pub fn take<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let Some(at) = self.parameters.iter().position(|(given, _)| given == name) else { return Ok(None) };
        let (_, value) = self.parameters.remove(at);
        parse(&value).map(Some).map_err(|why| Problem::invalid_parameter(name, why))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// 422 `invalid` if a parameter is left.
    pub fn finish(self) -> Result<(), Problem> {
        match self.parameters.first() {
            None => Ok(()),
            Some((name, _)) => {
                Err(Problem::invalid_parameter(name, "is not a parameter of this request, or given twice"))
            }
        }
    }
}
