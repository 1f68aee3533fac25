//! The result of a bench: one document for programs, rows for people.

use jiff::Timestamp;
use serde::Serialize;

use super::accept::AcceptFigures;
use super::drain::DrainFigures;
use super::latency::LatencyFigures;
use super::nodes::NodesFigures;
use super::overload::OverloadFigures;
use super::ready::ReadyFigures;
use super::redis::RedisFigures;
use super::rewrite::RewriteFigures;
use super::spread::Spread;

/// The document of `--json`. A section that was not asked for is null.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BenchReport {
    /// The version of this program.
    pub version: &'static str,
    /// `release`, or `debug`: then the figures mean nothing.
    pub build: &'static str,
    /// Small sizes: the figures are rough.
    pub quick: bool,
    pub cores: usize,
    /// To write a page to disk for good, where the servers had their data, in microseconds.
    pub fsync_micros: f64,
    pub started_at: Timestamp,
    /// Each figure that has a target.
    pub targets: Vec<TargetResult>,
    pub accept: Option<AcceptFigures>,
    pub drain: Option<DrainFigures>,
    pub latency: Option<LatencyFigures>,
    pub redis: Option<RedisFigures>,
    pub nodes: Option<NodesFigures>,
    pub overload: Option<OverloadFigures>,
    pub rewrite: Option<RewriteFigures>,
    pub ready: Option<ReadyFigures>,
}

/// A figure and what it was to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetResult {
    /// The figure's field.
    pub name: String,
    pub value: f64,
    /// `atLeast` or `atMost`, with the number.
    #[serde(flatten)]
    pub target: FigureTarget,
    pub ok: bool,
}

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FigureTarget {
    AtLeast(f64),
    AtMost(f64),
}

impl FigureTarget {
    fn is_met(self, value: f64) -> bool {
        match self {
            FigureTarget::AtLeast(least) => value >= least,
            FigureTarget::AtMost(most) => value <= most,
        }
    }
}

impl std::fmt::Display for FigureTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FigureTarget::AtLeast(least) => write!(f, "≥ {least}"),
            FigureTarget::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// A figure for people.
#[derive(Debug, Clone)]
pub struct FigureRow {
    /// The figure's field and, where a field has several figures, which of them.
    pub name: String,
    pub value: f64,
    /// The least and the most of its rounds.
    pub range: Option<(f64, f64)>,
    pub target: Option<FigureTarget>,
    /// What it is of.
    pub says: String,
}

/// A figure without a target, of one round.
pub(super) fn row(name: &str, value: f64, says: &str) -> FigureRow {
    FigureRow { name: name.to_owned(), value, range: None, target: None, says: says.to_owned() }
}

impl FigureRow {
    pub(super) fn with_target(self, target: FigureTarget) -> Self {
        FigureRow { target: Some(target), ..self }
    }

    pub(super) fn over(self, rounds: &Spread) -> Self {
        FigureRow { range: Some((rounds.min, rounds.max)), ..self }
    }

    /// The figure against its target, if it has one.
    pub fn judged(&self) -> Option<TargetResult> {
        let target = self.target?;
        Some(TargetResult {
            name: self.name.clone(),
            value: self.value,
            target,
            ok: target.is_met(self.value),
        })
    }
}

impl BenchReport {
    /// The figures that were measured, section by section.
    pub fn sections(&self) -> Vec<(&'static str, Vec<FigureRow>)> {
        let BenchReport { accept, drain, latency, redis, nodes, overload, rewrite, ready, .. } = self;
        [
            ("accept", accept.as_ref().map(AcceptFigures::rows)),
            ("drain", drain.as_ref().map(DrainFigures::rows)),
            ("latency", latency.as_ref().map(LatencyFigures::rows)),
            ("redis", redis.as_ref().map(RedisFigures::rows)),
            ("nodes", nodes.as_ref().map(NodesFigures::rows)),
            ("overload", overload.as_ref().map(OverloadFigures::rows)),
            ("rewrite", rewrite.as_ref().map(RewriteFigures::rows)),
            ("ready", ready.as_ref().map(ReadyFigures::rows)),
        ]
        .into_iter()
        .filter_map(|(name, rows)| Some((name, rows?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_by_its_own_side_and_nothing_is_no_figure() {
        let at_least = row("a", 0.6, "").with_target(FigureTarget::AtLeast(0.6)).judged().unwrap();
        assert!(at_least.ok);
        assert!(!row("a", 0.59, "").with_target(FigureTarget::AtLeast(0.6)).judged().unwrap().ok);
        assert!(row("a", 6.0, "").with_target(FigureTarget::AtMost(6.0)).judged().unwrap().ok);
        assert!(!row("a", 6.1, "").with_target(FigureTarget::AtMost(6.0)).judged().unwrap().ok);
        assert!(!row("a", f64::NAN, "").with_target(FigureTarget::AtMost(6.0)).judged().unwrap().ok);
        assert_eq!(row("a", 1.0, "").judged(), None);
        let json = serde_json::to_value(&at_least).unwrap();
        assert_eq!(json, serde_json::json!({"name": "a", "value": 0.6, "atLeast": 0.6, "ok": true}));
    }
}
