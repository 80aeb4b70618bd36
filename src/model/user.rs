//! Users: their numbers, which the kernel uses, and their names in /etc/passwd.

use std::fmt;
use std::str::FromStr;

/// A user: its number in the user namespace of twtool, and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its name in /etc/passwd, if it has one there.
    pub name: Option<String>,
}

/// A user in an argument of twtool, as a number or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserArg {
    /// Digits only: the number.
    Uid(u32),
    /// A name in /etc/passwd.
    Name(String),
}

impl FromStr for UserArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return if text.is_empty() { Err("it is empty".into()) } else { Ok(Self::Name(text.to_owned())) };
        }
        // For setresuid(2), the highest number means "no change".
        let uid = text.parse().ok().filter(|uid| *uid != u32::MAX);
        uid.map(Self::Uid).ok_or_else(|| "the number of a user is 0-4294967294".into())
    }
}

impl fmt::Display for UserArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => fmt::Display::fmt(uid, f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl User {
    /// The user in a sentence, such as `uid 33, www-data`. Escape the text before you write it to a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.name {
            Some(name) => format!("uid {}, {name}", self.uid),
            None => format!("uid {}", self.uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_argument_of_only_digits_is_a_number_and_any_other_is_a_name() {
        let parse = |text: &str| text.parse::<UserArg>();
        assert_eq!((parse("0"), parse("4294967294")), (Ok(UserArg::Uid(0)), Ok(UserArg::Uid(u32::MAX - 1))));
        assert_eq!(parse("www-data"), Ok(UserArg::Name("www-data".into())));
        assert_eq!(parse("-1"), Ok(UserArg::Name("-1".into())));
        for bad in ["", "4294967295", "99999999999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
