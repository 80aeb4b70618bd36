//! The samples of one collection, by family.

use super::family::MetricFamily;

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SampleValue {
    /// A whole number.
    Integer(u64),
    /// A floating-point number.
    Float(f64),
}

impl From<u64> for SampleValue {
    fn from(number: u64) -> Self {
        Self::Integer(number)
    }
}

impl From<u32> for SampleValue {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<usize> for SampleValue {
    fn from(number: usize) -> Self {
        Self::Integer(number as u64)
    }
}

impl From<bool> for SampleValue {
    fn from(yes: bool) -> Self {
        Self::Integer(yes.into())
    }
}

impl From<f64> for SampleValue {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

/// The samples of all families, each with the values of its labels.
#[derive(Clone, Debug)]
pub struct Samples(Vec<Vec<(Vec<String>, SampleValue)>>);

impl Default for Samples {
    fn default() -> Self {
        Self(vec![vec![]; MetricFamily::ALL.len()])
    }
}

impl Samples {
    /// Adds a sample. `labels` has the values of the labels in the order of [`MetricFamily::labels`].
    pub fn add<L: Into<String>>(
        &mut self,
        family: MetricFamily,
        labels: impl IntoIterator<Item = L>,
        value: impl Into<SampleValue>,
    ) {
        let labels: Vec<String> = labels.into_iter().map(Into::into).collect();
        debug_assert_eq!(labels.len(), family.labels().len(), "{}", family.name());
        self.0[family as usize].push((labels, value.into()));
    }

    /// Adds a sample, if its value is known.
    pub fn add_known<L: Into<String>>(
        &mut self,
        family: MetricFamily,
        labels: impl IntoIterator<Item = L>,
        value: Option<impl Into<SampleValue>>,
    ) {
        if let Some(value) = value {
            self.add(family, labels, value);
        }
    }

    /// The families that have a sample, in the order of [`MetricFamily::ALL`].
    pub fn families(&self) -> impl Iterator<Item = (MetricFamily, &[(Vec<String>, SampleValue)])> {
        let all = MetricFamily::ALL.into_iter().zip(&self.0);
        all.filter(|(_, rows)| !rows.is_empty()).map(|(family, rows)| (family, rows.as_slice()))
    }

    /// The samples of a family.
    #[must_use]
    pub fn of(&self, family: MetricFamily) -> &[(Vec<String>, SampleValue)] {
        &self.0[family as usize]
    }

    /// The number of samples.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}
