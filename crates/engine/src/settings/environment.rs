//! The settings of an app as its command finds them.
//!
//! Invariants: a setting is found as `NAME` and `APPSETTING_NAME`, a connection string as `PREFIX_NAME` with the prefix of its
//! type, as on Azure App Service. A variable's name has letters, digits and `_` alone, because a shell drops others: `:`
//! becomes `__`, `.` and `-` become `_`, as there. Of two that would have the same name, the one that has it as it is wins.
//! An app with a MySQL of its own finds that too (`MYSQLCONNSTR_localdb`, `MYSQL_UNIX_PORT`), where it has no setting of that name.
//! Values are opened when a process is about to be started and live as long as that takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use backstay_catalog::{Catalog, PRODUCTION, SettingKind, SettingRecord};
use backstay_model::{AppName, Result, Secret};
use backstay_platform::Environment;

use super::{open, type_of};
use crate::in_app;
use crate::sealed::opening_keys;
use crate::state::Engine;

impl Engine {
    /// The variables of an app's command, to be opened when it is started.
    pub(crate) fn environment(&self, app: &AppName) -> Result<Environment> {
        let (catalog, state, app) = (Arc::clone(self.catalog()?), self.state.clone(), app.clone());
        Ok(Environment::new(move || variables(&*catalog, &state, &app)))
    }
}

fn variables(catalog: &dyn Catalog, state: &Path, app: &AppName) -> Result<Vec<(String, Secret)>> {
    let has_own = catalog.app(app)?.is_some_and(|app| app.config.in_app_mysql);
    // What a person has set by that name comes later and wins.
    let mut variables = if has_own { in_app::variables(state, app)? } else { Vec::new() };
    let records = catalog.settings(app, PRODUCTION)?;
    if records.is_empty() {
        return Ok(variables);
    }
    let keys = opening_keys(state)?;
    let opened: Result<Vec<_>> = records.iter().map(|r| Ok((r, open(&keys, app, r)?))).collect();
    variables.extend(named(&opened?)?);
    Ok(variables)
}

/// The variables of settings: those whose names had to be changed first, so that the others win.
fn named(settings: &[(&SettingRecord, Secret)]) -> Result<Vec<(String, Secret)>> {
    let mut found = BTreeMap::new();
    for exact in [false, true] {
        for (record, value) in settings {
            let name = variable(&record.name);
            if (name == record.name) != exact {
                continue;
            }
            match record.kind {
                SettingKind::Setting => {
                    // No variable begins with a digit.
                    if !name.starts_with(|c: char| c.is_ascii_digit()) {
                        found.insert(name.clone(), value.clone());
                    }
                    found.insert(format!("APPSETTING_{name}"), value.clone());
                }
                SettingKind::Connection => {
                    found.insert(format!("{}{name}", type_of(record)?.variable_prefix()), value.clone());
                }
            }
        }
    }
    Ok(found.into_iter().collect())
}

fn variable(name: &str) -> String {
    name.replace(':', "__").replace(['.', '-'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn record(name: &str, connection_type: Option<&str>) -> SettingRecord {
        SettingRecord {
            kind: if connection_type.is_some() { SettingKind::Connection } else { SettingKind::Setting },
            name: name.to_owned(),
            value: String::new(),
            connection_type: connection_type.map(str::to_owned),
            sticky: false,
            changed: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn variables_are_named_as_on_azure_app_service() {
        let records = [
            record("DB", Some("PostgreSQL")),
            record("Cache.x", Some("Custom")),
            record("M", Some("MySql")),
            record("S", Some("SQLServer")),
            record("Z", Some("SQLAzure")),
            record("1st", None),
            record("A-B", None),
            record("A_B", None),
            record("Log:Level", None),
        ];
        let settings: Vec<_> = records.iter().map(|r| (r, Secret::new(format!("v {}", r.name)))).collect();
        let named = named(&settings).unwrap();
        let named: Vec<(&str, &str)> = named.iter().map(|(n, v)| (n.as_str(), v.reveal())).collect();
        let expected = [
            ("APPSETTING_1st", "v 1st"),
            ("APPSETTING_A_B", "v A_B"),
            ("APPSETTING_Log__Level", "v Log:Level"),
            ("A_B", "v A_B"),
            ("CUSTOMCONNSTR_Cache_x", "v Cache.x"),
            ("Log__Level", "v Log:Level"),
            ("MYSQLCONNSTR_M", "v M"),
            ("POSTGRESQLCONNSTR_DB", "v DB"),
            ("SQLAZURECONNSTR_Z", "v Z"),
            ("SQLCONNSTR_S", "v S"),
        ];
        assert_eq!(named, expected);
    }
}
