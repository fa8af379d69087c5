//! What the grants of a user allow.
//!
//! Invariant: a line of `SHOW GRANTS` is never repeated: it holds the hash of the password.

use std::collections::BTreeSet;

use backstay_model::Result;

use super::connect::{Session, text};

/// What a user may do.
#[derive(Clone, Debug, Default)]
pub(super) struct Grants(Vec<Grant>);

#[derive(Clone, Debug)]
struct Grant {
    /// The pattern of the databases; none for all.
    database: Option<String>,
    /// The table; none for all.
    table: Option<String>,
    rights: BTreeSet<String>,
}

impl Grants {
    /// Those of the user that the session is.
    pub(super) fn of(session: &mut Session) -> Result<Self> {
        let lines = session.rows("SHOW GRANTS")?;
        Ok(Grants(lines.iter().filter_map(|row| parse(&text(row, 0))).collect()))
    }

    /// Whether a right is given on all of a database.
    pub(super) fn on(&self, database: &str, right: &str) -> bool {
        self.0.iter().any(|grant| {
            let here = grant.database.as_deref().is_none_or(|pattern| matches(pattern, database));
            here && grant.table.is_none() && grant.gives(right, grant.database.is_none())
        })
    }

    /// Whether a right is given on everything.
    pub(super) fn global(&self, right: &str) -> bool {
        self.0.iter().any(|grant| grant.database.is_none() && grant.gives(right, true))
    }

    /// Whether a right is given on a table or on all of its database.
    pub(super) fn on_table(&self, database: &str, table: &str, right: &str) -> bool {
        let exact = |grant: &Grant| {
            grant.database.as_deref() == Some(database) && grant.table.as_deref() == Some(table)
        };
        self.on(database, right) || self.0.iter().any(|grant| exact(grant) && grant.gives(right, false))
    }
}

impl Grant {
    fn gives(&self, right: &str, global: bool) -> bool {
        // Rights on the server alone are part of all rights only where these are given on the server.
        const SERVER: [&str; 8] = [
            "SUPER",
            "SET USER",
            "SET_USER_ID",
            "SET_ANY_DEFINER",
            "CONNECTION ADMIN",
            "CONNECTION_ADMIN",
            "SHOW_ROUTINE",
            "PROCESS",
        ];
        let all = self.rights.contains("ALL PRIVILEGES") && (global || !SERVER.contains(&right));
        all || self.rights.contains(right)
    }
}

/// A line of `SHOW GRANTS`; none where it is about something else (roles, proxies, routines).
fn parse(line: &str) -> Option<Grant> {
    let rest = line.strip_prefix("GRANT ")?;
    let (rights, rest) = rest.split_once(" ON ")?;
    let (database, rest) = part(rest)?;
    let (table, rest) = part(rest.strip_prefix('.')?)?;
    rest.starts_with(" TO ").then_some(())?;
    Some(Grant { database, table, rights: split(rights) })
}

/// `*`, or a name in backticks.
fn part(text: &str) -> Option<(Option<String>, &str)> {
    if let Some(rest) = text.strip_prefix('*') {
        return Some((None, rest));
    }
    let mut name = String::new();
    let mut rest = text.strip_prefix('`')?;
    loop {
        let (before, after) = rest.split_once('`')?;
        name.push_str(before);
        match after.strip_prefix('`') {
            Some(more) => {
                name.push('`');
                rest = more;
            }
            None => return Some((Some(name), after)),
        }
    }
}

/// Rights between commas; those on single columns do not count.
fn split(rights: &str) -> BTreeSet<String> {
    let mut depth = 0_i32;
    let mut parts = vec![String::new()];
    for c in rights.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.iter().map(|part| part.trim().to_uppercase()).filter(|part| !part.contains('(')).collect()
}

/// Whether a pattern of databases (`%` for any text, `_` for any character, `\` before either for itself) fits a name.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern_rest = pattern.chars();
    match pattern_rest.next() {
        None => name.is_empty(),
        Some('%') => {
            let rest = pattern_rest.as_str();
            let mut ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.any(|at| matches(rest, name.get(at..).unwrap_or_default()))
        }
        Some('_') => one(name, |_| true).is_some_and(|rest| matches(pattern_rest.as_str(), rest)),
        Some('\\') => match pattern_rest.next() {
            Some(c) => one(name, |d| d == c).is_some_and(|rest| matches(pattern_rest.as_str(), rest)),
            None => name == "\\",
        },
        Some(c) => one(name, |d| d == c).is_some_and(|rest| matches(pattern_rest.as_str(), rest)),
    }
}

fn one(name: &str, fits: impl Fn(char) -> bool) -> Option<&str> {
    let mut chars = name.chars();
    chars.next().filter(|c| fits(*c)).map(|_| chars.as_str())
}

/// A name as the pattern that fits it alone.
pub(super) fn pattern(name: &str) -> String {
    name.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(lines: &[&str]) -> Grants {
        Grants(lines.iter().filter_map(|line| parse(line)).collect())
    }

    #[test]
    fn rights_on_the_server_on_a_database_and_on_a_table_are_told_apart() {
        let grants = grants(&[
            "GRANT USAGE ON *.* TO `app`@`%` IDENTIFIED BY PASSWORD '*5BCB'",
            "GRANT SELECT, SHOW VIEW, CREATE TEMPORARY TABLES ON `shop`.* TO `app`@`%`",
            "GRANT ALL PRIVILEGES ON `my\\_db`.* TO `app`@`%`",
            "GRANT SELECT (`a`, `b`), INSERT ON `other`.`t``1` TO `app`@`%`",
            "GRANT `role` TO `app`@`%`",
        ]);
        assert!(grants.on("shop", "SELECT") && grants.on("shop", "SHOW VIEW"));
        assert!(!grants.on("shop", "TRIGGER") && !grants.global("SELECT"));
        assert!(grants.on("my_db", "TRIGGER") && !grants.on("myxdb", "TRIGGER"));
        assert!(!grants.on("my_db", "SUPER"));
        assert!(grants.on_table("other", "t`1", "INSERT") && !grants.on_table("other", "t`1", "SELECT"));
    }

    #[test]
    fn patterns_fit_as_the_server_fits_them() {
        for (pattern, name, fits) in [
            ("a%", "abc", true),
            ("a_c", "abc", true),
            ("a\\_c", "abc", false),
            ("%_bs_%", "shop_bs_1_new", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
        assert!(matches(&pattern("a_b%c"), "a_b%c") && !matches(&pattern("a_b%c"), "axb%c"));
    }
}
