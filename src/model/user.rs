//! Users: their numbers, which the kernel uses, and their names in /etc/passwd.

/// A user, as the kernel numbers it in this user namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its name in /etc/passwd, if it has one there.
    pub name: Option<String>,
}

impl User {
    /// The form for a sentence: `uid 33, www-data`. Escape it for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.name {
            Some(name) => format!("uid {}, {name}", self.uid),
            None => format!("uid {}", self.uid),
        }
    }
}
