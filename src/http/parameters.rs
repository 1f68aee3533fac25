//! Which query parameters each route knows, taken from its OpenAPI description. Any other is refused, also by
//! handlers that read no query: otherwise a parameter that is not understood would be ignored in silence.

use std::collections::HashMap;

use axum::extract::MatchedPath;
use axum::http::Method;
use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, RefOr};

/// The query parameters of each route and method.
#[derive(Debug, Default)]
pub(crate) struct Parameters(HashMap<String, Vec<(Method, Vec<String>)>>);

impl Parameters {
    /// Those of a documented API.
    pub fn of(document: &OpenApi) -> Self {
        let routes = document.paths.paths.iter();
        Parameters(routes.map(|(path, item)| (path.clone(), of_item(item))).collect())
    }

    /// The first parameter of `query` that the route does not know. A route without a description may have any.
    pub(super) fn unknown(
        &self,
        route: Option<&MatchedPath>,
        method: &Method,
        query: &str,
    ) -> Option<String> {
        let methods = self.0.get(route?.as_str())?;
        let (_, known) = methods.iter().find(|(known, _)| known == method)?;
        let mut given = form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
        given.find(|name| !known.iter().any(|known| known == name)).map(|name| name.into_owned())
    }
}

fn of_item(item: &PathItem) -> Vec<(Method, Vec<String>)> {
    let operations = [
        (Method::GET, &item.get),
        (Method::HEAD, &item.get),
        (Method::POST, &item.post),
        (Method::PUT, &item.put),
        (Method::PATCH, &item.patch),
        (Method::DELETE, &item.delete),
    ];
    operations
        .into_iter()
        .filter_map(|(method, operation)| Some((method, of_operation(operation.as_ref()?))))
        .collect()
}

fn of_operation(operation: &Operation) -> Vec<String> {
    let parameters = operation.parameters.iter().flatten().filter_map(|parameter| match parameter {
        RefOr::T(parameter) => Some(parameter),
        // Routes share no parameters.
        RefOr::Ref(_) => None,
    });
    let in_query = parameters.filter(|parameter| parameter.parameter_in == ParameterIn::Query);
    in_query.map(|parameter| parameter.name.clone()).collect()
}
