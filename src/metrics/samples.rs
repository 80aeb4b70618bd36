//! The samples of one collection, by family.

use super::family::Family;

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A count.
    Integer(u64),
    /// Any other number.
    Float(f64),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Integer(number as u64)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Integer(yes.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

/// The samples of all families, each with the values of its labels.
#[derive(Clone, Debug)]
pub struct Samples(Vec<Vec<(Vec<String>, Value)>>);

impl Default for Samples {
    fn default() -> Self {
        Self(vec![vec![]; Family::ALL.len()])
    }
}

impl Samples {
    /// Adds a sample. `labels` has the values of the labels in the order of [`Family::labels`].
    pub fn add<L: Into<String>>(
        &mut self,
        family: Family,
        labels: impl IntoIterator<Item = L>,
        value: impl Into<Value>,
    ) {
        let labels: Vec<String> = labels.into_iter().map(Into::into).collect();
        debug_assert_eq!(labels.len(), family.labels().len(), "{}", family.name());
        self.0[family as usize].push((labels, value.into()));
    }

    /// Adds a sample, if its value is known.
    pub fn add_known<L: Into<String>>(
        &mut self,
        family: Family,
        labels: impl IntoIterator<Item = L>,
        value: Option<impl Into<Value>>,
    ) {
        if let Some(value) = value {
            self.add(family, labels, value);
        }
    }

    /// The families that have a sample, in the order of [`Family::ALL`].
    pub fn families(&self) -> impl Iterator<Item = (Family, &[(Vec<String>, Value)])> {
        let all = Family::ALL.into_iter().zip(&self.0);
        all.filter(|(_, rows)| !rows.is_empty()).map(|(family, rows)| (family, rows.as_slice()))
    }

    /// The samples of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> &[(Vec<String>, Value)] {
        &self.0[family as usize]
    }

    /// The number of samples.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}
