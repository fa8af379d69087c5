//! `backstay connection check`

use backstay_engine::{Checked, ConnectionCheck, Engine, TlsMode};
use backstay_model::{AppName, Code, Result};
use serde::Serialize;

use crate::args::LookedAt;
use crate::failure::say;
use crate::out::Out;
use crate::signals;
use crate::text::size;

#[derive(Serialize)]
struct Checks {
    app: AppName,
    connections: Vec<ConnectionCheck>,
}

/// Looks at the databases of an app. Status 1 when one fails, 3 when one is only incomplete.
pub fn run(engine: &Engine, args: &LookedAt, out: &mut Out) -> Result<u8> {
    let app: AppName = args.app.parse()?;
    let cancel = signals::watch()?;
    let connections = engine.check_connections(&app, args.name.as_deref(), &cancel)?;
    if connections.is_empty() {
        say(format!(
            "App `{app}` has no connection strings. `backstay connection discover {app}` looks for some in its files."
        ));
    }
    let any = |result| connections.iter().any(|check: &ConnectionCheck| check.result == result);
    let status = match (any(Checked::Failed), any(Checked::Incomplete)) {
        (true, _) => Code::DatabaseFailed.exit(),
        (false, true) => Code::PartiallySucceeded.exit(),
        (false, false) => 0,
    };
    out.either(&Checks { app, connections }, |all| {
        all.connections.iter().map(text).collect::<Vec<_>>().join("\n\n")
    })?;
    Ok(status)
}

fn text(check: &ConnectionCheck) -> String {
    let to = check.points_to.as_deref().unwrap_or("no database");
    let own = if check.in_app { ", the app's own (MySQL in-app)" } else { "" };
    let mut lines = vec![format!("{}: {}, {to}{own}", check.name, word(check.result))];
    lines.extend(check.version.as_ref().map(|version| {
        let user = check.user.as_deref().unwrap_or_default();
        format!("  server: {version}, which sees us as {user}, {}", tls(check))
    }));
    lines.extend(check.estimated_bytes.map(|bytes| {
        let tool = check.tool.as_ref().map(|tool| format!("{} {}", tool.path, tool.version));
        let tool = tool.unwrap_or_default();
        format!("  dump: about {}, by {}", size(bytes), tool.trim())
    }));
    lines.extend(check.missing.iter().map(|missing| format!("  missing: {missing}")));
    match (&check.error, check.result) {
        (Some(error), Checked::NoDatabase) => {
            lines.push(format!(
                "  note: given to the app, and not backed up as a database. {}",
                error.message
            ));
        }
        (Some(error), _) => {
            lines.push(format!("  {}", error.message));
            lines.push(format!("  code: {}", error.code));
            lines.extend(error.cause.iter().map(|cause| {
                let cause = cause.trim_end().replace('\n', "\n         ");
                format!("  cause: {cause}")
            }));
            lines.push(format!("  do: {}", error.advice));
        }
        (None, Checked::Content) => {
            lines.push("  note: a file of the home: a consistent copy is in each point anyway".to_owned());
        }
        (None, _) => {}
    }
    let word = if check.by_hand { "warning" } else { "note" };
    lines.extend(check.notes.iter().map(|note| format!("  {word}: {note}")));
    if !check.in_points && !check.by_hand && !matches!(check.result, Checked::NoDatabase | Checked::Content) {
        lines.push("  note: it is left out of points, as `backstay app set` says".to_owned());
    }
    lines.join("\n")
}

fn word(result: Checked) -> &'static str {
    match result {
        Checked::Well => "well",
        Checked::Incomplete => "INCOMPLETE",
        Checked::Failed => "FAILED",
        Checked::Content | Checked::NoDatabase => "nothing to check",
    }
}

/// TLS as it is.
fn tls(check: &ConnectionCheck) -> String {
    let Some(version) = &check.tls else { return "without TLS".to_owned() };
    let verified = match check.tls_verified {
        Some(TlsMode::VerifyFull) => "the certificate is of a known authority and of this host",
        Some(TlsMode::VerifyCa) => "the certificate is of a known authority",
        _ => "the certificate is not verified",
    };
    format!("{version} ({verified})")
}
