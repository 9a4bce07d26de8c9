//! Names by pattern: literal runs, with any run of characters between each two of them.

/// Runs in order; a single one is a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Glob(Vec<String>);

impl Glob {
    /// At least one run.
    pub fn new(runs: Vec<String>) -> Glob {
        assert!(!runs.is_empty(), "a pattern has a run before its first star");
        Glob(runs)
    }

    pub fn runs(&self) -> &[String] {
        &self.0
    }

    pub fn matches(&self, name: &str) -> bool {
        self.stars(name).is_some()
    }

    /// What each star stands for in a name that matches.
    pub fn stars<'n>(&self, name: &'n str) -> Option<Vec<&'n str>> {
        let [first, between @ .., last] = self.0.as_slice() else { return (self.0[0] == name).then(Vec::new) };
        let (mut rest, mut stars) = (name.strip_prefix(first.as_str())?, Vec::new());
        for run in between {
            let at = rest.find(run.as_str())?;
            stars.push(&rest[..at]);
            rest = &rest[at + run.len()..];
        }
        stars.push(rest.strip_suffix(last.as_str())?);
        Some(stars)
    }
}
