//! `/`: the status for the eye. One HTML text without scripts or outside assets, made from the same document as `/status`.
//!
//! Invariant: every value passes through [`escape`]; names and error texts come from databases and are not ours.

use std::fmt::Write;

use serde_json::Value;

use crate::status::{RoleState, State};

/// Seconds between two loads of the page.
const REFRESH_SECONDS: u32 = 2;

const HEAD: &str = r#"<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top }
th { font-weight: 600 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
code, pre { font-family: ui-monospace, monospace; font-size: .9em } pre { white-space: pre-wrap; margin: .3rem 0 }
.good { color: #1a7f37 } .busy { color: #9a6700 } .bad { color: #cf222e; font-weight: 600 }
footer { margin-top: 2rem; opacity: .7 }
</style>"#;

/// The page for a status document and the same roles' states.
pub fn render(status: &Value, roles: &[RoleState]) -> String {
    let mut html = String::with_capacity(8192);
    let pipeline = escape(status["pipeline"].as_str().unwrap_or_default());
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"{REFRESH_SECONDS}\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>lockstep {pipeline}</title>{HEAD}\
         <h1>lockstep · {pipeline}</h1>"
    );
    roles_table(&mut html, status, roles);
    if let Some(why) = status["configuration"]["refused"].as_str() {
        let _ = write!(html, "<h2 class=\"bad\">the edited configuration is not taken</h2><pre>{}</pre>", escape(why));
    }
    halts(&mut html, status);
    tables_table(&mut html, status);
    html.push_str(
        "<footer><a href=\"/status\">/status</a> · <a href=\"/metrics\">/metrics</a> · \
         <a href=\"/readyz\">/readyz</a> · <a href=\"/healthz\">/healthz</a></footer></html>",
    );
    html
}

fn roles_table(html: &mut String, status: &Value, roles: &[RoleState]) {
    html.push_str(
        "<table><tr><th>role<th>state<th>position<th class=\"n\">lag, bytes<th class=\"n\">lag, seconds\
         <th class=\"n\">log retained, bytes<th>waiting for</tr>",
    );
    for role in roles {
        let facts = match role.role.strip_prefix("sink:") {
            Some(sink) => &status["sinks"][sink],
            None => &status["source"],
        };
        let waiting = facts["waiting_for"].as_str().unwrap_or_default();
        let _ = write!(
            html,
            "<tr><td>{}<td class=\"{}\">{}<td><code>{}</code><td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}<td>{}</tr>",
            escape(&role.role),
            class(role.state),
            role.state,
            value(&facts["position"]),
            value(&facts["lag_bytes"]),
            value(&facts["lag_seconds"]),
            value(&facts["slot_retained_bytes"]),
            escape(waiting),
        );
    }
    html.push_str("</table>");
}

fn halts(html: &mut String, status: &Value) {
    let source = status["source"].as_object().map(|_| ("source".to_owned(), &status["source"]["halt"]));
    let sinks = status["sinks"].as_object().into_iter().flatten();
    let sinks = sinks.map(|(name, sink)| (format!("sink:{name}"), &sink["halt"]));
    for (role, halt) in source.into_iter().chain(sinks).filter(|(_, halt)| halt.is_object()) {
        let _ = write!(
            html,
            "<h2 class=\"bad\">{} halted: {}</h2><pre>{}</pre><p>What to type:</p><pre>{}</pre><p>since {}</p>",
            escape(&role),
            value(&halt["code"]),
            value(&halt["message"]),
            value(&halt["hint"]),
            value(&halt["since"]),
        );
    }
}

fn tables_table(html: &mut String, status: &Value) {
    let tables = status["tables"].as_object().filter(|tables| !tables.is_empty());
    let Some(tables) = tables else { return };
    html.push_str("<h2>Tables</h2><table><tr><th>table<th>at<th>phase<th class=\"n\">rows done<th class=\"n\">rows, estimated<th class=\"n\">rows/s<th class=\"n\">seconds left</tr>");
    for (table, keys) in tables {
        let source = keys["phase"].is_string().then_some(("source", keys));
        let sinks = keys.as_object().into_iter().flatten().filter(|(_, sink)| sink.is_object());
        for (place, at) in source.into_iter().chain(sinks.map(|(name, sink)| (name.as_str(), sink))) {
            let _ = write!(
                html,
                "<tr><td>{}<td>{}<td>{}{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}</tr>",
                escape(table),
                escape(place),
                value(&at["phase"]),
                if at["equal"] == false { ", not equal" } else { "" },
                value(&at["rows_done"]),
                value(&at["rows_estimated"]),
                value(&at["rows_per_second"]),
                value(&at["eta_seconds"]),
            );
        }
    }
    html.push_str("</table>");
}

fn class(state: State) -> &'static str {
    match state {
        State::Streaming | State::Standby => "good",
        State::Starting | State::Snapshot | State::Paused => "busy",
        State::Retrying | State::Halted => "bad",
    }
}

/// A scalar as text; a dash for what is not known.
fn value(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => escape(text),
        Value::Number(number) if number.is_f64() => format!("{:.1}", number.as_f64().unwrap_or_default()),
        other => escape(&other.to_string()),
    }
}

/// Text as HTML text, also safe inside a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
