//! Figures as every bench writes them. In: values and their limits. Out: JSON. Pure but for the file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Dotted, as in the list of figures.
    pub name: &'static str,
    /// In `unit`.
    pub value: f64,
    /// What it is measured in.
    pub unit: &'static str,
    /// The requirement; none where there is none.
    pub limit: Option<f64>,
    /// Whether the requirement is met.
    pub ok: bool,
    /// The least and the greatest of the runs.
    pub spread: [f64; 2],
    /// How often it was measured.
    pub runs: u32,
}

/// What a bench writes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Of this shape: 1.
    pub schema: u32,
    /// In the order of their telling.
    pub figures: Vec<Figure>,
}

impl Figure {
    /// A value of one run that nothing is required of.
    #[must_use]
    pub fn plain(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit, limit: None, ok: true, spread: [value, value], runs: 1 }
    }

    /// A value of one run with its requirement, and whether it is met.
    #[must_use]
    pub fn required(name: &'static str, value: f64, unit: &'static str, limit: f64, ok: bool) -> Self {
        Self { limit: Some(limit), ok, ..Self::plain(name, value, unit) }
    }
}

impl Figures {
    /// Of these.
    #[must_use]
    pub fn new(figures: Vec<Figure>) -> Self {
        Self { schema: 1, figures }
    }

    /// Whether every requirement is met.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.figures.iter().all(|figure| figure.ok)
    }

    /// Writes them as JSON.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self).context("the figures cannot be written as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_shape_that_every_bench_has() {
        let figures = Figures::new(vec![
            Figure::required("probe.uncounted_ratio", 0.0, "ratio", 0.00001, true),
            Figure::plain("loss.rate", 3500.0, "1/s"),
        ]);
        assert!(figures.ok());
        assert_eq!(
            serde_json::to_string(&figures).expect("serializes"),
            r#"{"schema":1,"figures":[{"name":"probe.uncounted_ratio","value":0.0,"unit":"ratio","limit":0.00001,"ok":true,"spread":[0.0,0.0],"runs":1},{"name":"loss.rate","value":3500.0,"unit":"1/s","limit":null,"ok":true,"spread":[3500.0,3500.0],"runs":1}]}"#
        );
    }
}
