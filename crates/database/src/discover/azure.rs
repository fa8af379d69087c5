//! Variables by which a cloud's app service hands connection strings to an app.

use crate::connection::ConnectionType;

/// The type and the name in a variable of that form (`MYSQLCONNSTR_localdb`).
pub(super) fn split(variable: &str) -> Option<(ConnectionType, &str)> {
    ConnectionType::ALL.into_iter().find_map(|typed| {
        let prefix = typed.variable_prefix();
        let head = variable.get(..prefix.len())?;
        let name = variable.get(prefix.len()..)?;
        (head.eq_ignore_ascii_case(prefix) && !name.is_empty()).then_some((typed, name))
    })
}
