//! The operators' console: campaigns, the queue, dead letters, a search, the accounts, and the record of what operators
//! did. It holds nothing itself: its scripts ask the API with the key that the operator enters.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};

use super::{CONTENT_POLICY, page as answer};
use crate::http::{Code, Problem};

const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files that the page loads.
const FILES: [(&str, &str, &str); 9] = [
    ("console.css", STYLE, concat!(include_str!("theme.css"), include_str!("console/console.css"))),
    ("main.js", SCRIPT, include_str!("console/main.js")),
    ("api.js", SCRIPT, include_str!("console/api.js")),
    ("dom.js", SCRIPT, include_str!("console/dom.js")),
    ("text.js", SCRIPT, include_str!("console/text.js")),
    ("campaigns.js", SCRIPT, include_str!("console/campaigns.js")),
    ("dead-letters.js", SCRIPT, include_str!("console/dead-letters.js")),
    ("search.js", SCRIPT, include_str!("console/search.js")),
    ("records.js", SCRIPT, include_str!("console/records.js")),
];

/// The console.
pub(crate) async fn page() -> Response {
    answer("text/html; charset=utf-8", CONTENT_POLICY, include_str!("console/console.html"))
}

/// One of the console's files.
pub(crate) async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, content_type, text)) => answer(*content_type, CONTENT_POLICY, *text),
        None => Problem::new(Code::NotFound).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_text_that_the_console_names_is_there_in_both_languages() {
        let page = include_str!("console/console.html");
        let (_, table) = include_str!("console/text.js").split_once("const TEXTS = {").expect("the table");
        let (table, _) = table.split_once("\n};").expect("its end");
        let entry =
            regex::Regex::new(r"(?:^|[\s,])'?([\w-]+)'?: \['((?:[^'\\]|\\.)*)', '((?:[^'\\]|\\.)*)'\]")
                .expect("a pattern");
        let known: BTreeSet<&str> = entry
            .captures_iter(table)
            .map(|found| {
                assert!(!found[2].is_empty() && !found[3].is_empty(), "{}", &found[0]);
                found.get(1).expect("a name").as_str()
            })
            .collect();
        assert_eq!(known.len(), table.matches("', '").count(), "each entry is an English and a Korean text");
        let scripts: String =
            FILES.iter().map(|(.., text)| *text).filter(|text| !text.contains("const TEXTS")).collect();
        let named = regex::Regex::new(r#"\bt\('([\w-]+)'|data-t(?:-label)?="(\w+)""#).expect("a pattern");
        let texts = format!("{page}{scripts}");
        for found in named.captures_iter(&texts) {
            let name = found.get(1).or(found.get(2)).expect("a name").as_str();
            assert!(known.contains(name), "no text is called {name}");
        }
    }
}
