//! `lockstep status`: the `/status` of a running process as a table.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::progress::clock;
use super::{ConfigArgs, Failure, columns};
use crate::http::client;

/// The answer is made from memory; a process that takes longer is in trouble.
const PATIENCE: Duration = Duration::from_secs(5);

/// Show what a running process says of its pipeline: states, positions, lags, halts and what to type
///
/// Asks [http] listen of the configuration, or --url. Exits with 0 if the process answered, whatever it said; for scripts
/// that want to know whether all is well: curl -f http://HOST:PORT/readyz.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct StatusArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the process listens, instead of the configuration's address
    #[arg(long, value_name = "http://HOST:PORT")]
    url: Option<String>,
    /// Print the JSON as it came
    #[arg(long)]
    json: bool,
}

pub fn run(args: &StatusArgs) -> Result<u8, Failure> {
    let base = match &args.url {
        Some(url) => url.trim_end_matches('/').trim_end_matches("/status").to_owned(),
        None => {
            let listen = super::load(&args.config.config)?.http.listen;
            let off = || Failure::Usage("[http] listen is off, so there is nothing to ask".to_owned());
            format!("http://{}", reachable(listen.ok_or_else(off)?))
        }
    };
    let answer = super::block_on(client::get(&format!("{base}/status"), PATIENCE));
    let answer =
        answer.map_err(|error| Failure::Other(format!("{error}\n  help: is `lockstep run` running there?")))?;
    let foreign = || Failure::Other(format!("{base} answered, but it is no lockstep"));
    let status: Value = serde_json::from_str(&answer.body).map_err(|_| foreign())?;
    if answer.status != 200 || !status["pipeline"].is_string() {
        return Err(foreign());
    }
    super::print(&if args.json { answer.body + "\n" } else { table(&status) })?;
    Ok(0)
}

/// A process that listens everywhere is asked on this machine.
fn reachable(listen: std::net::SocketAddr) -> std::net::SocketAddr {
    let mut address = listen;
    if listen.ip().is_unspecified() {
        address.set_ip(match listen {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn table(status: &Value) -> String {
    let mut roles = Vec::new();
    if status["source"].is_object() {
        roles.push(("source".to_owned(), &status["source"]));
    }
    let sinks = status["sinks"].as_object().into_iter().flatten();
    roles.extend(sinks.map(|(name, sink)| (format!("sink:{name}"), sink)));

    let mut rows = vec![cells(&["ROLE", "STATE", "POSITION", "LAG BYTES", "LAG S", "RETAINED", "WAITING FOR"])];
    for (name, role) in &roles {
        let keys = ["state", "position", "lag_bytes", "lag_seconds", "slot_retained_bytes"];
        let values = keys.iter().map(|key| scalar(&role[key]));
        let waiting = role["waiting_for"].as_str().unwrap_or_default().to_owned();
        rows.push(std::iter::once(name.clone()).chain(values).chain([waiting]).collect());
    }
    let mut out = format!("pipeline {}\n\n{}", scalar(&status["pipeline"]), columns(&rows));
    out.push_str(&tables(&status["tables"]));
    if let Some(why) = status["configuration"]["refused"].as_str() {
        let _ = write!(out, "\nthe edited configuration is not taken:\n{why}\n");
    }
    for (name, role) in &roles {
        let retry = &role["retry"];
        if retry["breaker"] == "open" || retry["breaker"] == "half_open" {
            let what = if retry["breaker"] == "open" { "the next probe is at" } else { "it is being probed, since" };
            let (failures, since, next) =
                (scalar(&retry["failures"]), scalar(&retry["since"]), scalar(&retry["next_try"]));
            let error = scalar(&retry["error"]);
            let _ = write!(out, "\n{name} failed {failures} times in a row since {since}; {what} {next}\n  {error}\n");
        }
        if let (Some(rows), Some(sink)) = (role["parked_rows"].as_u64(), name.strip_prefix("sink:")) {
            let _ = write!(
                out,
                "\n{name} refused {rows} rows, which are parked\n  help: lockstep retry --sink {sink} --list\n"
            );
        }
        let halt = &role["halt"];
        if halt.is_object() {
            let message = scalar(&halt["message"]).replace('\n', "\n  ");
            let (code, since, hint) = (scalar(&halt["code"]), scalar(&halt["since"]), scalar(&halt["hint"]));
            let _ = write!(out, "\n{name} halted since {since}\nerror[{code}]: {message}\n  help: {hint}\n");
        }
    }
    out
}

/// Tables that are on their way; those that only stream are counted.
fn tables(tables: &Value) -> String {
    let mut rows = vec![cells(&["TABLE", "AT", "PHASE", "ROWS DONE", "OF ABOUT", "ROWS/S", "LEFT"])];
    let mut streaming = 0;
    for (table, keys) in tables.as_object().into_iter().flatten() {
        let source = keys["phase"].is_string().then_some(("source", keys));
        let sinks = keys.as_object().into_iter().flatten().filter(|(_, sink)| sink.is_object());
        let places: Vec<_> = source.into_iter().chain(sinks.map(|(name, sink)| (name.as_str(), sink))).collect();
        if places.iter().all(|(_, at)| at["phase"] == "streaming" && at["equal"] != false) {
            streaming += 1;
            continue;
        }
        for (place, at) in places {
            let left =
                at["eta_seconds"].as_u64().map_or_else(|| "-".to_owned(), |left| clock(Duration::from_secs(left)));
            let rate = scalar(&at["rows_per_second"]);
            let counts = [scalar(&at["rows_done"]), scalar(&at["rows_estimated"]), rate, left];
            let equal = if at["equal"] == false { ", not equal" } else { "" };
            let phase = format!("{}{equal}", scalar(&at["phase"]));
            rows.push([table.clone(), place.to_owned(), phase].into_iter().chain(counts).collect());
        }
    }
    match (rows.len(), streaming) {
        (1, 0) => String::new(),
        (1, _) => format!("\n{streaming} tables streaming\n"),
        (_, 0) => format!("\n{}", columns(&rows)),
        _ => format!("\n{}{streaming} other tables streaming\n", columns(&rows)),
    }
}

fn cells(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.1}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_says_why_and_when_it_is_probed() {
        let mut status = serde_json::json!({"pipeline": "shop", "sinks": {"orders": {"state": "retrying", "retry": {
            "failures": 4, "error": "connecting to orders: refused", "since": "T1", "next_try": "T2", "breaker": "open"}}}});
        let shown = table(&status);
        let line =
            "sink:orders failed 4 times in a row since T1; the next probe is at T2\n  connecting to orders: refused\n";
        assert!(shown.ends_with(line), "{shown}");
        status["sinks"]["orders"]["retry"]["breaker"] = "closed".into();
        assert!(!table(&status).contains("in a row"), "the next attempt is as good as made");
    }

    #[test]
    fn the_status_reads_as_a_table() {
        let board = crate::status::tests::board();
        insta::assert_snapshot!(table(&board.0.status()), @r"
        pipeline shop

        ROLE         STATE      POSITION   LAG BYTES  LAG S  RETAINED  WAITING FOR
        source       streaming  0/1A2B3C8  0          -      4096
        sink:orders  halted     0/1A2B000  968        241.5  -

        TABLE            AT      PHASE      ROWS DONE  OF ABOUT  ROWS/S  LEFT
        public.products  source  streaming  -          90000     -       -
        public.products  orders  snapshot   12000      90000     -       -

        sink:orders halted since 2026-01-01T00:00:00Z
        error[TOPIC_GAP]: 2 records are missing
          topic shop.public.products, partition 0, offsets 17..18
          help: lockstep resync --all --sink orders
        ");
    }

    #[test]
    fn an_empty_pipeline_is_shown_too() {
        let status = serde_json::json!({"pipeline": "shop", "source": null, "sinks": {}, "tables": {}});
        assert_eq!(table(&status), "pipeline shop\n\nROLE  STATE  POSITION  LAG BYTES  LAG S  RETAINED  WAITING FOR\n");
    }

    #[test]
    fn listening_everywhere_is_asked_here() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()).to_string(), "10.0.0.1:1");
    }
}
