//! Whether a dump could be staged and exchanged with the rights of this user, and what an exchange will do.

use backstay_model::{Code, Error, Result};

use super::connect::{Flavour, Session, name};
use super::dump::FORMAT;
use super::grants::{Grants, pattern};
use super::{exchange, objects, probe, tools};
use crate::adapter::{DumpRecord, Exchange, Options, Side};

/// What is done in each of the databases.
const RIGHTS: [&str; 17] = [
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "CREATE",
    "DROP",
    "ALTER",
    "INDEX",
    "REFERENCES",
    "LOCK TABLES",
    "CREATE VIEW",
    "SHOW VIEW",
    "CREATE ROUTINE",
    "ALTER ROUTINE",
    "EXECUTE",
    "TRIGGER",
    "EVENT",
];

/// Whether objects may be made for other definers than oneself.
pub(super) fn sets_definers(grants: &Grants) -> bool {
    ["SUPER", "SET USER", "SET_USER_ID", "SET_ANY_DEFINER"].iter().any(|right| grants.global(right))
}

/// The right that allows it.
pub(super) fn definer_right(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::MariaDb => "SET USER",
        Flavour::MySql => "SET_USER_ID",
    }
}

pub(super) fn check(
    session: &mut Session,
    options: &Options,
    record: &DumpRecord,
    exchange: &Exchange,
) -> Result<Vec<String>> {
    if record.format != FORMAT {
        let message = format!("The dump is of the form `{}`, which is none of MySQL", record.format);
        return Err(Error::new(Code::DatabaseDumpUnusable, message));
    }
    tools::loader(session.flavour, options)?;
    tools::dumper(session.flavour, options)?;
    let grants = Grants::of(session)?;
    let exists = session.has_database(&exchange.live)?;
    let mut missing = Vec::new();
    let beside = match exchange.staged.rsplit_once("_bs_") {
        Some((base, _)) => format!("{}\\_bs\\_%", pattern(base)),
        None => pattern(&exchange.staged),
    };
    let lacking = |database: &str| RIGHTS.iter().any(|right| !grants.on(database, right));
    if lacking(&exchange.staged) || lacking(&exchange.kept) {
        missing.push(format!("GRANT ALL PRIVILEGES ON {}.* TO {}", name(&beside), session.grantee()));
    }
    if lacking(&exchange.live) {
        let here = name(&pattern(&exchange.live));
        missing.push(format!("GRANT ALL PRIVILEGES ON {here}.* TO {}", session.grantee()));
    }
    if !missing.is_empty() {
        let message = format!(
            "To restore `{}` beside the one in use this user needs: {}",
            exchange.live,
            missing.join("; ")
        );
        return Err(Error::new(Code::DatabasePrivileges, message));
    }
    if exists {
        let unseen = probe::missing(session, &exchange.live)?;
        if !unseen.is_empty() {
            let message =
                format!("The way back would lack something of `{}`: {}", exchange.live, unseen.join("; "));
            return Err(Error::new(Code::DatabasePrivileges, message));
        }
        exchange::definers(session, &exchange.live)?;
        exchange::refuse_foreign_keys(session, exchange, Side::New)?;
    }
    words(session, &grants, record, exchange, exists)
}

/// What will happen.
fn words(
    session: &mut Session,
    grants: &Grants,
    record: &DumpRecord,
    exchange: &Exchange,
    exists: bool,
) -> Result<Vec<String>> {
    let Exchange { live, staged, kept } = exchange;
    let mut words =
        vec![format!("The dump is loaded into `{staged}` and compared; `{live}` is not touched by that")];
    words.push(format!(
        "The disk of the server must have room for both until the other one is removed: about {} MB more",
        record.bytes.div_ceil(1 << 20)
    ));
    if exists {
        words.push(format!(
            "Then all tables of `{live}` move to `{kept}` and the loaded ones take their place in one statement; the name stays"
        ));
        let present = objects::present(session, live)?;
        if !present.is_empty() {
            words.push(format!(
                "{} views, routines, triggers and events of `{live}` are saved there, removed, and made again on the way back",
                present.len()
            ));
        }
        let broken: Vec<_> =
            present.iter().filter(|object| object.broken).map(|object| name(&object.name)).collect();
        if !broken.is_empty() {
            words.push(format!(
                "Views of what is not there cannot be made again on the way back; their text is kept in `_backstay_objects` until the \
                 other side is removed: {}",
                broken.join(", ")
            ));
        }
        words.push(format!("Sessions in `{live}` are ended as far as this user may: stop the app first"));
        words.push(
            "Rights on single stored procedures and functions go with them; those on tables stay".to_owned(),
        );
    } else {
        words.push(format!("`{live}` does not exist: it is made with the server's own character set"));
    }
    if !sets_definers(grants) {
        words.push(format!(
            "Definers of views, routines, triggers and events become `{}`: this user may not name others",
            session.account
        ));
    }
    if record.server != session.server() {
        words.push(format!(
            "The dump is of {}, the server is {}: content is compared, structure is not",
            record.server,
            session.server()
        ));
    }
    Ok(words)
}
