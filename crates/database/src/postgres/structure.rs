//! The structure of a database as one hash: schemas, tables, columns, keys, indexes, types, routines, triggers, policies.
//!
//! Invariants: the same for a database and for what was restored from its dump by the same major version of the server.
//! Owners, grants and comments are not in it: a restore may leave them out.

use sha2::{Digest as _, Sha256};

use backstay_model::Result;

use super::catalog::{OURS, unowned};
use super::connect::{Session, literal};

/// A hash of the structure.
pub(super) fn schema_hash(session: &mut Session) -> Result<String> {
    let mut lines: Vec<String> = Vec::new();
    for (name, sql) in tables().into_iter().chain(code(session.version)) {
        // How PostgreSQL writes an expression may change when it has read what it wrote: casts move and parentheses
        // come and go.
        let sql = format!(
            "SELECT pg_catalog.regexp_replace(pg_catalog.regexp_replace(x.line, {}, '', 'g'), '[()[:space:]]', '', 'g')
               FROM ({sql}) x(line) WHERE x.line IS NOT NULL",
            literal(CASTS)
        );
        let found: Vec<String> = session.column(&sql, &[])?;
        lines.extend(found.into_iter().map(|line| format!("{name} {line}\n")));
    }
    lines.sort();
    let mut hash = Sha256::new();
    for line in &lines {
        hash.update(line);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A cast as PostgreSQL writes it.
const CASTS: &str = r#"::(character varying|timestamp with(out)? time zone|time with(out)? time zone|double precision|bit varying|"[^"]+"|[A-Za-z_][A-Za-z0-9_$]*)(\.("[^"]+"|[A-Za-z_][A-Za-z0-9_$]*))?(\([0-9, ]+\))?( with(out)? time zone)?(\[\])*"#;

/// The queries of schemas, tables and types: each gives a line for an object. `~` stands between the parts.
fn tables() -> Vec<(&'static str, String)> {
    let of = |catalog: &str, oid: &str| format!("{OURS} AND {}", unowned(catalog, oid));
    let class = "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";
    let name = "n.nspname || '.' || c.relname";
    vec![
        (
            "schema",
            format!(
                "SELECT n.nspname::text FROM pg_catalog.pg_namespace n WHERE {}",
                of("pg_namespace", "n.oid")
            ),
        ),
        ("extension", "SELECT extname::text FROM pg_catalog.pg_extension".to_owned()),
        (
            "relation",
            format!(
                "SELECT {name} || '~' || c.relkind::text || c.relpersistence::text || c.relrowsecurity::text || c.relforcerowsecurity::text
                     || '~' || coalesce(pg_catalog.pg_get_viewdef(CASE WHEN c.relkind IN ('v', 'm') THEN c.oid END), '')
                     || '~' || coalesce(pg_catalog.pg_get_partkeydef(c.oid), '')
                     || '~' || coalesce(pg_catalog.pg_get_expr(c.relpartbound, c.oid), '')
                   FROM {class} WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND c.relpersistence <> 't' AND {}",
                of("pg_class", "c.oid")
            ),
        ),
        (
            "column",
            format!(
                "SELECT {name} || '.' || a.attname || '~' || pg_catalog.format_type(a.atttypid, a.atttypmod) || '~'
                     || a.attnotnull::text || a.attidentity::text || a.attgenerated::text || '~'
                     || coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')
                   FROM {class} JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
                        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND c.relpersistence <> 't'
                        AND a.attnum > 0 AND NOT a.attisdropped AND {}",
                of("pg_class", "c.oid")
            ),
        ),
        (
            "constraint",
            format!(
                "SELECT n.nspname || '.' || coalesce(c.relname, t.typname) || '.' || k.conname || '~'
                     || pg_catalog.pg_get_constraintdef(k.oid) || '~' || k.convalidated::text
                   FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_namespace n ON n.oid = k.connamespace
                        LEFT JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
                        LEFT JOIN pg_catalog.pg_type t ON t.oid = k.contypid
                  WHERE k.contype <> 't' AND {OURS} AND {} AND {}",
                unowned("pg_class", "k.conrelid"),
                unowned("pg_type", "k.contypid")
            ),
        ),
        (
            "index",
            format!(
                "SELECT pg_catalog.pg_get_indexdef(i.indexrelid)
                   FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relpersistence <> 't' AND {}",
                of("pg_class", "c.oid")
            ),
        ),
        (
            "inheritance",
            "SELECT h.inhrelid::regclass::text || '~' || h.inhparent::regclass::text FROM pg_catalog.pg_inherits h
               JOIN pg_catalog.pg_class c ON c.oid = h.inhrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname !~ '^pg_' AND c.relkind IN ('r', 'p', 'f')"
                .to_owned(),
        ),
        (
            "sequence",
            format!(
                "SELECT {name} || '~' || pg_catalog.format_type(s.seqtypid, NULL) || '~' || s.seqstart::text || '~' || s.seqincrement::text
                     || '~' || s.seqmax::text || '~' || s.seqmin::text || '~' || s.seqcache::text || '~' || s.seqcycle::text
                   FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relpersistence <> 't' AND {}",
                of("pg_class", "c.oid")
            ),
        ),
        (
            "type",
            format!(
                "SELECT n.nspname || '.' || t.typname || '~' || t.typtype::text || '~' || t.typnotnull::text || '~'
                     || coalesce(pg_catalog.format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype END, t.typtypmod), '')
                     || '~' || coalesce(t.typdefault, '') || '~' || coalesce((SELECT pg_catalog.string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder)
                         FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid), '')
                   FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
                  WHERE t.typtype IN ('d', 'e', 'r', 'b') AND t.typelem = 0 AND {}",
                of("pg_type", "t.oid")
            )
        ),
    ]
}

/// The same of what runs in the database: routines, triggers, rules, policies.
fn code(version: i32) -> Vec<(&'static str, String)> {
    let of = |catalog: &str, oid: &str| format!("{OURS} AND {}", unowned(catalog, oid));
    let name = "n.nspname || '.' || c.relname";
    vec![
        ("routine", routines(version, &of("pg_proc", "p.oid"))),
        (
            "trigger",
            format!(
                "SELECT pg_catalog.pg_get_triggerdef(g.oid) || '~' || g.tgenabled::text
                   FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE NOT g.tgisinternal AND {}",
                of("pg_class", "c.oid")
            ),
        ),
        (
            "rule",
            format!(
                "SELECT pg_catalog.pg_get_ruledef(r.oid) || '~' || r.ev_enabled::text
                   FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE r.rulename <> '_RETURN' AND {}",
                of("pg_class", "c.oid")
            ),
        ),
        (
            "policy",
            format!(
                "SELECT {name} || '.' || l.polname || '~' || l.polcmd::text || l.polpermissive::text
                     || '~' || coalesce(pg_catalog.pg_get_expr(l.polqual, l.polrelid), '')
                     || '~' || coalesce(pg_catalog.pg_get_expr(l.polwithcheck, l.polrelid), '')
                   FROM pg_catalog.pg_policy l JOIN pg_catalog.pg_class c ON c.oid = l.polrelid
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {}",
                of("pg_class", "c.oid")
            ),
        ),
    ]
}

/// Functions and procedures, aggregates by their names and arguments alone.
fn routines(version: i32, of: &str) -> String {
    let aggregate = if version >= 110_000 { "p.prokind = 'a'" } else { "p.proisagg" };
    format!(
        "SELECT n.nspname || '.' || p.proname || '~' || pg_catalog.pg_get_function_identity_arguments(p.oid) || '~'
             || CASE WHEN {aggregate} THEN 'aggregate' ELSE pg_catalog.pg_get_functiondef(p.oid) END
           FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE {of}"
    )
}
