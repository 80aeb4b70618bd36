//! The value parser of `--columns`. Its values, help and errors come from the list of columns.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Command, Error};

use crate::view::column::{COLUMNS, Column};

#[derive(Clone)]
pub(super) struct ColumnParser;

impl TypedValueParser for ColumnParser {
    type Value = &'static Column;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Self::Value, Error> {
        if let Some(column) = value.to_str().and_then(|key| Column::find(key.trim())) {
            return Ok(column);
        }
        // The key is unknown, so clap's own parser also fails. Its error message lists the possible values.
        let keys = PossibleValuesParser::new(keys());
        keys.map(|key| Column::find(&key).unwrap_or(&COLUMNS[0])).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(keys()))
    }
}

fn keys() -> impl Iterator<Item = PossibleValue> {
    COLUMNS.iter().map(|column| PossibleValue::new(column.key).help(column.help))
}
