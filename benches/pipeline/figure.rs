//! Figures and the lines that say them.

use serde_json::{Map, Value, json};

/// One figure of one bench: the rounds of the product and, if there is one, of a reference.
pub struct Figure {
    line: Map<String, Value>,
}

impl Figure {
    pub fn new(bench: &str, figure: &str, unit: &str, rounds: &[f64]) -> Figure {
        let mut line = Map::new();
        line.insert("bench".into(), json!(bench));
        line.insert("figure".into(), json!(figure));
        line.insert("value".into(), rounded(median(rounds)));
        line.insert("unit".into(), json!(unit));
        line.insert("rounds".into(), rounds.iter().copied().map(rounded).collect());
        Figure { line }
    }

    /// The same of something else in the same run; `ratio` is product over reference.
    pub fn reference(mut self, name: &str, rounds: &[f64], product: &[f64]) -> Figure {
        self.line.insert("reference".into(), json!(name));
        self.line.insert("reference_value".into(), rounded(median(rounds)));
        self.line.insert("reference_rounds".into(), rounds.iter().copied().map(rounded).collect());
        self.line.insert("ratio".into(), rounded(median(product) / median(rounds)));
        self
    }

    /// What distinguishes it from figures of the same name.
    pub fn case(mut self, case: &str) -> Figure {
        self.line.insert("case".into(), json!(case));
        self
    }

    pub fn print(self) {
        println!("{}", Value::Object(self.line));
    }
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Rates without decimals, small figures with two: more would be noise.
fn rounded(value: f64) -> Value {
    json!(if value.abs() >= 1000.0 { value.round() } else { (value * 100.0).round() / 100.0 })
}
