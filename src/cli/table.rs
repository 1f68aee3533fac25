//! Tables for people: aligned by how wide text is on a terminal (Korean letters take two cells), and
//! shortened to fit it. Where output is no terminal nothing is shortened.
//!
//! Own code, because `comfy-table` breaks cells over several lines where a terminal is narrow, and leaves out no column.

use console::{Alignment, Term, measure_text_width, pad_str, truncate_str};
use serde_json::Value;

/// What stands between two columns.
const GAP: &str = "  ";
/// A column that gives way keeps at least this.
const SHORTENED_MIN: usize = 8;
/// What an empty cell shows.
const NOTHING: &str = "-";

/// A column: its title, and how it behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableColumn {
    title: &'static str,
    alignment: Alignment,
    /// What it does where the terminal is too narrow.
    narrow: NarrowBehaviour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NarrowBehaviour {
    Stays,
    Shortens,
    GoesAway,
}

/// A column of words.
pub(super) const fn words(title: &'static str) -> TableColumn {
    TableColumn { title, alignment: Alignment::Left, narrow: NarrowBehaviour::Stays }
}

/// A column of words that is left out where there is no room; the first such column goes first.
pub(super) const fn aside(title: &'static str) -> TableColumn {
    TableColumn { title, alignment: Alignment::Left, narrow: NarrowBehaviour::GoesAway }
}

/// A column of numbers.
pub(super) const fn number(title: &'static str) -> TableColumn {
    TableColumn { title, alignment: Alignment::Right, narrow: NarrowBehaviour::Stays }
}

/// A column of sentences, which may be shortened.
pub(super) const fn sentence(title: &'static str) -> TableColumn {
    TableColumn { title, alignment: Alignment::Left, narrow: NarrowBehaviour::Shortens }
}

/// Puts rows under titles; `nothing` where there are no rows.
pub(super) fn table(columns: &[TableColumn], rows: Vec<Vec<String>>, nothing: &str) -> String {
    render(columns, rows, nothing, terminal_width())
}

fn render(
    columns: &[TableColumn],
    rows: Vec<Vec<String>>,
    nothing: &str,
    width_max: Option<usize>,
) -> String {
    if rows.is_empty() {
        return format!("{nothing}\n");
    }
    let mut columns = columns.to_vec();
    let titles: Vec<String> = columns.iter().map(|column| column.title.to_owned()).collect();
    let mut lines: Vec<Vec<String>> = std::iter::once(titles)
        .chain(rows.into_iter().map(|row| row.iter().map(|cell| clean(cell)).collect()))
        .collect();
    let mut widths: Vec<usize> = (0..columns.len())
        .map(|at| lines.iter().map(|line| measure_text_width(&line[at])).max().unwrap_or(0))
        .collect();
    if let Some(width_max) = width_max {
        let least = |column: &TableColumn| measure_text_width(column.title).max(SHORTENED_MIN);
        loop {
            let needed = columns.iter().zip(&widths).map(|(column, width)| match column.narrow {
                NarrowBehaviour::Shortens => (*width).min(least(column)),
                _ => *width,
            });
            let needed = needed.sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
            let goes = columns.iter().position(|column| column.narrow == NarrowBehaviour::GoesAway);
            let Some(goes) = goes.filter(|_| needed > width_max) else { break };
            columns.remove(goes);
            widths.remove(goes);
            for line in &mut lines {
                line.remove(goes);
            }
        }
        let whole = widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
        let mut excess = whole.saturating_sub(width_max);
        // The last ones first: what a row is about stands on its left.
        let shortened = |column: &TableColumn| column.narrow == NarrowBehaviour::Shortens;
        for (column, width) in columns.iter().zip(&mut widths).rev().filter(|(column, _)| shortened(column)) {
            let less = excess.min(width.saturating_sub(least(column)));
            *width -= less;
            excess -= less;
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<_> = line
            .iter()
            .zip(columns.iter().zip(&widths))
            .map(|(cell, (column, width))| pad_str(cell, *width, column.alignment, Some("…")))
            .collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    text
}

/// One thing, a line a property; those without a value are left out.
pub(super) fn details(properties: &[(&str, Option<String>)]) -> String {
    let wide = properties.iter().map(|(name, _)| measure_text_width(name)).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in properties {
        if let Some(value) = value {
            let line = format!("{}{GAP}{}", pad_str(name, wide, Alignment::Left, None), clean(value));
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

/// The terminal's width; `None` where output is no terminal.
fn terminal_width() -> Option<usize> {
    Term::stdout().size_checked().map(|(_, columns)| columns.into())
}

/// Shortens a line to what a terminal has room for.
pub(super) fn fit(line: &str, width: usize) -> String {
    truncate_str(line, width, "…").into_owned()
}

/// Text without anything that could steer a terminal or break a line.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if crate::text::is_steering(c) { ' ' } else { c }).collect()
}

/// A value of an answer as a cell; null and missing as `-`.
pub(super) fn cell(body: &Value, pointer: &str) -> String {
    value(body, pointer).unwrap_or_else(|| NOTHING.into())
}

/// A time of an answer as a cell, without fractions of a second.
pub(super) fn time(body: &Value, pointer: &str) -> String {
    let text = cell(body, pointer);
    text.parse::<jiff::Timestamp>().map_or(text, |time| format!("{time:.0}"))
}

/// A value of an answer as text, if there is one.
pub(super) fn value(body: &Value, pointer: &str) -> Option<String> {
    match body.pointer(pointer)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Where the API has the value of a column: a pointer into one of the items of a list.
pub(super) enum Member {
    Text(&'static str),
    Time(&'static str),
}

/// The items of a list of the API, a row each; `nothing` where there are none.
pub(super) fn item_table(items: &Value, columns: &[(TableColumn, Member)], nothing: &str) -> String {
    let titles: Vec<TableColumn> = columns.iter().map(|(column, _)| *column).collect();
    let row = |item: &Value| {
        let cell = |(_, member): &(TableColumn, Member)| match member {
            Member::Text(pointer) => cell(item, pointer),
            Member::Time(pointer) => time(item, pointer),
        };
        columns.iter().map(cell).collect()
    };
    table(&titles, items.as_array().into_iter().flatten().map(row).collect(), nothing)
}

/// A page of a list of the API, and how to get the next one.
pub(super) fn page_table(page: &Value, columns: &[(TableColumn, Member)], nothing: &str) -> String {
    item_table(&page["items"], columns, nothing) + &more(page)
}

/// The items of a page, a row each.
pub(super) fn rows(page: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    page["items"].as_array().into_iter().flatten().map(row).collect()
}

/// The line under a page that is not the last.
pub(super) fn more(page: &Value) -> String {
    match page["nextCursor"].as_str() {
        Some(cursor) => format!("more: the same command with --cursor {}\n", clean(cursor)),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [TableColumn; 3] = [words("ID"), sentence("NAME"), number("LEFT")];

    fn row(id: &str, name: &str, left: &str) -> Vec<String> {
        [id, name, left].map(str::to_owned).to_vec()
    }

    #[test]
    fn korean_letters_take_two_cells() {
        let shown = render(&COLUMNS, vec![row("a", "여름 할인", "5"), row("b", "Sale", "100")], "none", None);
        assert_eq!(shown, "ID  NAME       LEFT\na   여름 할인     5\nb   Sale        100\n");
        let widths: Vec<usize> = shown.lines().map(measure_text_width).collect();
        assert_eq!(widths, [19; 3]);
    }

    #[test]
    fn a_narrow_terminal_shortens_sentences_and_nothing_else() {
        let rows = vec![row("summer", "아주 긴 이름의 여름 할인", "5")];
        let shown = render(&COLUMNS, rows, "none", Some(24));
        assert!(shown.lines().all(|line| measure_text_width(line) <= 24), "{shown}");
        assert!(shown.contains("summer") && shown.contains('…'), "{shown}");
    }

    #[test]
    fn what_stands_aside_is_left_out_before_a_line_is_too_long() {
        let columns = [words("ID"), aside("STARTS"), aside("ENDS"), number("LEFT")];
        let row = || vec![["a", "2026-01-01", "2026-01-02", "5"].map(str::to_owned).to_vec()];
        assert_eq!(
            render(&columns, row(), "none", Some(32)).lines().next(),
            Some("ID  STARTS      ENDS        LEFT")
        );
        assert_eq!(render(&columns, row(), "none", Some(31)).lines().next(), Some("ID  ENDS        LEFT"));
        assert_eq!(render(&columns, row(), "none", Some(12)).lines().next(), Some("ID  LEFT"));
    }

    #[test]
    fn what_could_steer_a_terminal_is_made_harmless() {
        let shown = render(&COLUMNS, vec![row("a", "x\u{1b}[2Jy\nz", "1")], "none", None);
        assert_eq!(shown.lines().count(), 2);
        assert!(!shown.contains('\u{1b}'));
        assert_eq!(render(&COLUMNS, vec![], "none", None), "none\n");
    }
}
